"""Source distributions, the wheels built from them, and these in an environment with torch, NumPy and what they need alone."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from equirelax_lab.extras import EXTRAS

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
WITH_TORCH = {"numpy", "filelock", "jinja2"}
"""Modules of extras that torch needs too, or that stand for themselves."""
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


def built(project: Path, out: Path) -> Path:
    """The wheel of a project, built from its source distribution, which lies beside it."""
    words = [sys.executable, "-m", "build", "--outdir", str(out), str(project)]
    if importlib.util.find_spec("hatchling") is not None:
        words.append("--no-isolation")
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    if done.returncode and "--no-isolation" not in words:
        pytest.skip(f"hatchling is not installed, and could not be got: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def lab_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(REPOSITORY / "lab", tmp_path_factory.mktemp("lab-wheel"))


@dataclasses.dataclass
class Environment:
    """A virtual environment with torch and NumPy."""

    home: Path

    def install(self, wheel: Path) -> None:
        words = [sys.executable, "-m", "pip", "--python", str(self.home / "bin" / "python"), "install"]
        subprocess.run([*words, "--no-deps", "--no-index", "--quiet", str(wheel)], check=True, timeout=120)

    def __call__(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs."""
        return subprocess.run(
            [self.home / "bin" / name, *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.home,
            env={"PATH": "/usr/bin"},
        )


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the library."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    for distribution in closure(["torch", "numpy"]):
        for top in {
            file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")
        }:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    environment = Environment(home)
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def lab(run: Environment, lab_wheel: Path) -> Environment:
    """The same environment with the laboratory in it too."""
    run.install(lab_wheel)
    return run


def test_what_is_in_the_library(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"equirelax", f"equirelax-{VERSION}.dist-info"}
    assert sources(REPOSITORY / "src") <= set(names)
    assert not [name for name in names if name.endswith("entry_points.txt")]


def test_what_is_in_the_laboratory(lab_wheel: Path) -> None:
    names = zipfile.ZipFile(lab_wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"equirelax_lab", f"equirelax_lab-{VERSION}.dist-info"}
    assert sources(REPOSITORY / "lab" / "src") <= set(names)
    studies = {path.name for path in (REPOSITORY / "lab" / "studies").glob("*.yaml")}
    assert studies <= {Path(name).name for name in names if name.startswith("equirelax_lab/ready/")}


@pytest.mark.parametrize("name", ["equirelax", "equirelax_lab"])
def test_wheels_are_typed_and_say_their_licence_and_what_was_run(
    name: str, request: pytest.FixtureRequest
) -> None:
    wheel = zipfile.ZipFile(request.getfixturevalue("wheel" if name == "equirelax" else "lab_wheel"))
    assert f"{name}/py.typed" in wheel.namelist()
    (metadata,) = (wheel.read(n).decode() for n in wheel.namelist() if n.endswith("dist-info/METADATA"))
    (licence,) = (wheel.read(n).decode() for n in wheel.namelist() if n.endswith("LICENSE"))
    assert licence == (REPOSITORY / "LICENSE").read_text()
    assert "\nLicense-Expression: MIT\n" in metadata
    assert metadata.rpartition("\n\n")[2].strip()  # the README
    assert (
        f"Programming Language :: Python :: {sys.version_info.major}.{sys.version_info.minor}\n" in metadata
    )
    assert "http" not in metadata.partition("\n\n")[0]  # no address that does not exist


def test_what_is_in_the_source_distributions(wheel: Path, lab_wheel: Path) -> None:
    """What the wheels are built from; the library's tests and examples too, and of the laboratory nothing that needs the rest."""
    tops = {}
    for path in (wheel, lab_wheel):
        (archive,) = path.parent.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            files = {name.partition("/")[2] for name in tar.getnames()}
        tops[path] = {name.split("/")[0] for name in files}
        if path == wheel:
            tracked = subprocess.run(
                ["git", "ls-files", "src", "tests", "examples"],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()
            assert set(tracked) <= files
    assert {"src", "tests", "examples", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} <= tops[
        wheel
    ]
    assert not tops[wheel] & {"lab", "docs"}
    assert tops[lab_wheel] <= {
        "src",
        "studies",
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "PKG-INFO",
        ".gitignore",
    }


def sources(folder: Path) -> set[str]:
    kinds = (".py", ".css", ".js", ".yaml", ".html", ".txt", ".typed")
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in kinds}


def test_the_environment_has_nothing_else(run: Environment) -> None:
    modules = sorted({module for extra in EXTRAS.values() for module in extra} - WITH_TORCH)
    code = f"import importlib.util as u; print([m for m in {modules} if u.find_spec(m) is not None])"
    done = run("python", "-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_import_and_the_loop_of_the_readme(run: Environment) -> None:
    done = run("python", "-c", "import equirelax; print(equirelax.__file__, equirelax.__version__)")
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout
    assert done.stdout.endswith(f" {VERSION}\n")
    done = run("python", "-W", "error::ImportWarning", "-c", LOOP)
    assert done.returncode == 0, done.stderr
    assert "relative" in done.stdout


def test_commands_say_which_extra_they_need(lab: Environment) -> None:
    assert lab("equirelax", "--help").returncode == 0
    assert lab("equirelax", "--version").stdout.startswith("equirelax 0.")
    for words in (
        ["list"],
        ["train", "nbody"],
        ["compare", "nbody"],
        ["study", "show", "cr-nbody"],
        ["audit", "x"],
    ):
        done = lab("equirelax", *words)
        assert done.returncode == 2, done.stderr
        assert 'pip install "e3nn' in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
