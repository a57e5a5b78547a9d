"""Networks of group convolutions, relaxed: every kind of residual and method, there and exactly back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from equirelax_lab.models import FieldBatchNorm, GroupConv2d, GroupPool
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError, RepresentationError, UnfoldableError
from equirelax.methods import ACE, RPP, Method, ResilientACE, Scheduled
from equirelax.relaxation import MLP, Dense, Layers, Linear, LowRank, Relaxation, ResidualKind
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.relaxation.kinds.low_rank import LowRankConvMap
from equirelax.relaxation.regularizers import LieDerivative
from equirelax.symmetry import Cyclic, Dihedral, GridField, Group, Representation, regular, trivial, vector

torch.set_num_threads(1)
GROUPS = (Cyclic(4), Dihedral(4))
KINDS = (
    Dense("normal", std=0.1),
    Dense("normal", std=0.1, bias=True),
    LowRank(2, "normal", std=0.3),
    EquivariantDense("normal", std=0.1),
)
METHODS: dict[str, Callable[[Relaxation], Method]] = {
    "scheduled": lambda relaxation: Scheduled(relaxation, total_steps=3),
    "ace": lambda relaxation: ACE(relaxation, dual_lr=1e-2),
    "resilient": lambda relaxation: ResilientACE(relaxation, dual_lr=1e-2, primal_lr=1e-2),
    "rpp": lambda relaxation: RPP(relaxation),
}


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(group: Group) -> nn.Sequential:
    """Vectors to regular fields and back to a vector and an invariant, with a stride, on 9 x 9 pixels."""
    hidden = 2 * regular(group)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            GroupConv2d(vector(group), hidden, 3),
            FieldBatchNorm(hidden),
            nn.ReLU(),
            GroupConv2d(hidden, hidden, 3, stride=2, padding_mode="reflect"),
            nn.ReLU(),
            GroupConv2d(hidden, vector(group) + trivial(group), 3),
        ).double()


def error(model: nn.Module, group: Group, x: Tensor) -> float:
    """Largest relative equivariance error in evaluation mode, over all elements."""
    model.eval()
    before, after = GridField(vector(group)), GridField(vector(group) + trivial(group))
    with torch.no_grad():
        y = model(x)
        differences = [model(before.apply(g, x)) - after.apply(g, y) for g in group.elements()]
    return max(float(d.abs().max()) for d in differences) / float(y.abs().max())


def train(model: nn.Module, method: Method, steps: int = 3) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    method.attach(optimizer)
    model.train()
    for step in range(steps):
        x, y = draw(4, 2, 9, 9, seed=step), draw(4, 3, 5, 5, seed=10 + step)
        (nn.functional.mse_loss(model(x), y) + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_trained_and_projected_is_exactly_equivariant(group: Group, name: str, mode: str) -> None:
    model, x = network(group), draw(2, 2, 9, 9)
    keys = list(model.state_dict())
    relaxation = er.relax(model, residual=Dense("normal", std=0.05, bias=True))
    train(model, METHODS[name](relaxation))
    relaxation.set_gamma(0.5)
    assert error(model, group, x) > 1e-3
    with relaxation.strict():
        assert error(model, group, x) < 1e-10
    report = er.project(model, mode)
    assert error(model, group, x) < 1e-10
    assert list(model.state_dict()) == keys
    assert all((one.folded > 0) is (mode == "fold") for one in report.residuals)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{type(kind).__name__}{getattr(kind, 'bias', '')}")
def test_every_kind_there_and_back(kind: ResidualKind) -> None:
    group = Dihedral(4)
    model, x = network(group), draw(2, 2, 9, 9)
    strict = copy.deepcopy(model)
    relaxation = er.relax(model, residual=kind)
    counts = {row.path: row.parameters for row in relaxation.summary().rows if row.status == "relaxed"}
    assert counts == {key: sum(p.numel() for p in residual.map.parameters()) for key, residual in relaxation}
    train(model, METHODS["scheduled"](relaxation))
    relaxation.set_gamma(0.5)
    relaxes = not isinstance(kind, EquivariantDense)
    assert (error(model, group, x) > 1e-3) is relaxes
    er.project(model, "fold")
    assert error(model, group, x) < 1e-10
    strict.load_state_dict(model.state_dict())
    assert torch.equal(strict.eval()(x), model.eval()(x))


def test_the_control_has_no_penalty_and_folds_without_loss() -> None:
    model, x = network(Cyclic(4)).eval(), draw(2, 2, 9, 9)
    relaxation = er.relax(model, residual=EquivariantDense("normal", std=0.1))
    relaxation.set_gamma(0.7)
    penalty = LieDerivative(relaxation)
    penalty()
    assert all(float(term["lie"]) < 1e-25 * float(term["norm"]) for term in penalty.terms.values())
    before = model(x)
    report = er.project(model, "fold")
    torch.testing.assert_close(model(x), before)
    assert all(one.error < 1e-12 for one in report.residuals)


def test_low_rank_is_the_product_of_its_factors() -> None:
    model = network(Cyclic(4))
    residual = er.relax(model, residual=LowRank(2, "normal", std=0.3))["3"]
    residual.set_gamma(0.7)
    assert isinstance(residual.map, LowRankConvMap)
    x, convolution = draw(2, 8, 9, 9), residual.site.convolution
    assert convolution is not None
    torch.testing.assert_close(residual.delta(x), 0.7 * convolution(x, residual.map.effective_weight()))
    wide = er.relax(network(Cyclic(4)), residual=LowRank(50))["3"].map
    assert sum(p.numel() for p in wide.parameters()) == 8 * (9 * 8 + 8)  # no more than the kernel's own rank


def test_residuals_are_applied_as_their_layer_is() -> None:
    """Stride and padding included: with the layer's own kernel the residual is the layer."""
    model = network(Cyclic(4))
    relaxation = er.relax(model)
    for key, residual in relaxation:
        conv = model.get_submodule(key)
        with torch.no_grad():
            residual.map.weight.copy_(conv.kernel())
        residual.set_gamma(1.0)
        x = draw(2, conv.in_channels, 9, 9)
        with relaxation.strict():
            y = conv(x)
        constants = 0 if conv.constants() is None else conv.constants()[:, None, None]
        torch.testing.assert_close(conv(x) - y, y - constants)


def test_saved_and_loaded(tmp_path: Path) -> None:
    group = Dihedral(4)
    model, x = network(group), draw(2, 2, 9, 9)
    relaxation = er.relax(model, Layers(residual=LowRank(3), exclude=("0",)))
    train(model, METHODS["ace"](relaxation))
    er.save(model, tmp_path / "model.pt")
    other = network(group)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    loaded = er.load(other, tmp_path / "model.pt")
    assert list(loaded.residuals) == ["3", "5"]
    assert torch.equal(other.eval()(x), model.eval()(x))
    strict = network(group)
    strict.load_state_dict(relaxation.strict_state_dict())
    with relaxation.strict():
        assert torch.equal(strict.eval()(x), model(x))


def test_perceptrons_are_refused_by_name() -> None:
    with pytest.raises(PlacementError, match=r"MLP makes no convolution.*Dense"):
        er.relax(network(Cyclic(4)), residual=MLP())


def test_transposed_low_rank_is_refused() -> None:
    from equirelax.relaxation import BasisKernels, Convolution

    convolution = Convolution((3, 3), BasisKernels(()), (1, 1), (1, 1), (1, 1), transposed=True)
    with pytest.raises(PlacementError, match="does not support transposed"):
        LowRank().build_convolution(2, 3, convolution)
    assert Dense().build_convolution(2, 3, convolution).weight.shape == (2, 3, 3, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_folds_where_the_layer_has_one(bias: bool) -> None:
    group = Cyclic(4)
    model = nn.Sequential(GroupConv2d(vector(group), regular(group), 3, bias=bias)).double()
    relaxation = er.relax(model, residual=Dense(bias=True))
    constants = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    with torch.no_grad():
        relaxation["0"].map.bias.copy_(constants)
    relaxation.set_gamma(1.0)
    if not bias:
        with pytest.raises(UnfoldableError, match=r"0 .GroupConv2d. has no bias"):
            er.project(model, "fold")
        return
    conv = model[0]
    before = conv.constants().detach()
    report = er.project(model, "fold")
    torch.testing.assert_close(conv.constants().detach() - before, constants.mean().expand(4))
    assert report.residuals[0].folded == pytest.approx(6.0)


def test_constants_of_vectors_are_lost() -> None:
    """They are not equivariant, and the layer has no bias for them: nothing to refuse."""
    group = Cyclic(4)
    model = nn.Sequential(GroupConv2d(vector(group), vector(group), 3)).double()
    relaxation = er.relax(model, residual=Dense(bias=True))
    with torch.no_grad():
        relaxation["0"].map.bias.fill_(1.0)
    relaxation.set_gamma(1.0)
    assert er.project(model, "fold").residuals[0].error == pytest.approx(1.0)


class Odd(nn.Module):
    """Has the attributes of a group convolution, and one setting that its residual cannot have."""

    def __init__(self, kernel_size: tuple[int, int] = (3, 3), groups: int = 1) -> None:
        super().__init__()
        self.in_rep = self.out_rep = trivial(Cyclic(4), 2)
        self.kernel_size, self.groups = kernel_size, groups
        self.padding = 1

    def coefficients(self, kernel: Tensor) -> Tensor:
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_what_cannot_be_relaxed_says_why() -> None:
    model = nn.Sequential(GroupConv2d(*2 * [trivial(Cyclic(4), 2)], 3), Odd((3, 1)), Odd(groups=2), Odd())
    rows = {row.path: row for row in er.relax(model).summary().rows}
    assert "kernels of 3 x 3; penalty: group difference" in rows["0"].reason
    assert "3 x 1 is not square" in rows["1"].reason
    assert "grouped" in rows["2"].reason
    with pytest.raises(UnfoldableError, match=r'3 .Odd. has no parameter "weight" to fold into'):
        er.project(model, "fold")


class Symmetrised(nn.Conv2d):
    """Somebody's own equivariant layer: an ordinary convolution, whose kernel is averaged over C4 when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        turns = [self.weight.rot90(k, (-2, -1)) for k in range(4)]
        return nn.functional.conv2d(x, torch.stack(turns).mean(0), self.bias, self.stride, self.padding)


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_declared_convolutions(tmp_path: Path, mode: str) -> None:
    group = Cyclic(4)
    rep = trivial(group, 3)
    model = nn.Sequential(Symmetrised(3, 3, 3, padding=1), nn.ReLU(), Symmetrised(3, 3, 3, stride=2)).double()
    declared = Layers(
        declare=(Linear("Symmetrised", GridField(rep), GridField(rep)),),
        residual=Dense("normal", std=0.1, bias=True),
    )
    relaxation = er.relax(model, declared)
    x = draw(2, 3, 9, 9)
    relaxation.set_gamma(0.5)
    assert er.audit(model, x, GridField(rep), GridField(rep), lie=False).relative > 1e-3
    er.save(model, tmp_path / "model.pt")
    other = nn.Sequential(Symmetrised(3, 3, 3, padding=1), nn.ReLU(), Symmetrised(3, 3, 3, stride=2)).double()
    assert er.load(other, tmp_path / "model.pt").placements[""] == declared
    torch.testing.assert_close(other(x), model(x))
    er.project(model, mode)
    assert er.audit(model, x, GridField(rep), GridField(rep), lie=False).relative < 1e-10


def test_wrong_declarations_are_refused() -> None:
    rep = trivial(Cyclic(4), 3)

    def attempt(module: nn.Module, in_rep: Representation, out_rep: Representation) -> None:
        declared = Linear(type(module).__name__, GridField(in_rep), GridField(out_rep))
        er.relax(nn.Sequential(module), Layers(declare=(declared,)))

    with pytest.raises(PlacementError, match="expected one group"):
        attempt(nn.Conv2d(3, 3, 3), rep, trivial(Dihedral(4), 3))
    with pytest.raises(PlacementError, match="its out_channels is 4"):
        attempt(nn.Conv2d(3, 4, 3), rep, rep)
    with pytest.raises(PlacementError, match="has no attribute kernel_size"):
        attempt(nn.Linear(3, 3), rep, rep)
    with pytest.raises(PlacementError, match="padding is 'same'"):
        attempt(nn.Conv2d(3, 3, 3, padding="same"), rep, rep)
    with pytest.raises(PlacementError, match="square grid"):
        attempt(nn.Conv2d(3, 3, 3), trivial(Cyclic(8), 3), trivial(Cyclic(8), 3))


def test_other_channels_than_declared_are_refused() -> None:
    model = nn.Sequential(Odd())
    relaxation = er.relax(model)
    relaxation.set_gamma(1.0)
    with pytest.raises(RepresentationError, match="placed for 2 input features"):
        model(torch.zeros(1, 3, 5, 5))


def test_the_audit_names_the_layer_that_strides_on_an_even_size() -> None:
    group = Cyclic(4)
    model = network(group)
    er.relax(model)
    report = er.audit(
        model,
        draw(2, 2, 8, 8),
        GridField(vector(group)),
        GridField(vector(group) + trivial(group)),
        lie=False,
    )
    assert report.relative > 1e-3
    assert "first break: 3 (GroupConv2d)" in str(report)


@pytest.mark.parametrize("kind", [Dense("default"), LowRank(2, "default")], ids=["Dense", "LowRank"])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_slopes_of_residual_convolutions_are_bounded(kind: ResidualKind, mode: str) -> None:
    group = Cyclic(4)
    conv = GroupConv2d(vector(group), regular(group), 3, stride=2, padding_mode=mode).double()
    residual = er.relax(conv, residual=kind, generator=torch.Generator().manual_seed(0))[""]
    found = residual.slope()
    if mode == "reflect":
        assert found.constant is None
        assert "repeats pixels" in found.reason
        return
    assert found.constant is not None
    # the convolution as one matrix, for all pixels
    matrix = residual.map(torch.eye(50, dtype=torch.float64).view(50, 2, 5, 5)).flatten(1)
    steepest = float(torch.linalg.matrix_norm(matrix.detach(), 2))
    assert 0.2 * found.constant < steepest <= found.constant


def test_invariant_head() -> None:
    """Through pooling over the group and the grid."""
    group = Dihedral(4)
    rep = 3 * regular(group)
    model = nn.Sequential(
        GroupConv2d(trivial(group), rep, 3), nn.ReLU(), GroupPool(rep), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    relaxation = er.relax(model, residual=Dense("normal", std=0.1))
    relaxation.set_gamma(1.0)
    report = er.audit(model, draw(2, 1, 7, 7), GridField(trivial(group)), trivial(group, 3), lie=False)
    assert report.relative > 1e-4
    assert report.after is not None
    assert report.after.relative < 1e-10


@pytest.mark.slow
def test_relaxed_and_compiled() -> None:
    group = Cyclic(4)
    model, x = network(group).float().eval(), draw(2, 2, 9, 9).float()
    er.relax(model, residual=Dense("normal", std=0.1)).set_gamma(0.5)
    torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-4, atol=1e-5)
