"""How does the group act on hidden features that are pictures? The grid is moved back, then the channels are told apart.

A feature field turns as (g f)(p) = rho(g) f(g^-1 p) (``symmetry/fields.py``). Moving the pixels of Y_g back by g^-1
leaves rho(g) f(p) at every pixel p: an action on the channels, with as many rows as there are pixels, which the
candidates of ``actions.py`` explain like any other. The grid is looked for on the last two axes, on the two before the
last (channels last), and, flattened, inside any single axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from equirelax.auditing.actions import CHANGE, Action, Atom, Seen, component_major, segmentation
from equirelax.errors import RepresentationError
from equirelax.symmetry.fields import Entries, grid_entries, move_grid

CHANNELS = 4096  # longest channel axis that is cut into blocks
ROWS = 8192  # pixels, at most, on which a weaker explanation is looked for
TRIVIAL = Action("trivial", lambda g, x: x.double())
SMALL = 16  # grids of so few pixels may as well be something else, such as a matrix
# How much more a guess must explain: for a flattened grid, for channels not next to it, for a picture that stands still.
FLAT, AWAY, STILL = 4.0, 2.0, 4.0


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a feature keeps its grid.

    Attributes:
        words: for the reader.
        there: the feature (..., shape) with the grid last, (..., H, W).
        back: the inverse.
        odds, channels: as in :class:`~equirelax.auditing.actions.Action`.
    """

    words: str
    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    odds: float = 1.0
    channels: int = 0


def layouts(shape: Sequence[int], swaps: bool) -> Iterator[Layout]:
    """Every way in which a feature of this shape may hold a grid; a square one if ``swaps``."""
    dims = len(shape)
    for last, words in ((-1, " on a grid"), (-2, " on a grid, channels last")):
        if dims >= 1 - last and _is_grid(shape[last - 1], shape[last], swaps):
            channels = shape[-3] if last == -1 and dims >= 3 else 0
            yield dataclasses.replace(_plain(last, words), channels=channels)
    for axis in range(dims - 1, -1, -1) if not is_large_grid(shape) else ():
        for side in range(2, int(shape[axis] ** 0.5) + 1):
            if shape[axis] % side**2 == 0:
                yield _flat(axis - dims, side)


def candidates(seen: Seen, atoms: Sequence[Atom]) -> Iterator[Action]:
    """Actions on fields: first those that may fit, then guesses, at most from one layout."""
    entries = grid_entries(seen.elements)
    swaps = any(element[0] == 0 for element in entries)
    guesses: list[Action] = []
    for layout in layouts(seen.x.shape[1:], swaps):
        yield _moved(TRIVIAL, layout)
        pulled = pulled_back(seen, layout, entries)
        dims = pulled.x.dim() - 1
        axes = [axis for axis in range(dims - 3, -1, -1) if 1 < pulled.x.shape[axis + 1] <= CHANNELS]
        for axis in axes:
            yield _moved(segmentation(pulled, atoms, axis), layout, AWAY if axis != dims - 3 else 1.0)
        if dims - 3 in axes:
            size = pulled.x.shape[dims - 2]
            whole = [atom for atom in atoms if 1 < atom.dim < size and size % atom.dim == 0]
            yield from (
                _moved(component_major(atom, size // atom.dim, dims - 3, dims), layout) for atom in whole
            )
            if not guesses and layout.odds == 1.0:
                guesses.append(_moved(segmentation(pulled, atoms, dims - 3, CHANGE), layout))
    yield from guesses


def rows_of(seen: Seen) -> Seen | None:
    """The feature at its pixels, moved back, as rows of channels (P', C); None where the last axes are no grid."""
    entries = grid_entries(seen.elements)
    swaps = any(element[0] == 0 for element in entries)
    shape = seen.x.shape[1:]
    if len(shape) < 3 or not _is_grid(shape[-2], shape[-1], swaps):
        return None
    pulled = pulled_back(seen, _plain(-1, ""), entries)
    x = pulled.x.movedim(-3, -1).flatten(0, -2)
    y = pulled.y.movedim(-3, -1).flatten(1, -2)
    if len(x) > ROWS:
        pick = torch.linspace(0, len(x) - 1, ROWS).long()
        x, y = x[pick], y[:, pick]
    return Seen(x, y, seen.elements)


def is_large_grid(shape: Sequence[int]) -> bool:
    """Whether a feature of this shape is a picture, or nothing else that is known."""
    return len(shape) >= 3 and shape[-1] == shape[-2] and shape[-1] * shape[-2] > SMALL


def lopsided(seen: Seen) -> str:
    """What is wrong with a feature's grid, where it cannot be turned as the group wants it; else empty."""
    shape = seen.x.shape[1:]
    swaps = any(element[0] == 0 for element in grid_entries(seen.elements))
    if len(shape) < 3 or not swaps or shape[-1] == shape[-2] or min(shape[-2:]) < 2:
        return ""
    return f"like nothing known: no turn by 90 degrees maps its grid of {shape[-2]} x {shape[-1]} onto itself"


def on_grid(elements: Tensor) -> bool:
    """Whether every one of the elements (G, n, n) maps a grid of pixels onto itself."""
    if elements.shape[-1] != 2:
        return False
    try:
        grid_entries(elements)
    except RepresentationError:
        return False
    return True


def pulled_back(seen: Seen, layout: Layout, entries: Sequence[Entries]) -> Seen:
    """The feature with the grid last, and the grid of every Y_g moved back."""
    y = [
        move_grid(_inverse(element), layout.there(value))
        for element, value in zip(entries, seen.y, strict=True)
    ]
    return Seen(layout.there(seen.x), torch.stack(y), seen.elements)


def _moved(inner: Action, layout: Layout, odds: float = 1.0) -> Action:
    """An action on the channels, followed by that on the grid."""

    def apply(g: Tensor, x: Tensor) -> Tensor:
        return layout.back(move_grid(grid_entries(g)[0], inner.apply(g, layout.there(x))))

    name = inner.name.removesuffix(" along axis -3") + layout.words
    return Action(name, apply, odds=inner.odds * layout.odds * odds, channels=layout.channels)


def _is_grid(height: int, width: int, swaps: bool) -> bool:
    return height * width > 1 and (height == width or not swaps)


def _plain(last: int, words: str) -> Layout:
    if last == -1:
        return Layout(words, lambda x: x, lambda x: x)
    return Layout(words, lambda x: x.movedim(-1, -3), lambda x: x.movedim(-3, -1))


def _flat(axis: int, side: int) -> Layout:
    def there(x: Tensor) -> Tensor:
        moved = x.movedim(axis, -1)
        return moved.unflatten(-1, (-1, side, side))

    def back(x: Tensor) -> Tensor:
        return x.flatten(-3).movedim(-1, axis)

    return Layout(f" on a {side} x {side} grid that is flattened into axis {axis}", there, back, FLAT)


def _inverse(element: Entries) -> Entries:
    a, b, c, d = element  # orthogonal: its transpose
    return a, c, b, d
