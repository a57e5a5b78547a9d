"""The conformance class of layer families."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import equirelax.relaxation as er
from equirelax.auditing.audit import audit
from equirelax.auditing.samples import call, leaves, map_tree
from equirelax.errors import NonFiniteError, UnfoldableError
from equirelax.relaxation.columns import dense
from equirelax.relaxation.layers import get_family
from equirelax.relaxation.regularizers import LieDerivative
from equirelax.relaxation.sites import GridSite
from equirelax.symmetry import equivariant_projection
from equirelax.testing.checks import check, close, equal, finite, refused, same, skip
from equirelax.testing.span import applied, brute_force_span, call_of, flat, weight_shape, zeros

Built = tuple[nn.Module, str, Any, Any, Any]


class LayerFamilyConformance(ABC):
    """Tests for a family of relaxed layers. A test file contains

        class TestMyLayer(LayerFamilyConformance):
            def build(self):
                return model, "path.of.the.layer", sample, in_rep, out_rep

    and may override ``placement`` (a declaration of the layer, if its attributes do not describe it), ``equivariant_residual``
    and ``foldable``.
    """

    foldable: bool = True
    """Whether the family supports folding. False asserts that it is refused."""
    pickles: bool = True
    """Whether the author's own modules can be pickled (escnn's cannot)."""

    @abstractmethod
    def build(self) -> Built:
        """Build a model with a layer of the family.

        Returns:
            A new model in float64, the same at every call; the path of the layer; a sample with more rows than the layer has
            input features; the representations of sample and output.
        """

    def placement(self) -> er.Placement:
        """The placement that relaxes the model; by default the registered families find the layer."""
        return er.Layers()

    def equivariant_residual(self, residual: er.Residual) -> Tensor:
        """A nonzero equivariant weight with the shape of the residual's."""
        if isinstance(residual.site, GridSite):
            return residual.site.convolution.symmetry.project(self.random_weight(residual))
        return equivariant_projection(self.random_weight(residual), residual.in_rep, residual.out_rep)

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Load a state dict of the relaxed model into another one. Override it if ``load_state_dict`` is not enough."""
        model.load_state_dict(state)

    # Tools

    def relaxed(self) -> tuple[er.Relaxation, er.Residual, Built]:
        """Build and relax the model; return the relaxation, the layer's residual and the result of ``build``."""
        built = self.build()
        relaxation = er.relax(built[0], self.placement())
        check(built[1] in relaxation.residuals, f"{built[1]!r} was not relaxed:\n{relaxation.summary()}")
        return relaxation, relaxation[built[1]], built

    @staticmethod
    def outputs(model: nn.Module, sample: Any) -> list[Tensor]:
        """The floating tensors that the model returns for a new copy of the sample."""
        copied = map_tree(sample, None, lambda leaf: leaf.value.detach().clone())
        return [leaf.value for leaf in leaves(call(model, copied), None) if leaf.measurable]

    @staticmethod
    def random_weight(residual: er.Residual) -> Tensor:
        """A random dense weight, (out_dim, in_dim) or a kernel, the same at every call."""
        return torch.randn(weight_shape(residual), generator=_generator(), dtype=torch.float64)

    @staticmethod
    def fill(residual: er.Residual, weight: Tensor, gamma: float) -> None:
        """Set a residual's weight and strength."""
        with torch.no_grad():
            weight_of(residual).copy_(weight)
        residual.set_gamma(gamma)

    def randomise(self, relaxation: er.Relaxation, gamma: float) -> None:
        """Give every residual random weights."""
        generator = _generator()
        with torch.no_grad():
            for parameter in relaxation.residual_parameters().values():
                parameter.copy_(
                    0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                )
        relaxation.set_gamma(gamma)

    def terms_of(self, weight: Callable[[er.Residual], Tensor | None]) -> tuple[float, float]:
        """The penalty's Lie and norm terms for the layer's residual with this weight, after one training call."""
        relaxation, residual, built = self.relaxed()
        penalty = LieDerivative(relaxation)
        made = weight(residual)
        if made is None:
            skip("there is no such weight for this layer")
        self.fill(residual, made, 1.0)
        built[0].train()
        self.outputs(built[0], built[2])
        penalty()
        terms = penalty.terms[built[1]]
        return float(terms["lie"]), float(terms["norm"])

    def call_of_layer(
        self, relaxation: er.Relaxation, built: Built
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that the layer receives for the sample."""
        return call_of(relaxation, built[1], lambda: self.outputs(built[0], built[2]))

    # The relaxed layer

    def test_relax_finds_it_and_says_so(self) -> None:
        relaxation, residual, built = self.relaxed()
        same(residual.site.path, built[1], "path of the residual's site")
        check(built[1] in str(relaxation.summary()), "the summary does not name the layer")
        check(residual.is_linear, "the default residual is not linear")

    def test_no_strength_changes_no_bit(self) -> None:
        strict = self.build()
        relaxation, _, built = self.relaxed()
        self.randomise(relaxation, 0.0)
        for training in (True, False):
            built[0].train(training)
            strict[0].train(training)
            found, expected = self.outputs(built[0], built[2]), self.outputs(strict[0], strict[2])
            equal(found, expected, f"gamma = 0, training = {training}")

    def test_strength_adds_gamma_times_the_map(self) -> None:
        relaxation, residual, built = self.relaxed()
        self.randomise(relaxation, 0.0)
        args, kwargs = self.call_of_layer(relaxation, built)
        module = relaxation.module(built[1])
        with torch.no_grad():
            plain = module(*args, **kwargs)
            residual.set_gamma(0.7)
            found = flat(module(*args, **kwargs)) - flat(plain)
            x = dense(residual.site.read(args, kwargs))
            delta = applied(residual, 0.7 * weight_of(residual), x)
            expected = flat(residual.site.add(zeros(plain), delta))
        close(found, expected, 1e-12, "what the residual adds")

    def test_switching_off_shows_the_strict_model(self) -> None:
        strict = self.build()
        relaxation, _, built = self.relaxed()
        self.randomise(relaxation, 0.4)
        with relaxation.strict():
            equal(self.outputs(built[0], built[2]), self.outputs(strict[0], strict[2]), "strict()")

    def test_copies_pickles_and_state(self) -> None:
        """deepcopy, pickle and state_dict carry the relaxation; copies are independent."""
        relaxation, residual, built = self.relaxed()
        self.randomise(relaxation, 0.4)
        expected = self.outputs(built[0], built[2])
        other = self.build()[0]
        er.relax(other, self.placement())
        buffer = io.BytesIO()
        torch.save(built[0].state_dict(), buffer)
        buffer.seek(0)
        self.load_state(other, torch.load(buffer, weights_only=True))
        copies = {"deepcopy": copy.deepcopy(built[0]), "state_dict": other}
        if self.pickles:
            copies["pickle"] = pickle.loads(pickle.dumps(built[0]))
        else:
            same(pickle.loads(pickle.dumps(residual.site)).key, residual.site.key, "key of a pickled site")
        residual.set_gamma(-2.0)
        for how, twin in copies.items():
            same(list(er.relaxation_of(twin).residuals), list(relaxation.residuals), f"residuals after {how}")
            equal(self.outputs(twin, built[2]), expected, f"outputs after {how}")

    # Penalties and training

    def test_an_equivariant_residual_is_not_penalised(self) -> None:
        """Its Lie term is at most 1e-20 of its norm term."""
        lie, norm = self.terms_of(self.equivariant_residual)
        check(norm > 0, "the equivariant residual is zero on the sample")
        check(lie <= 1e-20 * norm, f"Lie term {lie:.3g}, norm term {norm:.3g}")

    def test_any_other_residual_is_penalised(self) -> None:
        residual = self.relaxed()[1]
        if not residual.site.can_break:
            skip("the layer maps invariants to invariants: every map is equivariant")
        lie, norm = self.terms_of(self.random_weight)
        check(lie > 1e-6 * norm, f"Lie term {lie:.3g}, norm term {norm:.3g}")

    def test_what_only_another_component_forbids_is_penalised(self) -> None:
        """1e -> 1o under O(3): equivariant to every rotation, not to reflections."""
        lie, norm = self.terms_of(forbidden_by_components)
        check(lie > 1e-3 * norm > 0, f"Lie term {lie:.3g}, norm term {norm:.3g}")

    def test_a_zero_residual_trains_from_the_first_step(self) -> None:
        relaxation, residual, built = self.relaxed()
        with torch.no_grad():
            for parameter in relaxation.residual_parameters().values():
                parameter.zero_()
        relaxation.set_gamma(1.0)
        penalty = LieDerivative(relaxation)
        built[0].train()
        optimizer = torch.optim.SGD(built[0].parameters(), lr=1e-3)
        errors = [(y - 1).square().sum() for y in self.outputs(built[0], built[2])]
        (torch.stack(errors).sum() + penalty()).backward()
        finite([(name, p.grad) for name, p in built[0].named_parameters()], "the gradient")
        optimizer.step()
        finite([(built[1], weight_of(residual))], "the residual")
        check(bool(weight_of(residual).any()), "the residual is still zero after a step")

    # Projection

    def test_projecting_gives_the_authors_model_back(self) -> None:
        author, built = self.build()[0], self.build()
        model, sample = built[0], built[2]
        modules = [(name, module, type(module)) for name, module in model.named_modules()]
        self.randomise(er.relax(model, self.placement()), 0.5)
        er.project(model)
        mine, theirs = model.state_dict(), author.state_dict()
        same(list(mine), list(theirs), "keys")
        equal(mine.values(), theirs.values(), "state dict")
        same([(name, module, type(module)) for name, module in model.named_modules()], modules, "modules")
        count = [sum(p.numel() for p in m.parameters()) for m in (model, author)]
        same(count[0], count[1], "number of parameters")
        equal(self.outputs(model, sample), self.outputs(author, sample), "outputs")

    def test_equivariant_before_and_after_but_not_between(self) -> None:
        relaxation, _, (model, _, sample, in_rep, out_rep) = self.relaxed()
        self.randomise(relaxation, 0.5)
        report = audit(model, sample, in_rep, out_rep, samples=4, lie=False, per_layer=False)
        check(report.relative > 1e-4, f"the relaxed model has an error of {report.relative:.3g} only")
        check(
            report.after is not None and report.after.relative < 1e-10, f"not strictly equivariant:\n{report}"
        )
        er.project(model)
        after = audit(model, sample, in_rep, out_rep, samples=4, lie=False)
        check(after.relative < 1e-10, f"not equivariant after the projection:\n{after}")

    def test_nan_is_refused_at_projection(self) -> None:
        relaxation, residual, built = self.relaxed()
        with torch.no_grad():
            weight_of(residual).view(-1)[0] = float("nan")
        residual.set_gamma(1.0)
        for mode in ("drop", "fold"):
            words = refused(NonFiniteError, functools.partial(er.project, built[0], mode), f"NaN, {mode},")
            check(built[1] in words, f"the message does not name {built[1]!r}: {words}")
        same(list(er.relaxation_of(built[0]).residuals), list(relaxation.residuals), "residuals afterwards")

    def test_fold_is_the_orthogonal_projection_onto_the_layers_span(self) -> None:
        relaxation, residual, built, basis = self._fold_case()
        module = relaxation.module(built[1])
        family = get_family(residual.site.family, built[1])
        weight = self.random_weight(residual)
        folded = family.fold(module, residual.site, weight, None).weight
        vectors = basis.flatten(1)
        nearest = ((vectors @ weight.flatten()) @ vectors).view_as(weight)
        close(folded, nearest, 1e-10, "fold and brute force")
        again = family.fold(module, residual.site, folded, None).weight
        close(again, folded, 1e-12, "fold of a fold")
        overlap = abs(float((weight - folded).flatten() @ folded.flatten()))
        check(overlap < 1e-10 * float(weight.norm()) ** 2, f"what is lost is not orthogonal: {overlap:.3g}")

    def test_fold_of_what_the_layer_can_express_changes_no_output(self) -> None:
        relaxation, residual, built, basis = self._fold_case()
        numbers = torch.randn(len(basis), generator=_generator(), dtype=torch.float64)
        self.fill(residual, torch.tensordot(numbers, basis, dims=1), 0.7)
        built[0].eval()
        before = self.outputs(built[0], built[2])
        with relaxation.strict():
            strict = self.outputs(built[0], built[2])
        change = max(float((a - b).detach().abs().max()) for a, b in zip(before, strict, strict=True))
        check(change > 1e-6, "the residual did nothing before the fold")
        er.project(built[0], mode="fold", unfoldable="drop")
        for a, b in zip(self.outputs(built[0], built[2]), before, strict=True):
            close(a, b, 1e-10, "outputs before and after the fold")

    def test_fold_leaves_an_equivariant_model(self) -> None:
        relaxation, _, (model, _, sample, in_rep, out_rep), _ = self._fold_case()
        self.randomise(relaxation, 0.5)
        er.project(model, mode="fold", unfoldable="drop")
        report = audit(model, sample, in_rep, out_rep, samples=4, lie=False)
        check(report.relative < 1e-10, f"not equivariant after folding:\n{report}")

    def test_what_cannot_be_folded_is_refused(self) -> None:
        if self.foldable:
            skip("this family folds")
        relaxation, _, built = self.relaxed()
        self.randomise(relaxation, 0.5)
        words = refused(UnfoldableError, lambda: er.project(built[0], mode="fold"), "folding")
        check(built[1] in words, f"the message does not name {built[1]!r}: {words}")

    def _fold_case(self) -> tuple[er.Relaxation, er.Residual, Built, Tensor]:
        """The relaxed model and the layer's span. Skips the test for families that do not fold."""
        relaxation, residual, built = self.relaxed()
        if not self.foldable:
            skip("this family does not fold")
        module = relaxation.module(built[1])
        basis = brute_force_span(module, residual, *self.call_of_layer(relaxation, built))
        check(len(basis) > 0, "the layer expresses nothing")
        return relaxation, residual, built, basis


def forbidden_by_components(residual: er.Residual) -> Tensor | None:
    """A weight that commutes with the Lie algebra and is orthogonal to all equivariant weights, by null spaces.

    ``None`` if there is no such weight, if the group has no Lie algebra or a single component, or for a convolution.
    """
    if isinstance(residual.site, GridSite):
        return None
    in_rep, out_rep = residual.in_rep, residual.out_rep
    group = in_rep.group
    if not len(group.algebra()) or not len(group.discrete()) or not (in_rep.linear and out_rep.linear):
        return None
    eye_in, eye_out = (torch.eye(rep.dim, dtype=torch.float64) for rep in (in_rep, out_rep))
    equations = [
        torch.kron(b, eye_in) - torch.kron(eye_out, a.T.contiguous())
        for a, b in zip(in_rep.generators(), out_rep.generators(), strict=True)
    ]
    _, values, vh = torch.linalg.svd(torch.cat(equations))
    basis = vh[int((values > 1e-9).sum()) :]
    weight = torch.randn(len(basis), generator=_generator(), dtype=torch.float64) @ basis
    weight = weight.reshape(out_rep.dim, in_rep.dim)
    weight = weight - equivariant_projection(weight, in_rep, out_rep)
    return weight if float(weight.norm()) > 1e-6 else None


def weight_of(residual: er.Residual) -> Tensor:
    """The weight of a dense residual, (out_dim, in_dim) or a kernel."""
    weight: Tensor = residual.map.weight  # type: ignore[assignment]
    return weight


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
