"""The canonicalising network: a frame that turns with the cloud, and what it does where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equirelax_lab.models.canonical import VNCanonicalizer, frame
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equirelax.auditing import On
from equirelax.errors import NonFiniteError, RepresentationError
from equirelax.symmetry import SO, O, vector
from equirelax.testing import ModelConformance

EYE = torch.eye(3, dtype=torch.float64)


def clouds(batch: int = 3, n: int = 30, seed: int = 1) -> Tensor:
    return torch.randn(batch, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(reflections: bool = False, neighbours: int = 6) -> VNCanonicalizer:
    torch.manual_seed(0)
    return VNCanonicalizer(8, 2, neighbours, reflections).double()


def assert_rotations(found: Tensor) -> None:
    torch.testing.assert_close(found.mT @ found, EYE.expand_as(found), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(len(found), dtype=torch.float64))


class Canonicalizer(ModelConformance):
    """Frame vectors stand in columns: the group acts along axis -2."""

    reflections = False

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        group = O(3) if self.reflections else SO(3)
        return network(self.reflections), clouds(), vector(group), On(vector(group), -2)

    def permute(self, sample: Any, generator: torch.Generator) -> Any:
        return sample[:, torch.randperm(sample.shape[1], generator=generator)], lambda y: y


class TestRotations(Canonicalizer):
    pass


class TestRotationsAndReflections(Canonicalizer):
    reflections = True


def test_frames_are_rotations_and_moving_the_cloud_changes_nothing() -> None:
    model, x = network().eval(), clouds()
    assert_rotations(model(x))
    shift = torch.tensor([3.0, -2.0, 1.0])
    torch.testing.assert_close(model(x + shift), model(x), rtol=1e-10, atol=1e-10)
    assert (model(x)[0] - model(x)[1]).abs().max() > 0.1


def test_a_mirror_image_has_the_mirrored_frame() -> None:
    model, x = network(reflections=True).eval(), clouds()
    torch.testing.assert_close(model(-x), -model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(model(-x)), -torch.linalg.det(model(x)))


@given(seed=st.integers(0, 10_000), count=st.sampled_from([2, 3]), scale=st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_gram_schmidt_is_qr_up_to_signs(seed: int, count: int, scale: float) -> None:
    vectors = scale * torch.randn(
        4, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    found = frame(vectors)
    torch.testing.assert_close(found.mT @ found, EYE.expand(4, 3, 3), rtol=0, atol=1e-9)
    q, r = torch.linalg.qr(vectors.mT)
    expected = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)  # the signs of Gram-Schmidt
    torch.testing.assert_close(found[..., :count], expected, rtol=0, atol=1e-8)
    if count == 2:
        torch.testing.assert_close(torch.linalg.det(found), torch.ones(4, dtype=torch.float64))


LINE = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None] * torch.tensor(
    [1.0, 2.0, 3.0], dtype=torch.float64
)
HALF = clouds(1, 10)[0]
ODD = {
    "one point": torch.ones(1, 3, dtype=torch.float64),
    "all the same": torch.ones(12, 3, dtype=torch.float64),
    "all at the origin": torch.zeros(12, 3, dtype=torch.float64),
    "on a line": LINE,
    "symmetric about its centre": torch.cat([HALF, -HALF]),
    "twice the same points": torch.cat([HALF, HALF]),
    "fewer points than neighbours": clouds(1, 4)[0],
    "tiny": 1e-8 * clouds(1, 20)[0],
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_clouds_without_an_orientation_get_a_rotation_all_the_same(name: str, mode: str) -> None:
    model = network().train(mode == "train")
    x = torch.stack([ODD[name], ODD[name]]).requires_grad_()
    found = model(x)
    assert_rotations(found)
    (found * torch.arange(9.0).view(3, 3)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("count", [2, 3])
def test_vectors_without_a_direction_of_their_own(count: int) -> None:
    a = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    b = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    cases = [[zero, zero], [a, zero], [zero, a], [a, a], [a, -3 * a], [a, b], [1e-9 * a, b]]
    vectors = torch.stack([torch.stack([*case, b][:count]) for case in cases]).requires_grad_()
    found = frame(vectors)
    torch.testing.assert_close(found.mT @ found, EYE.expand(len(cases), 3, 3), rtol=0, atol=1e-12)
    (found * torch.arange(9.0).view(3, 3)).sum().backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_bad_clouds_and_sizes_are_refused() -> None:
    with pytest.raises(RepresentationError, match=r"\(batch, n, 3\)"):
        network()(clouds().mT)
    broken = clouds()
    broken[1, 2, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="the first is number 1"):
        network()(broken)
    for sizes in ((0, 2, 5), (8, 0, 5), (8, 2, 1)):
        with pytest.raises(RepresentationError, match="expected at least 1, 1 and 2"):
            VNCanonicalizer(*sizes)
