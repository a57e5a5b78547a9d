"""The two simulators as plain Python loops over floats, written from their description: slow and obvious."""

from __future__ import annotations

import math

Vectors = list[list[float]]


def charged_forces(x: Vectors, charges: list[float], clamp: str) -> Vectors:
    forces = []
    for i in range(len(x)):
        force = [0.0, 0.0, 0.0]
        for j in range(len(x)):
            if i != j:
                r = [x[i][k] - x[j][k] for k in range(3)]
                length = math.sqrt(r[0] ** 2 + r[1] ** 2 + r[2] ** 2)
                force = [force[k] + charges[i] * charges[j] * r[k] / length**3 for k in range(3)]
        if clamp == "component":
            force = [max(-100.0, min(100.0, component)) for component in force]
        else:
            norm = math.sqrt(sum(component**2 for component in force))
            force = [component * min(1.0, 100.0 / norm) for component in force]
        forces.append(force)
    return forces


def charged(x: Vectors, v: Vectors, charges: list[float], clamp: str, steps: int) -> tuple[Vectors, Vectors]:
    """State after `steps` drifts, the first of them after a full kick."""
    dt = 0.001
    x, v = [list(row) for row in x], [list(row) for row in v]
    for _ in range(steps):
        force = charged_forces(x, charges, clamp)
        for i in range(len(x)):
            for k in range(3):
                v[i][k] += dt * force[i][k]
                x[i][k] += dt * v[i][k]
    return x, v


def gravity_accelerations(x: Vectors) -> Vectors:
    out = []
    for i in range(len(x)):
        a = [0.0, 0.0, 0.0]
        for j in range(len(x)):
            r = [x[j][k] - x[i][k] for k in range(3)]
            weight = (r[0] ** 2 + r[1] ** 2 + r[2] ** 2 + 0.1**2) ** -1.5
            a = [a[k] + weight * r[k] for k in range(3)]
        out.append(a)
    return out


def gravity(x: Vectors, v: Vectors, steps: int) -> tuple[Vectors, Vectors]:
    """State after `steps` steps of kick-drift-kick."""
    dt = 0.001
    x, v = [list(row) for row in x], [list(row) for row in v]
    a = gravity_accelerations(x)
    for _ in range(steps):
        for i in range(len(x)):
            for k in range(3):
                v[i][k] += dt / 2 * a[i][k]
                x[i][k] += dt * v[i][k]
        a = gravity_accelerations(x)
        for i in range(len(x)):
            for k in range(3):
                v[i][k] += dt / 2 * a[i][k]
    return x, v
