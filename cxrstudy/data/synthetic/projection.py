"""From ellipsoids and curves in a body to planes of pixels: views, analytic chord lengths, distances.

Body frame in mm: x to the patient's left, y downwards, z to the front; the origin lies between the hila. An image plane
has u to the image's right, v downwards, w along the beam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from cxrstudy.data.synthetic.draws import Array, Draws

Tensor = torch.Tensor
Window = tuple[slice, slice, slice]  # rows of the batch (all), of the image, columns
ALL = (slice(None), slice(None), slice(None))
POINTS = (slice(None), None)  # an axis for points, after that of rows
FIELD_LEAST, FIELD_MOST = 330.0, 450.0  # mm, the least and the largest side of an image


class Rows:
    """A dataclass of things with one entry a row."""

    def rows(self, index: Any) -> Self:
        """Some rows, or any indexing that suits every field."""
        fields = (getattr(self, name) for name in self.__dataclass_fields__)  # type: ignore[attr-defined]
        return type(self)(
            *(v.rows(index) if isinstance(v, Rows | Draws) else v[index] for v in fields)
        )


@dataclass
class Scene:
    """Ellipsoids by name: float64 (N, 7) each, centre x y z, radii x y z, tangent of the tilt in the x-y plane."""

    shapes: dict[str, Array]
    number: int

    def add(self, name: str, centre: tuple, radii: tuple, tilt: object = 0.0) -> None:
        """Put an ellipsoid in; every entry a scalar or (N,)."""
        shape = np.empty((self.number, 7))
        for k, value in enumerate((*centre, *radii, tilt)):
            shape[:, k] = value
        self.shapes[name] = shape


@dataclass
class View(Rows):
    """How the body is seen, float64 (N,) or (N, 1) each. `cos`, `sin` turn the body about its long axis, after `roll`
    (a tangent) has leant it to a side; `near` is +1 where the detector lies at large w, else -1; distances in mm;
    `spacing` in mm per pixel."""

    cos: Array
    sin: Array
    roll: Array
    near: Array
    source: Array
    shift_u: Array
    shift_v: Array
    spacing: Array

    def magnify(self, w: Array) -> Array:
        """Magnification at depth w, the detector 130 mm from the body's middle."""
        return self.source / (self.source - 130.0 + self.near * w)

    def project(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """Body points to image millimetres from the image's centre."""
        lean_cos, lean_sin = turn(self.roll)
        x, y = x * lean_cos - y * lean_sin, x * lean_sin + y * lean_cos
        m = self.magnify(x * self.sin + z * self.cos)
        return m * (x * self.cos - z * self.sin) + self.shift_u, m * y + self.shift_v


def turn(tangent: Array) -> tuple[Array, Array]:
    """Cosine and sine of an angle given by its tangent."""
    cos = 1.0 / np.sqrt(1.0 + tangent * tangent)
    return cos, tangent * cos


def coefficients(shapes: Array, view: View) -> Array:
    """The chords of ellipsoids (N, K, 7) as numbers a pixel needs: float32 (N, K, 9).

    Along the beam at (u, v) an ellipsoid spans mid +- half, with du = u - u0, dv = v - v0,
    half = sqrt(k - a du^2 - b du dv - c dv^2) and mid = w0 + p du + q dv.
    """
    x, y, z, rx, ry, rz, tilt = (shapes[..., k] for k in range(7))
    view = view.rows(POINTS)
    u0, v0 = view.project(x, y, z)
    lean_cos, lean_sin = turn(view.roll)
    w0 = (x * lean_cos - y * lean_sin) * view.sin + z * view.cos
    m = view.magnify(w0)
    cos, sin = turn((tilt + view.roll) / (1.0 - tilt * view.roll))
    gx, gy, gz = 1.0 / (rx * rx), 1.0 / (ry * ry), 1.0 / (rz * rz)
    xx, xy, yy = (
        gx * cos * cos + gy * sin * sin,
        (gx - gy) * cos * sin,
        gx * sin * sin + gy * cos * cos,
    )
    c, s = view.cos, view.sin
    uu, uv, vv = xx * c * c + gz * s * s, xy * c, yy
    uw, vw, ww = (xx - gz) * c * s, xy * s, xx * s * s + gz * c * c
    mm, k = m * m, 1.0 / ww
    a, b, cc = (
        (uu - uw * uw * k) * k / mm,
        2.0 * (uv - uw * vw * k) * k / mm,
        (vv - vw * vw * k) * k / mm,
    )
    out = np.empty((*u0.shape, 9), dtype=np.float32)
    for i, value in enumerate((u0, v0, k, a, b, cc, w0, -uw * k / m, -vw * k / m)):
        out[..., i] = value
    return out


def root(plane: Tensor) -> Tensor:
    """Square root in place: NumPy's rounds correctly and takes zeros at full speed, torch's (MKL) is 8 times slower."""
    if plane.device.type != "cpu":
        return plane.sqrt_()
    np.sqrt(plane.numpy(), out=plane.numpy())
    return plane


class Canvas:
    """The pixel grid of some rows and the planes drawn on it; planes are float32 (n, size, size), on the device of
    `numbers`. What is drawn of a patient is NumPy's, so that a device sees the same patient to the bit."""

    def __init__(
        self, view: View, size: int, numbers: Tensor, bounds: Array, place: dict[str, int]
    ) -> None:
        ticks = np.arange(size) + 0.5 - size / 2
        self.device = numbers.device
        grid = self.put((ticks[None] * view.spacing[:, None]).astype(np.float32))
        self.u, self.v, self.size, self.view = grid[:, None, :], grid[:, :, None], size, view
        self.numbers, self.bounds, self.place = numbers, bounds, place
        middle = self.column(view.magnify(0.0 * view.cos))
        self.x, self.y = (
            (self.u - self.column(view.shift_u)) / middle,
            (self.v - self.column(view.shift_v)) / middle,
        )

    def put(self, value: Array) -> Tensor:
        """An array as a tensor on the canvas's device."""
        return torch.from_numpy(value).to(self.device)

    def column(self, value: Array) -> Tensor:
        """Numbers (N,) to go with planes: float32 (N, 1, 1)."""
        return self.put(np.asarray(value, dtype=np.float32))[:, None, None]

    @classmethod
    def of(cls, scene: Scene, view: View, size: int, device: str = "cpu") -> Canvas:
        """The canvas on which a scene is seen; `bounds` int (N, K, 4) are the pixels an ellipsoid can touch."""
        numbers = coefficients(np.stack(list(scene.shapes.values()), axis=1), view)
        u, v, k, a, b, c = (numbers[..., i].astype(np.float64) for i in range(6))
        wide, tall = np.sqrt(k / (a - b * b / (4.0 * c))), np.sqrt(k / (c - b * b / (4.0 * a)))
        edges = (
            np.stack([v - tall, v + tall, u - wide, u + wide], axis=-1)
            / view.spacing[:, None, None]
            + size / 2
        )
        bounds = np.clip(np.floor(edges) + np.array([-1, 2, -1, 2]), 0, size).astype(np.int64)
        places = {name: k for k, name in enumerate(scene.shapes)}
        return cls(view, size, torch.from_numpy(numbers).to(device), bounds, places)

    def rows(self, index: Array | slice) -> Canvas:
        """The canvas of some rows."""
        pick = self.put(index) if isinstance(index, np.ndarray) else index
        return Canvas(
            self.view.rows(index), self.size, self.numbers[pick], self.bounds[index], self.place
        )

    def window(self, name: str) -> Window:
        """The part of the planes outside which an ellipsoid is not seen in any row: what is drawn there alone has the
        same bits, for less work."""
        low, high = (
            self.bounds[:, self.place[name]].min(0).tolist(),
            self.bounds[:, self.place[name]].max(0).tolist(),
        )
        return slice(None), slice(low[0], max(high[1], low[0])), slice(low[2], max(high[3], low[2]))

    def spread(
        self, name: str, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """The squared half chord (negative outside), the offsets, and the coefficients, within a window."""
        k = tuple(self.numbers[:, self.place[name]].T[:, :, None, None])
        du, dv = self.u[:, :, window[2]] - k[0], self.v[:, window[1]] - k[1]
        inside = (k[3] * du) + (k[4] * dv)
        inside.mul_(-du).add_(k[2] - k[5] * dv * dv)
        return inside, du, dv, k

    def half(self, name: str, window: Window | None = None) -> tuple[Tensor, Window]:
        """Half the chord in mm, in a window (by default the ellipsoid's own), and the window."""
        window = window or self.window(name)
        return root(self.spread(name, window)[0].clamp_(min=0.0)), window

    def span(self, name: str, window: Window) -> tuple[Tensor, Tensor]:
        """Where the beam enters and leaves, in mm along w (equal outside the ellipsoid)."""
        inside, du, dv, k = self.spread(name, window)
        half = root(inside.clamp_(min=0.0))
        mid = (k[6] + k[7] * du) + k[8] * dv
        return mid - half, mid.add_(half)

    def soft(self, name: str, window: Window | None = None) -> tuple[Tensor, Window]:
        """A smooth blob, 1 at the centre and 0 at the edge (one minus the squared elliptic radius), and its window."""
        window = window or self.window(name)
        inside, _, _, k = self.spread(name, window)
        return inside.div_(k[2]).clamp_(min=0.0), window

    def texture(self, draws: Draws, name: str, cells: int) -> Tensor:
        """Smooth noise, about -1 to 1: random values on a lattice of `cells` to the image's side, interpolated."""
        lattice = draws.planes(name, cells + 2, cells + 2).to(self.device).mul_(0.6)
        place = (torch.arange(self.size, dtype=torch.float32, device=self.device) + 0.5) * (
            cells / self.size
        )
        low = place.floor()
        t = place - low
        t = t * t * (3.0 - 2.0 * t)
        index = low.long()
        flat = lattice.index_select(2, index) * (1.0 - t) + lattice.index_select(2, index + 1) * t
        t = t[:, None]
        return (flat.index_select(1, index) * (1.0 - t)).add_(
            flat.index_select(1, index + 1).mul_(t)
        )

    def distance(self, u: Array, v: Array, radius: Array, reach: float) -> Tensor:
        """Signed distance in mm to curves given as close points (M, P) with radii (M, P), exact within `reach` mm.

        The least over points is free of order, so the scatter gives the same bits however it is run. Rows of the
        canvas must match the curves.
        """
        spacing, size = self.view.spacing[:, None], self.size
        column, row = u / spacing + size / 2 - 0.5, v / spacing + size / 2 - 0.5
        count = int(
            reach * size / FIELD_LEAST + 0.5
        )  # never of the batch at hand: a sample must not feel its fellows
        steps = torch.arange(-count, count + 1, device=self.device)
        c, r, thick = (self.put(a.astype(np.float32, order="C")) for a in (column, row, radius))
        ci, ri = (
            (c + 0.5).floor().int()[..., None] + steps,
            (r + 0.5).floor().int()[..., None] + steps,
        )
        mm = self.put(spacing.astype(np.float32))[..., None]
        dc, dr = (ci - c[..., None]).mul_(mm), (ri - r[..., None]).mul_(mm)
        far = root((dc * dc)[..., None, :] + (dr * dr)[..., :, None]).sub_(thick[..., None, None])
        wide = size + 2  # a rim of one pixel takes what falls outside
        ci, ri = (ci + 1).clamp_(0, wide - 1), (ri + 1).clamp_(0, wide - 1)
        start = torch.arange(len(c), device=self.device)[:, None, None] * (wide * wide)
        place = (start + ri * wide)[..., :, None] + ci[..., None, :]
        plane = torch.full((len(c) * wide * wide,), 1e3, device=self.device)
        plane.scatter_reduce_(0, place.reshape(-1), far.reshape(-1), "amin")
        return plane.view(-1, wide, wide)[:, 1:-1, 1:-1]


def curve(points: Array, number: int) -> Array:
    """A Catmull-Rom curve through control points (N, C, 3): (N, number, 3), from the first point to the last."""
    first, last = 2.0 * points[:, :1] - points[:, 1:2], 2.0 * points[:, -1:] - points[:, -2:-1]
    padded = np.concatenate([first, points, last], axis=1)
    place = np.arange(number) * ((points.shape[1] - 1) / (number - 1))
    piece = np.minimum(np.floor(place).astype(np.int64), points.shape[1] - 2)
    t = (place - piece)[None, :, None]
    a, b, c, d = (padded[:, piece + k] for k in range(4))
    return 0.5 * (
        2.0 * b
        + t * ((c - a) + t * ((2.0 * a - 5.0 * b + 4.0 * c - d) + t * (3.0 * (b - c) + d - a)))
    )
