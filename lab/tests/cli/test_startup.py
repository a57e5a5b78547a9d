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

# Forks of a process that has torch, so that torch is imported once. The first round compiles, as an installation does.
SCRIPT = """
import io, json, os, sys, time
import torch
print(json.dumps(time.process_time()), flush=True)
commands, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for words in commands + commands:
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
    words = [sys.executable, "-c", SCRIPT, json.dumps(HELP), json.dumps(HEAVY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torch, *answers = map(json.loads, subprocess.check_output(words, env=environment, text=True).splitlines())
    assert len(answers) == 2 * len(HELP)
    seconds: dict[str, float] = {}
    for command, code, told, took, heavy in answers:
        name = " ".join(command)
        assert (code, told, heavy) == (0, True, []), name
        seconds[name] = min(took, seconds.get(name, took))
    slow = {name: f"{took / torch:.2f}" for name, took in seconds.items() if took > SHARE * torch}
    assert not slow, f"beyond torch ({torch:.2f} s of CPU): {slow}"
