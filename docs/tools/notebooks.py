"""Hook of mkdocs: notebooks of docs/ are executed when the site is built, and become pages of it.

`tutorial/x.ipynb` is committed without outputs. The site gets `tutorial/x.md` with code, outputs and pictures, and the notebook
itself to download. A cell that raises stops the build. Pages link to notebooks by their path in the repository
(`tutorial/x.ipynb`). The alternative text of a picture is the key `alt` of its cell's metadata.
"""

from __future__ import annotations

import base64
import functools
import os
import posixpath
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SUFFIX = ".ipynb"
LINK = re.compile(r"(?<=\]\()([^):\s]+)\.ipynb(?=[)#])")
AT_ONCE = 2  # notebooks, of one thread each
SECONDS = 120  # for one cell
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page and its pictures for every notebook."""
    notebooks = [file for file in files if file.src_uri.endswith(SUFFIX)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pages = list(pool.map(lambda file: executed(Path(str(file.abs_src_path))), notebooks))
    for file, (text, pictures) in zip(notebooks, pages, strict=True):
        stem = file.src_uri.removesuffix(SUFFIX)
        files.append(File.generated(config, f"{stem}.md", content=text))
        for name, content in pictures.items():
            address = posixpath.join(posixpath.dirname(stem), name)
            files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Redirect links to notebooks to their pages."""
    return LINK.sub(r"\1.md", markdown)


def executed(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by name; it is executed again only if its text has changed.

    Raises:
        PluginError: A cell raised, or took too long.
    """
    return _executed(notebook, notebook.read_text(encoding="utf-8"))


@functools.cache
def _executed(notebook: Path, text: str) -> tuple[str, dict[str, bytes]]:
    content = nbformat.reads(text, as_version=4)
    client = NotebookClient(
        content,
        timeout=SECONDS,
        coalesce_streams=True,
        resources={"metadata": {"path": str(notebook.parent)}},
        extra_arguments=["--log-level=ERROR"],
    )
    beside = str(Path(sys.executable).parent)  # the command equirelax of this environment
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.pathsep.join([beside, os.environ.get("PATH", "")])}
    try:
        client.execute(env={**os.environ, **environment})
    except (CellExecutionError, TimeoutError) as error:
        raise PluginError(f"{notebook}: {COLOURS.sub('', str(error))}") from error
    return as_page(content, notebook.stem)


def as_page(content: Any, stem: str) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as Markdown, and its pictures by name, which begins with `stem`."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in content.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(_code(cell.source))
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![{cell.metadata['alt']}]({name})")
            elif "text/html" in data:
                parts.append(f'<div class="output">\n{data["text/html"]}\n</div>')
            else:
                parts.append(_printed(output.get("text") or data.get("text/plain", "")))
    parts.insert(
        1, f'<p class="notebook"><a href="{stem}{SUFFIX}" download>Download this page as a notebook</a></p>'
    )
    return "\n\n".join(filter(None, parts)) + "\n", pictures


def _code(source: str) -> str:
    """A cell's code; one that begins with %%bash is a command."""
    magic, _, rest = source.partition("\n")
    return f"```console\n{rest}\n```" if magic == "%%bash" else f"```python\n{source}\n```"


def _printed(text: str) -> str:
    return f'<div class="output" markdown>\n\n```text\n{text.rstrip()}\n```\n\n</div>' if text.strip() else ""
