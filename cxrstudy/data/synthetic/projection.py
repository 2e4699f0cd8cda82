"""Project ellipsoids and curves of a body onto planes of pixels.

Body coordinates in mm: x to the patient's left, y downwards, z to the front; the origin is between
the hila. Image coordinates in mm: u to the image's right, v downwards, w along the beam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cxrstudy.data.synthetic.draws import Array, Draws

Window = tuple[slice, slice, slice]  # rows of the batch (all of them), image rows, image columns
ALL = (slice(None), slice(None), slice(None))
POINTS = (slice(None), None)  # index that adds an axis for points after the axis of rows
MIN_FIELD, MAX_FIELD = 330.0, 450.0  # mm, bounds on the side of an image


class PerRow:
    """Base of dataclasses whose fields have one entry per row."""

    def rows(self, index: Any) -> Self:
        """Return some rows, or any other indexing that fits every field."""
        fields = (getattr(self, name) for name in self.__dataclass_fields__)  # type: ignore[attr-defined]
        return type(self)(
            *(v.rows(index) if isinstance(v, PerRow | Draws) else v[index] for v in fields)
        )


@dataclass
class Scene:
    """Ellipsoids by name, float64 (N, 7) each.

    The columns are centre x, y, z and radii x, y, z in mm, and the tangent of the tilt in the x-y
    plane.
    """

    shapes: dict[str, Array]
    n_rows: int

    def add(self, name: str, centre: tuple, radii: tuple, tilt: object = 0.0) -> None:
        """Add an ellipsoid; every entry is a scalar or (N,)."""
        shape = np.empty((self.n_rows, 7))
        for k, value in enumerate((*centre, *radii, tilt)):
            shape[:, k] = value
        self.shapes[name] = shape


@dataclass
class Geometry(PerRow):
    """Position of source, body and detector, float64 (N,) or (N, 1) each.

    The body is first leant to a side by `roll` (a tangent), then turned about its long axis by the
    angle of `cos` and `sin`. Distances are in mm, `spacing` in mm per pixel.
    """

    cos: Array
    sin: Array
    roll: Array
    detector: Array  # +1 if the detector is at large w, else -1
    source: Array  # distance from source to detector
    shift_u: Array
    shift_v: Array
    spacing: Array

    def magnification(self, w: Array) -> Array:
        """Return the magnification at depth w; the detector is 130 mm from the body's middle."""
        return self.source / (self.source - 130.0 + self.detector * w)

    def project(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """Return the image coordinates in mm, from the image's centre, of points of the body."""
        roll_cos, roll_sin = cos_sin(self.roll)
        x, y = x * roll_cos - y * roll_sin, x * roll_sin + y * roll_cos
        m = self.magnification(x * self.sin + z * self.cos)
        return m * (x * self.cos - z * self.sin) + self.shift_u, m * y + self.shift_v


def cos_sin(tangent: Array) -> tuple[Array, Array]:
    """Return the cosine and sine of an angle given by its tangent."""
    cos = 1.0 / np.sqrt(1.0 + tangent * tangent)
    return cos, tangent * cos


def chord_coefficients(shapes: Array, geometry: Geometry) -> Array:
    """Return what a pixel needs to compute the chords of ellipsoids (N, K, 7): float32 (N, K, 9).

    The beam at (u, v) is inside an ellipsoid from mid - half to mid + half along w, with
    du = u - u0, dv = v - v0, half = sqrt(k - a du^2 - b du dv - c dv^2), mid = w0 + p du + q dv.
    The columns are u0, v0, k, a, b, c, w0, p, q.
    """
    x, y, z, rx, ry, rz, tilt = (shapes[..., k] for k in range(7))
    g = geometry.rows(POINTS)
    u0, v0 = g.project(x, y, z)
    roll_cos, roll_sin = cos_sin(g.roll)
    w0 = (x * roll_cos - y * roll_sin) * g.sin + z * g.cos
    m = g.magnification(w0)
    # The quadratic form of the ellipsoid, tilted in the x-y plane ...
    cos, sin = cos_sin((tilt + g.roll) / (1.0 - tilt * g.roll))
    gx, gy, gz = 1.0 / (rx * rx), 1.0 / (ry * ry), 1.0 / (rz * rz)
    xx, yy = gx * cos * cos + gy * sin * sin, gx * sin * sin + gy * cos * cos
    xy = (gx - gy) * cos * sin
    # ... turned about the long axis, then solved for w
    c, s = g.cos, g.sin
    uu, uv, vv = xx * c * c + gz * s * s, xy * c, yy
    uw, vw, ww = (xx - gz) * c * s, xy * s, xx * s * s + gz * c * c
    mm, k = m * m, 1.0 / ww
    a, cc = (uu - uw * uw * k) * k / mm, (vv - vw * vw * k) * k / mm
    b = 2.0 * (uv - uw * vw * k) * k / mm
    out = np.empty((*u0.shape, 9), dtype=np.float32)
    for i, value in enumerate((u0, v0, k, a, b, cc, w0, -uw * k / m, -vw * k / m)):
        out[..., i] = value
    return out


def sqrt_(plane: Tensor) -> Tensor:
    """Take the square root in place.

    NumPy rounds it correctly and is fast on zeros. That of torch (MKL) is 8 times slower there.
    """
    if plane.device.type != "cpu":
        return plane.sqrt_()
    np.sqrt(plane.numpy(), out=plane.numpy())
    return plane


class Projector:
    """Pixel grids of some rows, and the planes computed on them.

    Planes are float32 (n, size, size) on the device of `coefficients`. Whatever is drawn of a
    patient stays in NumPy, so that every device renders the same patient to the bit.
    """

    def __init__(
        self, geometry: Geometry, size: int, coefficients: Tensor, bounds: Array,
        index: dict[str, int],
    ) -> None:  # fmt: skip
        ticks = np.arange(size) + 0.5 - size / 2
        self.device = coefficients.device
        grid = self.to_device((ticks[None] * geometry.spacing[:, None]).astype(np.float32))
        self.u, self.v = grid[:, None, :], grid[:, :, None]
        self.size, self.geometry = size, geometry
        self.coefficients, self.bounds, self.index = coefficients, bounds, index
        middle = self.per_image(geometry.magnification(0.0 * geometry.cos))
        self.x = (self.u - self.per_image(geometry.shift_u)) / middle
        self.y = (self.v - self.per_image(geometry.shift_v)) / middle

    def to_device(self, value: Array) -> Tensor:
        """Return an array as a tensor on the projector's device."""
        return torch.from_numpy(value).to(self.device)

    def per_image(self, value: Array) -> Tensor:
        """Return numbers (N,) in a shape that broadcasts with planes: float32 (N, 1, 1)."""
        return self.to_device(np.asarray(value, dtype=np.float32))[:, None, None]

    @classmethod
    def of(cls, scene: Scene, geometry: Geometry, size: int, device: str = "cpu") -> Projector:
        """Return the projector of a scene; `bounds` int (N, K, 4) are in pixels, per ellipsoid."""
        coefficients = chord_coefficients(np.stack(list(scene.shapes.values()), axis=1), geometry)
        u, v, k, a, b, c = (coefficients[..., i].astype(np.float64) for i in range(6))
        wide, tall = np.sqrt(k / (a - b * b / (4.0 * c))), np.sqrt(k / (c - b * b / (4.0 * a)))
        edges = np.stack([v - tall, v + tall, u - wide, u + wide], axis=-1)
        edges = edges / geometry.spacing[:, None, None] + size / 2
        bounds = np.clip(np.floor(edges) + np.array([-1, 2, -1, 2]), 0, size).astype(np.int64)
        index = {name: k for k, name in enumerate(scene.shapes)}
        return cls(geometry, size, torch.from_numpy(coefficients).to(device), bounds, index)

    def rows(self, index: Array | slice) -> Projector:
        """Return the projector of some rows."""
        pick = self.to_device(index) if isinstance(index, np.ndarray) else index
        return Projector(
            self.geometry.rows(index), self.size, self.coefficients[pick], self.bounds[index],
            self.index,
        )  # fmt: skip

    def window(self, name: str) -> Window:
        """Return the part of the planes outside which no row shows an ellipsoid.

        To compute a plane in its window gives the same bits for less work.
        """
        bounds = self.bounds[:, self.index[name]]
        low, high = bounds.min(0).tolist(), bounds.max(0).tolist()
        return slice(None), slice(low[0], max(high[1], low[0])), slice(low[2], max(high[3], low[2]))

    def _chord(
        self, name: str, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the squared half chord (negative outside), du, dv and the coefficients."""
        k = tuple(self.coefficients[:, self.index[name]].T[:, :, None, None])
        du, dv = self.u[:, :, window[2]] - k[0], self.v[:, window[1]] - k[1]
        squared = (k[3] * du) + (k[4] * dv)
        squared.mul_(-du).add_(k[2] - k[5] * dv * dv)
        return squared, du, dv, k

    def half_chord(self, name: str, window: Window | None = None) -> tuple[Tensor, Window]:
        """Return half the chord in mm, and its window (by default the ellipsoid's own)."""
        window = window or self.window(name)
        return sqrt_(self._chord(name, window)[0].clamp_(min=0.0)), window

    def interval(self, name: str, window: Window) -> tuple[Tensor, Tensor]:
        """Return where the beam enters and leaves, in mm along w; equal outside the ellipsoid."""
        squared, du, dv, k = self._chord(name, window)
        half = sqrt_(squared.clamp_(min=0.0))
        mid = (k[6] + k[7] * du) + k[8] * dv
        return mid - half, mid.add_(half)

    def blob(self, name: str, window: Window | None = None) -> tuple[Tensor, Window]:
        """Return one minus the squared elliptic radius (0 outside), and its window."""
        window = window or self.window(name)
        squared, _, _, k = self._chord(name, window)
        return squared.div_(k[2]).clamp_(min=0.0), window

    def smooth_noise(self, draws: Draws, name: str, cells: int) -> Tensor:
        """Return smooth noise of about -1 to 1.

        Random values on a lattice of `cells` cells per side of the image are interpolated.
        """
        lattice = draws.white_noise(name, cells + 2, cells + 2).to(self.device).mul_(0.6)
        place = torch.arange(self.size, dtype=torch.float32, device=self.device) + 0.5
        place = place * (cells / self.size)
        low = place.floor()
        t = place - low
        t = t * t * (3.0 - 2.0 * t)
        index = low.long()
        flat = lattice.index_select(2, index) * (1.0 - t) + lattice.index_select(2, index + 1) * t
        t = t[:, None]
        above, below = flat.index_select(1, index), flat.index_select(1, index + 1)
        return (above * (1.0 - t)).add_(below.mul_(t))

    def distance(self, u: Array, v: Array, radius: Array, reach: float) -> Tensor:
        """Return the signed distance in mm to curves, exact within `reach` mm of them.

        A curve is a dense row of points u, v (M, P) in mm with radii (M, P); row m of the projector
        belongs to curve m. The minimum over points does not depend on their order, so the scatter
        gives the same bits however it is executed.
        """
        spacing, size = self.geometry.spacing[:, None], self.size
        column, row = u / spacing + size / 2 - 0.5, v / spacing + size / 2 - 0.5
        # MIN_FIELD, not the spacing of this batch: a sample must not depend on the others
        count = int(reach * size / MIN_FIELD + 0.5)
        steps = torch.arange(-count, count + 1, device=self.device)
        f32 = (a.astype(np.float32, order="C") for a in (column, row, radius))
        c, r, thick = (self.to_device(a) for a in f32)
        ci = (c + 0.5).floor().int()[..., None] + steps  # (M, P, 2 count + 1)
        ri = (r + 0.5).floor().int()[..., None] + steps
        mm = self.to_device(spacing.astype(np.float32))[..., None]
        dc, dr = (ci - c[..., None]).mul_(mm), (ri - r[..., None]).mul_(mm)
        far = sqrt_((dc * dc)[..., None, :] + (dr * dr)[..., :, None]).sub_(thick[..., None, None])
        wide = size + 2  # a border of one pixel takes what falls outside
        ci, ri = (ci + 1).clamp_(0, wide - 1), (ri + 1).clamp_(0, wide - 1)
        start = torch.arange(len(c), device=self.device)[:, None, None] * (wide * wide)
        place = (start + ri * wide)[..., :, None] + ci[..., None, :]
        plane = torch.full((len(c) * wide * wide,), 1e3, device=self.device)
        plane.scatter_reduce_(0, place.reshape(-1), far.reshape(-1), "amin")
        return plane.view(-1, wide, wide)[:, 1:-1, 1:-1]


def catmull_rom(points: Array, number: int) -> Array:
    """Return `number` points, (N, number, 3), on the Catmull-Rom curve through points (N, C, 3)."""
    first, last = 2.0 * points[:, :1] - points[:, 1:2], 2.0 * points[:, -1:] - points[:, -2:-1]
    padded = np.concatenate([first, points, last], axis=1)
    place = np.arange(number) * ((points.shape[1] - 1) / (number - 1))
    segment = np.minimum(np.floor(place).astype(np.int64), points.shape[1] - 2)
    t = (place - segment)[None, :, None]
    a, b, c, d = (padded[:, segment + k] for k in range(4))
    quadratic, cubic = 2.0 * a - 5.0 * b + 4.0 * c - d, 3.0 * (b - c) + d - a
    return 0.5 * (2.0 * b + t * ((c - a) + t * (quadratic + t * cubic)))
