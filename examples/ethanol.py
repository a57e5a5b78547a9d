"""Code shared by the examples: frames of rMD17 ethanol, and a small table of results."""

from __future__ import annotations

import ase
import ase.io
import numpy as np
import torch
from equirelax_lab.data.root import find
from torch import Tensor

from equirelax.auditing import AuditReport

HINT = "point EQUIRELAX_DATA at a folder that holds md17/rmd17_ethanol_train.xyz"


def molecules(count: int) -> list[ase.Atoms]:
    """The first frames of the training set, with energies in eV and forces in eV/A."""
    path = find("md17/rmd17_ethanol_train.xyz", hint=HINT)
    return ase.io.read(path, f":{count}")


def batch(frames: list[ase.Atoms]) -> tuple[Tensor, Tensor, Tensor]:
    """Atomic numbers (b, 9), positions (b, 9, 3) in A and forces (b, 9, 3) in eV/A, float32."""
    numbers = torch.tensor(frames[0].numbers).expand(len(frames), -1)
    positions = torch.tensor(np.stack([frame.positions for frame in frames])).float()
    forces = torch.tensor(np.stack([frame.get_forces() for frame in frames])).float()
    return numbers, positions, forces


def show(title: str, before: AuditReport, after: AuditReport, losses: list[float]) -> None:
    """Print the audits of the relaxed and of the projected network, and how training changed the loss."""
    print(f"{'':10}  {'group':6}  {'equivariance error':>18}  first module that breaks")
    for name, report in (("relaxed", before), ("projected", after)):
        broken = "none" if report.equivariant else report.first_break or "the model itself"
        print(f"{name:10}  {report.group:6}  {report.relative:18.1e}  {broken}")
    print(
        f"{title}, projected: equivariance error {after.relative:.0e} instead of {before.relative:.0e}; "
        f"loss {losses[-1]:.3g} after {len(losses)} steps, {losses[0]:.3g} at the first"
    )
