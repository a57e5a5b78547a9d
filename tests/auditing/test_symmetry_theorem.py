"""The statements of docs/explanation/symmetry_score.md about one linear layer, against brute force.

y = W x with W = A + gamma R, A equivariant, L(W) = E |W x - y|^2 / 2, C = E x x^T, grad L(W) = W C - E y x^T. Symmetric data
here are whole orbits of a finite group, so that expectations are sums. For O(3) on scalars and vectors that group is the cube's:
it moves vectors to as many directions as second moments need.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.symmetry import (
    Cyclic,
    Representation,
    Symmetric,
    equivariant_projection,
    from_irreps,
    regular,
    trivial,
    vector,
)

C4, S3 = Cyclic(4), Symmetric(3)
CASES = {
    "C4": (vector(C4) + regular(C4), vector(C4) + trivial(C4)),
    "S3": (2 * vector(S3), regular(S3)),
    "O3": (from_irreps("1x0e + 2x1o"), from_irreps("1x0e + 1x1o")),
}
SIGNED = [
    torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)]
    for signs in itertools.product((1.0, -1.0), repeat=3)
    for order in itertools.permutations(range(3))
]
"""The 48 elements of the cube's group."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orbit(name: str, rep: Representation, rows: Tensor) -> Tensor:
    """Every row moved by every element, (order * rows, dim)."""
    elements = torch.stack(SIGNED) if name == "O3" else rep.group.elements()
    return torch.einsum("gij,nj->gni", rep.matrix(elements).double(), rows).flatten(0, 1)


class Data:
    """Rows x and y, their moments, and the best equivariant map."""

    def __init__(self, name: str, asymmetry: float = 0.0, seed: int = 0, closed: bool = True) -> None:
        self.in_rep, self.out_rep = CASES[name]
        x = randn(6, self.in_rep.dim, seed=seed)
        y = randn(6, self.out_rep.dim, seed=seed + 1)
        self.x = orbit(name, self.in_rep, x) if closed else x
        self.y = orbit(name, self.out_rep, y) if closed else y
        self.y = self.y + asymmetry * self.x @ randn(self.in_rep.dim, self.out_rep.dim, seed=seed + 2)
        self.c = self.x.T @ self.x / len(self.x)
        self.b = self.y.T @ self.x / len(self.x)

    def project(self, w: Tensor) -> Tensor:
        return equivariant_projection(w, self.in_rep, self.out_rep)

    def loss(self, w: Tensor) -> float:
        return float((self.x @ w.T - self.y).square().sum(1).mean()) / 2

    def gradient(self, w: Tensor) -> Tensor:
        return w @ self.c - self.b

    def moments(self, w: Tensor, noise: float, n: int, trials: int) -> Tensor:
        """A_i of independent examples at W = w, (trials, n, out_dim * in_dim): rows drawn at random, normal noise in y."""
        generator = torch.Generator().manual_seed(n)
        rows = torch.randint(len(self.x), (trials, n), generator=generator)
        x, y = self.x[rows], self.y[rows]
        y = y + noise * torch.randn(y.shape, generator=generator, dtype=y.dtype)
        found = (x @ w.T - y)[..., None] * x[..., None, :]
        return (found - self.project(found)).flatten(2)

    def best_equivariant(self) -> Tensor:
        """By least squares over a basis of all equivariant maps."""
        size = self.out_rep.dim * self.in_rep.dim
        eye = torch.eye(size, dtype=torch.float64).view(size, self.out_rep.dim, self.in_rep.dim)
        values, vectors = torch.linalg.eigh(self.project(eye).flatten(1))
        basis = vectors.T[values > 0.5].view(-1, self.out_rep.dim, self.in_rep.dim)
        outputs = torch.einsum("boi,ni->nob", basis, self.x).flatten(0, 1)
        found = torch.linalg.lstsq(outputs, self.y.reshape(-1, 1)).solution[:, 0]
        return torch.einsum("b,boi->oi", found, basis)


@pytest.mark.parametrize("name", CASES)
def test_a_symmetric_data_have_an_equivariant_gradient_at_every_equivariant_map(name: str) -> None:
    data = Data(name)
    gradient = data.gradient(data.project(randn(data.out_rep.dim, data.in_rep.dim, seed=9)))
    torch.testing.assert_close(gradient, data.project(gradient), rtol=0, atol=1e-12)
    assert float(gradient.norm()) > 0.1
    bent = Data(name, asymmetry=0.5)
    gradient = bent.gradient(bent.project(randn(data.out_rep.dim, data.in_rep.dim, seed=9)))
    assert float((gradient - bent.project(gradient)).norm()) > 0.1


def simulate(dim: int, n: int, trials: int, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s, r, z and mean |A_i|^2 of independent A_i with covariance diag(1, 1/2, ..., 1/dim), by the formulas of the page."""
    scale = torch.arange(1, dim + 1, dtype=torch.float64).rsqrt()
    return scored(randn(trials, n, dim) * scale + shift / math.sqrt(dim))


def scored(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s, r, z and mean |A_i|^2 of A_i, (trials, n, dim)."""
    n = a.shape[1]
    total, squares = a.sum(1), a.square().sum(2).mean(1)
    s = (total.square().sum(1) / n - squares) / (n - 1)
    before = a.cumsum(1) - a
    steps = (a * before).sum(2)
    z = steps.sum(1) / steps.square().sum(1).sqrt()
    torch.testing.assert_close(2 * steps.sum(1) / (n * (n - 1)), s)
    return s, s / squares, z, squares


@pytest.mark.parametrize(("dim", "n"), [(3, 12), (40, 12), (40, 60)])
def test_a_false_alarms_stay_below_the_bounds(dim: int, n: int) -> None:
    """E s = 0, Var s = 2 tr Sigma^2 / (n (n - 1)), and how often s and r leave the dead zone."""
    trials = 2000
    s, r, z, _ = simulate(dim, n, trials)
    sigma = 1 / torch.arange(1, dim + 1, dtype=torch.float64)
    trace, square = float(sigma.sum()), float(sigma.square().sum())
    variance = 2 * square / (n * (n - 1))
    assert abs(float(s.mean())) < 4 * math.sqrt(variance / trials)
    assert float(s.var()) == pytest.approx(variance, rel=0.15)
    d_eff = trace**2 / square
    kurtosis = 2 / d_eff  # Var |A|^2 / (tr Sigma)^2 of normal A
    for c in (1.0, 2.0, 4.0):
        alarms = float((s > c * trace / n).double().mean())
        bound = 2 * n / ((n - 1) * c**2 * d_eff)
        assert alarms <= bound / (1 + bound)
        delta = 0.5
        bound = 2 * n / ((n - 1) * (c * (1 - delta)) ** 2 * d_eff) + kurtosis / (n * delta**2)
        assert float((r > c / n).double().mean()) <= bound
    assert float((z > 3).double().mean()) < 0.006  # Normal: 0.00135. Few directions have a lighter tail.
    assert float((z > 1.645).double().mean()) < 0.07


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("n", "noise"), [(8, 1.0), (50, 0.1)])
def test_a_false_alarms_of_a_layer_stay_below_the_bounds(name: str, n: int, noise: float) -> None:
    """Examples of symmetric data with noise, at an equivariant map that fits nothing: A_i is far from normal here."""
    data, trials = Data(name), 800
    a = data.moments(data.project(randn(data.out_rep.dim, data.in_rep.dim, seed=7)), noise, n, trials)
    s, r, z, squares = scored(a)
    one, other = a[:, : n // 2].flatten(0, 1), a[:, n // 2 : 2 * (n // 2)].flatten(0, 1)
    trace = float(squares.mean())
    square = float((one * other).sum(1).square().mean())  # tr Sigma^2 = E <A_i, A_j>^2
    assert abs(float(s.mean())) < 4 * float(s.std()) / math.sqrt(trials)
    assert float(s.var()) == pytest.approx(2 * square / (n * (n - 1)), rel=0.35)
    d_eff, kurtosis = trace**2 / square, float(one.square().sum(1).var()) / trace**2
    for c in (2.0, 4.0):
        bound = 2 * n / ((n - 1) * c**2 * d_eff)
        assert float((s > c * trace / n).double().mean()) <= bound / (1 + bound)
        delta = 0.5
        bound = bound / (1 - delta) ** 2 + kurtosis / (n * delta**2)
        assert float((r > c / n).double().mean()) <= bound
    assert float((z > 3).double().mean()) < 0.01


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("n", "noise"), [(6, 0.0), (30, 1.0)])
def test_c_examples_estimate_the_gradient_at_the_best_equivariant_map(
    name: str, n: int, noise: float
) -> None:
    data = Data(name, asymmetry=1.0)
    best = data.best_equivariant()
    s = scored(data.moments(best, noise, n, 2000))[0]
    assert float(s.mean()) == pytest.approx(
        float(data.gradient(best).square().sum()), abs=4 * float(s.std()) / math.sqrt(len(s))
    )
    assert float(s.mean()) > 8 * float(s.std()) / math.sqrt(len(s))


def test_s_is_unbiased_and_r_is_at_most_1() -> None:
    s, r, z, _squares = simulate(5, 100, 1000, shift=0.5)
    assert float(s.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(r.max()) <= 1
    assert float(z.median()) > 3
    same = torch.ones(1, 4, 3, dtype=torch.float64)
    total = same.sum(1).square().sum(1)
    assert float((total / 4 - 3) / 3 / 3) == 1.0


def test_examples_that_depend_on_each_other_score_without_any_asymmetry() -> None:
    """Every example twice: E <A_i, A_j> is tr Sigma for one of n - 1 partners, and E s = tr Sigma / (n - 1)."""
    a = randn(4000, 10, 3).repeat_interleave(2, dim=1)
    n = a.shape[1]
    s = (a.sum(1).square().sum(1) / n - a.square().sum(2).mean(1)) / (n - 1)
    assert float(s.mean()) == pytest.approx(3 / (n - 1), rel=0.1)


@pytest.mark.parametrize("name", CASES)
def test_b_the_non_equivariant_part_never_grows_on_symmetric_data(name: str) -> None:
    """Gradient descent on A and R with steps that gamma's and C's size allow: N <- N (1 - step gamma^2 C) exactly."""
    data = Data(name)
    a = data.project(randn(data.out_rep.dim, data.in_rep.dim, seed=3))
    r = randn(data.out_rep.dim, data.in_rep.dim, seed=4)
    gamma, step, rate = 1.5, 0.02, 0.05
    assert step * gamma**2 * float(torch.linalg.eigvalsh(data.c)[-1]) < 2
    norms = []
    for _ in range(60):
        rest = r - data.project(r)
        norms.append(float(rest.norm()))
        gradient = data.gradient(a + gamma * r)
        a = a - step * data.project(gradient)
        r = r - step * gamma * gradient
        contracted = rest - step * gamma**2 * rest @ data.c
        torch.testing.assert_close(r - data.project(r), contracted, rtol=0, atol=1e-12)
        gamma *= 1 - rate
    assert all(after <= before for before, after in itertools.pairwise(norms))
    assert norms[-1] < 0.9 * norms[0]
    # finite data that are no orbit drive it
    open_data = Data(name, closed=False)
    gradient = open_data.gradient(open_data.best_equivariant())
    assert float((gradient - open_data.project(gradient)).norm()) > 0.05


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("asymmetry", [0.1, 1.0])
def test_c_the_gradient_at_the_best_equivariant_map_is_what_relaxing_gains(
    name: str, asymmetry: float
) -> None:
    data = Data(name, asymmetry)
    best = data.best_equivariant()
    gradient = data.gradient(best)
    assert float(data.project(gradient).norm()) < 1e-10  # so that (1 - P) takes nothing away
    free = torch.linalg.lstsq(data.x, data.y).solution.T
    gain = data.loss(best) - data.loss(free)
    assert float((gradient @ torch.linalg.inv(data.c) @ gradient.T).trace()) / 2 == pytest.approx(gain)
    low, high = torch.linalg.eigvalsh(data.c)[[0, -1]].tolist()
    size = float(gradient.square().sum())
    assert size / (2 * high) <= gain <= size / (2 * low)
    assert gain > 1e-3


def test_c_inputs_that_do_not_span_the_space_take_the_pseudo_inverse() -> None:
    """Two of three copies of a vector are the same, up to a factor: C has a kernel, and the best maps are many."""
    data = Data("O3", asymmetry=1.0)
    data.x[:, 4:] = 2 * data.x[:, 1:4]
    data.c, data.b = data.x.T @ data.x / len(data.x), data.y.T @ data.x / len(data.x)
    values = torch.linalg.eigvalsh(data.c)
    assert int((values > 1e-9).sum()) == 4
    best = data.best_equivariant()
    gradient = data.gradient(best)
    free = data.loss(data.b @ torch.linalg.pinv(data.c, hermitian=True))
    gain = data.loss(best) - free
    inverse = torch.linalg.pinv(data.c, hermitian=True)
    assert float((gradient @ inverse @ gradient.T).trace()) / 2 == pytest.approx(gain)
    size = float(gradient.square().sum())
    assert size / (2 * float(values[-1])) <= gain <= size / (2 * float(values[2]))
    assert gain > 1e-3


def test_elsewhere_asymmetric_inputs_alone_raise_the_score() -> None:
    """An equivariant task whose inputs are not symmetric: 0 at the best equivariant map, where nothing can be gained."""
    data = Data("C4", closed=False)
    best = data.project(randn(data.out_rep.dim, data.in_rep.dim, seed=5))
    data.y = data.x @ best.T
    data.b = data.y.T @ data.x / len(data.x)
    other = data.gradient(0.5 * best)
    assert float((other - data.project(other)).norm()) > 0.1
    assert float(data.gradient(best).norm()) < 1e-12


def test_the_library_computes_the_s_of_the_page() -> None:
    """For 2 L: the mean over the examples' A_i is (1 - P) grad L, its part for the weight."""
    data = Data("S3", asymmetry=1.0)
    best = data.best_equivariant()
    model = nn.Sequential(nn.Linear(data.in_rep.dim, data.out_rep.dim, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(best)
    found = er.symmetry_score(
        model,
        (data.x, data.y),
        lambda m, b: (m(b[0]) - b[1]).square().sum(1) / 2,
        placement=er.Layers(declare=(er.Linear("0", data.in_rep, data.out_rep),)),
    )
    n, gradient = len(data.x), data.gradient(best)
    shift = (data.x @ best.T - data.y).mean(0)  # of the bias
    shift = shift - equivariant_projection(shift[:, None], trivial(S3), data.out_rep)[:, 0]
    mean = float(gradient.square().sum() + shift.square().sum())
    assert found.layers[0].score == pytest.approx((n * mean - found.layers[0].size) / (n - 1))
