"""The site is built strictly and without the network, needs none to be read, and documents every public name."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import ROOT, name_of

PUBLIC = (
    "equirelax",
    *(
        f"equirelax.{room}"
        for room in ("relaxation", "relaxation.regularizers", "methods", "auditing", "symmetry", "testing")
    ),
)
ENTRY = re.compile(r"^::: (\S+)$", flags=re.MULTILINE)
REFERENCE = sorted((ROOT / "docs" / "reference" / "api").glob("*.md"))


class Resources(HTMLParser):
    """What a browser fetches to show a page, and the anchors and text in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video") and found.get("src"):
            self.fetched.append(str(found["src"]))
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.fetched.append(str(found["href"]))
        if found.get("id"):
            self.anchors.add(str(found["id"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; proxies that lead nowhere stand for a machine without network."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    nowhere = {
        name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, **nowhere},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder


def pages(site: Path) -> dict[str, Resources]:
    found = {}
    for page in sorted(site.rglob("*.html")):
        found[str(page.relative_to(site))] = resources = Resources()
        resources.feed(page.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_reading_it_needs_no_network(site: Path) -> None:
    found = pages(site)
    assert len(found) >= 20
    for name, page in found.items():
        assert page.fetched, name
        for address in page.fetched:
            assert not re.match(r"(https?:)?//", address), f"{name} fetches {address}"
            folder = (
                site if address.startswith("/") else (site / name).parent
            )  # 404.html is shown under any address
            assert (folder / address.split("?")[0].lstrip("/")).exists(), f"{name} lacks {address}"
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"url\(['\"]?(?:https?:)?//", styles)
    assert not list(site.rglob("*.pyc")) and not (site / "tools").exists()  # noqa: PT018


def chromium(profile: Path, *words: str) -> str:
    """Run it with a profile of its own; returns what it prints. Skips where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium here")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"]
    command = [program, *flags, f"--user-data-dir={profile}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout


@pytest.mark.slow
def test_the_search_works_from_the_disk(site: Path, tmp_path: Path) -> None:
    address = (site / "how_to" / "deploy.html").as_uri() + "?q=multiplier"
    shown = chromium(tmp_path, "--dump-dom", address)
    assert re.search(r"[1-9]\d* matching documents", shown)
    assert re.search(r'href="file:[^"]*/reference/api/methods\.html#', shown)


@pytest.mark.slow
def test_pages_are_printed_in_one_column(site: Path, tmp_path: Path) -> None:
    """Of the widest table the last column is on the paper, and the words of a code block's long lines are too."""
    pypdf = pytest.importorskip("pypdf", reason="needs the extra test")
    paper = tmp_path / "page.pdf"
    chromium(tmp_path / "profile", f"--print-to-pdf={paper}", (site / "benchmarks.html").as_uri())
    pages = pypdf.PdfReader(paper).pages
    places: list[tuple[float, str]] = []

    def note(text: str, user: list[float], place: list[float], *_: object) -> None:
        places.append((place[4] * user[0] + place[5] * user[2] + user[4], text))

    for page in pages[:3]:
        page.extract_text(visitor_text=note)
    assert any("what to do" in text for _, text in places)
    width = float(pages[0].mediabox.width)
    words = [(x, text) for x, text in places if text.strip()]
    assert max(x for x, _ in words) < width
    assert min(x for x, text in words if text.startswith("Nearly all of these")) < 0.15 * width
    assert "Table of contents" not in "".join(text for _, text in words)


@pytest.mark.slow
def test_pages_show_pictures_and_tables_of_the_results(site: Path) -> None:
    benchmarks = pages(site)["benchmarks.html"]
    assert sum("lab/results/" in address for address in benchmarks.fetched) >= 8
    text = (site / "benchmarks.html").read_text(encoding="utf-8")
    assert text.count("<table>") >= 12
    assert text.count('<div class="results">') >= 12
    assert '<div class="results sentences">' in text  # the verdict, whose lines break


@pytest.mark.slow
def test_every_entry_of_the_reference_is_rendered(site: Path) -> None:
    found = pages(site)
    for page in REFERENCE:
        anchors = found[f"reference/api/{page.stem}.html"].anchors
        entries = ENTRY.findall(page.read_text(encoding="utf-8"))
        assert entries
        assert not set(entries) - anchors, name_of(page)


def resolved(path: str) -> object:
    """The object at a dotted path; packages hide modules behind functions of the same name, so modules are tried first."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"{path} is nothing that can be imported")


def test_every_public_name_has_an_entry() -> None:
    """Once, under whichever of its names."""
    entries = [entry for page in REFERENCE for entry in ENTRY.findall(page.read_text(encoding="utf-8"))]
    documented = [id(resolved(entry)) for entry in entries]
    twice = [entry for entry, key in zip(entries, documented, strict=True) if documented.count(key) > 1]
    assert not twice
    missing = []
    for package in PUBLIC:
        module = importlib.import_module(package)
        public = {name: getattr(module, name) for name in module.__all__}
        missing += [
            f"{package}.{name}"
            for name, value in public.items()
            if not isinstance(value, ModuleType) and id(value) not in documented
        ]
    assert not missing, "add entries to docs/reference/api/"


def docstrings(entry: str) -> dict[str, str]:
    """Of an entry and, of a class, its public members: name -> text."""
    found = resolved(entry)
    texts = {entry: inspect.getdoc(found) or ""}
    for name, member in vars(found).items() if inspect.isclass(found) else ():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith(("_", "test_")) and inspect.isfunction(function):
            texts[f"{entry}.{name}"] = inspect.getdoc(function) or ""
    return texts


@pytest.mark.parametrize("page", REFERENCE, ids=name_of)
def test_docstrings_are_not_mistaken_for_markup(page: Path) -> None:
    """Outside of code a <word> would be left out, and two * or _ would make words slant; an attribute has a line."""
    wrong = []
    for entry in ENTRY.findall(page.read_text(encoding="utf-8")):
        for name, text in docstrings(entry).items():
            words = re.sub(r"``.*?``|`[^`]*`|^    +.*$", "", text, flags=re.DOTALL | re.MULTILINE)
            wrong += (
                [name] if re.search(r"<\w+>|(?<![\w*])\*\w[^*\n]*\*|(?<!\w)_\w[^_\n]*_(?!\w)", words) else []
            )
            attributes = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", text, flags=re.MULTILINE)
            if attributes and re.search(r"^    \w+, [\w, ]+:", attributes[1], flags=re.MULTILINE):
                wrong.append(f"{name}: several attributes in a line")
    assert not wrong


def test_every_public_name_has_a_docstring() -> None:
    for package in PUBLIC:
        module = importlib.import_module(package)
        bare = [name for name in module.__all__ if not (getattr(module, name).__doc__ or "").strip()]
        assert not bare, package
