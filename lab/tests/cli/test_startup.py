"""Help texts come at once: nothing heavy is imported for them, and for the list of commands not even torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from equirelax_lab.cli.main import COMMANDS

pytestmark = pytest.mark.serial

HEAVY = ("lightning", "e3nn", "matplotlib", "h5py", "torch_geometric", "ray", "optuna", "torch._dynamo")
LONGEST = 0.4
"""Seconds of CPU of the list of commands."""
SHARE = 0.3
"""The most that a command's help takes beyond `python -c "import torch"`, as a share of it."""
HELP = [[command] for command in COMMANDS] + [["train", "nbody"], ["compare", "nbody"]]

ROUNDS = 4
"""The least of so many measurements counts: the first may compile, and neighbours disturb."""

# Forks of a process that has torch, so that torch is imported once.
SCRIPT = """
import io, json, os, sys, time
import torch
print(json.dumps(time.process_time()), flush=True)
commands, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for words in commands:
    if os.fork() == 0:
        answer, sys.stdout = sys.stdout, io.StringIO()
        began = time.process_time()
        from equirelax_lab.cli.main import main
        try:
            code = main([*words, "--help"])
        except SystemExit as end:
            code = end.code
        seconds = time.process_time() - began
        found = [name for name in heavy if name in sys.modules]
        print(json.dumps([words, code, "usage: equirelax" in sys.stdout.getvalue(), seconds, found]), file=answer, flush=True)
        os._exit(0)
    os.wait()
"""


def test_the_list_of_commands_and_the_version_need_no_torch() -> None:
    for flag in ("--help", "--version"):
        script = (
            "import sys; from equirelax_lab.cli.main import main; "
            f"code = main(['{flag}']); sys.exit(code or 'torch' in sys.modules)"
        )
        began = sum(os.times()[2:4])
        subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
        assert sum(os.times()[2:4]) - began <= LONGEST


def test_the_help_of_every_command_takes_little_longer_than_torch() -> None:
    slow: dict[str, str] = {}
    left = HELP
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installation has compiled what it imports
    for _ in range(ROUNDS):
        words = [sys.executable, "-c", SCRIPT, json.dumps(left), json.dumps(HEAVY)]
        printed = subprocess.check_output(words, env=environment, text=True)
        torch, *answers = map(json.loads, printed.splitlines())
        assert [command for command, *_ in answers] == left
        for command, code, told, _, heavy in answers:
            assert (code, told, heavy) == (0, True, []), command
        slow = {
            " ".join(command): f"{took / torch:.2f}"
            for command, *_, took, _ in answers
            if took > SHARE * torch
        }
        left = [command for command in left if " ".join(command) in slow]
        if not left:
            return
    pytest.fail(f"beyond torch ({torch:.2f} s of CPU): {slow}")
