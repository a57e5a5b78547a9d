"""How much two ways of running the same training may differ: one table for the tests and the documentation.

Each number is the largest difference over the largest entry, of weights, strengths, multipliers, slacks and penalties
after some steps of Adam at 1e-2 (`equirelax train`: some epochs of the N-body benchmark at its own settings).
"""

from __future__ import annotations

ROUNDING = 1e-10
"""float64, the same sums in another order: a batch in micro-batches, two processes with half of it each."""

COMPILED = 1e-4
"""float32 under torch.compile, whose kernels round otherwise (one rounding is 6e-8; steps of Adam enlarge it)."""

SINGLE = 1e-4
"""float32, the same sums in another order."""

BFLOAT16 = 1e-2
"""Strengths, multipliers, slacks and penalties under bfloat16 autocast: one rounding of an activation is 4e-3."""

BFLOAT16_WEIGHTS = 0.25
"""Weights under bfloat16 autocast: where a gradient is as small as its rounding, Adam's first steps of 1e-2 go either way."""
