"""`equirelax data`: make or download data sets."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from jsonargparse import Namespace

from equirelax.errors import ConfigError, DataError
from equirelax.files import did_you_mean
from equirelax.settings import COUNT, JOBS, SEED
from equirelax_lab.cli import options
from equirelax_lab.data import download, md17, mocap, nbody, rotmnist, smoke, status
from equirelax_lab.data.download import ARCHIVES
from equirelax_lab.data.root import find

DESCRIPTION = {
    "make": """Simulate a data set and write it below the data root, with a SHA-256 that is checked whenever it is loaded.

Splits that exist and are large enough are kept. The charged set (10,000 / 2,000 / 2,000 systems of five bodies) takes
a few seconds, the gravity set (100 bodies) a quarter of an hour.

Motion capture cases of other subjects are made from their raw files (mocap.cs.cmu.edu, free for all uses): see
equirelax data make mocap --help. For smoke plumes see equirelax data make smoke --help.

examples:
  equirelax data make nbody
  equirelax data make mocap --case dance --asf 05.asf --amc 05_*.amc
  equirelax data make smoke --size 32 --positions 5 --steps 150""",
    "make smoke": """Simulate smoke plumes with PhiFlow (extra `planes`), one file with a checksum per run.

An interrupted call continues with the runs that are missing. The default has the paper's size: 40 runs of 250 frames on
64 x 64 points, and 8 runs from other positions. The first example takes about two minutes on one core.

examples:
  equirelax data make smoke --size 32 --positions 5 --steps 150
  equirelax data make smoke --symmetry scale --size 32 --positions 5 --steps 150
  equirelax data make smoke --asymmetry 0""",
    "make mocap": """Make a motion capture case from the skeleton (.asf) and trials (.amc) of one subject (--subject CASE).

The seed chooses a quarter of the trials for validation and a quarter for testing. Every trial gives --starts samples.

example:
  equirelax data make mocap --case dance --asf 05.asf --amc 05_*.amc
  equirelax compare mocap --subject dance --methods strict,ace""",
    "get": """Print where a data set is, or download it.

modelnet40 (415 MB) is downloaded unless it is there. An interrupted download continues where it stopped, every file is
checked against its published MD5, and if no address works the message says what to do by hand. rmd17 is one archive of
ten molecules; md17 is one file per molecule, which --molecule names. mnist comes from openml.org. For the other data sets the
command prints where they are, or how to get them.

examples:
  equirelax data get modelnet40
  equirelax data get modelnet40 --archive modelnet40_ply_hdf5_2048.zip
  equirelax data get rmd17
  equirelax data get md17 --molecule ethanol""",
}


def main(words: Sequence[str]) -> int:
    """`words` begins with "data"."""
    actions = {"make": make, "get": get}
    if len(words) < 2 or words[1] in ("-h", "--help"):
        print(
            "usage: equirelax data {make,get} NAME ...\n\n  make  simulate a data set (nbody, smoke), or convert raw "
            "files (mocap)"
        )
        print(
            "  get   print where a data set is, download it (modelnet40, rmd17, md17, mnist), or print how to get it"
        )
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
    parser.add_argument("--clamp", help="of charged: component (as in the public data) or norm (equivariant)")
    parser.add_argument(
        "--data_seed",
        type=int,
        default=0,
        help="seed of the data; runs use 0, or their own with draw: seeded",
    )
    for split in nbody.SPLITS:
        parser.add_argument(f"--{split}", type=int, help=f"number of systems in the {split} split")
    parser.add_argument(
        "--force", action="store_true", help="simulate everything again and overwrite existing files"
    )
    parser.add_argument("--threads", type=int, default=2, help="number of blocks simulated in parallel")
    parser.add_argument("--data", help="data root (default: EQUIRELAX_DATA, else the user's cache folder)")
    counts = dict.fromkeys(nbody.SPLITS, COUNT)
    words = ["--data_seed" if word == "--seed" else word for word in words]
    parsed = options.parse(parser, words, data_seed=SEED, threads=JOBS, **counts)
    sizes = dict(nbody.DEFAULT_SIZES[parsed.system])
    sizes.update({split: parsed[split] for split in nbody.SPLITS if parsed[split] is not None})

    def report(split: str, done: int, total: int) -> None:
        print(f"\r{split}: {done} of {total} systems", end="", file=sys.stderr, flush=True)

    paths = nbody.make(
        parsed.system,
        clamp=parsed.clamp,
        sizes=sizes,
        seed=parsed.data_seed,
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
    parser.add_argument("--data", help="data root (default: EQUIRELAX_DATA, else the user's cache folder)")
    parsed = options.parse(parser, words, jobs=JOBS)
    names = [field.name for field in dataclasses.fields(smoke.SmokeSettings)]
    settings = smoke.SmokeSettings(**{name: parsed[name] for name in names})

    def report(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\rsmoke: {done} of {total} runs", end=end, file=sys.stderr, flush=True)

    folder = smoke.make(settings, parsed.data, jobs=parsed.jobs, force=parsed.force, progress=report)
    print(f"smoke  {folder}")
    return 0


def make_mocap(words: Sequence[str]) -> int:
    """Make a motion capture case from raw files."""
    parser = options.parser(["data", "make", "mocap"], DESCRIPTION["make mocap"])
    parser.add_argument("--case", required=True, help="name of the new case: letters, digits, - and _")
    parser.add_argument("--asf", required=True, help="the subject's skeleton")
    parser.add_argument("--amc", required=True, nargs="+", help="the trials, three or more")
    parser.add_argument("--starts", type=int, help="samples per trial (default: 100, or as many as fit)")
    parser.add_argument("--data_seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--force", action="store_true", help="overwrite a case of the same name")
    parser.add_argument("--data", help="data root (default: EQUIRELAX_DATA, else the user's cache folder)")
    words = ["--data_seed" if word == "--seed" else word for word in words]
    parsed = options.parse(parser, words, starts=COUNT, data_seed=SEED)
    paths = mocap.make(
        parsed.case,
        parsed.asf,
        parsed.amc,
        starts=parsed.starts,
        seed=parsed.data_seed,
        root=parsed.data,
        force=parsed.force,
    )
    for kind, path in zip(("motion", "split"), paths, strict=True):
        print(f"{kind:6}  {path}")
    return 0


def get(words: Sequence[str]) -> int:
    """Print where a data set is, and download it where that is possible."""
    parser = options.parser(["data", "get"], DESCRIPTION["get"])
    parser.add_argument("name", help="data set; see equirelax list")
    parser.add_argument("--data", help="data root (default: EQUIRELAX_DATA, else the user's cache folder)")
    parser.add_argument("--archive", help="verify and unpack this archive instead of downloading one")
    parser.add_argument("--url", help="another address of the archive, used instead of the known ones")
    parser.add_argument("--molecule", help=f"for md17: {', '.join(md17.MOLECULES)}")
    parser.add_argument("--force", action="store_true", help="download again, even if the data set is there")
    parsed = options.parse(parser, words)
    rows = {row.name: row for row in status(parsed.data)}
    if parsed.name not in rows:
        raise ConfigError(
            f"Unknown data set '{parsed.name}'.{did_you_mean(parsed.name, list(rows))} "
            f"Known: {', '.join(rows)}."
        )
    if parsed.name == "md17":
        return get_md17(parsed.molecule, parsed)
    if parsed.molecule is not None:
        raise ConfigError(f"--molecule applies to md17 only; {parsed.name} comes as a whole.")
    if parsed.name == "mnist":
        return get_mnist(parsed, available=rows["mnist"].available)
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


def get_md17(molecule: str | None, parsed: Namespace) -> int:
    """Print where the original MD17 file of one molecule is, or download it."""
    if molecule is None:
        raise ConfigError(
            f"md17 has one file per molecule: name one with --molecule ({', '.join(md17.MOLECULES)})."
        )
    if parsed.archive is not None:
        raise ConfigError(
            "md17 has no archive: put the molecule's .npz into the folder md17 of the data root."
        )
    wanted = parsed.force or parsed.url is not None
    path = md17.get_original(molecule, parsed.data, url=parsed.url, force=wanted)
    print(f"md17 {molecule}  {path}")
    return 0


def get_mnist(parsed: Namespace, available: bool) -> int:
    """Print where MNIST is, or download it with scikit-learn."""
    if parsed.archive is not None or parsed.url is not None:
        raise ConfigError("mnist is downloaded from openml.org: --archive and --url do not apply.")
    path = (
        rotmnist.get(parsed.data) if parsed.force or not available else find(rotmnist.RELATIVE, parsed.data)
    )
    print(f"mnist  {path}")
    return 0
