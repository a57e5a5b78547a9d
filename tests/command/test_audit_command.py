"""`python -m equirelax audit`: any network, good and bad input, what is printed and written, and the exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import equirelax as er
from equirelax.command import audit as command
from equirelax.command import inputs
from equirelax.command.main import main

torch.set_num_threads(1)

MYNET = '''
import torch
from torch import nn

import equirelax as er
from equirelax.symmetry import O, vector


class Mix(nn.Module):
    """A map of the channels of vectors (..., 3, channels)."""

    def __init__(self, inside=4, out=4):
        super().__init__()
        self.linear = nn.Linear(inside, out, bias=False)

    def forward(self, x):
        return self.linear(x)


class Bend(nn.Module):
    def forward(self, x):
        return torch.tanh(x)


def build(*, bend=False):
    return nn.Sequential(Mix(), *([Bend()] if bend else []), Mix())


made = build()


def traced():
    return torch.fx.symbolic_trace(nn.Linear(3, 3))


class Declared(Mix):
    in_rep = out_rep = vector(O(3))

    def __init__(self):
        super().__init__(3, 3)
        self.linear.weight.data = 2.0 * torch.eye(3)


class Pair(nn.Module):
    """Energy and forces of points, from their distances; in single precision alone, if asked for."""

    def __init__(self, single=False, wall=0.0):
        super().__init__()
        self.single, self.wall = single, wall

    def forward(self, charge, pos):
        at = pos.detach().requires_grad_()
        x = at.to(torch.float32) if self.single else at
        x = x + self.wall * x.abs()
        energy = ((charge * charge.T).to(x) * torch.cdist(x, x).square().cos()).sum()
        (forces,) = torch.autograd.grad(-energy, at, create_graph=True)
        return {"energy": energy, "forces": forces}


class Indexed(nn.Module):
    def forward(self, pos, edges):
        return pos[edges[0]] - pos[edges[1]]


def batch():
    return torch.randn(5, 3), torch.tensor([[0, 1, 2], [1, 2, 4]])


class Only32(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = [torch.eye(3)]

    def forward(self, x):
        return x @ self.matrix[0].clone().to(torch.float32)


def relaxed(resilient=False):
    net = nn.Sequential(Mix())
    axis = er.On("1x1o", -2)
    where = er.Layers(declare=(er.Linear("0.linear", axis, channel_axis=-1),), residual=er.Dense("normal", std=0.1))
    relaxation = er.relax(net, where)
    relaxation.set_gamma(0.5)
    if resilient:
        optimizer = torch.optim.Adam(net.parameters())
        net.method = er.ResilientACE(relaxation, dual_lr=1e-3, primal_lr=1e-3).attach(optimizer)
    return net


class Wants(nn.Module):
    def __init__(self, channels, layers=2):
        super().__init__()


class Fails(nn.Module):
    def forward(self, x):
        raise IndexError("no such neighbour")


class NaN(nn.Module):
    def forward(self, x):
        return x / 0.0 - x / 0.0


def broken():
    raise RuntimeError("no licence")


def quits():
    raise SystemExit(1)


number = 3
'''
CHANNELS = ["--in", "1x1o@-2:6,3,4", "--out", "1x1o@-2"]
EDGES = ["mynet:Indexed", "--inputs", "mynet:batch"]
POINTS = ["--in", "charge=1x0e", "--in", "pos=1x1o", "--out", "energy=invariant", "--out", "forces=1x1o"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with `mynet.py` and a package."""
    (tmp_path / "mynet.py").write_text(MYNET)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "net.py").write_text("from .layers import Layer\n\n\nclass Net(Layer):\n    pass\n")
    (tmp_path / "pack" / "layers.py").write_text(
        "from torch import nn\n\n\nclass Layer(nn.Identity):\n    class Inner(nn.Identity):\n        pass\n"
    )
    (tmp_path / "needs.py").write_text("import a_package_that_is_missing\n")
    (tmp_path / "typo.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.split(".")[0] in ("mynet", "pack", "needs", "typo") or name.startswith("mynet_of_"):
            del sys.modules[name]


def audit(*words: str, samples: int = 4) -> int:
    return main(["audit", *words, "--samples", str(samples)])


@pytest.mark.parametrize(
    "network",
    [
        "mynet:build",
        "mynet:build(bend=False)",
        "mynet:made",
        "mynet.py:Mix(4, out=4)",
        "pack.net:Net",
        "pack.layers:Layer.Inner",
        "torch.nn:Linear(4, 4, bias=False)",
    ],
)
def test_an_equivariant_network_however_it_is_named(
    network: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    assert audit(network, *CHANNELS) == 0
    printed = capsys.readouterr()
    assert "under O(3): equivariant" in printed.out.splitlines()[0]
    assert printed.err == ""
    assert sys.path == before


def test_a_network_that_breaks_names_the_module_and_writes_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", "out/audit.json", "--html", "out/audit.html"]
    assert audit("mynet:build(bend=True)", *CHANNELS, *files) == 1
    printed = capsys.readouterr()
    assert "NOT equivariant" in printed.out.splitlines()[0]
    assert "first break: 1 (Bend)" in printed.out
    assert "looking for the module" in printed.err
    numbers = json.loads((folder / "out" / "audit.json").read_text())
    assert (numbers["passes"], numbers["deployed"], numbers["first_break"]) == (False, "as it is", "1")
    assert numbers["errors"]["as it is"]["relative"] > 1e-3
    page = (folder / "out" / "audit.html").read_text()
    for text in (numbers["made_by"]["command"], page):
        assert "python -m equirelax audit" in text
    assert "1 (Bend)" in page


def test_modules_of_an_equivariant_network_are_measured_if_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit("mynet:build", *CHANNELS, "--layers") == 0
    assert re.search(r"layers: \d+ calls", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["mynet:Declared"], 0),
        (["mynet:Pair", *POINTS], 0),
        (["mynet:Pair(wall=0.1)", *POINTS], 1),
        (["mynet:Pair(single=True)", *POINTS], 0),
        (["mynet:Only32", "--in", "1x1o", "--out", "1x1o"], 0),
        ([*EDGES, "--in", "1x1o", "--in", "invariant", "--out", "1x1o"], 0),
        ([*EDGES, "--in", "positions", "--in", "invariant", "--out", "vector", "--group", "E(3)"], 0),
        ([*EDGES, "--in", "positions", "--in", "invariant", "--out", "positions", "--group", "E(3)"], 1),
        (["torch.nn:Identity", "--in", "vector+2xtrivial", "--out", "vector+2xtrivial", "--group", "SO(2)"], 0),
        (["torch.nn:Identity", "--in", "1x1o", "--out", "1x1e"], 1),
        (["torch.nn:Identity", "--in", "1x1o", "--out", "1x1e", "--group", "SO(3)"], 0),
        (["torch.nn:AvgPool2d(2)", "--in", "trivial@grid:2,1,8,8", "--out", "trivial@grid", "--group", "C4"], 0),
        (["torch.nn:Conv2d(1, 1, 3)", "--in", "trivial@grid:2,1,8,8", "--out", "trivial@grid", "--group", "C4"], 1),
        (["torch.nn:Identity", "--in", "1x1o@-2,-1:5,3,3", "--out", "1x1o@-2,-1"], 0),
        (["torch.nn:ReLU", "--in", "invariant:5,4", "--out", "invariant", "--group", "SO(3)"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)  # fmt: skip
def test_inputs_and_outputs_of_every_kind(words: list[str], code: int, folder: Path) -> None:
    assert audit(*words) == code


def test_rows_and_seed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("torch.nn:Identity", "--in", "1x1o", "--out", "1x1o", "--rows", "11", "--seed", "5") == 0
    printed = capsys.readouterr().out
    assert "(11x3 float64)" in printed
    assert "seed 5" in printed


def test_drawn_inputs_are_where_the_network_is() -> None:
    draws = inputs.Draws(3, 0, torch.device("meta"))
    assert inputs.drawn([inputs.Entry.read("1x1o", None, "--in")], draws, "--in").device.type == "meta"
    assert command.device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert command.device_of(torch.neg).type == "cpu"


def test_a_tolerance_decides(folder: Path) -> None:
    assert audit("mynet:build(bend=True)", *CHANNELS, "--tolerance", "0.9") == 0
    assert audit("mynet:build", *CHANNELS, "--tolerance", "1e-30") == 1


def test_a_relaxed_network_is_judged_by_the_form_that_is_deployed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit("mynet:relaxed", *CHANNELS) == 0
    printed = capsys.readouterr()
    assert "deployed projected: equivariant" in printed.out.splitlines()[0]
    assert "--layers" in printed.err
    assert audit("mynet:relaxed(resilient=True)", *CHANNELS) == 1
    assert "deployed relaxed: NOT equivariant" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "NETWORK"),
        (["mynet"], "mynet:build"),
        (["mynt:build"], "Did you mean 'mynet'"),
        (["mynet:biuld"], "Did you mean 'build'"),
        (["mynt.py:build"], "Did you mean 'mynet.py'"),
        (["pack.nte:Net"], "Did you mean 'net'"),
        (["pack/net.py:Net"], "package.module:name"),
        (["needs:build"], "a_package_that_is_missing"),
        (["typo:build"], "typo.py, line 1"),
        (["mynet:number"], "int"),
        (["mynet:made(3)"], "leave (3) out"),
        (["mynet:Wants"], "(channels, layers=2)"),
        (["mynet:Wants(3, layer=2)"], "'layer'"),
        (["mynet:Wants(open('x'))"], "literals"),
        (["mynet:Wants(**{})"], "literals"),
        (["mynet:broken"], "no licence (" ),
        (["mynet:quits"], "SystemExit"),
        (["mynet:Mix"], "--in is missing"),
        (["mynet:Mix", "--in", "1x1o@-2:6,3,4"], "--out is missing"),
        (["mynet:Mix", "--in", "1x1o@-2", "--out", "1x1o@-2"], "'1x1o@-2': give all sizes"),
        (["mynet:Mix", "--in", "invariant", "--out", "invariant"], "'invariant': give all sizes"),
        (["mynet:Mix", "--in", "1x1o@-2:6,3,5", "--out", "1x1o@-2"], "(6x3x5 float64)"),
        (["mynet:Mix", "--in", "1x1o@-1:6,3,4", "--out", "1x1o@-2"], "axis -1 to have size 3"),
        (["mynet:Mix", "--in", "1x1o@-2:6,3,4", "--out", "2x1o@-2"], "`output`"),
        (["mynet:Mix", "--in", "1x1o@-2:6,3,4", "--out", "1x1o@-2:6,3,4"], "--out"),
        (["mynet:Mix", "--in", "1q", "--out", "1x1o"], "'1q' is not a representation"),
        (["mynet:Mix", "--in", "vektor", "--out", "1x1o"], "Did you mean 'vector'"),
        (["mynet:Mix", "--in", "vector", "--out", "1x1o"], "--group 'O(3)'"),
        (["mynet:Mix", "--in", "a=b=1x1o", "--out", "1x1o"], "'a=b=1x1o' cannot be read"),
        (["mynet:Mix", "--in", "invariant@-2:3", "--out", "1x1o"], "has no axis"),
        (["mynet:Mix", "--in", "1x1o", "--out", "1x1o", "--group", "SO3)"], "Did you mean 'SO(3)'"),
        (["mynet:Mix", "--in", "1x1o", "--out", "1x1o", "--group", "C4"], "C4"),
        (["mynet:Pair", "--in", "charge=1x0e", "--in", "1x1o", "--out", "invariant"], "charge="),
        (["mynet:Pair", "--in", "pos=1x0e", "--in", "pos=1x1o", "--out", "invariant"], "'pos' is given twice"),
        (["mynet:Pair", *POINTS[:-1], "force=1x1o"], "'forces'"),
        (["mynet:Pair", "--in", "1x1o", "--out", "invariant"], "pos"),
        (["mynet:Indexed", "--inputs", "mynet:bacth", "--in", "1x1o", "--out", "1x1o"], "Did you mean 'batch'"),
        (["mynet:Indexed", "--inputs", "mynet:batch", "--in", "1x1o:5,3", "--out", "1x1o"], "--inputs"),
        (["mynet:Indexed", "--inputs", "mynet:batch", "--rows", "3", "--in", "1x1o", "--out", "1x1o"], "--rows"),
        (["mynet:Indexed", "--inputs", "mynet:batch", "--in", "1x1o", "--out", "1x1o"], "`input`"),
        (["mynet:Pair", *["--in", "1x1o"] * 3, "--out", "invariant"], "pos=1x1o"),
        (["mynet:Fails", "--in", "1x1o", "--out", "1x1o"], "IndexError: no such neighbour ("),
        (["mynet:NaN", "--in", "1x1o", "--out", "1x1o"], "NaN or infinity"),
        (["mynet:Only32", "--in", "1x1o", "--out", "1x1o", "--dtype", "float64"], "float32"),
        (["mynet:made", *CHANNELS, "--weigths", "x"], "Did you mean '--weights'"),
        (["mynet:made", *CHANNELS, "--rows", "0"], "--rows is 0"),
        (["mynet:made", *CHANNELS, "--seed", "-1"], "--seed is -1"),
        (["mynet:made", *CHANNELS, "--tolerance", "0"], "--tolerance is 0"),
        (["mynet:made", *CHANNELS, "--dtype", "int8"], "--dtype"),
        (["mynet:made", *CHANNELS, "--weights", "none.pt"], "none.pt"),
        (["mynet:made", *CHANNELS, "--weights", "none.safetensors"], "none.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(*words, samples=1) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("equirelax: error: ")
    assert len(printed.err.splitlines()) == 1
    assert message in printed.err
    assert printed.out == ""


def test_a_traced_network_that_fails_prints_no_traces(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modules of torch.fx, as e3nn's are inside, print a traceback beside raising the error."""
    assert audit("mynet:traced", "--in", "2x1o", "--out", "2x1o", samples=1) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "(8x6 float64)" in lines[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mynet:build", *CHANNELS, "--dtype", "float32"], "float32)"),
        (["mynet:Only32", "--in", "1x1o", "--out", "1x1o"], "float32)"),
        (["mynet:build", *CHANNELS], "float64)"),
    ],
    ids=["asked", "cast inside", "by default"],
)
def test_inputs_and_outputs_have_the_precision_of_the_run(
    words: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(*words, samples=1) == 0
    found = [
        text for text in capsys.readouterr().out.splitlines() if text.startswith(("  input ", "  output "))
    ]
    assert len(found) == 2
    assert all(text.endswith(line) for text in found)


def test_no_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("mynet:made", *CHANNELS, samples=0) == 2
    assert "--samples is 0" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_loses_no_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("")
    assert audit("mynet:build", *CHANNELS, "--json", "file/audit.json") == 2
    printed = capsys.readouterr()
    assert "equivariant" in printed.out
    assert "file" in printed.err


def test_a_mistake_of_our_own_does_not_say_that_the_network_breaks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(command, "audit_network", fail)
    assert audit("mynet:build", *CHANNELS) == 2
    assert "Traceback" in capsys.readouterr().err


def trained() -> dict[str, torch.Tensor]:
    """Weights that tell from those that a seed draws: the output is 0."""
    return {key: torch.zeros(4, 4) for key in ("0.linear.weight", "1.linear.weight")}


@pytest.mark.parametrize("form", ["pt", "nested", "prefix", "safetensors"])
def test_weights(form: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    weights = trained()
    if form == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    elif form == "prefix":
        torch.save(
            {"epoch": 3, "state_dict": {f"model.net.{key}": value for key, value in weights.items()}}, path
        )
    else:
        torch.save({"state_dict": weights} if form == "nested" else weights, path)
    assert audit("mynet:build", *CHANNELS, "--weights", str(path), "--json", "audit.json") == 0
    numbers = json.loads((folder / "audit.json").read_text())
    assert numbers["errors"]["as it is"]["absolute"] == 0  # as only the output 0 has


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0.linear.weight": torch.zeros(4, 4)}, "1 missing (1.linear.weight)"),
        ({**trained(), "2.bias": torch.zeros(4)}, "1 too many (2.bias)"),
        ({**trained(), "0.linear.weight": torch.zeros(4, 5)}, "(4, 5)"),
        ({"optimizer": {"lr": 1.0}}, "no state dict"),
        (nn.Linear(2, 2), "more than tensors"),
    ],
    ids=["missing", "too many", "shape", "none", "code"],
)
def test_weights_that_do_not_fit(
    content: object, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, folder / "weights.pt")
    assert audit("mynet:build", *CHANNELS, "--weights", "weights.pt") == 2
    assert message in capsys.readouterr().err


def test_damaged_safetensors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors")
    (folder / "weights.safetensors").write_bytes(b"no weights")
    assert audit("mynet:build", *CHANNELS, "--weights", "weights.safetensors") == 2
    assert "weights.safetensors is damaged" in capsys.readouterr().err


def test_the_command_line_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "audit" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"equirelax {er.__version__}\n"
    assert main(["audti"]) == 2
    assert "Did you mean 'audit'" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_process_of_its_own(folder: Path) -> None:
    """Modules of the current folder are found, help needs no torch, and codes are those that a CI system sees."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder)

    assert run("-m", "equirelax", "audit", "mynet:build", *CHANNELS).returncode == 0
    assert run("-m", "equirelax", "audit", "mynet:build(bend=True)", *CHANNELS).returncode == 1
    script = (
        "import sys; from equirelax.command.main import main\n"
        "try: main(['audit', '--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = run("-c", script)
    assert done.stdout.splitlines()[-1] == "False"
    assert "usage: python -m equirelax audit" in done.stdout
