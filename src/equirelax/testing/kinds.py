"""The conformance class of kinds of residuals."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import equirelax.relaxation as er
from equirelax.errors import PlacementError, UnfoldableError
from equirelax.relaxation.kinds import LinearMap, get
from equirelax.relaxation.kinds.kind import Penalised
from equirelax.relaxation.regularizers import FiniteRotation, LieDerivative, Regularizer, residual_terms
from equirelax.relaxation.regularizers.lie_derivative import choose_rows
from equirelax.relaxation.spec import decode, encode
from equirelax.symmetry import SO, O, Representation, trivial, vector
from equirelax.testing.checks import check, close, equal, finite, refused, same

ROWS = 16
"""Number of rows of inputs, which is larger than their number of features."""


class KindConformance(ABC):
    """Tests for a kind of residuals. A test file contains

    class TestMine(KindConformance):
        def build_kind(self):
            return Mine(init="normal", std=0.3)

    With these settings the map must not be zero.
    """

    axes: ClassVar[tuple[int, ...]] = (-1, -2)
    """The feature axes that the kind supports; others must be rejected."""
    equivariant: ClassVar[bool] = False
    """Whether its maps are equivariant, as for a control."""

    @abstractmethod
    def build_kind(self) -> er.ResidualKind:
        """Build the settings."""

    def reps(self) -> tuple[Representation, Representation]:
        """The representations of input and output, of one group and with several channels of every kind of block."""
        group = O(3)
        return trivial(group, 3) + 3 * vector(group), trivial(group, 2) + 3 * vector(group)

    # Tools

    def build(self, axis: int = -1, seed: int = 0) -> er.ResidualMap:
        """Build a map in float64, which is the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return self.build_kind().build(*self.reps(), axis, generator).double()

    def features(self, axis: int = -1, rows: int = ROWS) -> Tensor:
        """Make inputs (rows, dim), or (4, dim, rows / 4) for features on axis -2."""
        generator = torch.Generator().manual_seed(3)
        dim = self.reps()[0].dim
        shape = (rows, dim) if axis == -1 else (4, dim, rows // 4)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def relaxed(self, seed: int = 0) -> tuple[er.Relaxation, Tensor]:
        """Make a plain linear layer with a residual of the kind, and a batch for it."""
        in_rep, out_rep = self.reps()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = nn.Linear(in_rep.dim, out_rep.dim, dtype=torch.float64)
        model = nn.Sequential(layer)
        placement = er.Layers(residual=self.build_kind(), declare=(er.Linear("0", in_rep, out_rep),))
        return er.relax(model, placement, generator=torch.Generator().manual_seed(seed)), self.features()

    def terms(self, map_: er.ResidualMap, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """The Lie sum and the norm sum of the map over the inputs."""
        in_rep, out_rep = self.reps()
        rule = map_.penalty_rule(in_rep)
        return rule([Penalised(map_, [x], axis, in_rep, out_rep)])[0]

    def slow_terms(self, map_: er.ResidualMap, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """The same sums row by row, with the Jacobian of the map and the matrices of the group."""
        in_rep, out_rep = self.reps()
        rows = x if axis == -1 else x.mT.reshape(-1, x.shape[1])
        group = in_rep.group

        def f(row: Tensor) -> Tensor:
            found: Tensor = map_(row[None] if axis == -1 else row[None, :, None])
            return found.flatten()

        lie, norm = x.new_zeros(()), x.new_zeros(())
        for row in rows:
            y, jacobian = f(row), torch.autograd.functional.jacobian(f, row, create_graph=True)
            norm = norm + y.square().sum()
            for a, b in zip(in_rep.generators(), out_rep.generators(), strict=True):
                lie = lie + (b @ y - jacobian @ (a @ row)).square().sum()
            for g in group.discrete(dtype=torch.float64):
                lie = lie + (out_rep.matrix(g) @ y - f(in_rep.matrix(g) @ row)).square().sum()
        return lie, norm

    # Settings

    def test_is_registered_and_survives_plain_data(self) -> None:
        kind = self.build_kind()
        check(get(kind.name) is type(kind), f"{kind.name!r} is not registered as this kind")
        same(decode(encode(kind)), kind, "the settings after a checkpoint")
        same(hash(dataclasses.replace(kind)), hash(kind), "hash of equal settings")

    def test_unknown_settings_are_refused(self) -> None:
        fields = {field.name for field in dataclasses.fields(self.build_kind())}
        for name in {"init", "std"} & fields:
            wrong: Any = {"init": "zero", "std": -1.0}[name]
            make = functools.partial(dataclasses.replace, self.build_kind(), **{name: wrong})
            words = refused(PlacementError, make, f"{name} = {wrong!r}")
            check(name in words, f"the message does not name {name!r}: {words}")

    # The map

    def test_initial_weights_are_those_of_the_generator(self) -> None:
        one, two, other = self.build(seed=0), self.build(seed=0), self.build(seed=1)
        equal(one.parameters(), two.parameters(), "weights of one seed")
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        check(not all(torch.equal(a, b) for a, b in pairs), "weights do not depend on the generator")

    def test_initial_weights_leave_the_global_generator(self) -> None:
        before = torch.get_rng_state()
        self.build()
        equal([torch.get_rng_state()], [before], "state of PyTorch's global generator")

    def test_the_strength_scales_all_of_the_map(self) -> None:
        scale = torch.tensor([-0.3], dtype=torch.float64)
        for axis in self.axes:
            map_, x = self.build(axis).eval(), self.features(axis)
            plain = map_(x)
            same(map_.feature_axis, axis, "feature axis")
            same(plain.shape[axis], self.reps()[1].dim, "size of the output")
            check(float(plain.detach().abs().max()) > 1e-3, "the map is zero: choose other settings")
            close(map_(x, scale), scale * plain, 1e-12, f"scale on axis {axis}")

    def test_other_axes_are_refused(self) -> None:
        for axis in {-1, -2} - set(self.axes):
            refused(PlacementError, functools.partial(self.build, axis), f"feature axis {axis}")

    def test_a_linear_map_is_its_matrix(self) -> None:
        for axis in self.axes:
            map_, x = self.build(axis), self.features(axis)
            if not isinstance(map_, LinearMap):
                continue
            weight, bias = map_.effective_weight(), map_.effective_bias()
            same(tuple(weight.shape), (self.reps()[1].dim, self.reps()[0].dim), "shape of the weight")
            rows = x if axis == -1 else x.mT
            expected = nn.functional.linear(rows, weight, bias)
            close(map_(x), expected if axis == -1 else expected.mT, 1e-12, f"map and matrix, axis {axis}")

    def test_its_slope_bounds_it(self) -> None:
        map_ = self.build().eval()
        constant = map_.slope().constant
        if constant is None:
            check(bool(map_.slope().reason), "no constant, and no reason")
            return
        x = self.features()
        y = x.roll(1, dims=0)
        slopes = (map_(x) - map_(y)).norm(dim=-1) / (x - y).norm(dim=-1)
        check(float(slopes.detach().max()) <= constant * (1 + 1e-9), f"a slope is above {constant}")

    # Penalties

    def test_penalties_are_the_slow_sums(self) -> None:
        """Compare the sums over all inputs and over a few, and their gradients."""
        for axis in self.axes:
            for rows in (4, ROWS):
                map_, x = self.build(axis).eval(), self.features(axis, rows)
                found, expected = self.terms(map_, x, axis), self.slow_terms(map_, x, axis)
                for name, mine, slow in zip(("Lie", "norm"), found, expected, strict=True):
                    scale = float(expected[1].detach())
                    close(mine / scale, slow / scale, 1e-10, f"{name} sum, axis {axis}, {rows} rows")
                close_gradients(map_, found, expected, f"axis {axis}, {rows} rows")

    def test_penalties_are_differentiable_twice(self) -> None:
        map_, x = self.build().eval(), self.features()
        parameters = list(map_.parameters())
        curvature = []
        for rule in (self.terms, self.slow_terms):
            total = torch.stack(rule(map_, x, -1)).sum()
            first = torch.autograd.grad(total, parameters, create_graph=True)
            second = torch.autograd.grad(
                torch.stack([g.square().sum() for g in first]).sum(), parameters, allow_unused=True
            )
            curvature.append([g for g in second if g is not None])
        for mine, slow in zip(*curvature, strict=True):
            scale = float(slow.abs().max().clamp(min=1e-300))
            close(mine / scale, slow / scale, 1e-8, "second derivative")

    def test_only_an_equivariant_map_has_no_lie_sum(self) -> None:
        lie, norm = (float(term.detach()) for term in self.terms(self.build().eval(), self.features(), -1))
        found = lie <= 1e-20 * norm
        check(found is self.equivariant, f"Lie sum {lie:.3g}, norm sum {norm:.3g}")

    def test_sampled_rows_are_those_rows_scaled_up(self) -> None:
        relaxation, x = self.relaxed()
        residual, rows = relaxation["0"], 5
        residual.map.eval()
        found = residual_terms(residual, [x], rows, torch.Generator().manual_seed(2))
        chosen = choose_rows([x], -1, rows, torch.Generator().manual_seed(2))
        for mine, term in zip(found, residual_terms(residual, [chosen]), strict=True):
            close(mine, ROWS / rows * term, 1e-12, "terms of some rows")

    def test_low_precision_is_penalised_in_float32(self) -> None:
        """The terms must be those of the rounded weights and inputs."""
        relaxation, x = self.relaxed()
        relaxation.model.bfloat16().train()
        residual = relaxation["0"]
        residual.map.eval()
        regularizer = LieDerivative(relaxation)
        relaxation.model(x.bfloat16())
        value = regularizer()
        same(value.dtype, torch.float32, "dtype of the penalty")
        exact = residual_terms(copy.deepcopy(residual).double(), [x.bfloat16().double()])
        for name, mine in zip(("lie", "norm"), exact, strict=True):
            term, scale = regularizer.terms["0"][name].double(), float(exact[1].detach())
            close(term / scale, mine / scale, 1e-4, name)
        value.backward()
        finite([(name, p.grad) for name, p in relaxation.residual_parameters().items()], "the gradient")

    def test_penalties_change_nothing(self) -> None:
        """They must not change running statistics of a residual in training mode."""
        relaxation, x = self.relaxed()
        relaxation.model.train()
        penalties: list[Regularizer] = [LieDerivative(relaxation)]
        if self.reps()[0].group.algebra_dim:
            penalties.append(FiniteRotation(relaxation, 1.0))
        for penalty in penalties:
            relaxation.model(x)
            before = copy.deepcopy(dict(relaxation.model.named_buffers()))
            finite([("all residuals", penalty())], type(penalty).__name__)
            same(dict(relaxation.model.named_buffers()), before, f"buffers after {type(penalty).__name__}")

    def test_the_summary_knows_its_memory(self) -> None:
        relaxation, _ = self.relaxed()
        residual, memory = relaxation["0"], relaxation.summary().memory
        tensors = [*residual.map.parameters(), residual.gamma]
        same(memory.residual, sum(p.nbytes for p in tensors), "bytes of the parameters")
        entries = residual.map.penalty_entries(residual.in_rep)
        check(isinstance(entries, int) and entries >= 0, f"{entries!r} entries")
        same(memory.gram, 8 * entries, "bytes of the penalty's matrices")

    # In a model

    def test_no_strength_changes_nothing_and_dropping_gives_the_model_back(self) -> None:
        relaxation, x = self.relaxed()
        model = relaxation.model.eval()
        with relaxation.strict():
            strict = model(x)
        equal([model(x)], [strict], "outputs at gamma = 0")
        relaxation.set_gamma(0.7)
        check(not torch.equal(model(x), strict), "the residual adds nothing")
        keys = list(relaxation.strict_state_dict())
        er.project(relaxation)
        same(list(model.state_dict()), keys, "keys after the projection")
        equal([model(x)], [strict], "outputs after the projection")

    def test_every_parameter_trains(self) -> None:
        relaxation, x = self.relaxed()
        relaxation.set_gamma(0.7)
        relaxation.model.train()(x).square().sum().backward()
        gradients = {name: p.grad for name, p in relaxation.residual_parameters().items()}
        finite(gradients.items(), "the gradient")
        missing = [name for name, gradient in gradients.items() if gradient is None]
        check(not missing, f"no gradient reaches {', '.join(missing)}")

    def test_autocast_changes_rounding_alone(self) -> None:
        relaxation, x = self.relaxed()
        relaxation.set_gamma(0.7)
        model, x = relaxation.model.float().train(), x.float()
        expected = copy.deepcopy(model)(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x)
        close(found.float(), expected, 0.1, "outputs under autocast")

    def test_a_batch_without_rows_changes_nothing(self) -> None:
        relaxation, x = self.relaxed()
        relaxation.set_gamma(0.7)
        model = relaxation.model.train()
        before = copy.deepcopy(model.state_dict())
        same(tuple(model(x[:0]).shape), (0, self.reps()[1].dim), "shape of the output")
        same(model.state_dict(), before, "the state after a batch without rows")

    def test_copies_pickles_and_files_carry_it(self) -> None:
        relaxation, x = self.relaxed()
        relaxation.set_gamma(0.7)
        model = relaxation.model.eval()
        other, _ = self.relaxed(seed=1)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        other.model.load_state_dict(torch.load(buffer, weights_only=True))
        twins = {
            "deepcopy": copy.deepcopy(model),
            "pickle": pickle.loads(pickle.dumps(model)),
            "a state dict": other.model.eval(),
        }
        for how, twin in twins.items():
            equal([twin(x)], [model(x)], f"outputs after {how}")

    def test_folding_keeps_what_the_layer_can_express(self) -> None:
        relaxation, _ = self.relaxed()
        relaxation.set_gamma(0.7)
        model, residual = relaxation.model.eval(), relaxation["0"]
        if not residual.is_linear:
            refused(UnfoldableError, lambda: er.project(model, mode="fold"), "folding")
            return
        map_ = residual.linear_map
        nearest = map_.projected(residual.in_rep, residual.out_rep)[0]
        before, own = model[0].weight.detach().clone(), map_.effective_weight().detach()  # type: ignore[index]
        er.project(model, mode="fold", unfoldable="raise")
        close(model[0].weight, before + 0.7 * nearest, 1e-12, "the folded weight")  # type: ignore[index]
        if self.equivariant:
            close(nearest, own, 1e-12, "the projection of an equivariant map")

    def test_convolutions_are_served_or_refused(self) -> None:
        """The map of a convolutional layer is a convolution that scales in the same way, or the kind says that it makes none."""
        group = SO(2)
        convolution = er.Convolution((3, 3), _Nothing(), (1, 1), (1, 1), (1, 1))
        try:
            map_: Any = self.build_kind().build_convolution(4, 5, convolution).double().eval()
        except PlacementError as error:
            check("exclude" in str(error), f"the message does not say what to do: {error}")
            return
        x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        scale = torch.tensor([-0.3], dtype=torch.float64)
        same(tuple(map_(x).shape), (2, 5, 6, 6), "shape of the output")
        close(map_(x, scale), scale * map_(x), 1e-12, "scale")
        check(isinstance(map_, LinearMap) and not map_.reads_inputs, "its penalties are of the kernel alone")
        close(map_(x), convolution(x, map_.effective_weight(), map_.effective_bias()), 1e-12, "the kernel")
        rep = trivial(group)
        call = Penalised(map_, [], -3, 4 * rep, 5 * rep)
        _, norm = map_.penalty_rule(4 * rep)([call])[0]
        bias = map_.effective_bias()
        expected = map_.effective_weight().square().sum() + (0.0 if bias is None else bias.square().sum())
        close(norm, expected, 1e-12, "norm of the kernel")


class _Nothing(er.KernelSymmetry):
    """A symmetry for which every kernel is equivariant."""

    measures = "nothing"

    def lie(self, weight: Tensor) -> Tensor:
        return weight.new_zeros(())

    def project(self, weight: Tensor) -> Tensor:
        return weight.clone()


def close_gradients(
    map_: nn.Module, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], what: str
) -> None:
    """Check that both sums have the same gradients in the parameters, relative to the largest."""
    parameters = list(map_.parameters())
    for name, mine, slow in zip(("Lie", "norm"), found, expected, strict=True):
        pairs = [
            torch.autograd.grad(each, parameters, allow_unused=True, retain_graph=True)
            for each in (mine, slow)
        ]
        for a, b in zip(*pairs, strict=True):
            if a is not None and b is not None:
                scale = float(slow.detach()) + 1.0
                close(a / scale, b / scale, 1e-9, f"gradient of the {name} sum, {what}")
