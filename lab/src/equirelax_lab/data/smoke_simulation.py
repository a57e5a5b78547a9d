"""Simulate smoke plumes in a closed square box with PhiFlow 3: a passive density that rises, and the air that it moves.

    d rho/dt + u . grad rho = inflow        du/dt + u . grad u + grad p = b rho e        div u = 0

Advection is semi-Lagrangian on a staggered grid, and conjugate gradients in 64 bits solve for the pressure. The inflow is a disc
near one side, and the force e points away from that side, so that the run of the next side is the same run rotated by 90 degrees.
Since the discretisation prefers no direction, this holds to the tolerance of the pressure solver.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from equirelax.errors import DataError
from equirelax_lab.extras import install

BOX = 100.0
"""Width of the box. Its centre is the origin."""
INFLOW_DISTANCE = 40.0
"""Distance between the centres of the box and of the inflow."""
INFLOW_RADIUS = 8.0
INFLOW_RATE = 0.2
"""Density that enters per unit of time."""
SOLVER_TOLERANCE = 1e-9
SOLVER_ITERATIONS = 5_000
# e for the sides bottom, right, top, left: each is the previous one rotated by 90 degrees
DIRECTIONS = ((0.0, 1.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0))


def phiflow() -> Any:
    """Import PhiFlow. Raise `DataError` if it is not installed."""
    try:
        from phi import flow
    except ImportError as error:
        raise DataError(
            f"Smoke is simulated with PhiFlow, which is not installed: {install('planes')}"
        ) from error
    return flow


def simulate(
    side: int,
    offsets: np.ndarray,
    *,
    buoyancy: float,
    size: int,
    steps: int,
    dt: float = 1.0,
    scale: float = 1.0,
) -> np.ndarray:
    """Simulate several runs from inflows near one side together.

    Args:
        side: Side of the inflow: 0 bottom, 1 right, 2 top, 3 left.
        offsets: (R,) offsets of the inflow along its side, which rotate with it, in [-INFLOW_DISTANCE, INFLOW_DISTANCE].
        buoyancy: The factor b, acceleration per density.
        size: Grid points along each side.
        steps: Number of frames, one every `dt`.
        dt: Time between frames.
        scale: Factor on the inflow's radius, distance and offsets and on the force, and so on the velocities.

    Returns:
        Velocities at the centres of the cells after steps 1, 2, ...: (R, steps, 2, size, size) float32. Row 0 is the top, and
        components are (x, y).

    Raises:
        DataError: PhiFlow is missing, the pressure does not converge, or a velocity is not finite.
    """
    flow = phiflow()
    math, batch, channel = flow.math, flow.batch, flow.channel
    with math.precision(64):
        half = BOX / 2
        box = flow.Box(x=(-half, half), y=(-half, half))
        along, force = _turned(side, offsets * scale, -INFLOW_DISTANCE * scale), DIRECTIONS[side]
        centres = math.tensor(along, batch("run"), channel(vector="x,y"))
        inflow = INFLOW_RATE * flow.CenteredGrid(
            flow.Sphere(centres, radius=INFLOW_RADIUS * scale),
            flow.extrapolation.BOUNDARY,
            box,
            x=size,
            y=size,
        )
        density = inflow * 0
        velocity = flow.StaggeredGrid(0, 0, box, x=size, y=size)
        pressure, frames = None, []
        for _ in range(steps):
            density = flow.advect.semi_lagrangian(density, velocity, dt) + dt * inflow
            lift = flow.resample(density * tuple(buoyancy * scale * part for part in force), velocity)
            velocity = flow.advect.semi_lagrangian(velocity, velocity, dt) + dt * lift
            solve = flow.Solve(
                "CG",
                SOLVER_TOLERANCE,
                SOLVER_TOLERANCE,
                x0=pressure,
                rank_deficiency=0,
                max_iterations=SOLVER_ITERATIONS,
            )
            try:
                velocity, pressure = flow.fluid.make_incompressible(velocity, (), solve)
            except math.ConvergenceException as error:
                raise _broken_off(side, buoyancy, "found no pressure") from error
            frames.append(velocity.at_centers().values.numpy("run,vector,y,x")[:, :, ::-1])
    found = np.stack(frames, axis=1)
    if not np.isfinite(found).all():
        raise _broken_off(side, buoyancy, "left the finite numbers")
    return np.ascontiguousarray(found, dtype=np.float32)


def _broken_off(side: int, buoyancy: float, why: str) -> DataError:
    return DataError(
        f"The simulation of side {side} with buoyancy {buoyancy:g} {why}: make its buoyancy or its time step smaller."
    )


def _turned(side: int, offsets: np.ndarray, distance: float) -> np.ndarray:
    """Rotate points (offset, distance) by 90 degrees `side` times, without rounding: (R, 2)."""
    points = np.stack([offsets, np.full_like(offsets, distance)], axis=1)
    for _ in range(side):
        points = np.stack([-points[:, 1], points[:, 0]], axis=1)
    return points
