"""A headless Chromium, where there is one: what a page becomes in it, what it says on the console, and how colours contrast."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
DARK = "--blink-settings=preferredColorScheme=0"


@dataclass(frozen=True)
class Shown:
    """A page after its scripts ran: its elements as text, and every line that it wrote on the console."""

    dom: str
    console: tuple[str, ...]


def found_browser() -> str:
    """The browser's path; skips the test where there is none."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome on PATH (on Debian: apt-get install chromium)")
    return browser


def show(page: Path, profile: Path, *flags: str, fragment: str = "everything") -> Shown:
    """Load a page and let its scripts run; skips the test where there is no browser."""
    done = subprocess.run(
        [
            *(found_browser(), *QUIET, f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0"),
            *("--virtual-time-budget=8000", "--window-size=1250,1200", *flags, "--dump-dom"),
            f"{page.resolve().as_uri()}#{fragment}",
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Shown(done.stdout, tuple(re.findall(r".*CONSOLE.*", done.stderr)))


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
