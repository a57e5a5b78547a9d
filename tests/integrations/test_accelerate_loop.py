"""`examples/accelerate_loop.py`: Accelerate's accumulation, states and weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("accelerate", reason="needs accelerate: pip install '.[examples]'")

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    from accelerate.state import AcceleratorState, GradientState

    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    yield importlib.import_module("accelerate_loop")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_it_ends_with_weights_and_their_card(example: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, report = example.main(tmp_path, epochs=2)
    assert report.relative < 1e-9
    weights = load_file(tmp_path / "network" / "model.safetensors")
    twin = example.Network()
    assert list(twin.state_dict()) == sorted(weights, key=list(twin.state_dict()).index)
    twin.load_state_dict(weights)
    x, _ = example.data(8, 1)
    assert torch.equal(twin(x), model(x))
    assert "| equivariant (within the tolerance) | yes" in (tmp_path / "network" / "README.md").read_text(
        "utf-8"
    )


def test_accumulated_batches_are_one_step_of_the_method(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 samples in batches of 32 make 16 steps an epoch, or 8 where two are accumulated: the same as batches of 64."""
    made = []

    class Noted(example.er.ACE):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(example.er, "ACE", Noted)
    for accumulate in (1, 2):
        example.main(tmp_path, epochs=1, accumulate=accumulate)
        assert made[-1].relaxation.history.steps == 16 // accumulate


def test_a_training_goes_on_from_its_state(example: ModuleType, tmp_path: Path) -> None:
    """To the bit, since the loader does not shuffle."""
    whole, _ = example.main(tmp_path / "whole", epochs=2)
    example.main(tmp_path / "parts", epochs=1)
    again, _ = example.main(tmp_path / "parts", epochs=1, resume=True)
    assert all(
        torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True)
    )
