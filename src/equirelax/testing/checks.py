"""Checks with messages, and skipping, for conformance classes, which do not need pytest."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor


def skip(reason: str) -> NoReturn:
    """Skip the current test, under pytest and unittest."""
    raise unittest.SkipTest(reason)


def check(condition: bool, message: str) -> None:
    """Fail the current test with a message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def same(found: Any, expected: Any, what: str) -> None:
    """Check ``found == expected``. Tensors, including those in dictionaries, are compared with ``torch.equal``."""
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        equal([found], [expected], what)
    elif isinstance(found, dict) and isinstance(expected, dict):
        same(list(found), list(expected), f"keys of {what}")
        for key in found:
            same(found[key], expected[key], f"{key} of {what}")
    else:
        check(found == expected, f"{what}: expected {expected!r}, found {found!r}")


def equal(found: Iterable[Tensor], expected: Iterable[Tensor], what: str) -> None:
    """Check tensors one by one with ``torch.equal``."""
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if not torch.equal(a, b):
            gap = (
                f"differs by {float((a - b).detach().abs().max()):.3g}"
                if a.shape == b.shape
                else "has another shape"
            )
            raise AssertionError(f"{what}: tensor {i} {gap}")


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Check ``|a - b| <= tolerance (1 + |b|)`` for every entry."""
    torch.testing.assert_close(
        found.detach(),
        expected.detach(),
        rtol=tolerance,
        atol=tolerance,
        msg=lambda message: f"{what}: {message}",
    )


def finite(named: Iterable[tuple[str, Tensor | None]], what: str) -> None:
    """Check that no tensor holds NaN or infinity. ``None`` passes."""
    for name, tensor in named:
        check(tensor is None or bool(torch.isfinite(tensor).all()), f"{what} of {name} holds NaN or infinity")


def refused(
    error: type[Exception] | tuple[type[Exception], ...], action: Callable[[], Any], what: str
) -> str:
    """Check that ``action`` raises ``error``, and return its message."""
    try:
        action()
    except error as raised:
        return str(raised)
    raise AssertionError(f"{what} was accepted")
