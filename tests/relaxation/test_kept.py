"""What is kept for a penalty is what the network read, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import relax_toys
import torch
from handle_toys import DECLARED, VECTORS, Part, X, fill, linear
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import equirelax as er
from equirelax.errors import PenaltyError
from equirelax.relaxation.regularizers import LieDerivative

pytestmark = pytest.mark.usefixtures("float64")


def relaxed() -> tuple[nn.Module, LieDerivative]:
    model = Part()
    return model, LieDerivative(fill(er.relax(model, DECLARED)))


@pytest.mark.parametrize("buffer", ["tensor", "view", "numpy"])
def test_m16_a_buffer_that_is_filled_anew_changes_no_penalty(buffer):
    model, regularizer = relaxed()
    batches = torch.randn(3, 5, 3)
    for batch in batches:
        model(batch)
    expected = regularizer()
    array = np.zeros((8, 3))
    whole = torch.from_numpy(array) if buffer == "numpy" else torch.zeros(8, 3)
    for batch in batches:
        if buffer == "numpy":
            array[:5] = batch.numpy()
        else:
            whole[:5] = batch
        x = whole[:5] if buffer == "view" else whole[:5].view(5, 3)
        model(x).sum().backward()
    torch.testing.assert_close(regularizer(), expected, rtol=1e-13, atol=0)


def test_m16_an_activation_that_is_overwritten_is_an_error_that_names_the_residual():
    class InPlace(Part):
        def forward(self, x):
            hidden = self.a(x)
            y = self.b(hidden)
            with torch.no_grad():
                hidden.mul_(2)
            return y

    model = InPlace()
    regularizer = LieDerivative(fill(er.relax(model, DECLARED)))
    model(X)
    with pytest.raises(PenaltyError, match=r"^b: .*overwritten"):
        regularizer()


def test_activations_are_kept_without_a_copy():
    model, regularizer = relaxed()
    seen = []
    model.b.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(X)
    kept = regularizer.relaxation["b"].take_inputs()
    assert kept[0].data_ptr() == seen[0].data_ptr()


def test_residuals_that_read_the_same_batch_share_a_copy():
    class Fork(Part):
        def forward(self, x):
            return self.a(x) + self.b(x.view(5, 3))

    model = Fork()
    relaxation = fill(er.relax(model, DECLARED))
    _ = LieDerivative(relaxation)  # inputs are kept while it is there
    array = X.numpy().copy()
    batch = torch.from_numpy(array)
    model(batch)
    array += 1
    model(batch)
    (first, second), (other, last) = (relaxation[key].take_inputs() for key in "ab")
    assert first is other
    assert second is last
    assert torch.equal(first, X)
    assert torch.equal(second, X + 1)


def test_m18_per_sample_gradients_leave_nothing_behind():
    model, regularizer = relaxed()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values, x):
        return torch.func.functional_call(model, values, (x[None],)).square().sum()

    model(X)
    expected = regularizer()
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, X)
    assert all(len(g) == len(X) for g in gradients.values())
    torch.func.jacrev(model)(X)
    model(X)
    torch.testing.assert_close(regularizer(), expected, rtol=1e-13, atol=0)


def test_m18_exporting_leaves_nothing_behind():
    model, regularizer = relaxed()
    torch.export.export(
        model, (X,), strict=False
    )  # the default of now; strict ones leave stand-ins in torch 2.6
    assert all(not residual.take_inputs() for _, residual in regularizer.relaxation)


def test_tracing_by_make_fx_leaves_nothing_behind():
    """As NequIP does before it compiles: what is noted about calls must be of real tensors."""
    model, regularizer = relaxed()
    make_fx(model, tracing_mode="symbolic", _allow_non_fake_inputs=True)(X)
    assert all(not residual.take_inputs() for _, residual in regularizer.relaxation)
    product = relax_toys.Net().product
    relaxation = er.relax(product)
    make_fx(product, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        torch.randn(5, 5), torch.randn(5, 4)
    )
    assert relaxation[""].second_seen is None
    product(torch.randn(5, 5), torch.randn(5, 4))
    assert relaxation[""].second_seen is not None


def test_one_residual_reads_a_parameter():
    class Learnt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.a = nn.Parameter(torch.randn(1, 3)), linear()

        def forward(self):
            return self.a(self.start)

    model = Learnt()
    relaxation = fill(er.relax(model, er.Layers(declare=(er.relaxation.Linear("a", VECTORS, VECTORS),))))
    regularizer = LieDerivative(relaxation)
    before = model.start.detach().clone()
    model()
    with torch.no_grad():
        model.start.add_(1)
    assert torch.equal(relaxation["a"].take_inputs()[0], before)
    assert regularizer.terms == {}
