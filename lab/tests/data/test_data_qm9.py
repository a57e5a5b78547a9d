"""Molecules: batches against loops, scaling from training molecules alone, made-up, damaged and real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equirelax_lab.data import MoleculeSet, qm9
from equirelax_lab.data.molecules import ELEMENTS, Scaling
from hypothesis import given, settings
from hypothesis import strategies as st
from qm9_files import COLUMNS, subset_arrays, write_subset
from real_data import QM9_SIZES, SAMPLES
from torch import Tensor

from equirelax.errors import DataError

SIZES = {"train": 14, "val": 4, "test": 6}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 made-up molecules, split by SIZES."""
    monkeypatch.setattr(qm9, "SUBSET_TRAIN", SIZES["train"])
    monkeypatch.setattr(qm9, "SUBSET_VAL", SIZES["val"])
    return write_subset(tmp_path)


def chains(positions: Tensor, graph: Tensor) -> Tensor:
    """Edges from every atom to the next one of its molecule, ordered by molecule."""
    first = torch.arange(len(graph) - 1)[graph[1:] == graph[:-1]]
    return torch.stack([first, first + 1])


def made(sizes: list[int]) -> MoleculeSet:
    generator = torch.Generator().manual_seed(len(sizes))
    atoms = sum(sizes)
    return MoleculeSet(
        torch.randint(1, 9, (atoms,), generator=generator),
        torch.randn(atoms, 3, generator=generator),
        torch.tensor(sizes),
        torch.randn(len(sizes), generator=generator, dtype=torch.float64),
        torch.arange(len(sizes)) + 100,
    ).with_edges(chains)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
@settings(max_examples=40, deadline=None)
def test_batches_and_subsets_are_what_a_loop_collects(sizes: list[int], data: st.DataObject) -> None:
    molecules = made(sizes)
    chosen = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=5))
    turns = torch.linalg.qr(torch.randn(max(len(chosen), 1), 3, 3))[0]
    batch = molecules.batch(chosen, turns[: len(chosen)])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    numbers, positions, graph, edges = [], [], [], []
    for place, index in enumerate(chosen):
        for k in range(sizes[index]):
            if k > 0:
                edges.append((len(numbers) - 1, len(numbers)))
            numbers.append(int(molecules.numbers[starts[index] + k]))
            positions.append(turns[place] @ molecules.positions[starts[index] + k])
            graph.append(place)
    assert batch["numbers"].tolist() == numbers
    assert batch["graph"].tolist() == graph
    assert [tuple(edge) for edge in batch["edge_index"].T.tolist()] == edges
    torch.testing.assert_close(batch["positions"], torch.stack(positions) if positions else torch.empty(0, 3))
    assert torch.equal(batch["targets"][:, 0], molecules.targets[chosen])
    part = molecules.subset(torch.tensor(chosen, dtype=torch.long))
    assert len(part) == len(chosen)
    again = part.batch(range(len(chosen)), turns[: len(chosen)])
    assert all(torch.equal(again[name], batch[name]) for name in batch)
    assert torch.equal(part.identifiers, molecules.identifiers[chosen])


def test_a_set_is_cut_moved_and_counted() -> None:
    molecules = made([2, 3, 1, 4])
    assert molecules.subset(slice(1, 3)).sizes.tolist() == [3, 1]
    assert molecules.subset([3, 0]).identifiers.tolist() == [103, 100]
    double = molecules.to("cpu", torch.float64)
    assert double.positions.dtype == double.targets.dtype == torch.float64
    assert molecules.to("cpu").targets.dtype == torch.float64
    assert molecules.device == torch.device("cpu")
    composition = molecules.composition()
    assert composition.shape == (4, ELEMENTS)
    assert composition.sum(1).tolist() == [2, 3, 1, 4]
    assert composition[2, molecules.numbers[5]] == 1


def test_one_rotation_turns_all_molecules(rotation: Tensor) -> None:
    molecules = made([2, 3])
    turned = molecules.batch([0, 1], rotation[0])["positions"]
    torch.testing.assert_close(turned, molecules.positions @ rotation[0].float().T)


def test_edges_are_found_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    from equirelax_lab.data import molecules as module

    whole = made([2, 3, 1, 4, 2])
    monkeypatch.setattr(module, "CHUNK", 2)
    portions = made([2, 3, 1, 4, 2])
    assert torch.equal(whole.edge_index, portions.edge_index)  # type: ignore[arg-type]
    assert torch.equal(whole.edge_counts, portions.edge_counts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": torch.tensor([2, 2])},
        {"sizes": torch.tensor([3, 0])},
        {"numbers": torch.tensor([1, 0, 8])},
        {"numbers": torch.tensor([1, 1, ELEMENTS])},
        {"targets": torch.zeros(3)},
        {"positions": torch.zeros(3, 2)},
        {"edge_index": torch.zeros(2, 1, dtype=torch.long)},
    ],
)
def test_what_does_not_fit_together_is_refused(wrong: dict[str, Tensor]) -> None:
    fitting: dict[str, Any] = {
        "numbers": torch.tensor([1, 6, 8]),
        "positions": torch.zeros(3, 3),
        "sizes": torch.tensor([2, 1]),
        "targets": torch.zeros(2),
        "identifiers": torch.tensor([1, 2]),
    }
    MoleculeSet(**fitting)
    with pytest.raises(DataError):
        MoleculeSet(**{**fitting, **wrong})


def test_edges_between_molecules_are_refused() -> None:
    with pytest.raises(DataError, match="within molecules"):
        made([2, 2]).with_edges(lambda positions, graph: torch.tensor([[0], [2]]))
    with pytest.raises(DataError, match="ordered by molecule"):
        made([2, 2]).with_edges(lambda positions, graph: torch.tensor([[2, 0], [3, 1]]))


def test_scaling_is_least_squares_and_can_be_undone() -> None:
    molecules = made([2, 5, 3, 4, 1, 2, 6, 3, 2, 4, 5, 3])
    composition = molecules.composition()
    values = 7.0 + composition @ torch.arange(ELEMENTS).double() + molecules.targets
    scaling = Scaling.fit(values, composition, references=True)
    scaled = scaling.apply(values, composition)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-10)
    assert float(scaled.std(correction=0)) == pytest.approx(1)
    torch.testing.assert_close(scaling.invert(scaled, composition), values)
    present = (composition.sum(0) > 0).numpy()
    solution, *_ = np.linalg.lstsq(composition.numpy()[:, present], values.numpy(), rcond=None)
    np.testing.assert_allclose(scaling.references.numpy()[present], solution, rtol=1e-8)
    assert bool((scaling.references[~torch.from_numpy(present)] == 0).all())
    plain = Scaling.fit(values, composition, references=False)
    assert not plain.references.any()
    assert plain.mean == pytest.approx(float(values.mean()))
    assert plain.deviation == pytest.approx(float(values.std(correction=0)))


def test_scaling_survives_what_it_cannot_resolve() -> None:
    composition = torch.zeros(3, ELEMENTS)
    composition[:, 6] = composition[:, 1] = torch.tensor([1.0, 2.0, 3.0])  # C and H always together
    values = torch.tensor([2.0, 4.0, 6.0])
    scaling = Scaling.fit(values, composition, references=True)
    assert scaling.references[[1, 6]].tolist() == pytest.approx([1, 1])
    assert scaling.deviation == 1.0
    assert Scaling.fit(torch.full((4,), 3.0), torch.zeros(4, ELEMENTS), references=True).mean == 3.0
    with pytest.raises(DataError, match="no molecules"):
        Scaling.fit(torch.zeros(0), torch.zeros(0, ELEMENTS), references=False)


def test_splits_are_the_files_order_or_shuffled(root: Path) -> None:
    found: dict[str, list[int]] = {}
    for partition in qm9.PARTITIONS:
        parts = {s: qm9.load(s, partition=partition, root=root).identifiers.tolist() for s in SIZES}
        assert {name: len(ids) for name, ids in parts.items()} == SIZES
        found[partition] = [number for ids in parts.values() for number in ids]
        assert sorted(found[partition]) == [3 * n + 1 for n in range(24)]
    assert found["ordered"] == sorted(found["ordered"])
    assert found["shuffled"] != found["ordered"]


def test_fewer_molecules_are_among_more(root: Path) -> None:
    def ids(count: int | None) -> set[int]:
        return set(qm9.load("train", train=count, root=root).identifiers.tolist())

    assert ids(3) < ids(7) < ids(None)
    assert len(ids(7)) == 7
    assert max(ids(7)) > 3 * 7  # not the file's first ones, which are the smallest
    assert len(qm9.load("val", count=2, root=root)) == 2
    for wrong in (0, 15):
        with pytest.raises(DataError, match="14 molecules"):
            qm9.load("train", train=wrong, root=root)


def test_energies_are_in_ev_and_nothing_else_is_changed(root: Path) -> None:
    file = subset_arrays()
    for name, target in qm9.TARGETS.items():
        data = qm9.load("train", partition="ordered", target=name, targets="raw", root=root)
        column = file["targets"][: SIZES["train"], COLUMNS.index(target.column)]
        factor = 27.211386245988 if target.unit == "eV" else 1.0
        np.testing.assert_allclose(data.targets.numpy(), factor * column, rtol=1e-14)
        assert data.scaling.deviation == 1.0
    assert [n for n, t in qm9.TARGETS.items() if t.unit != "eV"] == ["mu", "alpha", "r2", "Cv"]
    assert len(qm9.TARGETS) == 12


def test_only_training_molecules_enter_the_scaling(root: Path) -> None:
    before = {split: qm9.load(split, partition="ordered", root=root) for split in SIZES}
    arrays = subset_arrays()
    arrays["targets"][SIZES["train"] :] *= -5
    write_subset(root, arrays)
    after = {split: qm9.load(split, partition="ordered", root=root) for split in SIZES}
    assert torch.equal(before["train"].targets, after["train"].targets)
    assert not torch.allclose(before["test"].targets, after["test"].targets)
    for split, data in before.items():
        assert torch.equal(data.scaling.references, before["train"].scaling.references)
        raw = qm9.load(split, partition="ordered", targets="raw", root=root).targets
        torch.testing.assert_close(after[split].scaling.apply(raw, data.composition()), after[split].targets)
    fewer = qm9.load("val", partition="ordered", train=6, root=root).scaling
    assert fewer.deviation == qm9.load("train", partition="ordered", train=6, root=root).scaling.deviation
    assert fewer.deviation != before["val"].scaling.deviation
    assert not qm9.load("train", partition="ordered", target="mu", root=root).scaling.references.any()


def test_an_element_without_reference_is_an_error(root: Path) -> None:
    arrays = subset_arrays()
    arrays["Z"][-1] = 9
    write_subset(root, arrays)
    with pytest.raises(DataError, match="elements 9 "):
        qm9.load("test", partition="ordered", root=root)
    assert len(qm9.load("val", partition="ordered", root=root)) == 4
    assert len(qm9.load("test", partition="ordered", target="gap", root=root)) == 6
    assert len(qm9.load("test", partition="ordered", targets="raw", root=root)) == 6


def _without(key: str) -> dict[str, np.ndarray]:
    return {k: v for k, v in subset_arrays().items() if k != key}


def _with(key: str, value: Any) -> dict[str, np.ndarray]:
    return {**subset_arrays(), key: value}


def _nan(key: str) -> dict[str, np.ndarray]:
    arrays = subset_arrays()
    arrays[key][1, 1] = np.nan
    return arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (_without("Z"), "arrays Z are missing"),
        (_with("Z", subset_arrays()["Z"][:-1]), "atoms that n_atoms says"),
        (_with("Z", subset_arrays()["Z"] * 0), "atomic numbers"),
        (_with("R", subset_arrays()["R"][:, :2]), "R must be"),
        (_with("n_atoms", subset_arrays()["n_atoms"].astype(float)), "n_atoms"),
        (_with("n_atoms", subset_arrays()["n_atoms"][:0]), "n_atoms"),
        (_with("gdb_id", subset_arrays()["gdb_id"][:-1]), "gdb_id"),
        (_with("target_names", np.array(COLUMNS[:-1])), "targets must be"),
        (_with("target_names", np.array([*COLUMNS[:8], "u", *COLUMNS[9:]])), "no target 'u0'"),
        (_nan("R"), "NaN"),
        (_nan("targets"), "NaN"),
    ],
)
def test_damaged_files_are_named(root: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    write_subset(root, arrays)
    with pytest.raises(DataError, match=message) as raised:
        qm9.load("train", root=root)
    assert "qm9_subset.npz" in str(raised.value)


def test_missing_and_broken_files_and_unknown_names(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        qm9.load("train", root=tmp_path / "nowhere")
    for words in ({"target": "u0"}, {"targets": "row"}, {"source": "pig"}, {"partition": "random"}):
        with pytest.raises(DataError, match=f"Unknown .*{next(iter(words.values()))}"):
            qm9.load("train", root=root, **words)
    with pytest.raises(DataError, match="Unknown split"):
        qm9.load("all", root=root)
    (root / "qm9" / "qm9_subset.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="not a readable"):
        qm9.load("train", root=root)


def test_too_few_molecules_for_the_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="24 molecules; more than 14800"):
        qm9.load("train", root=write_subset(tmp_path))


def test_all_molecules_are_split_by_shares(root: Path) -> None:
    (root / "qm9" / "qm9_subset.npz").rename(root / "qm9" / "qm9.npz")
    for partition in ("shuffled", "seeded"):
        sets = [
            qm9.load(split, source="full", partition=partition, seed=2, root=root) for split in qm9.SPLITS
        ]
        assert [len(data) for data in sets] == [19, 2, 3]
        assert sorted(n for data in sets for n in data.identifiers.tolist()) == [3 * n + 1 for n in range(24)]
    with pytest.raises(DataError, match="no ordered partition"):
        qm9.load("train", source="full", partition="ordered", root=root)
    with pytest.raises(DataError, match=r"qm9_subset\.npz is missing.*equirelax data get qm9"):
        qm9.load("train", root=root)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the real molecules."""
    monkeypatch.setattr(qm9, "SUBSET_TRAIN", QM9_SIZES["train"])
    monkeypatch.setattr(qm9, "SUBSET_VAL", QM9_SIZES["val"])
    return SAMPLES


def test_the_real_molecules(real: Path) -> None:
    sets = {split: qm9.load(split, partition="ordered", root=real) for split in qm9.SPLITS}
    assert {split: len(data) for split, data in sets.items()} == QM9_SIZES
    ordered = torch.cat([sets[split].identifiers for split in qm9.SPLITS])
    assert bool((ordered.diff() > 0).all())
    methane = qm9.load("train", partition="ordered", targets="raw", root=real).subset([0])
    assert sorted(methane.numbers.tolist()) == [1, 1, 1, 1, 6]
    assert float(methane.targets) / qm9.EV_PER_HARTREE == pytest.approx(-40.47893, abs=1e-6)
    # atomic references explain all of the energy but about a hundredth of a percent
    assert 0.5 < sets["train"].scaling.deviation < 2.0


def test_the_real_properties_fit_together(real: Path) -> None:
    """Names, columns and units: relations that hold for every molecule."""
    raw = {name: qm9.load("train", target=name, targets="raw", root=real).targets for name in qm9.TARGETS}
    torch.testing.assert_close(raw["gap"], raw["lumo"] - raw["homo"], atol=3e-3, rtol=0)
    thermal = 8.617333262e-5 * 298.15  # k T in eV
    torch.testing.assert_close(raw["H"] - raw["U"], torch.full_like(raw["H"], thermal), atol=1e-4, rtol=0)
    assert bool((raw["U0"] < raw["U"]).all())
    assert bool((raw["G"] < raw["U0"]).all())
    # heat content from 0 K to 298 K, against the heat capacity (cal/(mol K) -> eV/K)
    content = (raw["U"] - raw["U0"]) / (298.15 * raw["Cv"] * 4.33641e-5)
    assert 0.2 < float(content.min()) < float(content.max()) < 0.95
    atoms = qm9.load("train", root=real).sizes
    assert bool((raw["zpve"] / atoms > 0.1).all())
    assert bool((raw["zpve"] / atoms < 0.4).all())
    assert bool((raw["mu"] >= 0).all())
    assert float(raw["r2"].median()) > 500
