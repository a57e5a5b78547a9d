"""Colour, dashes, marker and place of every method: the same in every figure, table and page.

The colour denotes a family of methods, dashes and marker the method within it. Nothing here needs matplotlib, so that pages
without drawings can use it as well.

    METHODS["ace"]                     its `Look`: .colour ("#0072b2"), .variable ("c2"), .dash, .marker
    sorted(names, key=place)           methods in the order in which they are shown
    looks(["strict", "ace lr=0.1"])    a look for every row of one figure
    variables()                        CSS for pages: --ground, --ink, --soft, ..., --c1 to --c6, in light and dark
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INK, SOFT, RULE, GROUND = "#1b1d21", "#565b64", "#d9dce1", "#fffffe"
# Okabe and Ito's colours, which colour-blind readers tell apart, darkened until they stand out from white (WCAG 2.2: 3 to 1).
ORANGE, BLUE, GREEN, PINK, RED, SKY = "#b87a00", "#0072b2", "#00835f", "#b65c90", "#c65200", "#2490c8"
COLOURS = (INK, ORANGE, BLUE, GREEN, PINK, RED, SKY)
"""Colours for rows that do not differ in their method."""
VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", GROUND: "ground"} | {
    colour: f"c{index}" for index, colour in enumerate(COLOURS) if index
}
"""Colour -> CSS variable of a page, which has another value on dark screens."""
_LIGHT = {"raised": "#f5f6f8", "link": "#0b5394", "warn": "#8a3b00"}
_DARK = {
    **{"ground": "#15171b", "raised": "#1f2228", "ink": "#eceef1", "soft": "#a9b0bb", "rule": "#3a3f48"},
    **{"link": "#8cc4f5", "warn": "#ffb27a"},
    **{"c1": "#e69f00", "c2": "#4aa8e6", "c3": "#22bd8e", "c4": "#d98cba", "c5": "#ff8138", "c6": "#8fd0f5"},
}
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1)), (0, (8, 2, 2, 2, 2, 2)))
MARKERS = ("o", "s", "D", "^", "X", "v", "P", "*")


@dataclass(frozen=True)
class Look:
    """The look of a method, or of a row of a figure.

    Attributes:
        colour: Colour in the notation of matplotlib and CSS.
        dash: Line style in the notation of matplotlib.
        marker: Marker in the notation of matplotlib.
    """

    colour: str
    dash: Any
    marker: str

    @property
    def variable(self) -> str:
        """The CSS variable of the colour, without its dashes: "c2"."""
        return VARIABLES[self.colour]


METHODS = {
    "strict": Look(INK, DASHES[0], "o"),
    "strict-muon": Look(SKY, DASHES[0], "s"),
    "scheduled": Look(ORANGE, DASHES[0], "D"),
    "ace": Look(BLUE, DASHES[0], "^"),
    "resilient": Look(GREEN, DASHES[0], "v"),
    "ace-augmented": Look(BLUE, DASHES[1], "X"),
    "ace-pi": Look(BLUE, DASHES[2], "P"),
    "swing": Look(GREEN, DASHES[1], "o"),
    "symmetry-following": Look(GREEN, DASHES[2], "s"),
    "equivariant-control": Look(ORANGE, DASHES[2], "o"),
    "no-schedule": Look(ORANGE, DASHES[1], "s"),
    "no-lie": Look(ORANGE, DASHES[3], "^"),
    "no-penalty": Look(ORANGE, DASHES[4], "v"),
    "remul": Look(PINK, DASHES[0], "P"),
    "rpp": Look(RED, DASHES[0], "*"),
    "equi-tuning": Look(PINK, DASHES[1], "X"),
    "equi-adapt": Look(PINK, DASHES[2], "D"),
}
"""Every method, in the order in which tables, figures and pages show them."""


def place(method: str) -> int:
    """The place of a method in that order, as a key to sort by; unknown ones come last."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


def looks(rows: Sequence[str]) -> dict[str, Look]:
    """A look for every row (label) of a figure; the first word of a label is its method.

    Rows of one method (its models and variants) share its colour and differ in dashes and markers. If the figure has only one
    method, they differ in colour: the first one has its method's, and none has that of strict.
    """
    methods = [row.split(" ")[0] for row in rows]
    alone = len(set(methods)) == 1 and len(rows) > 1
    own = METHODS[methods[0]].colour if rows and methods[0] in METHODS else INK
    palette = [
        own,
        *(colour for colour in COLOURS if colour not in (own, INK)),
    ]  # ink is the colour of strict
    seen: dict[str, int] = {}
    found = {}
    for index, (row, method) in enumerate(zip(rows, methods, strict=True)):
        among = seen[method] = seen.get(method, -1) + 1
        look = METHODS.get(method)
        if alone or look is None:
            dash = DASHES[index // len(palette) % len(DASHES)]
            found[row] = Look(palette[index % len(palette)], dash, MARKERS[index % len(MARKERS)])
        else:
            dashes, markers = DASHES.index(look.dash) + among, MARKERS.index(look.marker) + among
            found[row] = Look(look.colour, DASHES[dashes % len(DASHES)], MARKERS[markers % len(MARKERS)])
    return found


def variables() -> str:
    """CSS that sets the colours of a page for light and for dark screens; printed pages are light."""
    light = {variable: colour for colour, variable in VARIABLES.items()} | _LIGHT
    return (
        f":root {{ color-scheme: light dark; {_declared(light)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_declared(_DARK)} }} }}\n"
        "@media print { :root { color-scheme: light; } }\n"
    )


def _declared(colours: dict[str, str]) -> str:
    return " ".join(f"--{variable}: {colour};" for variable, colour in colours.items())
