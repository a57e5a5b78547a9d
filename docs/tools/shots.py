"""Take pictures of every page of the site for inspection: light and dark, wide and narrow, and printed.

    make docs
    python docs/tools/shots.py site FOLDER [PAGE ...]

FOLDER then contains PAGE-1400.png, PAGE-1400-dark.png, PAGE-390.png and PAGE.pdf of every page, or of the named ones
(`how_to/deploy`). Needs chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000")
HEIGHTS = {1400: 2600, 390: 3600}
DARK = "--blink-settings=preferredColorScheme=0"
# In frames of 390 px, because a window of chromium is at least 500 wide.
FRAME = '<iframe src="{address}" style="width:390px;height:{height}px;border:0"></iframe>'


def chromium(*words: str) -> str:
    """Run chromium with a separate profile; returns its output."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise SystemExit("chromium is needed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def take(page: Path, name: str, folder: Path) -> None:
    """Write the four files of a page."""
    address = page.resolve().as_uri()
    for theme, more in (("", ()), ("-dark", (DARK,))):
        target = folder / f"{name}-1400{theme}.png"
        chromium(*more, f"--screenshot={target}", f"--window-size=1400,{HEIGHTS[1400]}", address)
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(address=address, height=HEIGHTS[390]), "utf-8")
    chromium(
        f"--screenshot={folder / f'{name}-390.png'}", f"--window-size=500,{HEIGHTS[390]}", frame.as_uri()
    )
    frame.unlink()
    chromium("--no-pdf-header-footer", f"--print-to-pdf={folder / f'{name}.pdf'}", address)


def main(words: list[str]) -> int:
    """Take the pictures."""
    if len(words) < 2:
        print(__doc__)
        return 2
    site, folder = Path(words[0]), Path(words[1])
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted(site.rglob("*.html")):
        path = str(page.relative_to(site)).removesuffix(".html")
        if path in words[2:] or (not words[2:] and path != "404"):
            print(path)
            take(page, re.sub(r"\W+", "-", path), folder.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
