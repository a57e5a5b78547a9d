"""The ascent on multipliers beside the formulas, and continued from a saved state."""

from __future__ import annotations

import pytest
import torch

from equirelax.errors import MethodError
from equirelax.methods.dual import DualAscent

GRADIENTS = torch.tensor([[0.3, -1.0], [0.2, 2.0], [-0.7, 0.0], [0.1, 0.5], [0.0, -3.0]], dtype=torch.float64)


def by_hand(optimizer: str, lr: float, eps: float) -> list[torch.Tensor]:
    """The multipliers after every step, starting at 0."""
    here = torch.zeros(2, dtype=torch.float64)
    first, second, found = torch.zeros_like(here), torch.zeros_like(here), []
    for t, gradient in enumerate(GRADIENTS, start=1):
        if optimizer == "sgd":
            here = here + lr * gradient
        else:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            here = here + lr * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + eps)
        found.append(here)
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("interrupted", [None, 0, 2])
def test_every_step_is_the_formula_also_after_loading(optimizer: str, interrupted: int | None) -> None:
    ascent, multipliers = DualAscent(optimizer, 0.1, eps=1e-3), torch.zeros(2, dtype=torch.float64)
    for step, (gradient, expected) in enumerate(zip(GRADIENTS, by_hand(optimizer, 0.1, 1e-3), strict=True)):
        if step == interrupted:
            state, multipliers = ascent.state_dict(), multipliers.clone()
            ascent = DualAscent(optimizer, 0.1, eps=1e-3)
            ascent.check_state(state, 2)
            ascent.load_state_dict(state, multipliers)
        ascent.step(multipliers, gradient)
        torch.testing.assert_close(multipliers, expected, rtol=0, atol=1e-14)
    assert multipliers.grad is None


def test_a_saved_state_has_the_moments_of_the_formula_with_their_sign() -> None:
    """Files of earlier versions hold them so."""
    multipliers = by_hand("adam", 0.1, 1e-3)[0]
    state = {
        "optimizer": "adam",
        "count": 1,
        "first": 0.1 * GRADIENTS[0],
        "second": 0.001 * GRADIENTS[0] ** 2,
    }
    ascent = DualAscent("adam", 0.1, eps=1e-3)
    ascent.load_state_dict(state, multipliers)
    saved = ascent.state_dict()
    assert saved["count"] == 1
    assert torch.equal(saved["first"], state["first"])
    assert torch.equal(saved["second"], state["second"])
    for gradient in GRADIENTS[1:]:
        ascent.step(multipliers, gradient)
    torch.testing.assert_close(multipliers, by_hand("adam", 0.1, 1e-3)[-1], rtol=0, atol=1e-14)


def test_multipliers_that_moved_go_on_with_their_moments() -> None:
    """As when a model changes its device: the multipliers are another tensor then."""
    ascent, multipliers = DualAscent("adam", 0.1, eps=1e-3), torch.zeros(2, dtype=torch.float64)
    for gradient in GRADIENTS:
        multipliers = multipliers.clone()
        ascent.step(multipliers, gradient)
    torch.testing.assert_close(multipliers, by_hand("adam", 0.1, 1e-3)[-1], rtol=0, atol=1e-14)


def test_the_step_size_may_change() -> None:
    ascent, multipliers = DualAscent("sgd", 0.1), torch.zeros(2, dtype=torch.float64)
    ascent.step(multipliers, GRADIENTS[0])
    ascent.lr = 0.2
    ascent.step(multipliers, GRADIENTS[0])
    torch.testing.assert_close(multipliers, 0.3 * GRADIENTS[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("values", [("lbfgs", 0.1, 1e-8), ("adam", 0.0, 1e-8), ("adam", 0.1, -1.0)])
def test_what_is_refused(values: tuple[str, float, float]) -> None:
    with pytest.raises(MethodError):
        DualAscent(*values)
