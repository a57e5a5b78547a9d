"""Find where NaN or infinity begins: the first module in the forward pass, or the first one in the backward pass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing.record import Recorder
from equirelax.auditing.samples import leaves
from equirelax.errors import NonFiniteError


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """Where NaN or infinity begins.

    Attributes:
        path: Path of the module; empty for the model itself.
        type: Class of the module.
        what: weight, input, output, gradient or loss.
        text: The same in words.
    """

    path: str
    type: str
    what: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class Gain:
    """The module that amplifies most: its largest output entry is the largest multiple of its largest input entry."""

    path: str
    type: str
    largest_input: float
    largest_output: float

    def __str__(self) -> str:
        return (
            f"{name(self.path, self.type)} makes outputs up to {self.largest_output:.1e} of inputs up to "
            f"{self.largest_input:.1e}"
        )


def first_non_finite(model: nn.Module, loss: Callable[[], Tensor]) -> NonFinite | None:
    """Find where NaN or infinity begins, for a batch that is known to produce them.

    The loss is computed without gradients, to check weights and outputs, and again with gradients if all of these are
    finite. The model's training mode is kept, buffers are restored afterwards, and `.grad` is not changed. The inputs that
    a relaxed model keeps for penalties are overwritten, as by any forward pass.

    Args:
        model: Relaxed or not.
        loss: Calls the model and returns the loss, a scalar: ``lambda: criterion(model(x), y)``.

    Returns:
        The first module in the order of execution that has a weight that is not finite, or that makes a non-finite output
        from finite inputs. If all outputs are finite, the module that makes a non-finite gradient from a finite one. None if
        everything is finite.
    """
    with _buffers_kept(model):
        forward = _Forward(model)
        with torch.no_grad():
            value = forward.run(loss)
        if forward.origin is not None:
            return forward.origin
        if value is not None and not _finite(value):
            return NonFinite(
                "", type(model).__name__, "loss", f"the loss itself, {float(value)} of finite outputs"
            )
        return _Backward(model).run(loss)


def largest_gain(model: nn.Module, forward: Callable[[], Any]) -> Gain | None:
    """The innermost module that amplifies most during `forward()`; None if no module has tensors as input and output."""
    recorder = Recorder(model)
    with _buffers_kept(model), torch.no_grad(), recorder.recording() as calls:
        forward()
    callers = {call.parent for call in calls}
    best: Gain | None = None
    for number, call in enumerate(calls):
        given, made = (max((float(t.abs().max()) for t in tensors.values() if t.numel()), default=0.0)
                       for tensors in (call.inputs, call.outputs))  # fmt: skip
        if number in callers or not given > 0:
            continue
        if best is None or made / given > best.largest_output / best.largest_input:
            best = Gain(call.path, call.type, given, made)
    return best


def name(path: str, kind: str) -> str:
    """A module as messages name it: 'blocks.1.linear' (Linear)."""
    return f"'{path}' ({kind})" if path else f"the model itself ({kind})"


class _Hooked:
    """Hooks on every module whose calls a `Recorder` records."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = Recorder(model).names

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        raise NotImplementedError

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        handles = []
        try:
            for module in self.paths:
                handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self.leave, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def name(self, module: nn.Module) -> str:
        return name(self.paths[module], type(module).__name__)


class _Forward(_Hooked):
    """Finds the first weight or output that is not finite.

    A module that makes finite outputs from non-finite inputs, such as a softmax over masked scores, clears what was recorded
    before it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.origin: NonFinite | None = None
        self._left: str = ""

    def run(self, loss: Callable[[], Tensor]) -> Tensor | None:
        """The loss; None if the model itself raises an error about its numbers."""
        with self.hooked():
            try:
                return loss()
            # A model or torch.linalg raises these on non-finite numbers, whose origin is known by then.
            except (NonFiniteError, torch.linalg.LinAlgError):
                if self.origin is None:
                    raise
                return None

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.origin is not None:
            return
        for key, parameter in module.named_parameters(recurse=False):
            if not _finite(parameter):
                self._note(module, "weight", f"the weight '{key}' of {self.name(module)}")
                return
        if not all(map(_finite, _tensors((args, kwargs)))):
            after = f", after {self._left}" if self._left else ""
            self._note(module, "input", f"the input of {self.name(module)}{after}")

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        good = all(map(_finite, _tensors(output)))
        self._left = self.name(module)
        if not good and self.origin is None:
            self._note(module, "output", f"the output of {self.name(module)}, of finite inputs and weights")
        masked = good and not all(map(_finite, _tensors((args, kwargs))))
        if masked and self.origin is not None and self.origin.what != "weight":
            self.origin = None

    def _note(self, module: nn.Module, what: str, text: str) -> None:
        self.origin = NonFinite(self.paths[module], type(module).__name__, what, text)


class _Backward(_Hooked):
    """Finds the first non-finite gradient in the backward pass; it was made by the module that reads its tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model = model
        self._readers: dict[int, list[nn.Module]] = {}
        self._makers: dict[int, list[nn.Module]] = {}
        self._kept: list[Tensor] = []  # keeps ids unique
        self._bad: list[Tensor] = []

    def run(self, loss: Callable[[], Tensor]) -> NonFinite | None:
        weights = {p: (m, key) for m in self.model.modules() for key, p in m.named_parameters(recurse=False)}
        trained = [p for p in weights if p.requires_grad]
        with torch.enable_grad(), self.hooked():
            value = loss()
            if not value.requires_grad or not trained:
                return None
            gradients = torch.autograd.grad(value, trained, allow_unused=True)
        if self._bad:
            return self._blamed(self._bad[0])
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is not None and not _finite(gradient):
                module, key = weights[parameter]
                path = next(p for p, m in self.model.named_modules() if m is module)
                called = name(path, type(module).__name__)
                return NonFinite(
                    path, type(module).__name__, "gradient", f"the gradient of the weight '{key}' of {called}"
                )
        return None

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._note(self._readers, module, (args, kwargs))

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._note(self._makers, module, output)

    def _note(self, where: dict[int, list[nn.Module]], module: nn.Module, tree: Any) -> None:
        for tensor in _tensors(tree):
            if tensor.requires_grad:
                if id(tensor) not in self._readers and id(tensor) not in self._makers:
                    self._kept.append(tensor)
                    tensor.register_hook(self._look(tensor))
                where.setdefault(id(tensor), []).append(module)

    def _look(self, tensor: Tensor) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if not _finite(gradient):
                self._bad.append(tensor)

        return look

    def _blamed(self, tensor: Tensor) -> NonFinite:
        readers, makers = self._readers.get(id(tensor), []), self._makers.get(id(tensor), [])
        if readers:  # the last one is the innermost
            text = f"the gradient that {self.name(readers[-1])} sends back"
            return NonFinite(self.paths[readers[-1]], type(readers[-1]).__name__, "gradient", text)
        if self.model in makers:
            text = "the gradient of the loss with respect to the model's output"
            return NonFinite("", type(self.model).__name__, "loss", text)
        text = f"the gradient of what is computed from the output of {self.name(makers[0])}"
        return NonFinite(self.paths[makers[0]], type(makers[0]).__name__, "gradient", text)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf.value for leaf in leaves(tree, None) if leaf.measurable]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore running statistics and other buffers at the end."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
