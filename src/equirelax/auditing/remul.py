"""REMUL's measures of equivariance over a data set (Elhag et al., arXiv 2410.17878), which need no labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing.error import outputs_of
from equirelax.auditing.samples import (
    FROM_MODEL,
    Case,
    Function,
    Leaf,
    act,
    common_group,
    read_representations,
)
from equirelax.auditing.state import measuring
from equirelax.errors import AuditError
from equirelax.symmetry import Group


@dataclasses.dataclass(frozen=True)
class LabelFree:
    """Mean equivariance errors of a model over samples x and elements g_1..g_M.

    Attributes:
        e: E = mean_x || mean_i rho(g_i) f(x) - mean_i f(g_i x) ||. For an invariant output the two means are f(x) and the mean
            of f over the orbit. Since errors of opposite sign cancel, E is at most `e_prime`.
        e_prime: E' = mean_x mean_i || f(g_i x) - rho(g_i) f(x) ||.
        size: mean_x || f(x) ||, the scale of both.
        rows: Number of samples x, which are the entries of the output's first axis (objects, nodes) over all batches.
        elements: Number of elements M.
    """

    e: float
    e_prime: float
    size: float
    rows: int
    elements: int

    @property
    def relative(self) -> float:
        """E' / mean ||f||; 0 if both are 0."""
        return self.e_prime / self.size if self.size > 0 else 0.0


def label_free(
    model: nn.Module | Callable[..., Any],
    batches: Iterable[Any],
    in_rep: Any = FROM_MODEL,
    out_rep: Any = FROM_MODEL,
    group: Group | None = None,
    *,
    samples: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> LabelFree:
    """Measure E and E' of a model over batches, with the same elements g_1..g_M for all batches.

    The model runs in evaluation mode in `dtype` and is restored afterwards. Batches are not written to.

    Args:
        model: A module or a function, as for `audit`.
        batches: Inputs, each as for `audit`: a tensor, a tuple, a mapping or PyG data.
        in_rep, out_rep: Representations of an input and of the single output tensor, as for `audit`.
        group: The group from which elements are sampled; by default that of the representations.
        samples: Number of elements M >= 1. Translations are sampled up to 1, whatever the size of the coordinates.
        seed: Seed of the elements.

    Raises:
        AuditError: There is no batch or more than one output, or the representations do not fit.
        NonFiniteError: The model returns NaN or infinity.
    """
    if samples < 1:
        raise AuditError(f"samples={samples}: at least one group element is needed")
    in_rep, out_rep = read_representations(in_rep, out_rep, group, model)
    group = common_group(group, in_rep, out_rep)
    elements = group.sample(samples, generator=torch.Generator().manual_seed(seed))
    module = model if isinstance(model, nn.Module) else Function(model)
    sums = torch.zeros(3, dtype=torch.float64)
    rows = 0
    with measuring(module, dtype, seed):
        for batch in batches:
            found, count = _batch(Case(module, batch, in_rep, out_rep, group, dtype), elements)
            sums, rows = sums + found, rows + count
    if not rows:
        raise AuditError("there is no batch with an output: nothing was measured")
    e, e_prime, size = (sums / rows).tolist()
    return LabelFree(e, e_prime, size, rows, samples)


def _batch(case: Case, elements: Tensor) -> tuple[Tensor, int]:
    """Sum the terms of E, of E' and of the size over x, and count the samples x."""
    base = _output(case, None)
    drift = torch.zeros_like(base.value)
    each = base.value.new_zeros(len(base.value))
    for g in elements:
        found = _output(case, g).value
        gap = found - act(g, base.value, base.action)
        drift += gap / len(elements)
        each += _norms(gap) / len(elements)
    terms = torch.stack([_norms(drift).sum(), each.sum(), _norms(base.value).sum()])
    return terms.cpu(), len(base.value)


def _output(case: Case, element: Tensor | None) -> Leaf:
    """The model's single output, detached, in float64."""
    every = outputs_of(case, element, "a sample or a moved sample").leaves
    found = [leaf for leaf in every if leaf.measurable]
    if len(found) != 1 or found[0].value.dim() == 0:
        shapes = ", ".join(str(tuple(leaf.value.shape)) for leaf in found) or "none"
        raise AuditError(
            f"the model returns {len(found)} floating tensors (shapes: {shapes}); these measures are of one tensor with "
            "the samples on its first axis: wrap the model to return that"
        )
    return found[0]


def _norms(x: Tensor) -> Tensor:
    """The norms of the entries of the first axis."""
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
