"""Hooks of mkdocs: adapt links and tables, which are written for reading in the repository, to the site.

Files outside docs/ that pages link to, such as pictures of results, become part of the site. Pages link to them by their path in
the repository (`../lab/results/nbody/curves.png`), so that the links also work there. Content inserted from lab/results/ gets a
separate class, for the style sheet.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FOLDER = "repository"  # of the site, which receives them
INSERTED = re.compile(r"(<!-- from lab/results/[^\n]* -->)\n(.*?)<!-- end -->", flags=re.DOTALL)
SENTENCE = 45  # letters of a cell
LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)(?=[)#])")


def _outside(page: str, link: str) -> str | None:
    """The path in the repository of a link's target in `page` (its path in docs/); None if that is a page of the site."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if target.startswith(("docs/", "../")) else target


def _in_site(target: str) -> str:
    """The place of a file of the repository on the site; sources become text, which browsers show."""
    return f"{FOLDER}/{target}" + (".txt" if target.endswith((".md", ".py")) else "")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that a page links to; PluginError if one does not exist."""
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            target = _outside(page.src_uri, link)
            if target is None:
                continue
            if not (ROOT / target).is_file():
                raise PluginError(
                    f"docs/{page.src_uri} links to {link}, but the repository has no file {target}."
                )
            if files.get_file_from_path(_in_site(target)) is None:
                files.append(File.generated(config, _in_site(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Redirect the links to those files, and mark inserted content."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = _outside(here, match[1])
        if target is None:
            return match[1]
        return posixpath.relpath(_in_site(target), posixpath.dirname(here) or ".")

    if not page.ancestors:  # a tab of its own: there is nothing to navigate to, and tables use the width
        page.meta.setdefault("hide", ["navigation"])
    return LINK.sub(moved, INSERTED.sub(_marked, markdown))


def _marked(match: re.Match[str]) -> str:
    """Mark a table so that lines wrap if it contains sentences, but not if it contains only numbers."""
    long = any(len(cell) > SENTENCE for line in match[2].splitlines() for cell in line.split("|")[1:])
    look = "results sentences" if long else "results"
    return f'{match[1]}\n<div class="{look}" markdown>\n\n{match[2]}\n</div>\n'
