"""Read skeletons and motions in Acclaim's ASF and AMC files (as on mocap.cs.cmu.edu), and compute the positions of the joints.

A bone is a vector o from its parent's end to its own, given for the rest pose in the axes of the room. It rotates about its own
axes C (a rotation, `axis` in the file) by the angles of its degrees of freedom. With M the product of those rotations, of which
the first named is applied first,

    G_bone = G_parent C M C^-1,      end_bone = end_parent + G_bone o,      G_root = M_root,      end_root = translation.

Joints are the root and the ends of all bones. The tests compare this with positions that others computed, as far as that is
possible without the raw files: bones keep their lengths, and bones without degrees of freedom (the hip joints) keep the angles
between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equirelax.errors import DataError
from equirelax.files import did_you_mean

ROOT = "root"
ROTATIONS = ("rx", "ry", "rz")
TRANSLATIONS = ("tx", "ty", "tz")


@dataclass(frozen=True, eq=False)
class Bone:
    """One bone, or the root.

    Attributes:
        name: The name in the file.
        parent: Number of the parent among the skeleton's bones, -1 for the root.
        offset: (3,) vector from the parent's end to its own in the rest pose, in the file's unit of length.
        axes: (3, 3) rotation C, whose columns are the axes about which the bone turns.
        channels: Names of its degrees of freedom in the order of the motion file: some of `ROTATIONS`, and for the root also of
            `TRANSLATIONS`.
    """

    name: str
    parent: int
    offset: np.ndarray
    axes: np.ndarray
    channels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A skeleton.

    Attributes:
        bones: The root, and then the other bones in the file's order.
        degrees: Whether motion files are in degrees, unless they say otherwise.
    """

    bones: tuple[Bone, ...]
    degrees: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the joints, "root" first."""
        return tuple(bone.name for bone in self.bones)

    @property
    def edges(self) -> np.ndarray:
        """Every joint except the root, and its parent: (joints - 1, 2)."""
        pairs = [(joint, bone.parent) for joint, bone in enumerate(self.bones) if joint]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def positions(self, motion: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compute positions from the result of `read_amc`: (frames, joints, 3) float64, in the file's unit of length."""
        frames = len(motion[ROOT])
        turned: dict[int, np.ndarray] = {}
        ends = np.zeros((frames, len(self.bones), 3))
        for joint in self._from_the_root():
            bone = self.bones[joint]
            values = motion.get(bone.name, np.zeros((frames, 0)))
            turns = [n for n, channel in enumerate(bone.channels) if channel in ROTATIONS]
            order = [bone.channels[n] for n in turns]
            local = bone.axes @ rotation(order, values[:, turns]) @ bone.axes.T
            if joint == 0:
                turned[0] = local
                for n, channel in enumerate(bone.channels):
                    if channel in TRANSLATIONS:
                        ends[:, 0, TRANSLATIONS.index(channel)] = values[:, n]
                ends[:, 0] += bone.offset
            else:
                turned[joint] = turned[bone.parent] @ local
                ends[:, joint] = ends[:, bone.parent] + turned[joint] @ bone.offset
        return ends

    def _from_the_root(self) -> list[int]:
        """List the joints, each after its parent (files may name them in any order)."""
        order = [0]
        for parent in order:  # grows during the loop
            order += [joint for joint, bone in enumerate(self.bones) if joint and bone.parent == parent]
        return order


def rotation(order: Sequence[str], angles: np.ndarray) -> np.ndarray:
    """Compose rotations about fixed axes, the first of `order` ("rx", ...) first, by angles (frames, k), rad: (frames, 3, 3)."""
    total = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for n, name in enumerate(order):
        cos, sin = np.cos(angles[:, n]), np.sin(angles[:, n])
        i = ROTATIONS.index(name)
        j, k = (i + 1) % 3, (i + 2) % 3
        turn = np.zeros((len(angles), 3, 3))
        turn[:, i, i] = 1
        turn[:, j, j] = turn[:, k, k] = cos
        turn[:, k, j], turn[:, j, k] = sin, -sin
        total = turn @ total
    return total


@dataclass(frozen=True)
class _Line:
    """A line of a file that is not empty, without its comment and split into words."""

    path: Path
    number: int
    words: tuple[str, ...]

    def fail(self, problem: str, hint: str = "") -> DataError:
        """Make the error for a problem in this line. The hint is a sentence that begins with a space."""
        return DataError(f"{self.path}, line {self.number}: {problem}.{hint}")

    def numbers(self, words: Sequence[str], count: int, what: str) -> list[float]:
        """Convert words to `count` finite numbers."""
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != count or not all(map(math.isfinite, values)):
            raise self.fail(f"{what} should be {count} finite numbers, but is {' '.join(words)!r}")
        return values


def _lines(path: Path) -> Iterator[_Line]:
    try:
        # every byte is a character of latin-1; anything that is not a number or a name is reported below
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = tuple(line.split("#", 1)[0].split())
        if words:
            yield _Line(path, number, words)


def read_asf(path: str | Path) -> Skeleton:
    """Read the skeleton in an ASF file.

    Lengths stay in the file's unit (CMU's: 5.64 cm). Limits, masses and everything else that does not affect positions are
    ignored.

    Raises:
        DataError: The file cannot be read or parsed (the message names the line), or contains unsupported elements: bones that
            change their length or are displaced, or a root that is rotated in the rest pose.
    """
    path = Path(path)
    sections: dict[str, list[_Line]] = {}
    current: list[_Line] = []
    for line in _lines(path):
        if line.words[0].startswith(":"):
            current = sections.setdefault(line.words[0].lower(), [])
        else:
            current.append(line)
    missing = [name for name in (":root", ":bonedata", ":hierarchy") if not sections.get(name)]
    if missing:
        raise DataError(f"{path} is not an ASF file: the sections {', '.join(missing)} are missing or empty.")
    degrees = True
    for line in sections.get(":units", []):
        if line.words[0].lower() == "angle":
            degrees = not line.words[-1].lower().startswith("rad")
    scale = math.pi / 180 if degrees else 1.0
    bones = [_root(sections[":root"])]
    block: list[_Line] = []
    for line in sections[":bonedata"]:
        if line.words[0].lower() == "end":
            bones.append(_bone(block, line, scale))
        block = [] if line.words[0].lower() in ("begin", "end") else [*block, line]
    parents = _parents(sections[":hierarchy"], bones, path)
    placed = [Bone(b.name, parents[b.name], b.offset, b.axes, b.channels) for b in bones]
    return Skeleton(tuple(placed), degrees)


def _keys(lines: Sequence[_Line]) -> dict[str, _Line]:
    return {line.words[0].lower(): line for line in lines}


def _root(lines: Sequence[_Line]) -> Bone:
    keys, last = _keys(lines), lines[-1]
    if "order" not in keys:
        raise last.fail("the root has no 'order' of its degrees of freedom")
    channels = tuple(word.lower() for word in keys["order"].words[1:])
    if len(set(channels)) != len(channels) or not set(channels) <= {*ROTATIONS, *TRANSLATIONS}:
        raise keys["order"].fail(
            f"the root's order should name TX ... RZ once each, but is {' '.join(channels)!r}"
        )
    offset = np.zeros(3)
    if "position" in keys:
        offset = np.array(keys["position"].numbers(keys["position"].words[1:], 3, "the root's position"))
    if "orientation" in keys:
        line = keys["orientation"]
        if any(line.numbers(line.words[1:], 3, "the root's orientation")):
            raise line.fail("a root that is turned in the rest pose is not supported")
    return Bone(ROOT, -1, offset, np.eye(3), channels)


def _bone(lines: Sequence[_Line], end: _Line, scale: float) -> Bone:
    keys = _keys(lines)
    missing = [key for key in ("name", "direction", "length", "axis") if key not in keys]
    if missing:
        raise end.fail(f"the bone that ends here has no {', '.join(missing)}")
    name, line = keys["name"].words[-1], keys["direction"]
    direction = np.array(line.numbers(line.words[1:], 3, f"the direction of {name}"))
    norm = np.linalg.norm(direction)
    if abs(norm - 1) > 1e-2:  # written with few digits
        raise line.fail(f"the direction of {name} should have length 1, but has {norm:.4g}")
    (length,) = keys["length"].numbers(keys["length"].words[1:], 1, f"the length of {name}")
    line = keys["axis"]
    order = ["r" + letter for letter in line.words[-1].lower()]
    if sorted(order) != list(ROTATIONS):
        raise line.fail(f"the axis of {name} should end in an order such as XYZ, not {line.words[-1]!r}")
    angles = np.array(line.numbers(line.words[1:-1], 3, f"the axis of {name}"))
    channels = tuple(word.lower() for word in keys["dof"].words[1:]) if "dof" in keys else ()
    if len(set(channels)) != len(channels) or not set(channels) <= set(ROTATIONS):
        raise keys["dof"].fail(
            f"{name} has the degrees of freedom {' '.join(channels)!r}; only rx, ry and rz, once each, are supported"
        )
    return Bone(name, -1, length * direction, rotation(order, scale * angles[None])[0], channels)


def _parents(lines: Sequence[_Line], bones: Sequence[Bone], path: Path) -> dict[str, int]:
    """The number of the parent of every bone."""
    numbers = {bone.name: number for number, bone in enumerate(bones)}
    if len(numbers) != len(bones):
        raise DataError(f"{path}: two bones have the same name, or one is called {ROOT!r}.")
    parents = {ROOT: -1}
    for line in lines:
        if line.words[0].lower() in ("begin", "end"):
            continue
        for word in line.words:
            if word not in numbers:
                raise line.fail(
                    f"the hierarchy names an unknown bone {word!r}", did_you_mean(word, list(numbers))
                )
        for child in line.words[1:]:
            if child in parents:
                raise line.fail(f"{child} has two parents, or is the root")
            parents[child] = numbers[line.words[0]]
    for bone in bones:
        seen, name = {bone.name}, bone.name
        while name in parents and parents[name] >= 0:
            name = bones[parents[name]].name
            if name in seen:
                raise DataError(f"{path}: the hierarchy goes round in a circle at {name}.")
            seen.add(name)
        if name != ROOT:
            raise DataError(f"{path}: the hierarchy does not connect {name} to the root.")
    return parents


def read_amc(path: str | Path, skeleton: Skeleton) -> dict[str, np.ndarray]:
    """Read the motion in an AMC file.

    Returns:
        Values (frames, channels), float64 with angles in radians, for the root and every bone with degrees of freedom.

    Raises:
        DataError: The file cannot be read or parsed, or does not fit the skeleton. The message names the line.
    """
    path = Path(path)
    channels = {bone.name: bone.channels for bone in skeleton.bones if bone.channels}
    degrees = skeleton.degrees
    rows: dict[str, list[list[float]]] = {name: [] for name in channels}
    line, frames, first = None, 0, 0
    for line in _lines(path):
        word = line.words[0]
        if word.startswith(":"):
            degrees = {":degrees": True, ":radians": False}.get(word.lower(), degrees)
        elif word.isdecimal() and len(line.words) == 1:
            _complete(rows, frames, line)
            first = first if frames else int(word)
            if int(word) != first + frames:
                raise line.fail(f"frame {word} follows frame {first + frames - 1}")
            frames += 1
        elif word not in channels:
            raise line.fail(
                f"{word!r} is no bone with degrees of freedom of this skeleton",
                did_you_mean(word, list(channels)),
            )
        elif len(rows[word]) != frames - 1:
            raise line.fail(
                f"{word} is before the first frame number, or twice in frame {first + frames - 1}"
            )
        else:
            rows[word].append(line.numbers(line.words[1:], len(channels[word]), f"the motion of {word}"))
    if line is None or not frames:
        raise DataError(f"{path} holds no frames: it is not an AMC file, or it is cut off.")
    _complete(rows, frames, line)
    motion = {name: np.array(values) for name, values in rows.items()}
    if degrees:
        for name, values in motion.items():
            values[:, [channel in ROTATIONS for channel in channels[name]]] *= math.pi / 180
    return motion


def _complete(rows: Mapping[str, list[list[float]]], frames: int, line: _Line) -> None:
    """Raise `DataError` unless the frame that ends at `line` holds every bone."""
    missing = [name for name, values in rows.items() if len(values) != frames]
    if missing:
        raise line.fail(f"the frame that ends here lacks {', '.join(missing)}")
