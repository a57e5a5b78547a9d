"""`equirelax data`: make or download data sets."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jsonargparse import Namespace

from equirelax.errors import ConfigError, DataError
from equirelax.files import did_you_mean
from equirelax.settings import COUNT, JOBS, SEED
from equirelax_lab.cli import options
from equirelax_lab.cli.help import columns, filled
from equirelax_lab.data import (
    download,
    md17,
    mocap_cases,
    mocap_published,
    nbody,
    qm9_archive,
    rotmnist,
    smoke,
    status,
)
from equirelax_lab.data.download import ARCHIVES
from equirelax_lab.data.mocap_published import PUBLISHED
from equirelax_lab.data.root import find

DESCRIPTION = {
    "make": """Simulate a data set and write it below the data root, with a SHA-256 that is checked at every load.

Splits that exist and are large enough are kept. The charged set (10,000 / 2,000 / 2,000 systems of five bodies) takes
a few seconds, the gravity set (100 bodies) a quarter of an hour.

Motion capture cases are made from CMU's original files (mocap.cs.cmu.edu, free for all uses): see
equirelax data make mocap --help. For smoke plumes see equirelax data make smoke --help.

examples:
  equirelax data make nbody
  equirelax data make mocap --case dance --asf 05.asf --amc 05_*.amc
  equirelax data make smoke --size 32 --positions 5 --steps 150""",
    "make smoke": """Simulate smoke plumes with PhiFlow (extra `planes`), one file with a checksum per run.

An interrupted call continues with the missing runs. The default has the paper's size: 40 runs of 250 frames on
64 x 64 points, and 8 runs from other positions. The first example takes about two minutes on one core.

examples:
  equirelax data make smoke --size 32 --positions 5 --steps 150
  equirelax data make smoke --symmetry scale --size 32 --positions 5 --steps 150
  equirelax data make smoke --asymmetry 0""",
    "make mocap": """Make a motion capture case from CMU's files: the skeleton (.asf) and the trials (.amc) of one subject.

run (subject 9) and walk (subject 35) are the published cases. Their trials are recognised among the files by their frames,
and their windows are the published ones. The published order of the walks is known only from the published file, which
equirelax data get mocap-walk downloads. From CMU's files they are numbered by name: the same protocol on another
partition. The results of this project were computed with that partition.

Any other name makes a new case, for --subject NAME. The seed chooses a quarter of the trials for validation and a quarter for
testing, and every trial gives --starts samples.

examples:
  equirelax data make mocap --case run --asf 09.asf --amc 09_*.amc
  equirelax data make mocap --case walk --asf 35.asf --amc 35_*.amc
  equirelax data make mocap --case dance --asf 05.asf --amc 05_*.amc
  equirelax compare mocap --subject dance --methods strict,ace""",
    "get": """Print where a data set is, or download it.

  modelnet40    415 MB, every file checked against its published MD5
  rmd17         one archive of ten molecules
  md17          one file per molecule, which --molecule names
  qm9           86 MB, checked against its published SHA-256, converted to all molecules and to the subset of 16,771
  mocap-run     1 MB, EGNO's positions of CMU's subject 9, checked against the hash in its repository
  mocap-walk    7 MB, the same for subject 35, in the published order of trials
  mnist         from openml.org

An interrupted download continues where it stopped. If no address works, the message says which file to download by hand and how
to pass it with --archive. For the other data sets the command prints where they are, or how to make them. docs/reference/data.md
lists the source, the licence and the splits of each.

examples:
  equirelax data get modelnet40
  equirelax data get modelnet40 --archive modelnet40_ply_hdf5_2048.zip
  equirelax data get qm9
  equirelax data get mocap-walk
  equirelax data get md17 --molecule ethanol""",
}


USAGE = """usage: equirelax data {make,get} NAME ...

  make  simulate a data set (nbody, smoke), or convert raw files (mocap)
  get   download a data set (modelnet40, rmd17, md17, qm9, mocap-run, mocap-walk, mnist); print where one is, or how to get it

equirelax list names all data sets and says which are there. For details see equirelax data make --help and
equirelax data get --help."""


def main(words: Sequence[str]) -> int:
    """`words` begins with "data"."""
    actions = {"make": make, "get": get}
    if len(words) < 2 or words[1] in ("-h", "--help"):
        print(filled(USAGE, columns()))
        return 0 if len(words) > 1 else 2
    if words[1] not in actions:
        raise ConfigError(
            f"Unknown action '{words[1]}'.{did_you_mean(words[1], list(actions))} Use make or get."
        )
    return actions[words[1]](words[2:])


def make(words: Sequence[str]) -> int:
    """Simulate N-body or smoke data, or convert raw motion capture files."""
    if words and words[0] == "mocap":
        return make_mocap(words[1:])
    if words and words[0] == "smoke":
        return make_smoke(words[1:])
    parser = options.parser(["data", "make"], DESCRIPTION["make"])
    parser.add_argument("name", choices=["nbody", "mocap", "smoke"], help="data set")
    parser.add_argument("--system", choices=list(nbody.SYSTEMS), default="charged", help="simulator")
    parser.add_argument(
        "--clamp", help="for charged: component (as in the public data) or norm (equivariant)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the data; runs use 0, or their own seed with draw: seeded",
    )
    for split in nbody.SPLITS:
        parser.add_argument(f"--{split}", type=int, help=f"number of systems in the {split} split")
    parser.add_argument(
        "--force", action="store_true", help="simulate everything again and overwrite existing files"
    )
    parser.add_argument("--threads", type=int, default=2, help="number of blocks simulated in parallel")
    parser.add_argument("--data", help=options.DATA)
    counts = dict.fromkeys(nbody.SPLITS, COUNT)
    parsed = options.parse(parser, words, seed=SEED, threads=JOBS, **counts)
    sizes = dict(nbody.DEFAULT_SIZES[parsed.system])
    sizes.update({split: parsed[split] for split in nbody.SPLITS if parsed[split] is not None})

    def report(split: str, done: int, total: int) -> None:
        print(f"\r{split}: {done} of {total} systems", end="", file=sys.stderr, flush=True)

    paths = nbody.make(
        parsed.system,
        clamp=parsed.clamp,
        sizes=sizes,
        seed=parsed.seed,
        root=parsed.data,
        force=parsed.force,
        threads=parsed.threads,
        progress=report,
    )
    print(file=sys.stderr)
    for split, path in paths.items():
        print(f"{split:5}  {path}")
    return 0


def make_smoke(words: Sequence[str]) -> int:
    """Simulate smoke plumes."""
    parser = options.parser(["data", "make", "smoke"], DESCRIPTION["make smoke"])
    options.add_flags(parser, smoke.SmokeSettings(), "")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--force", action="store_true", help="simulate everything again")
    parser.add_argument("--data", help=options.DATA)
    parsed = options.parse(parser, words, jobs=JOBS)
    names = [field.name for field in dataclasses.fields(smoke.SmokeSettings)]
    settings = smoke.SmokeSettings(**{name: parsed[name] for name in names})

    def report(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\rsmoke: {done} of {total} runs", end=end, file=sys.stderr, flush=True)

    folder = smoke.make(settings, parsed.data, jobs=parsed.jobs, force=parsed.force, progress=report)
    print(f"smoke  {folder}")
    return 0


_ORDERED = "The windows are the published ones."
_UNORDERED = (
    "The windows are the published ones, but the trials are numbered by file name, since their published order is not "
    "known. This is another partition by the same protocol. `equirelax data get mocap-walk` downloads the published one."
)


def make_mocap(words: Sequence[str]) -> int:
    """Make a motion capture case from raw files."""
    parser = options.parser(["data", "make", "mocap"], DESCRIPTION["make mocap"])
    parser.add_argument(
        "--case", required=True, help="run, walk, or the name of a new case: letters, digits, - and _"
    )
    parser.add_argument("--asf", required=True, help="the subject's skeleton")
    parser.add_argument("--amc", required=True, nargs="+", help="the trials, three or more")
    parser.add_argument(
        "--starts", type=int, help="for a new case: samples per trial (default: 100, or as many as fit)"
    )
    parser.add_argument("--seed", type=int, help="for a new case: seed of the split (default: 0)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing case of the same name")
    parser.add_argument("--data", help=options.DATA)
    parsed = options.parse(parser, words, starts=COUNT, seed=SEED)
    paths = mocap_cases.make(
        parsed.case,
        parsed.asf,
        parsed.amc,
        starts=parsed.starts,
        seed=parsed.seed,
        root=parsed.data,
        force=parsed.force,
    )
    for kind, path in zip(("motion", "split"), paths, strict=True):
        print(f"{kind:6}  {path}")
    if parsed.case in PUBLISHED:
        print(_ORDERED if PUBLISHED[parsed.case].ordered else _UNORDERED)
    return 0


def get(words: Sequence[str]) -> int:
    """Print where a data set is, and download it if that is possible."""
    parser = options.parser(["data", "get"], DESCRIPTION["get"])
    parser.add_argument("name", help="data set; see equirelax list")
    parser.add_argument("--data", help=options.DATA)
    parser.add_argument("--archive", help="verify and unpack this archive instead of downloading one")
    parser.add_argument("--url", help="another address of the archive, instead of the known ones")
    parser.add_argument("--molecule", help=f"for md17: {', '.join(md17.MOLECULES)}")
    parser.add_argument("--force", action="store_true", help="download again, even if the data set is there")
    parsed = options.parse(parser, words)
    rows = {row.name: row for row in status(parsed.data)}
    if parsed.name not in rows:
        raise ConfigError(
            f"Unknown data set '{parsed.name}'.{did_you_mean(parsed.name, list(rows))} "
            f"Known: {', '.join(rows)}."
        )
    if parsed.molecule is not None and parsed.name != "md17":
        raise ConfigError(f"--molecule applies to md17 only; {parsed.name} comes as a whole.")
    if parsed.name in GETTERS:
        for path in GETTERS[parsed.name](parsed):
            print(f"{parsed.name}  {path}")
        return 0
    row, archive = rows[parsed.name], ARCHIVES.get(parsed.name)
    wanted = parsed.force or parsed.archive is not None or parsed.url is not None
    if archive is None and wanted:
        raise ConfigError(
            f"{row.name} cannot be downloaded: --archive, --url and --force do not apply. "
            f"To get it: {row.how_to_get}."
        )
    if row.available and not wanted:
        print(f"{row.name}  {row.location}")
        return 0
    if archive is None:
        raise DataError(f"{row.name} is not there. To get it: {row.how_to_get}.")
    if parsed.url is not None:
        archive = dataclasses.replace(archive, urls=(parsed.url,))
    folder = download.get(archive, parsed.data, file=options.optional_path(parsed.archive), force=wanted)
    print(f"{row.name}  {folder}")
    return 0


def get_md17(parsed: Namespace) -> list[Path]:
    """The original MD17 file of one molecule, downloaded if it is missing."""
    if parsed.molecule is None:
        raise ConfigError(
            f"md17 has one file per molecule: name one with --molecule ({', '.join(md17.MOLECULES)})."
        )
    if parsed.archive is not None:
        raise ConfigError(
            "md17 has no archive: put the molecule's .npz into the folder md17 of the data root."
        )
    wanted = parsed.force or parsed.url is not None
    return [md17.get_original(parsed.molecule, parsed.data, url=parsed.url, force=wanted)]


def get_mnist(parsed: Namespace) -> list[Path]:
    """MNIST, downloaded with scikit-learn if it is missing."""
    if parsed.archive is not None or parsed.url is not None:
        raise ConfigError("mnist is downloaded from openml.org: --archive and --url do not apply.")
    there = next(row for row in status(parsed.data) if row.name == "mnist").available
    return [find(rotmnist.RELATIVE, parsed.data) if there and not parsed.force else rotmnist.get(parsed.data)]


def get_mocap(parsed: Namespace) -> list[Path]:
    """Motion and windows of a published case, downloaded if they are missing."""
    case = parsed.name.removeprefix("mocap-")
    file = options.optional_path(parsed.archive)
    return mocap_published.get(case, parsed.data, file=file, url=parsed.url, force=parsed.force)


def get_qm9(parsed: Namespace) -> list[Path]:
    """All of QM9 and its subset, downloaded if they are missing; for `qm9` the subset is enough."""
    wanted = parsed.force or parsed.archive is not None or parsed.url is not None
    row = next(row for row in status(parsed.data) if row.name == parsed.name)
    if row.location is not None and not wanted:
        return [row.location]

    def report(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\rqm9: {done} of {total} molecules", end=end, file=sys.stderr, flush=True)

    file = options.optional_path(parsed.archive)
    return qm9_archive.get(parsed.data, file=file, url=parsed.url, force=wanted, progress=report)


GETTERS: Mapping[str, Callable[[Namespace], list[Path]]] = {
    "md17": get_md17,
    "mnist": get_mnist,
    "mocap-run": get_mocap,
    "mocap-walk": get_mocap,
    "qm9": get_qm9,
    "qm9-full": get_qm9,
}
"""Data sets that are not one archive of files."""
