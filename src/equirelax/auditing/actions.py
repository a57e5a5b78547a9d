"""Candidate actions of the group on a hidden feature, which are compared with its change when the input is transformed.

A feature is observed at a few inputs x_p and at the same inputs transformed by a few elements g, as X_p = F(x_p) and
Y_gp = F(g x_p). An *action* is a family of maps rho(g) with Y_gp = rho(g) X_p. These candidates are tried along every axis:

* a direct sum of the group's known blocks (invariants, signs, vectors, pseudovectors, positions, the blocks of the
  representations that the audit was given, small irreps where e3nn is loaded), in any order and number: the segmentation of the
  axis with the least squared error, found by dynamic programming;
* the same block with its components outermost (all x, then all y, then all z);
* a rank-two tensor on two axes, ``Y = rho(g) X rho(g)^T``;
* a feature field on a grid, (g f)(p) = rho(g) f(g^-1 p) (``symmetry/fields.py``). Moving the pixels of Y_g back by g^-1 leaves
  rho(g) f(p) at every pixel p: an action on the channels, with as many rows as there are pixels, which the candidates above
  explain like any other. The grid may be the last two axes, the two before the last (channels last), or any single axis
  into which it is flattened.

The first candidate that fits is taken. If none fits, the result is a guess, with which a module is called again on exactly
transformed inputs. The smallest error alone would favour any combination of blocks that happens to follow the noise, on any
axis. A guess is therefore penalised for every change of block along its axis, and for acting on the first axis, which holds the
samples or the rows: it must explain correspondingly more.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry import GridField, Group, Representation, TensorAction
from equirelax.symmetry.blocks import Block, Positions, Pseudovector, Regular, Sign, Trivial, Vector
from equirelax.symmetry.fields import Entries, grid_entries, move_grid

MAX_LAST, MAX_OTHER = 4096, 256
"""Largest length of the last axis, and of another axis, that is cut into blocks."""
MAX_ROWS = 64
"""Maximum number of rows used to choose a segmentation. Its error is computed over all rows."""
CHANGE = 0.03
"""Fraction of the squared norm that a change of block must explain in a guess."""
PER_CHANGE, ROWS_AXIS = 1.25, 2.0
"""Factors on the error of a guess for every change of block, and for acting on the first axis."""


class Atom:
    """A block as an affine map, cached for each of the few elements of an audit."""

    def __init__(self, block: Block) -> None:
        self.name, self.dim = block.name, block.dim
        self._block = block
        self._known: dict[bytes, tuple[Tensor, Tensor | None]] = {}

    def matrix(self, g: Tensor) -> Tensor:
        """rho(g), (d, d)."""
        return self._at(g)[0]

    def offset(self, g: Tensor) -> Tensor | None:
        """The translation that follows it, (d,); ``None`` for a linear block."""
        return self._at(g)[1]

    def _at(self, g: Tensor) -> tuple[Tensor, Tensor | None]:
        key = g.cpu().numpy().tobytes()
        if key not in self._known:
            self._known[key] = (self._block.matrix(g), self._block.offset(g))
        return self._known[key]


@dataclasses.dataclass(frozen=True)
class Action:
    """A group action on tensors of one shape.

    Attributes:
        name: A description of the action.
        apply: A function that computes rho(g) x from g and x.
        invariant: Whether it is the trivial action.
        odds: Factor on its error when actions that do not fit are compared.
        channels: Number of channels of an action on fields (..., channels, H, W) of any size; 0 for other actions.
    """

    name: str
    apply: Callable[[Tensor, Tensor], Tensor]
    invariant: bool = False
    odds: float = 1.0
    channels: int = 0


@dataclasses.dataclass(frozen=True)
class Explanation:
    """An action and its error on a feature.

    Attributes:
        action: The action.
        relative: Largest ``||Y_g - rho(g) X|| / max(||Y_g||, ||X||)`` over g.
        absolute: Largest entry of ``|Y_g - rho(g) X|``.
    """

    action: Action
    relative: float
    absolute: float


@dataclasses.dataclass(frozen=True)
class Feature:
    """The observations of a hidden feature.

    Attributes:
        x: Its values at P inputs, (P, ...).
        y: Its values at the same inputs transformed by each of G elements, (G, P, ...).
        elements: The elements, (G, n, n).
    """

    x: Tensor
    y: Tensor
    elements: Tensor


def atoms_of(group: Group, given: Sequence[Representation]) -> list[Atom]:
    """Return the blocks to try for a group: its own small representations, and the blocks of the given representations."""
    blocks: list[Block] = [Trivial(group)]
    if group.order is not None or not group.connected:
        blocks.append(Sign(group))
    blocks.append(Vector(group))
    if group.dim != group.linear_dim:
        blocks.append(Positions(group))
    if group.linear_dim == 3 and not group.connected:
        blocks.append(Pseudovector(group))
    if group.order is not None and group.order <= 64:
        blocks.append(Regular(group))
    for rep in given:
        blocks += [block for _, block in rep.blocks if block not in blocks]
    blocks += [block for block in _irreps(group) if block.dim not in {b.dim for b in blocks}]
    return [Atom(block) for block in dict.fromkeys(blocks)]


def _irreps(group: Group) -> list[Block]:
    """e3nn's irreps with l = 2 and 3, if e3nn is already imported and the group contains rotations of space."""
    if "e3nn" not in sys.modules or group.name not in ("SO(3)", "O(3)", "SE(3)", "E(3)"):
        return []
    from equirelax.symmetry import from_irreps

    names = ("2e", "2o", "3e", "3o") if not group.connected else ("2e", "3e")
    return [from_irreps(name, group).blocks[0][1] for name in names]


def action_of(declared: TensorAction, group: Group) -> Action:
    """Turn a declared action into one for elements of ``group``."""
    linear = declared.group.dim != group.dim

    def apply(g: Tensor, x: Tensor) -> Tensor:
        return declared.apply((group.linear_part(g) if linear else g).to(x.device), x.double())

    channels = declared.dim if isinstance(declared, GridField) else 0
    return Action(
        f"{declared.representation!r}{declared.where}", apply, declared.invariant, channels=channels
    )


def error_of(action: Action, feature: Feature) -> Explanation:
    """Measure how well a given action explains a feature."""
    relative = absolute = 0.0
    for g, y in zip(feature.elements, feature.y, strict=True):
        expected = torch.stack([action.apply(g, x) for x in feature.x])
        gap = (y - expected).abs()
        scale = max(float(y.norm()), float(feature.x.norm()))
        relative = max(relative, float(gap.norm()) / scale if scale > 0 else 0.0)
        absolute = max(absolute, float(gap.max()))
    return Explanation(action, relative, absolute)


INVARIANT = Action("invariant", lambda g, x: x.double(), True)


def explain(feature: Feature, atoms: Sequence[Atom], tolerance: float) -> Explanation:
    """Return the most likely action along the feature's axes; see `most_likely`."""
    return most_likely(
        feature,
        itertools.chain((INVARIANT,), _candidates(feature, atoms), _guesses(feature, atoms)),
        tolerance,
    )


def most_likely(feature: Feature, actions: Iterable[Action], tolerance: float) -> Explanation:
    """Return the first action within ``tolerance``, else the one with the smallest error times its odds."""
    tried = []
    for candidate in actions:
        tried.append(error_of(candidate, feature))
        if tried[-1].relative <= tolerance:
            return tried[-1]
    return min(tried, key=lambda found: found.relative * found.action.odds)


def _candidates(feature: Feature, atoms: Sequence[Atom]) -> Iterator[Action]:
    axes = range(feature.x.dim() - 2, -1, -1)  # without the axis P, from the last axis on
    shape = feature.x.shape[1:]
    for axis in axes:
        if shape[axis] <= (MAX_LAST if axis == axes[0] else MAX_OTHER):
            yield segmentation(feature, atoms, axis)
    moving = [atom for atom in atoms if atom.dim > 1]
    for axis in axes:
        for atom in moving:
            if shape[axis] % atom.dim == 0 and shape[axis] > atom.dim:
                yield component_major(atom, shape[axis] // atom.dim, axis, len(shape))
    for a in axes:
        for b in range(a):
            for atom in moving:
                if shape[a] == shape[b] == atom.dim:
                    yield _rank_two(atom, b, a, len(shape))


def _guesses(feature: Feature, atoms: Sequence[Atom]) -> Iterator[Action]:
    """Segmentations into few runs of equal blocks, for features that no candidate fits."""
    for axis in range(feature.x.dim() - 2, -1, -1):
        if feature.x.shape[axis + 1] <= MAX_OTHER:
            yield segmentation(feature, atoms, axis, CHANGE)


def _apply_atom(atom: Atom, g: Tensor, x: Tensor) -> Tensor:
    """Apply an atom to the last axis of ``x`` (..., d)."""
    moved = x @ atom.matrix(g).to(x).transpose(-1, -2)
    offset = atom.offset(g)
    return moved if offset is None else moved + offset.to(x)


def segmentation(feature: Feature, atoms: Sequence[Atom], axis: int, change: float = 0.0) -> Action:
    """Find the direct sum of atoms along ``axis`` (without the axis P) with the least squared error.

    Every change from one atom to another adds ``change`` times the squared norm of ``feature.y`` to that error.
    """
    x = feature.x.movedim(axis + 1, -1)
    y = feature.y.movedim(axis + 2, -1)
    size = x.shape[-1]
    x, y = x.reshape(-1, size), y.reshape(len(feature.elements), -1, size)
    if len(x) > MAX_ROWS:
        pick = torch.linspace(0, len(x) - 1, MAX_ROWS).long()
        x, y = x[pick], y[:, pick]
    # Rounding must not decide between blocks that fit equally well: the first in the list wins.
    grain = 1e-24 * float(y.square().sum()) + 1e-300
    costs = []
    for atom in atoms:
        cost = x.new_zeros(max(size - atom.dim + 1, 0))
        for g, moved in zip(feature.elements, y, strict=True):
            if len(cost):
                gap = moved.unfold(1, atom.dim, 1) - _apply_atom(atom, g, x.unfold(1, atom.dim, 1))
                cost = cost + gap.square().sum(dim=(0, 2))
        costs.append((cost / grain).round().tolist())
    price = change * float(y.square().sum()) / grain
    return _sum_of(_cheapest(atoms, costs, size, price), axis, feature.x.dim() - 1)


def _cheapest(atoms: Sequence[Atom], costs: list[list[float]], size: int, price: float) -> list[Atom]:
    """Return the sequence of atoms of total length ``size`` with the least sum of costs and of a price for every change.

    Args:
        costs: ``costs[k][i]`` is the cost of atom k at position i.
    """
    # best[end][k]: the least sum up to `end` with atom k last, and the atom before it. On a tie, the first atom in the list wins.
    best: list[list[tuple[float, int]]] = [[(0.0, -1)] * len(atoms)]
    lowest = [0]
    for end in range(1, size + 1):
        row = []
        for k, atom in enumerate(atoms):
            before = best[end - atom.dim] if atom.dim < end else None
            if atom.dim > end:
                row.append((float("inf"), -1))
            elif before is None:
                row.append((costs[k][0], -1))
            else:
                low = lowest[end - atom.dim]
                j = k if before[k][0] < before[low][0] + price else low
                row.append((before[j][0] + price * (j != k) + costs[k][end - atom.dim], j))
        best.append(row)
        lowest.append(min(range(len(atoms)), key=lambda k: (row[k][0], k)))
    order: list[Atom] = []
    end, k = size, lowest[size] if size else -1
    while k >= 0:
        order.append(atoms[k])
        end, k = end - atoms[k].dim, best[end][k][1]
    return order[::-1]


def _sum_of(order: list[Atom], axis: int, dims: int) -> Action:
    runs: list[tuple[int, Atom]] = []
    for atom in order:
        if runs and runs[-1][1] is atom:
            runs[-1] = (runs[-1][0] + 1, atom)
        else:
            runs.append((1, atom))

    def apply(g: Tensor, x: Tensor) -> Tensor:
        moved = x.double().movedim(axis, -1)
        parts = moved.split([count * atom.dim for count, atom in runs], dim=-1)
        done = [
            _apply_atom(atom, g, part.reshape(*part.shape[:-1], count, atom.dim)).reshape(part.shape)
            for part, (count, atom) in zip(parts, runs, strict=True)
        ]
        return torch.cat(done, dim=-1).movedim(-1, axis)

    words = [f"{count}x{atom.name}" if count > 1 else atom.name for count, atom in runs]
    if len(words) > 6:
        words = words[:5] + [f"... ({len(runs) - 5} more)"]
    return Action(
        " + ".join(words) + _where(axis, dims),
        apply,
        all(atom.name == "trivial" for atom in order),
        PER_CHANGE ** (len(runs) - 1) * _axis_odds(axis, dims),
    )


def _axis_odds(axis: int, dims: int) -> float:
    return ROWS_AXIS if axis == 0 and dims > 1 else 1.0


def component_major(atom: Atom, copies: int, axis: int, dims: int) -> Action:
    def apply(g: Tensor, x: Tensor) -> Tensor:
        moved = x.double().movedim(axis, -1)
        split = moved.reshape(*moved.shape[:-1], atom.dim, copies).transpose(-1, -2)
        return _apply_atom(atom, g, split).transpose(-1, -2).reshape(moved.shape).movedim(-1, axis)

    name = f"{copies}x{atom.name}, components outermost, along axis {axis}"
    return Action(name, apply, odds=PER_CHANGE * _axis_odds(axis, dims))


def _rank_two(atom: Atom, first: int, second: int, dims: int) -> Action:
    def apply(g: Tensor, x: Tensor) -> Tensor:
        moved = _apply_atom(atom, g, x.double().movedim(first, -1)).movedim(-1, first)
        return _apply_atom(atom, g, moved.movedim(second, -1)).movedim(-1, second)

    name = f"{atom.name} x {atom.name} on axes {first} and {second}"
    return Action(name, apply, odds=_axis_odds(first, dims))


def _where(axis: int, dims: int) -> str:
    return "" if axis == dims - 1 else f" along axis {axis - dims}"


CHANNELS = 4096  # largest length of a channel axis that is cut into blocks
ROWS = 8192  # maximum number of pixels on which a weaker explanation is tried
TRIVIAL = Action("trivial", lambda g, x: x.double())
SMALL = 16  # a grid of at most this many pixels may be something else, such as a matrix
# Factors on the error of a guess: for a flattened grid, for channels not next to the grid, for a field that does not move.
FLAT, AWAY, STILL = 4.0, 2.0, 4.0


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of a feature that form its grid.

    Attributes:
        words: A description of the layout.
        there: A function that moves the grid of a feature (..., shape) to the end, (..., H, W).
        back: The inverse of ``there``.
        odds, channels: As in :class:`Action`.
    """

    words: str
    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    odds: float = 1.0
    channels: int = 0


def layouts(shape: Sequence[int], swaps: bool) -> Iterator[Layout]:
    """Yield every way in which a feature of this shape may hold a grid, which must be square if ``swaps``."""
    dims = len(shape)
    for last, words in ((-1, " on a grid"), (-2, " on a grid, channels last")):
        if dims >= 1 - last and _is_grid(shape[last - 1], shape[last], swaps):
            channels = shape[-3] if last == -1 and dims >= 3 else 0
            yield dataclasses.replace(_plain(last, words), channels=channels)
    for axis in range(dims - 1, -1, -1) if not is_large_grid(shape) else ():
        for side in range(2, int(shape[axis] ** 0.5) + 1):
            if shape[axis] % side**2 == 0:
                yield _flat(axis - dims, side)


def field_candidates(feature: Feature, atoms: Sequence[Atom]) -> Iterator[Action]:
    """Yield actions on fields, first those that may fit, then guesses from at most one layout."""
    entries = grid_entries(feature.elements)
    swaps = any(element[0] == 0 for element in entries)
    guesses: list[Action] = []
    for layout in layouts(feature.x.shape[1:], swaps):
        yield _moved(TRIVIAL, layout)
        pulled = pulled_back(feature, layout, entries)
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


def pixel_rows(feature: Feature) -> Feature | None:
    """Return the pixels of the feature, moved back, as rows of channels (P', C); None if the last axes are not a grid."""
    entries = grid_entries(feature.elements)
    swaps = any(element[0] == 0 for element in entries)
    shape = feature.x.shape[1:]
    if len(shape) < 3 or not _is_grid(shape[-2], shape[-1], swaps):
        return None
    pulled = pulled_back(feature, _plain(-1, ""), entries)
    x = pulled.x.movedim(-3, -1).flatten(0, -2)
    y = pulled.y.movedim(-3, -1).flatten(1, -2)
    if len(x) > ROWS:
        pick = torch.linspace(0, len(x) - 1, ROWS).long()
        x, y = x[pick], y[:, pick]
    return Feature(x, y, feature.elements)


def is_large_grid(shape: Sequence[int]) -> bool:
    """Whether a feature of this shape can only be a field."""
    return len(shape) >= 3 and shape[-1] == shape[-2] and shape[-1] * shape[-2] > SMALL


def grid_problem(feature: Feature) -> str:
    """The reason why the group cannot act on a feature's grid; empty if it can."""
    shape = feature.x.shape[1:]
    swaps = any(element[0] == 0 for element in grid_entries(feature.elements))
    if len(shape) < 3 or not swaps or shape[-1] == shape[-2] or min(shape[-2:]) < 2:
        return ""
    return f"like nothing known: no turn by 90 degrees maps its grid of {shape[-2]} x {shape[-1]} onto itself"


def on_grid(elements: Tensor) -> bool:
    """Whether every element (G, n, n) maps a grid of pixels onto itself."""
    if elements.shape[-1] != 2:
        return False
    try:
        grid_entries(elements)
    except RepresentationError:
        return False
    return True


def pulled_back(feature: Feature, layout: Layout, entries: Sequence[Entries]) -> Feature:
    """Move the grid to the end, and move the pixels of every Y_g back by g^-1."""
    y = [
        move_grid(_inverse(element), layout.there(value))
        for element, value in zip(entries, feature.y, strict=True)
    ]
    return Feature(layout.there(feature.x), torch.stack(y), feature.elements)


def _moved(inner: Action, layout: Layout, odds: float = 1.0) -> Action:
    """Compose an action on the channels with the action on the grid."""

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
    a, b, c, d = element  # the inverse of an orthogonal matrix is its transpose
    return a, c, b, d
