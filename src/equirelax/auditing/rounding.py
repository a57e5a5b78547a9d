"""Find outputs that are 0 up to rounding, such as a sum of forces that cancel. The rounding itself has no symmetry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from equirelax.auditing.norms import largest_entry, relative_error
from equirelax.auditing.samples import Case, Leaf, leaves, map_tree

SMALL = {torch.float64: 1e-9, torch.float32: 1e-5}
"""An output below this fraction of the largest entry of the sample and the outputs may be rounding."""
CHANGED = 0.25
"""An output is rounding if its relative change, after every input was rounded differently, exceeds this."""
ROUNDINGS = 2
"""Number of times that the inputs are rounded differently. The largest change counts."""


def floors(case: Case, outputs: Sequence[Leaf], again: Callable[[Case], Sequence[Leaf]]) -> dict[str, float]:
    """Find the outputs that are 0 up to rounding: path -> the largest entry up to which the output counts as 0.

    Two conditions must hold: the output is small compared with everything else, and it changes considerably if every floating
    tensor of the sample changes by a few units in the last place. In half precision, where a single rounding is as large as
    many errors, and for models that fail on inputs that were rounded differently, no output counts as rounding.

    Args:
        case: The model and its sample.
        outputs: The outputs on the sample.
        again: A function that calls the model of a case on its sample, and returns the outputs.
    """
    if case.dtype not in SMALL:
        return {}
    inputs = [leaf.value.detach() for leaf in leaves(case.sample, None) if _plain(leaf)]
    size = max(map(largest_entry, [*inputs, *(leaf.value for leaf in outputs)]), default=0.0)
    floor = SMALL[case.dtype] * size
    small = [leaf for leaf in outputs if leaf.measurable and largest_entry(leaf.value) <= floor]
    changes = {leaf.path: 0.0 for leaf in small}
    for seed in range(ROUNDINGS if small else 0):
        try:
            others = {leaf.path: leaf.value for leaf in again(_rounded_differently(case, seed))}
        except Exception:  # the model accepts only the exact inputs, such as points on a boundary
            return {}
        for leaf in small:
            other = others.get(leaf.path)
            if other is not None and other.shape == leaf.value.shape:
                changes[leaf.path] = max(changes[leaf.path], relative_error(other, leaf.value))
    return {path: floor for path, change in changes.items() if change > CHANGED}


def _plain(leaf: Leaf) -> bool:
    """Whether the entries of a tensor can be changed one by one."""
    return leaf.measurable and leaf.value.layout == torch.strided and not leaf.value.is_nested


def _rounded_differently(case: Case, seed: int) -> Case:
    """The same case, with every floating tensor of the sample changed by a few units in the last place of the run's dtype."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.finfo(case.dtype).eps

    def changed(leaf: Leaf) -> Tensor:
        if not _plain(leaf):
            return leaf.value
        noise = torch.randn(leaf.value.shape, generator=generator, dtype=torch.float64, device="cpu")
        value = leaf.value.detach().double()
        return (value * (1 + 4 * unit * noise.to(value.device))).requires_grad_(leaf.value.requires_grad)

    return dataclasses.replace(case, sample=map_tree(case.sample, None, changed))
