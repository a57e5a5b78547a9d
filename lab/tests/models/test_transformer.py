"""The Transformer on bodies: its attention, its systems, and that it is not equivariant."""

from __future__ import annotations

import copy

import pytest
import torch
from equirelax_lab.models import Transformer
from equirelax_lab.models.transformer import TransformerLayer
from model_inputs import bodies, random_orthogonal
from torch import Tensor

from equirelax.errors import RepresentationError


def sample(generator: torch.Generator, systems: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x, v, q = bodies(generator, 4 * systems)
    return x, v, q


def network() -> Transformer:
    return Transformer(bodies=4, hidden=8, layers=2, heads=2, in_features=1, steps=3)


def test_layer_is_its_formula(generator: torch.Generator) -> None:
    """Token by token and head by head, against PyTorch's own encoder layer too."""
    layer = TransformerLayer(6, 2)
    x = torch.randn(2, 5, 6, generator=generator)
    normed = layer.norm_1(x)
    q, k, v = layer.queries_keys_values(normed).split(6, dim=2)
    attended = torch.zeros_like(x)
    for system in range(2):
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            for token in range(5):
                weights = torch.stack([q[system, token, part] @ k[system, other, part] for other in range(5)])
                attended[system, token, part] = (weights / 3**0.5).softmax(0) @ v[system, :, part]
    expected = x + layer.mix(attended)
    expected = expected + layer.feedforward(layer.norm_2(expected))
    torch.testing.assert_close(layer(x), expected)

    own = torch.nn.TransformerEncoderLayer(
        6, 2, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    with torch.no_grad():
        for theirs, ours in (
            (own.self_attn.in_proj_weight, layer.queries_keys_values.weight),
            (own.self_attn.in_proj_bias, layer.queries_keys_values.bias),
        ):
            theirs.copy_(ours)
        for theirs, ours in (
            (own.self_attn.out_proj, layer.mix),
            (own.linear1, layer.feedforward[0]),
            (own.linear2, layer.feedforward[2]),
        ):
            theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(layer(x), own(x))


def test_systems_do_not_see_each_other(generator: torch.Generator) -> None:
    inputs = sample(generator)
    model = network()
    together = model(*inputs)
    assert together.shape == (12, 3, 3)
    for i in range(3):
        alone = model(*(t[4 * i : 4 * i + 4] for t in inputs))
        torch.testing.assert_close(together[4 * i : 4 * i + 4], alone)


def test_every_body_sees_every_body_and_bodies_are_told_apart(generator: torch.Generator) -> None:
    inputs = sample(generator, systems=1)
    model = network()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, *inputs[1:]), inputs[0])
    assert (jacobian.abs().amax(dim=(1, 2, 4)) > 0).all()  # (bodies, bodies)
    same = [t[:1].expand(4, -1) for t in inputs]
    out = model(*same)
    assert (out[0] - out[1]).abs().max() > 1e-4


def test_it_is_not_equivariant(generator: torch.Generator) -> None:
    """Otherwise it were no case for REMUL: neither rotations nor translations are respected."""
    x, v, q = sample(generator)
    model = network()
    g = random_orthogonal(generator, 1)
    assert (model(x @ g.T, v @ g.T, q) - model(x, v, q) @ g.T).abs().max() > 1e-2
    assert (model(x + 1, v, q) - model(x, v, q) - 1).abs().max() > 1e-2


def test_gradients_reach_everything(generator: torch.Generator) -> None:
    model = network()
    model(*sample(generator)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_copies_and_modes_compute_the_same(generator: torch.Generator) -> None:
    inputs, model = sample(generator), network()
    expected = model(*inputs)
    assert torch.equal(copy.deepcopy(model).eval()(*inputs), expected)
    with torch.no_grad():
        assert torch.equal(model(*inputs), expected)


def test_errors(generator: torch.Generator) -> None:
    x, v, q = sample(generator)
    with pytest.raises(RepresentationError, match=r"11 nodes with 1 features.*systems of 4 bodies"):
        network()(x[:11], v[:11], q[:11])
    with pytest.raises(RepresentationError, match="12 nodes with 3 features"):
        network()(x, v, x)
    with pytest.raises(RepresentationError, match="multiple of heads=3"):
        Transformer(hidden=8, heads=3)
    with pytest.raises(RepresentationError, match="at least 1"):
        Transformer(layers=0)
