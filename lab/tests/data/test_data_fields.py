"""Windows of fields beside loops over frames; settings and the folders of their sets; splits that share no frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.data import FieldSet, smoke
from equirelax_lab.data.fields import windows
from equirelax_lab.data.smoke import SHARES, SPLITS, SPREAD, SmokeSettings
from hypothesis import given
from hypothesis import strategies as st
from smoke_files import SMALL, write_plumes

from equirelax.errors import DataError


def made(runs: int, frames: int, inputs: int, outputs: int, every: int = 1) -> FieldSet:
    """Fields whose numbers all differ."""
    chosen = windows(runs, 0, frames, inputs + outputs, every)
    values = torch.arange(runs * frames * 2 * 3 * 3.0).view(runs, frames, 2, 3, 3)
    return FieldSet(values, chosen, chosen[:, 1] % 2 == 1, torch.arange(runs) + 10, inputs, outputs)


@given(st.integers(1, 3), st.integers(0, 9), st.integers(0, 25), st.integers(1, 9), st.integers(1, 7))
def test_windows_are_those_of_a_loop(runs: int, first: int, last: int, length: int, every: int) -> None:
    expected = [
        [run, start]
        for run in range(runs)
        for start in range(first, last, every)
        if all(first <= frame < last for frame in range(start, start + length))
    ]
    if not expected:
        with pytest.raises(DataError, match="does not fit"):
            windows(runs, first, last, length, every)
        return
    found = windows(runs, first, last, length, every)
    assert found.dtype == torch.long
    assert found.tolist() == expected


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5), st.data())
def test_batches_are_those_of_a_loop(runs: int, inputs: int, outputs: int, more: int, data: Any) -> None:
    fields = made(runs, inputs + outputs + more, inputs, outputs)
    rows = data.draw(st.lists(st.integers(0, len(fields) - 1), min_size=1, max_size=5))
    batch = fields.batch(rows)
    for place, row in enumerate(rows):
        run, start = fields.windows[row].tolist()
        middle, end = start + inputs, start + inputs + outputs
        assert torch.equal(batch["input"][place], fields.frames[run, start:middle])
        assert torch.equal(batch["target"][place], fields.frames[run, middle:end])
        assert bool(batch["domain"][place]) == (start % 2 == 1)
        assert int(batch["side"][place]) == run + 10
        assert int(batch["run"][place]) == run


@given(st.data())
def test_subsets_and_joined_sets_hold_the_same_windows(data: Any) -> None:
    parts = [made(runs, 6, 2, 1) for runs in data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))]
    both = FieldSet.joined(parts)
    everything = [part.batch(range(len(part))) for part in parts]
    found = both.batch(range(len(both)))
    for key in ("input", "target", "domain", "side"):
        assert torch.equal(found[key], torch.cat([batch[key] for batch in everything])), key
    assert len(found["run"].unique()) == sum(len(part.frames) for part in parts)
    rows = data.draw(st.lists(st.integers(0, len(both) - 1), min_size=1, max_size=5))
    few, mask = both.subset(rows), both.subset(torch.arange(len(both)) % 3 == 0)
    assert torch.equal(few.batch(range(len(few)))["input"], found["input"][rows])
    assert torch.equal(mask.batch(range(len(mask)))["target"], found["target"][::3])
    assert torch.equal(both.subset(slice(1, None, 2)).windows, both.windows[1::2])


def test_sets_of_other_shapes_are_not_joined() -> None:
    for other in (made(1, 7, 2, 1), made(1, 6, 1, 2), made(1, 6, 2, 2)):
        with pytest.raises(DataError, match="one shape"):
            FieldSet.joined([made(1, 6, 2, 1), other])


def test_a_set_moves_as_a_whole() -> None:
    fields = made(2, 6, 2, 1).to("meta")
    assert {tensor.device.type for tensor in (fields.frames, fields.windows, fields.domain, fields.side)} == {
        "meta"
    }
    assert fields.device.type == "meta"


@given(st.integers(1, 2_000))
def test_splits_of_a_run_share_no_frame(steps: int) -> None:
    spans = {split: [round(share * steps) for share in SHARES[split]] for split in ("train", "val", "future")}
    assert spans["train"][0] == 0
    assert spans["train"][1] == spans["val"][0] <= spans["val"][1] == spans["future"][0]
    assert spans["future"][1] == steps


def test_loaded_splits_share_no_field(tmp_path: Path) -> None:
    write_plumes(tmp_path)
    seen: set[bytes] = set()
    total = 0
    for split in SPLITS:
        batch = (data := smoke.load(split, SMALL, inputs=2, outputs=1, root=tmp_path)).batch(range(len(data)))
        fields = torch.cat([batch["input"], batch["target"]], 1).flatten(0, 1).numpy()
        own = {field.tobytes() for field in fields}
        seen |= own
        total += len(own)
    assert len(seen) == total == 8 * 30 + 4 * 12


def test_whole_numbers_are_the_same_settings() -> None:
    assert SmokeSettings(asymmetry=0, dt=1).folder == SmokeSettings(asymmetry=0.0, dt=1.0).folder


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (SmokeSettings(size=32, positions=5, steps=150), "rotation-32-a0.5-43f95fb6ff"),
        (SmokeSettings("scale", size=32, positions=5, steps=150), "scale-32-a0.5-bb9c3068e6"),
    ],
)
def test_sets_that_were_made_are_still_found(settings: SmokeSettings, name: str) -> None:
    """A changed name means that data must be made again; change FORMAT if that is intended."""
    assert settings.folder == Path("smoke") / name


@given(st.integers(1, 40))
def test_domain_has_inflows_of_its_own(positions: int) -> None:
    offsets = SmokeSettings(positions=positions).offsets
    assert len(offsets[False]) == positions
    assert len(offsets[True]) == max(1, positions // 4)
    gaps = abs(offsets[False][:, None] - offsets[True])
    assert gaps.min() > SPREAD / (positions + 1) - 1e-9
    assert all(abs(found).max() <= SPREAD for found in offsets.values())
