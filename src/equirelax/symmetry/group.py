"""Symmetry groups as matrices with a Lie algebra, discrete generators, and a way to draw elements."""

from __future__ import annotations

import contextlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.files import did_you_mean
from equirelax.symmetry.exponential import matrix_exp

_TYPES: dict[str, Callable[..., Group]] = {}
_NAMES: dict[str, Callable[..., Group]] = {}
# Closing a set of generators under multiplication stops at this size, and the group counts as infinite.
ELEMENT_LIMIT = 5_040


class Group(ABC):
    """A matrix group, given by its defining representation on column vectors.

    Elements are `(..., dim, dim)` float tensors. For SE(n) and E(n) they are homogeneous `(n+1, n+1)`
    matrices `[[R, t], [0, 1]]`. Two groups are equal when their `spec()` are.

    Attributes:
        name: the usual notation, such as `SO(3)`.
        dim: number of rows of an element.
        linear_dim: size of the linear part of an element: n for SE(n) and E(n), else `dim`.
        compact: whether the group is compact.
        connected: whether the Lie algebra alone generates the group.
        order: number of elements, or None for an infinite group.
    """

    name: str
    dim: int
    linear_dim: int
    compact: bool
    connected: bool
    order: int | None = None
    # The default tolerances of `contains`, by dtype of the element.
    tolerances: ClassVar[dict[torch.dtype, float]] = {torch.float64: 1e-9, torch.float32: 1e-4}

    def __init_subclass__(cls, names: Sequence[str] = ()) -> None:
        """Register the class under its own name for `from_spec`, and under `names` for `from_name`.

        Args:
            names: names such as `SO(n)` if the constructor takes a size, or `Lorentz` if it does not.
        """
        _TYPES[cls.__name__] = cls
        _NAMES.update(dict.fromkeys(names, cls))

    @abstractmethod
    def _algebra(self) -> Tensor:
        """Compute a basis (k, dim, dim) of the Lie algebra in float64."""

    @abstractmethod
    def _discrete(self) -> Tensor:
        """Compute discrete generators (c, dim, dim) in float64."""

    @abstractmethod
    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Draw `count` elements in float64, on the generator's device."""

    @abstractmethod
    def _distance(self, g: Tensor) -> Tensor:
        """Compute by how much float64 matrices (..., dim, dim) violate the group's equations: (...), 0 for elements."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return plain, JSON-compatible Python values from which `Group.from_spec` rebuilds the group."""

    def algebra(self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Tensor:
        """Return a basis A_1..A_k of the Lie algebra, (k, dim, dim); k = 0 for a finite group."""
        with constants():
            return self._algebra().to(dtype=dtype, device=device)

    def discrete(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Return the discrete generators, which the Lie algebra does not reach, (c, dim, dim).

        These are the generators of a finite group, one element with determinant -1 for O(n) and E(n), and none for a
        connected group. A map is equivariant exactly when it commutes with the Lie algebra and with these.
        """
        with constants():
            return self._discrete().to(dtype=dtype, device=device)

    def identity(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Return the identity element, (dim, dim)."""
        return torch.eye(self.dim, dtype=dtype, device=device)

    def exp(self, coefficients: Tensor) -> Tensor:
        """Compute the elements exp(sum_i c_i A_i), (..., dim, dim), for coefficients (..., k).

        Raises:
            RepresentationError: the last axis does not have length k.
        """
        basis = self.algebra(coefficients.dtype, coefficients.device)
        if coefficients.shape[-1] != len(basis):
            raise RepresentationError(
                f"{self.name} has a Lie algebra of dimension {len(basis)}, but {coefficients.shape[-1]} "
                f"coefficients were given (last axis of a tensor of shape {tuple(coefficients.shape)})."
            )
        return matrix_exp(torch.einsum("...k,kij->...ij", coefficients, basis))

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw `count` independent elements, (count, dim, dim).

        Elements of compact groups follow the uniform Haar measure, those of a `MatrixGroup` with a Lie algebra
        approximately. Those of other groups follow a bounded distribution, which
        the class describes. Numbers are drawn in float64 on the generator's device, so that a seed gives the same
        elements in every dtype.

        Raises:
            RepresentationError: `count` is negative.
        """
        if count < 0:
            raise RepresentationError(f"{self.name}.sample: count must be >= 0, got {count}.")
        with constants():
            return self._sample(count, generator).to(dtype=dtype, device=device)

    def contains(self, g: Tensor, atol: float | None = None) -> Tensor:
        """Check which of the matrices `g` (..., dim, dim) are elements of the group, within `atol`: bool (...).

        The default tolerance for the entries of the group's equations is 1e-9 in float64 and 1e-4 in float32.
        """
        self.check_shape(g)
        tolerance = self.tolerances.get(g.dtype, 1e-2) if atol is None else atol
        with constants():
            distance = self._distance(g.to(torch.float64))
        return torch.isfinite(g).all(dim=-1).all(dim=-1) & (distance <= tolerance)

    def check(self, g: Tensor, atol: float | None = None) -> None:
        """Raise RepresentationError unless `contains` holds for every matrix of `g` (..., dim, dim)."""
        inside = self.contains(g, atol)
        if not bool(inside.all()):
            flat, bad = g.reshape(-1, self.dim, self.dim), (~inside).reshape(-1)
            first = flat[bad][0]
            raise RepresentationError(
                f"{int(bad.sum())} of {len(flat)} matrices are not elements of {self.name}; the first is\n"
                f"{first}\nIt misses the group's equations by "
                f"{float(self._distance(first.to(torch.float64))):.2g}. Draw elements with "
                f"{self.name}.sample(), "
                "or allow more with atol=."
            )

    def check_shape(self, g: Tensor) -> None:
        """Raise RepresentationError unless `g` has shape (..., dim, dim)."""
        if g.dim() < 2 or g.shape[-2:] != (self.dim, self.dim):
            raise RepresentationError(
                f"An element of {self.name} is a ({self.dim}, {self.dim}) matrix, batch axes before it "
                f"allowed; got shape {tuple(g.shape)}."
            )

    def linear_part(self, g: Tensor) -> Tensor:
        """Return how `g` acts on differences of positions: its first linear_dim rows and columns."""
        self.check_shape(g)
        return g[..., : self.linear_dim, : self.linear_dim]

    def translation_part(self, g: Tensor) -> Tensor | None:
        """Return the translation (..., n) of an element of SE(n) or E(n); None for a group without translations."""
        self.check_shape(g)
        return None if self.dim == self.linear_dim else g[..., : self.linear_dim, self.linear_dim]

    def inverse(self, g: Tensor) -> Tensor:
        """Compute g^-1 for elements (..., dim, dim), differentiably."""
        self.check_shape(g)
        return torch.linalg.inv(widened(g)).to(g.dtype)

    def elements(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Return all elements of a finite group, identity first, (order, dim, dim).

        Raises:
            RepresentationError: the group is infinite.
        """
        if self.order is None:
            raise RepresentationError(
                f"{self.name} is infinite: its elements cannot be listed, only sampled."
            )
        with constants():
            return self._elements().to(dtype=dtype, device=device)

    def _elements(self) -> Tensor:
        found = closure(self._discrete(), ELEMENT_LIMIT)
        if found is None:
            raise RepresentationError(f"{self.name} has more than {ELEMENT_LIMIT} elements.")
        return found

    @staticmethod
    def from_spec(spec: dict[str, Any]) -> Group:
        """Build the group that `spec()` describes.

        Raises:
            RepresentationError: the type is unknown or the arguments do not fit it.
        """
        if not isinstance(spec, dict) or "type" not in spec:
            raise RepresentationError(f"A group's spec is a dict with the key 'type', got {spec!r}.")
        name, arguments = spec["type"], {key: value for key, value in spec.items() if key != "type"}
        if name not in _TYPES:
            known = sorted(_TYPES)
            raise RepresentationError(
                f"Unknown group type {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}."
            )
        try:
            return _TYPES[name](**arguments)
        except TypeError as error:
            raise RepresentationError(
                f"The spec {spec!r} does not fit the group type {name!r}: {error}"
            ) from error

    @staticmethod
    def from_name(name: str) -> Group:
        """Build the group called `name`: `SO(3)` or `SO3`, `O(2)`, `SE(3)`, `E(3)`, `C4`, `D4`, `S5`, `Scaling`, `Lorentz`.

        Raises:
            RepresentationError: no group has this name.
        """
        if name in _NAMES and "(n)" not in name:
            return _NAMES[name]()
        match = re.fullmatch(r"([A-Z]+)(?:\((\d+)\)|_?(\d+))", name)
        if match and f"{match[1]}(n)" in _NAMES:
            return _NAMES[f"{match[1]}(n)"](int(match[2] or match[3]))
        examples = ["SO(2)", "O(2)", "SO(3)", "O(3)", "SE(3)", "E(3)", "C4", "D4", "S5", "Scaling", "Lorentz"]
        raise RepresentationError(
            f"Unknown group {name!r}.{did_you_mean(name, examples)} Known names look like {', '.join(examples)}."
        )

    @cached_property
    def algebra_dim(self) -> int:
        """The dimension k of the Lie algebra."""
        return len(self.algebra())

    @cached_property
    def discrete_count(self) -> int:
        """The number c of discrete generators."""
        return len(self.discrete())

    @cached_property
    def _key(self) -> str:
        return json.dumps(self.spec(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Group) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return self.name


@contextlib.contextmanager
def constants() -> Iterator[None]:
    """Make plain CPU tensors in this block, whatever the surrounding modes, so that they can outlive the call.

    A tensor made in inference mode could never take part in a backward pass, and one made under
    `with torch.device("meta")` would hold no values.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        yield


def closure(generators: Tensor, limit: int) -> Tensor | None:
    """Compute all products of the `generators` (c, n, n), identity first: (order, n, n), or None for more than `limit`.

    The search is breadth-first, so that one generator r gives 1, r, r^2, ... in this order.
    """
    size = generators.shape[-1]
    found = torch.zeros(limit + 1, size, size, dtype=torch.float64)
    found[0] = torch.eye(size, dtype=torch.float64)
    count, visited = 1, 0
    while visited < count:
        for candidate in found[visited] @ generators:
            if (found[:count] - candidate).abs().amax(dim=(-2, -1)).min() <= 1e-6:
                continue
            # A NaN or an overflow equals no element: the products grow without bound.
            if count == limit or not torch.isfinite(candidate).all():
                return None
            found[count] = candidate
            count += 1
        visited += 1
    return found[:count].clone()


def widened(g: Tensor) -> Tensor:
    """Return `g` in float32 or better, since torch has no determinants, inverses or distances in half precision."""
    return g.to(torch.promote_types(g.dtype, torch.float32))


def determinant_sign(r: Tensor) -> Tensor:
    """Compute the signs of the determinants of matrices (..., n, n), (..., 1, 1)."""
    return torch.linalg.det(widened(r)).sign().to(r.dtype)[..., None, None]


def empty(dim: int) -> Tensor:
    """Make an empty stack of matrices, (0, dim, dim), in float64."""
    return torch.zeros(0, dim, dim, dtype=torch.float64)


def orthogonality_error(r: Tensor) -> Tensor:
    """Compute the largest entry of |R^T R - 1| for matrices (..., n, n): (...)."""
    identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    return (r.mT @ r - identity).abs().amax(dim=(-2, -1))


def draw_device(generator: torch.Generator | None) -> torch.device:
    """Return the device on which `generator` draws numbers."""
    return torch.device("cpu") if generator is None else generator.device


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """Draw uniform float64 numbers in [low, high)."""
    device = draw_device(generator)
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=device) * (high - low) + low


def haar_orthogonal(count: int, n: int, generator: torch.Generator | None, *, special: bool) -> Tensor:
    """Draw Haar-distributed elements of O(n), or of SO(n) if `special`: (count, n, n) in float64.

    This is the QR decomposition of a Gaussian matrix with the diagonal of R made positive (Mezzadri 2007). For SO(n) the first
    column of a matrix with determinant -1 is negated, which maps the Haar measure of that component onto SO(n)'s.
    """
    gauss = torch.randn(
        (count, n, n), generator=generator, dtype=torch.float64, device=draw_device(generator)
    )
    q, r = torch.linalg.qr(gauss)
    q = q * torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
    if special:
        flip = torch.ones(count, n, dtype=q.dtype, device=q.device)
        flip[:, 0] = torch.where(torch.linalg.det(q) < 0, -1.0, 1.0)
        q = q * flip.unsqueeze(-2)
    return q
