"""What training a relaxed model takes of memory, known before it begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from equirelax.relaxation.residual import Residual
from equirelax.relaxation.terms.precision import penalty_dtype

MOMENTS = 2
"""Tensors like its parameter that Adam keeps for each."""


@dataclass(frozen=True)
class Memory:
    """Bytes, activations left out: these depend on the model's forward, and on the batch.

    Args:
        strict: the author's own parameters.
        residual: parameters of the residuals, strengths included.
        trained: those of both that take a gradient.
        input_row: what a penalty from the inputs keeps of one row (sample, node, edge, point) at every residual, from the
            forward pass to the penalty. Most of it are views of activations that backward needs as well.
        gram: the matrices that exact penalties make of all rows, at most: residuals that read the same share theirs, and
            where there are fewer rows than features, these stand for themselves.
    """

    strict: int
    residual: int
    trained: int
    input_row: int
    gram: int

    @property
    def gradients(self) -> int:
        """Of everything that is trained."""
        return self.trained

    @property
    def optimizer(self) -> int:
        """Adam's (and AdamW's) two moments; SGD keeps one or none."""
        return MOMENTS * self.trained

    @property
    def training(self) -> int:
        """Parameters, gradients and Adam's moments."""
        return self.strict + self.residual + self.gradients + self.optimizer

    def __str__(self) -> str:
        return (
            f"memory: {readable(self.strict)} of weights and {readable(self.residual)} of residuals; with gradients and "
            f"Adam's moments {readable(self.training)}, and activations. A penalty keeps {readable(self.input_row)} for "
            f"every row of input, and makes at most {readable(self.gram)} of Gram matrices"
        )


def readable(count: int) -> str:
    """A number of bytes: "512 B", "1.4 MB"."""
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def memory_of(strict: Iterable[nn.Parameter], residuals: Iterable[Residual]) -> Memory:
    """Memory of a model with these parameters of its own and these residuals."""
    own, residuals = list(strict), list(residuals)
    added = [p for residual in residuals for p in (*residual.map.parameters(), residual.gamma)]
    return Memory(
        strict=sum(p.nbytes for p in own),
        residual=sum(p.nbytes for p in added),
        trained=sum(p.nbytes for p in (*own, *added) if p.requires_grad),
        input_row=_input_row(residuals),
        gram=sum(r.map.penalty_entries(r.in_rep) * penalty_dtype(r.gamma.dtype).itemsize for r in residuals),
    )


def _input_row(residuals: list[Residual]) -> int:
    """What a penalty keeps of one row of input."""
    kept = {id(r.keeper): r.in_rep.dim * r.gamma.element_size() for r in residuals if r.map.reads_inputs}
    return sum(kept.values())
