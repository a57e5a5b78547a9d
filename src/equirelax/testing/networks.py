"""The conformance class of published networks, which tests `relax(network)` without further arguments."""

from __future__ import annotations

import copy
import importlib.metadata
import io
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import equirelax.relaxation as er
from equirelax.auditing.audit import audit
from equirelax.auditing.samples import as_arguments, call, leaves, map_tree
from equirelax.methods import ACE, Method, Scheduled
from equirelax.optim import Muon
from equirelax.testing.checks import check, close, equal, finite, refused, same, skip
from equirelax.testing.muon import slow_muon_step

STEPS = 20
"""Training steps of each method."""


class NetworkConformance(ABC):
    """Tests for a third-party network. A test file contains

        class TestTheirs(NetworkConformance):
            name = "Theirs"
            package = "their-package"
            count = 4

            def network(self):
                return Theirs(channels=4)

            def inputs(self, dtype):
                return torch.randn(2, 5, 3, dtype=dtype)

            def representations(self):
                return "1x1o", "1x1o"

    ``network`` is called once for each dtype, with the default dtype and the random seed already set. The tests work on
    copies of the network. ``cannot`` has the reasons for checks that are impossible.
    """

    name: ClassVar[str]
    """The network's name in the table of networks."""
    package: ClassVar[str] = ""
    """The distribution that contains it; empty for a minimal network of the same form that was written for the test."""
    count: ClassVar[int]
    """Number of its residuals."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Keys of the residuals, in order; if empty, only their number is checked."""
    cannot: ClassVar[dict[str, str]] = {}
    """Impossible checks -> the reason.

    "copy", "pickle", "export" and "script" mean that the author's own network cannot do this, which is tested. The others,
    "relaxed", "float32" and "train", are skipped.
    """
    remarks: ClassVar[str] = ""
    """A remark in the table of networks."""
    no_matrices: ClassVar[tuple[str, ...]] = ()
    """Patterns (``fnmatch``) of parameters with several axes that are not matrices but weight channels separately."""
    spread: ClassVar[float] = 0.3
    """Standard deviation of the residuals' random weights."""
    seen: ClassVar[dict[str, dict[str, Any]]] = {}
    """Name of the network -> results of its tests, such as ``"relaxed_error"``; filled while tests run."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the network as its author does, with the default dtype."""

    @abstractmethod
    def inputs(self, dtype: torch.dtype) -> Any:
        """Make an input of the network, the same at every call, with floating tensors of this dtype.

        It has a form that `equirelax.auditing.audit` takes: a tensor, a tuple of arguments, or a mapping.
        """

    @abstractmethod
    def representations(self) -> tuple[Any, Any]:
        """The representations of input and output, in a form that `equirelax.auditing.audit` takes."""

    def loss(self, outputs: list[Tensor]) -> Tensor:
        """The training loss of the network's floating outputs; by default from the mean square of each."""
        return torch.stack([y.square().mean() for y in outputs]).sum()

    def export(self, network: nn.Module, sample: Any) -> Callable[..., Any]:
        """Export the network by ``torch.export``, as a function of the same arguments."""
        args, kwargs = as_arguments(network, sample, sample)
        exported: Callable[..., Any] = torch.export.export(network, args, kwargs).module()
        return exported

    def script(self, network: nn.Module, sample: Any) -> Callable[..., Any]:
        """Script the network by ``torch.jit.script``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch advises against it; users still do it
            scripted: Callable[..., Any] = torch.jit.script(network)
        return scripted

    # Tools

    def author(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Copy the author's network, in evaluation mode. The copy is the same at every call."""
        built = self.original(dtype)
        return built if "copy" in self.cannot else copy.deepcopy(built)

    def original(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The author's network itself, in evaluation mode. Call it but do not change it; it saves slow copies."""
        key = (type(self), dtype)
        if key in _BUILT:
            return _BUILT[key]
        with torch.random.fork_rng(devices=[]), _default(dtype):
            torch.manual_seed(0)
            built = self.network().eval()
        if "copy" not in self.cannot:
            _BUILT[key] = built
        return built

    def relaxed(self, gamma: float = 1.0, dtype: torch.dtype = torch.float64) -> er.Relaxation:
        """Relax the author's network by ``relax(network)``, and give its residuals random weights."""
        relaxation = er.relax(self.author(dtype), generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in relaxation.residual_parameters().values():
                drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_(self.spread * drawn)
        relaxation.set_gamma(gamma)
        return relaxation

    def outputs(self, network: Any, dtype: torch.dtype = torch.float64, detach: bool = True) -> list[Tensor]:
        """The floating tensors that the network returns for a new copy of the input."""
        with _default(dtype):
            found = leaves(call(network, _fresh(self.inputs(dtype))), None)
        return [leaf.value.detach() if detach else leaf.value for leaf in found if leaf.measurable]

    def error(self, network: nn.Module, dtype: torch.dtype = torch.float64) -> float:
        """The network's relative equivariance error over two elements of the group, and all discrete ones."""
        sample, reps = self.inputs(dtype), self.representations()
        with _default(dtype):
            report = audit(network, sample, *reps, samples=2, dtype=dtype, lie=False, per_layer=False)
        same(report.dtype, str(dtype).removeprefix("torch."), "dtype in which the network runs")
        return report.before.relative

    def record(self, **facts: Any) -> None:
        """Record results."""
        known = self.seen.setdefault(self.name, {"package": self.package, "version": _version(self.package)})
        known.update(facts)

    def skip_if_impossible(self, what: str) -> None:
        """Skip the current test if ``cannot`` has a reason."""
        if what in self.cannot:
            skip(self.cannot[what])

    # The relaxed network

    def test_residuals_are_where_they_should_be(self) -> None:
        relaxation = er.relax(self.author())
        same(len(relaxation.residuals), self.count, f"number of residuals ({list(relaxation.residuals)})")
        if self.paths:
            same(tuple(relaxation.residuals), self.paths, "keys of the residuals")
        modules = {type(relaxation.module(key)).__name__: None for key in relaxation.residuals}
        self.record(residuals=self.count, modules=list(modules), remarks=self.remarks)

    def test_it_is_relaxed_at_strength_one_and_not_at_zero(self) -> None:
        self.skip_if_impossible("relaxed")
        relaxation = self.relaxed(gamma=1.0)
        error = self.error(relaxation.model)
        self.record(relaxed_error=error)
        check(error > 1e-3, f"the error at strength 1 is {error:.3g}")
        relaxation.set_gamma(0.0)
        for found, expected in zip(
            self.outputs(relaxation.model), self.outputs(self.original()), strict=True
        ):
            close(found, expected, 1e-10, "outputs at strength 0")

    def test_strict_is_the_authors_network_to_the_bit(self) -> None:
        relaxation, author = self.relaxed(), self.author()
        for training in (False, True):
            results = []
            for network in (relaxation.model, author):
                network.train(training)
                torch.manual_seed(3)  # dropout draws the same
                with relaxation.strict():
                    results.append(self.outputs(network))
            equal(results[0], results[1], f"outputs within strict(), training {training}")
        self.record(strict="equal to the bit")

    def test_projected_it_is_the_authors_network(self) -> None:
        """Its classes, keys and outputs are the same, bit for bit, and it is equivariant up to rounding."""
        self._projected(torch.float64, 1e-10)

    def test_projected_in_single_precision_it_is_the_authors_network(self) -> None:
        """The same holds for a network that is built in float32."""
        self.skip_if_impossible("float32")
        self._projected(torch.float32, 1e-5)

    def _projected(self, dtype: torch.dtype, largest: float) -> None:
        """Project the relaxed network and compare it with the author's."""
        network, author = self.relaxed(dtype=dtype).model, self.original(dtype)
        er.project(network)
        # compare names, since torch.fx makes a new class for every module
        classes = [[type(m).__qualname__ for m in one.modules()] for one in (network, author)]
        same(classes[0], classes[1], "classes of the modules")
        same(network.state_dict(), author.state_dict(), "state dict")
        equal(self.outputs(network, dtype), self.outputs(author, dtype), "outputs after project")
        error = self.error(network, dtype)
        self.record(**{f"projected_error_{str(dtype).removeprefix('torch.')}": error})
        check(error < largest, f"the projected network's error in {dtype} is {error:.3g}")

    # Training

    def test_ace_trains_every_residual(self) -> None:
        self._train(lambda relaxation: ACE(relaxation, dual_lr=1e-3))

    def test_scheduled_trains_every_residual(self) -> None:
        self._train(lambda relaxation: Scheduled(relaxation, total_steps=STEPS + 1))

    def _train(self, make: Callable[[er.Relaxation], Method]) -> None:
        """Train for some steps, and check that everything stays finite and a gradient reaches every residual."""
        self.skip_if_impossible("train")
        relaxation = er.relax(self.author(), generator=torch.Generator().manual_seed(1))
        network = relaxation.model.train()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        method = make(relaxation)
        method.attach(optimizer)
        reached: set[str] = set()
        for _ in range(STEPS):
            optimizer.zero_grad()
            objective = self.loss(self.outputs(network, detach=False)) + method.penalty()
            objective.backward()
            finite([("the objective", objective.detach())], "the value")
            finite([(name, p.grad) for name, p in network.named_parameters()], "the gradient")
            reached |= {
                key
                for key, residual in relaxation
                if any(p.grad is not None and bool(p.grad.any()) for p in residual.map.parameters())
            }
            optimizer.step()
        finite(network.state_dict().items(), f"after {STEPS} steps the value")
        same(sorted(set(relaxation.residuals) - reached), [], "residuals that no gradient reached")

    def test_a_step_of_muon_is_the_slow_references(self) -> None:
        """Compare one step of `equirelax.optim.Muon` on the relaxed network with the step of one matrix at a time."""
        self.skip_if_impossible("train")
        network, rate = self.relaxed().model.train(), 0.01
        optimizer = Muon(network, rate)
        self.loss(self.outputs(network, detach=False)).backward()
        expected, matrices = slow_muon_step(network, self.author(), rate, self.no_matrices)
        optimizer.step()
        for name, parameter in network.named_parameters():
            close(parameter, expected[name], 1e-8, f"{name} after a step of Muon")
        self.record(muon_matrices=matrices)

    # Copies

    def test_copies_compute_the_same(self) -> None:
        """Copies are made by deepcopy, by pickle, and by a state dict loaded into another relaxed network."""
        relaxed = self.relaxed(gamma=0.7).model
        expected = self.outputs(relaxed)
        if "copy" in self.cannot:
            refused(Exception, lambda: copy.deepcopy(self.author()), "a deepcopy of the author's network")
        else:
            equal(self.outputs(copy.deepcopy(relaxed)), expected, "outputs of a deepcopy")
        other = er.relax(self.author()).model
        other.load_state_dict(relaxed.state_dict())
        equal(self.outputs(other), expected, "outputs after load_state_dict")
        if "pickle" in self.cannot:
            refused(Exception, lambda: pickle.dumps(self.author()), "a pickle of the author's network")
        else:
            file = io.BytesIO(pickle.dumps(relaxed))
            equal(self.outputs(pickle.load(file)), expected, "outputs of a pickle")

    def test_a_checkpoint_builds_it_again(self) -> None:
        relaxation = self.relaxed(gamma=0.7)
        again = er.load_relaxation_state(self.author(), er.relaxation_state(relaxation))
        same(list(again.residuals), list(relaxation.residuals), "keys of the residuals after load")
        equal(self.outputs(again.model), self.outputs(relaxation.model), "outputs after load")

    # After project

    def test_projected_it_exports_as_before(self) -> None:
        """It is exported by ``torch.export``."""
        self._deploys("export", self.export)

    def test_projected_it_scripts_as_before(self) -> None:
        """It is scripted by ``torch.jit``."""
        self._deploys("script", self.script)

    def _deploys(self, what: str, make: Callable[[nn.Module, Any], Callable[..., Any]]) -> None:
        """Deploy the projected network and the author's, and check that the outputs are the same."""
        author, sample = self.author(), self.inputs(torch.float64)
        if what in self.cannot:
            with _default(torch.float64):
                refused(Exception, lambda: make(author, sample), f"torch {what} of the author's network")
            self.record(**{what: f"not before relaxing either: {self.cannot[what]}"})
            skip(self.cannot[what])
        projected = self.relaxed().model
        er.project(projected)
        results = []
        for network in (projected, author):
            with _default(torch.float64):
                deployed = make(network, sample)
                args, kwargs = as_arguments(network, _fresh(sample), _fresh(sample))
                found = leaves(deployed(*args, **kwargs), None)
            results.append([leaf.value.detach() for leaf in found if leaf.measurable])
        for found, expected in zip(*results, strict=True):
            # TorchScript optimises in one of the first calls, which changes the rounding even of the author's own outputs
            close(found, expected, 1e-12 if what == "script" else 0.0, f"outputs by torch {what}")
        self.record(**{what: "equal to before relaxing"})


_BUILT: dict[tuple[type, torch.dtype], nn.Module] = {}
"""The authors' networks, built once."""


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype of new tensors in a block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _fresh(sample: Any) -> Any:
    """Copy a sample without sharing any tensor."""
    return map_tree(sample, None, lambda leaf: leaf.value.detach().clone())


def _version(package: str) -> str:
    return importlib.metadata.version(package) if package else ""
