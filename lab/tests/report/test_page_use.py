"""A page in use: on a phone, with the keyboard alone, in light and dark, on paper."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from browser import contrast
from devtools import Tab, browsing
from equirelax_lab.report.page import write_page
from equirelax_lab.report.runs import gather
from made import Make, comparison

WIDER = """Array.from(document.querySelectorAll('body *')).filter(one => !one.closest('.wide') && !one.closest('.skip')
  && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName + '.' + one.getAttribute('class'))"""
FOCUSED = """(() => { const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
  window.visited = window.visited || [];
  const again = one === document.body || visited.includes(one);
  if (!again) { visited.push(one); }
  return {again: again, tag: one.tagName, name: one.className, seen: one.checkVisibility({opacityProperty: true}) &&
    box.width > 0 && box.height > 0 && box.left > -2 && box.top > -2 && box.bottom < innerHeight + 2,
    outline: style.outlineStyle !== 'none' ? parseFloat(style.outlineWidth) : 0}; })()"""
MISSED = """(() => { const all = Array.from(document.querySelectorAll('a[href], button, summary, .wide'))
  .filter(one => one.checkVisibility()); return [all.length, all.filter((one, i) => one !== visited[i]).length]; })()"""
COLOURS = """Object.fromEntries(['ground', 'raised', 'ink', 'soft', 'link', 'warn'].map(
  name => [name, getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))"""
INK = """getComputedStyle(Array.from(document.querySelectorAll('figure.chart svg path')).find(
  one => one.getAttribute('style')?.includes('--ink'))).stroke"""


@pytest.fixture
def page(make: Make, tmp_path: Path) -> Path:
    """A comparison's page."""
    out = tmp_path / "report.html"
    write_page(out, gather([comparison(make)]))
    return out


def test_on_a_phone_only_tables_are_wider_than_the_screen(page: Path, tmp_path: Path) -> None:
    with browsing(tmp_path / "profile") as tab:
        tab.size(390, 844, phone=True)
        tab.open(page, "everything")
        assert tab.run("document.documentElement.scrollWidth") <= 390
        assert tab.run(WIDER) == []
        drawings = "Array.from(document.querySelectorAll('figure.chart svg'))"
        assert tab.run(f"Math.min(...{drawings}.map(one => one.clientWidth))") > 300
        sizes = "Array.from(document.querySelectorAll('figure.chart svg text')).map(one => one.getBoundingClientRect().height)"
        assert tab.run(f"Math.min(...{sizes})") > 6  # legible


def focused_by_tab(tab: Tab, most: int = 120) -> list[dict]:
    """What has the focus after every press of Tab, until it leaves the page."""
    found: list[dict] = []
    for _ in range(most):
        tab.press("Tab", 9)
        now = tab.run(FOCUSED)
        if now["again"]:
            return found
        found.append(now)
    raise AssertionError("the focus does not come to an end")


@pytest.mark.slow
def test_the_keyboard_reaches_every_control_in_order_and_is_seen_there(page: Path, tmp_path: Path) -> None:
    with browsing(tmp_path / "profile") as tab:
        tab.size(1000, 900)
        tab.open(page)
        found = focused_by_tab(tab)
        assert tab.run(MISSED) == [len(found), 0]  # all of them, in the order of the page
        assert [one for one in found if not one["seen"] or one["outline"] < 2] == []
        assert {"A", "BUTTON", "SUMMARY", "DIV"} == {one["tag"] for one in found}
        tab.open(page, "again")
        tab.press("Tab", 9)
        assert tab.run("document.activeElement.className") == "skip"
        tab.press("Enter", 13, "\r")
        tab.wait("document.activeElement.id === 'content'")
        opened = "document.querySelectorAll('details[open]').length"
        before = tab.run(opened)
        tab.run(
            "Array.from(document.querySelectorAll('summary')).find(one => !one.parentElement.open).focus()"
        )
        tab.press("Enter", 13, "\r")
        tab.wait(f"{opened} === {before + 1}")
        tab.run("document.getElementById('open-all').focus()")
        tab.press(" ", 32, " ")
        tab.wait(f"{opened} === document.querySelectorAll('details').length")
        assert tab.run("document.getElementById('open-all').getAttribute('aria-pressed')") == "true"


@pytest.mark.slow
def test_text_is_legible_in_light_and_dark_and_paper_is_white(page: Path, tmp_path: Path) -> None:
    with browsing(tmp_path / "profile") as tab:
        tab.prefers("dark")
        tab.open(page, "everything")
        dark, light_line = tab.run(COLOURS), tab.run(INK)
        tab.call("Emulation.setEmulatedMedia", media="print")
        paper, dark_line = tab.run(COLOURS), tab.run(INK)
        assert light_line != dark_line  # the lines of strict runs follow the ink
        tab.call("Emulation.setEmulatedMedia", media="screen")
        tab.prefers("light")
        assert tab.run(COLOURS) == paper != dark
        assert tab.run(INK) == dark_line
        tab.open(page)
        closed = "document.querySelectorAll('main details:not([open])').length"
        before = tab.run(closed)
        tab.run("window.dispatchEvent(new Event('beforeprint'))")
        assert tab.run(closed) == 0 < before
        tab.run("window.dispatchEvent(new Event('afterprint'))")
        assert tab.run(closed) == before
        for colours in (dark, paper):
            grounds = {colours["ground"], colours["raised"]}
            assert all(
                contrast(colours[name], g) >= 4.5 for name in ("soft", "link", "warn") for g in grounds
            )
            assert all(contrast(colours["ink"], g) >= 7 for g in grounds)
        printed = base64.b64decode(tab.call("Page.printToPDF", printBackground=True)["data"])
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 3
