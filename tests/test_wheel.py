"""The built wheel in an environment that has torch, NumPy and what these need, and nothing else."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from equirelax_lab.cli.main import EXTRAS

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

LOOP = """
import torch
import equirelax as er

class VectorMap(torch.nn.Module):  # (..., channels, 3) -> (..., channels, 3), as vector neurons
    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(channels_out, channels_in))
    def forward(self, x):
        return self.weight @ x

torch.manual_seed(0)
model = torch.nn.Sequential(VectorMap(4, 8), VectorMap(8, 2))
keys = list(model.state_dict())
loader = [(torch.randn(32, 4, 3), torch.randn(32, 2, 3)) for _ in range(5)]
declared = er.relaxation.Linear("*", er.symmetry.On("1x1o", -1), channel_axis=-2)
relaxation = er.relax(model, er.Layers(declare=(declared,)))
optimizer = torch.optim.Adam(model.parameters(), lr=9e-4)
method = er.ACE(relaxation, dual_lr=8e-4).attach(optimizer)
for x, y in loader:
    loss = torch.nn.functional.mse_loss(model(x), y) + method.penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
er.project(model)
assert list(model.state_dict()) == keys
turn = er.symmetry.SO(3)
report = er.audit(model, torch.randn(10, 4, 3), er.symmetry.vector(turn), er.symmetry.vector(turn))
print(report)
"""


def closure(names: list[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions of `names` and of all that they need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        needed = [text for text in found[name].requires or [] if "extra ==" not in text]
        waiting += [match[0] for text in needed if (match := re.match(r"[\w.-]+", text))]
    return list(found.values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(REPOSITORY)]
    if importlib.util.find_spec("hatchling") is not None:
        words.append("--no-isolation")
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    if done.returncode and "--no-isolation" not in words:
        pytest.skip(f"hatchling is not installed, and could not be got: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def run(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function (*words) that runs one of the environment's programs."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    for distribution in closure(["torch", "numpy"]):
        for top in {
            file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")
        }:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)

    def program(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [home / "bin" / name, *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=home,
            env={"PATH": "/usr/bin"},
        )

    return program


def test_what_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"equirelax", f"equirelax-{importlib.metadata.version('equirelax')}.dist-info"}
    studies = {path.name for path in (REPOSITORY / "studies").glob("*.yaml")}
    assert studies <= {Path(name).name for name in names if name.startswith("equirelax/studies/")}
    sources = {
        str(path.relative_to(REPOSITORY / "src"))
        for path in (REPOSITORY / "src").rglob("*")
        if path.is_file() and path.suffix in (".py", ".css", ".js")
    }
    assert sources <= set(names)


def test_the_environment_has_nothing_else(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    modules = sorted({module for extra in EXTRAS.values() for module in extra} - {"numpy"})
    code = f"import importlib.util as u; print([m for m in {modules} if u.find_spec(m) is not None])"
    done = run("python", "-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_import_and_the_loop_of_the_readme(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("python", "-c", "import equirelax; print(equirelax.__file__, equirelax.__version__)")
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout
    assert done.stdout.endswith(f" {importlib.metadata.version('equirelax')}\n")
    done = run("python", "-W", "error::ImportWarning", "-c", LOOP)
    assert done.returncode == 0, done.stderr
    assert "relative" in done.stdout


def test_commands_say_which_extra_they_need(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert run("equirelax", "--help").returncode == 0
    assert run("equirelax", "--version").stdout.startswith("equirelax 0.")
    for words in (
        ["list"],
        ["train", "nbody"],
        ["compare", "nbody"],
        ["study", "show", "cr-nbody"],
        ["audit", "x"],
    ):
        done = run("equirelax", *words)
        assert done.returncode == 2, done.stderr
        assert "pip install 'equirelax[run]'" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
