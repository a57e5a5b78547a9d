"""The conformance class of equivariant models."""

from __future__ import annotations

import copy
import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing.samples import call, leaves, map_tree
from equirelax.testing.assertions import assert_equivariant
from equirelax.testing.checks import check, close, equal, finite, skip


class ModelConformance(ABC):
    """Tests for a model. A test file contains

        class TestMyModel(ModelConformance):
            def build(self):
                return model, sample, in_rep, out_rep

    and overrides ``permute`` if the model acts on a set or a graph.
    """

    tolerance: float = 1e-10
    """Largest relative equivariance error in float64."""

    unused: tuple[str, ...] = ()
    """Path patterns (``fnmatch``) of parameters that do not affect the output."""

    @abstractmethod
    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        """Build a model in float64, the same at every call; return it, a sample, and the representations of both."""

    def permute(
        self, sample: Any, generator: torch.Generator
    ) -> tuple[Any, Callable[[Tensor], Tensor]] | None:
        """Permute the nodes of the sample.

        Returns:
            The permuted sample, and a function that restores the order of an output; ``None`` if nothing can be permuted.
        """
        return None

    @staticmethod
    def outputs(model: nn.Module, sample: Any) -> list[Tensor]:
        """The floating tensors that the model returns for a new copy of the sample."""
        copied = map_tree(sample, None, lambda leaf: leaf.value.detach().clone())
        return [leaf.value for leaf in leaves(call(model, copied), None) if leaf.measurable]

    def test_equivariant_in_float64(self) -> None:
        model, sample, in_rep, out_rep = self.build()
        assert_equivariant(model, sample, in_rep, out_rep, tolerance=self.tolerance)

    def test_equivariant_in_float32(self) -> None:
        """The error is at the precision of float32: no division by a small number amplifies rounding."""
        model, sample, in_rep, out_rep = self.build()
        assert_equivariant(model, sample, in_rep, out_rep, dtype=torch.float32, tolerance=1e-4)

    def test_order_of_nodes_does_not_matter(self) -> None:
        model, sample, _, _ = self.build()
        model.eval()
        changed = self.permute(sample, torch.Generator().manual_seed(5))
        if changed is None:
            skip("the model claims no permutation symmetry")
        permuted, back = changed
        for a, b in zip(self.outputs(model, permuted), self.outputs(model, sample), strict=True):
            close(back(a), b, 1e-10, "outputs of the same nodes in another order")

    def test_deterministic(self) -> None:
        model, sample, _, _ = self.build()
        model.eval()
        equal(self.outputs(model, sample), self.outputs(model, sample), "two calls")
        equal(self.outputs(self.build()[0].eval(), sample), self.outputs(model, sample), "two equal models")

    def test_gradients_are_finite_and_reach_every_parameter(self) -> None:
        model, sample, _, _ = self.build()
        model.train()
        losses = [y.square().sum() + y.sum() for y in self.outputs(model, sample)]
        torch.stack(losses).sum().backward()
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        needed = [
            (n, p) for n, p in trained if not any(fnmatch.fnmatch(n, pattern) for pattern in self.unused)
        ]
        missing = [name for name, p in needed if p.grad is None]
        check(not missing, f"no gradient reaches {', '.join(missing)}")
        finite([(name, p.grad) for name, p in trained], "the gradient")

    def test_does_not_write_into_its_input(self) -> None:
        model, sample, _, _ = self.build()
        before = [leaf.value.clone() for leaf in leaves(sample, None)]
        with torch.no_grad():
            call(model, sample)
        equal([leaf.value for leaf in leaves(sample, None)], before, "the sample after a call")

    def test_copies_compute_the_same(self) -> None:
        model, sample, _, _ = self.build()
        model.eval()
        other = self.build()[0].eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        other.load_state_dict(model.state_dict())
        expected = self.outputs(model, sample)
        equal(self.outputs(other, sample), expected, "outputs after load_state_dict")
        equal(self.outputs(copy.deepcopy(model), sample), expected, "outputs after deepcopy")
