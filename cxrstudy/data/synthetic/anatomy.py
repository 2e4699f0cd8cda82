"""A 3-D patient of ellipsoids, shells and curves, projected by analytic chord lengths.

Body frame in mm: x to the patient's left, y downwards, z to the front; the origin lies between the hila. An image plane
has u to the image's right, v downwards, w along the beam. Radii and places are plausible adult values (assumed, set by
eye against frontal x-rays); attenuation is that of water near 70 keV (0.019/mm, NIST XCOM), lung a quarter of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cxrstudy.data.synthetic.draws import Array, Draws

Tensor = torch.Tensor
Window = tuple[slice, slice, slice]  # rows of the batch (all), of the image, columns
ALL = (slice(None), slice(None), slice(None))
SOFT, LUNG, BONE = 0.019, 0.005, 0.030  # attenuation per mm: soft tissue, lung, what bone adds to soft tissue
SOLID = SOFT - LUNG  # what a solid opacity adds where it replaces lung
FIELD_LEAST = 330.0  # mm, the least side of an image


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
class View:
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

    def rows(self, index: object) -> View:
        """The views of some rows; [:, None] adds an axis for points."""
        return View(*(getattr(self, f)[index] for f in self.__dataclass_fields__))


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
    view = view.rows((slice(None), None))
    u0, v0 = view.project(x, y, z)
    lean_cos, lean_sin = turn(view.roll)
    w0 = (x * lean_cos - y * lean_sin) * view.sin + z * view.cos
    m = view.magnify(w0)
    cos, sin = turn((tilt + view.roll) / (1.0 - tilt * view.roll))
    gx, gy, gz = 1.0 / (rx * rx), 1.0 / (ry * ry), 1.0 / (rz * rz)
    xx, xy, yy = gx * cos * cos + gy * sin * sin, (gx - gy) * cos * sin, gx * sin * sin + gy * cos * cos
    c, s = view.cos, view.sin
    uu, uv, vv = xx * c * c + gz * s * s, xy * c, yy
    uw, vw, ww = (xx - gz) * c * s, xy * s, xx * s * s + gz * c * c
    mm, k = m * m, 1.0 / ww
    a, b, cc = (uu - uw * uw * k) * k / mm, 2.0 * (uv - uw * vw * k) * k / mm, (vv - vw * vw * k) * k / mm
    out = np.empty((*u0.shape, 9), dtype=np.float32)
    for i, value in enumerate((u0, v0, k, a, b, cc, w0, -uw * k / m, -vw * k / m)):
        out[..., i] = value
    return out


def root(plane: Tensor) -> Tensor:
    """Square root in place: NumPy's rounds correctly and takes zeros at full speed, torch's (MKL) is 8 times slower."""
    np.sqrt(plane.numpy(), out=plane.numpy())
    return plane


class Canvas:
    """The pixel grid of some rows and the planes drawn on it; planes are float32 (n, size, size)."""

    def __init__(self, view: View, size: int, numbers: Tensor, bounds: Array, place: dict[str, int]) -> None:
        ticks = np.arange(size) + 0.5 - size / 2
        grid = torch.from_numpy((ticks[None] * view.spacing[:, None]).astype(np.float32))
        self.u, self.v, self.size, self.view = grid[:, None, :], grid[:, :, None], size, view
        self.numbers, self.bounds, self.place = numbers, bounds, place
        middle = self.column(view.magnify(0.0 * view.cos))
        self.x, self.y = (self.u - self.column(view.shift_u)) / middle, (self.v - self.column(view.shift_v)) / middle

    @staticmethod
    def column(value: Array) -> Tensor:
        """Numbers (N,) to go with planes: float32 (N, 1, 1)."""
        return torch.from_numpy(np.asarray(value, dtype=np.float32))[:, None, None]

    @classmethod
    def of(cls, scene: Scene, view: View, size: int) -> Canvas:
        """The canvas on which a scene is seen; `bounds` int (N, K, 4) are the pixels an ellipsoid can touch."""
        numbers = coefficients(np.stack(list(scene.shapes.values()), axis=1), view)
        u, v, k, a, b, c = (numbers[..., i].astype(np.float64) for i in range(6))
        wide, tall = np.sqrt(k / (a - b * b / (4.0 * c))), np.sqrt(k / (c - b * b / (4.0 * a)))
        edges = np.stack([v - tall, v + tall, u - wide, u + wide], axis=-1) / view.spacing[:, None, None] + size / 2
        bounds = np.clip(np.floor(edges) + np.array([-1, 2, -1, 2]), 0, size).astype(np.int64)
        return cls(view, size, torch.from_numpy(numbers), bounds, {name: k for k, name in enumerate(scene.shapes)})

    def rows(self, index: Array | slice) -> Canvas:
        """The canvas of some rows."""
        pick = torch.from_numpy(index) if isinstance(index, np.ndarray) else index
        return Canvas(self.view.rows(index), self.size, self.numbers[pick], self.bounds[index], self.place)

    def window(self, name: str) -> Window:
        """The part of the planes outside which an ellipsoid is not seen in any row: what is drawn there alone has the
        same bits, for less work."""
        low, high = self.bounds[:, self.place[name]].min(0).tolist(), self.bounds[:, self.place[name]].max(0).tolist()
        return slice(None), slice(low[0], max(high[1], low[0])), slice(low[2], max(high[3], low[2]))

    def spread(self, name: str, window: Window) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
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
        lattice = draws.planes(name, cells + 2, cells + 2).mul_(0.6)
        place = (torch.arange(self.size, dtype=torch.float32) + 0.5) * (cells / self.size)
        low = place.floor()
        t = place - low
        t = t * t * (3.0 - 2.0 * t)
        index = low.long()
        flat = lattice.index_select(2, index) * (1.0 - t) + lattice.index_select(2, index + 1) * t
        t = t[:, None]
        return (flat.index_select(1, index) * (1.0 - t)).add_(flat.index_select(1, index + 1).mul_(t))

    def distance(self, u: Array, v: Array, radius: Array, reach: float) -> Tensor:
        """Signed distance in mm to curves given as close points (M, P) with radii (M, P), exact within `reach` mm.

        The least over points is free of order, so the scatter gives the same bits however it is run. Rows of the
        canvas must match the curves.
        """
        spacing, size = self.view.spacing[:, None], self.size
        column, row = u / spacing + size / 2 - 0.5, v / spacing + size / 2 - 0.5
        count = int(reach * size / FIELD_LEAST + 0.5)  # never of the batch at hand: a sample must not feel its fellows
        steps = torch.arange(-count, count + 1)
        c, r, thick = (torch.from_numpy(a.astype(np.float32, order="C")) for a in (column, row, radius))
        ci, ri = (c + 0.5).floor().int()[..., None] + steps, (r + 0.5).floor().int()[..., None] + steps
        mm = torch.from_numpy(spacing.astype(np.float32))[..., None]
        dc, dr = (ci - c[..., None]).mul_(mm), (ri - r[..., None]).mul_(mm)
        far = root((dc * dc)[..., None, :] + (dr * dr)[..., :, None]).sub_(thick[..., None, None])
        wide = size + 2  # a rim of one pixel takes what falls outside
        ci, ri = (ci + 1).clamp_(0, wide - 1), (ri + 1).clamp_(0, wide - 1)
        start = torch.arange(len(c))[:, None, None] * (wide * wide)
        place = (start + ri * wide)[..., :, None] + ci[..., None, :]
        plane = torch.full((len(c) * wide * wide,), 1e3)
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
    return 0.5 * (2.0 * b + t * ((c - a) + t * ((2.0 * a - 5.0 * b + 4.0 * c - d) + t * (3.0 * (b - c) + d - a))))


def build(patient: Draws, exam: Draws, female: Array, age: Array, supine: Array) -> tuple[Scene, dict[str, Array]]:
    """The healthy body of each row: its scene, and landmarks (N,) that devices, findings and rendering use."""
    n = len(patient.key)
    scene = Scene({}, n)
    scale = patient.normal("height", np.where(female, 0.94, 1.02), 0.05)
    habitus = patient.normal("habitus", 1.0, 0.12)
    breath = exam.normal("inspiration", np.where(supine, -7.0, 2.0), 9.0)  # mm the domes go down
    wide = scale * patient.normal("chest.width", 1.0, 0.05)
    depth = scale * patient.normal("chest.depth", 1.0, 0.06) * (0.85 + 0.15 * habitus)
    low = patient.normal("chest.length", 74.0, 9.0) * scale + breath  # the right dome's top
    lm = {"scale": scale, "wide": wide, "depth": depth, "dome": low, "top": -128.0 * scale, "habitus": habitus}
    add = scene.add
    body = wide * (0.7 + 0.3 * habitus)
    add("torso", (0, 130, -5), (170 * body, 395 * scale, 108 * depth * habitus))
    add("neck", (0, -205, -15), (62 * scale, 120, 62 * scale))
    add("trapezius", (0, -125 * scale, -30), (140 * wide, 50 * scale, 55))
    for side, name in ((-1.0, "right"), (1.0, "left")):
        x = side * wide
        add(f"shoulder.{name}", (x * 140, -75 * scale, -15), (82, 66 * habitus, 72 * habitus), side * 0.45)
        add(f"lung.{name}", (x * 72, 25 * scale, -8), (64 * wide, 153 * scale, 82 * depth))
        add(f"scapula.{name}", (x * np.where(supine, 120, 142), -62, -75), (22, 62, 5), side * -0.28)
        add(
            f"clavicle.{name}", (x * 74, -110 * scale, 45), (74 * wide, 6.5, 6), side * exam.normal("shrug", -0.2, 0.06)
        )
        add(f"humerus.{name}", (x * 182, -100 * scale, -10), (22, 26, 22))
        add(f"hilum.{name}", (x * (42 if side < 0 else 44), -8 - 8 * side, -8), (15, 24, 16), side * 0.35)
    rise = patient.normal("dome.left", 11.0, 6.0)
    add("dome.right", (-76 * wide, low + 110, 8), (78 * wide, 110, 90 * depth))
    add("dome.left", (76 * wide, low + rise + 110, 8), (78 * wide, 110, 90 * depth))
    heart = patient.normal("heart.size", 1.0, 0.085) * scale
    sag = 42 * scale + 0.6 * (low - 74)
    tall = patient.normal("heart.shape", 1.0, 0.06)
    add(
        "heart", (20 * scale, sag, 28), (48 * heart / tall, 66 * heart, 50 * heart), patient.normal("axis", -0.75, 0.12)
    )
    add("atrium", (-14 * scale, sag - 4, 15), (32 * heart / tall, 48 * heart, 38 * heart), -0.1)
    add("mediastinum", (0, -40, 5), (24 * scale * patient.normal("mediastinum", 1.05, 0.12), 165, 62))
    knob = patient.normal("knob", 15.0, 2.5) + 0.10 * (age - 50)
    add("arch", (20 * scale, -58 * scale, -12), (np.maximum(knob, 8.0) * scale, 19, 24))
    add("aorta", (14 * scale, 20, -42), (14 * scale, 95, 14), patient.normal("tortuous", 0.02, 0.05))
    add("spine", (0, 30, -62 * depth), (17 * scale, 330, 17 * scale), patient.normal("scoliosis", 0.0, 0.025))
    add("trachea", (-1.5, -118 * scale, 0), (9 * scale, 82 * scale, 9))
    size = patient.uniform("bubble", 0.0, 1.0)
    add("bubble", (58 * wide, low + rise + 28, 10), (10 + 18 * size, 6 + 12 * size, 10 + 16 * size))
    bust = np.where(female, patient.uniform("bust", 0.2, 1.3), 0.4 * (habitus > 1.05)) + 0.01
    for side, name in ((-1.0, "right"), (1.0, "left")):
        spot = (side * (80 + exam.normal("bust.x", 0, 5)), 62 + exam.normal("bust.y", 0, 9) + 15 * bust, 85)
        add(f"breast.{name}", spot, (66, 60, 30 * bust), side * 0.3)
    add("cage", (0, 10, -8), (135 * wide, 152 * scale, 92 * depth))
    lm["carina"] = -38.0 * scale
    lm["bust"] = bust
    lm["lung.depth"], lm["body.depth"] = 2.1 * depth, 216.0 * SOFT * depth * habitus
    return scene, lm


def overlap(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Length in mm that two spans along the beam share."""
    return torch.minimum(a[1], b[1]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0.0)


def lungs(canvas: Canvas) -> dict[str, Tensor]:
    """Millimetres of pleural cavity along the beam, a side: the lung's ellipsoid less dome, heart and mediastinum."""
    air = {}
    for side in ("right", "left"):
        window = canvas.window(f"lung.{side}")
        whole = canvas.span(f"lung.{side}", window)
        length = whole[1] - whole[0]
        for name in ("heart", "mediastinum", f"dome.{side}"):
            length.sub_(overlap(whole, canvas.span(name, window)))
        air[side] = torch.zeros(len(canvas.numbers), canvas.size, canvas.size)
        air[side][window] = length.clamp_(min=0.0)
    return air


BRANCHES = 8  # vessels a lung
RIB_GAP, RIB_TILT, RIB_FIRST = 23.0, 0.42, 1.8  # mm between ribs; slope down to the front; ribs above the apex


def branches(draws: Draws, scene: Scene, view: View, thick: Array, size: int) -> tuple[Array, Array, Array]:
    """The lung's vessels, from both hila to the wall: image mm u, v and radii, each (N, P)."""
    points = 16 if size <= 64 else 24 + size // 4
    ends = []
    for name in ("right", "left"):
        hilum, lung = scene.shapes[f"hilum.{name}"], scene.shapes[f"lung.{name}"]
        for k in range(BRANCHES):
            d = draws.child(f"{name}{k}")
            fan = (k + d.uniform("fan")) / BRANCHES * 2.0 - 1.0  # from the apex to the base
            reach = d.uniform("reach", 0.55, 0.95)
            out = np.sqrt(np.maximum(1.0 - fan * fan, 0.05)) * np.sign(lung[:, 0])
            x = lung[:, 0] * 0.8 + out * lung[:, 3] * reach * 0.9
            end = np.stack([x, lung[:, 1] + fan * lung[:, 4] * reach, lung[:, 2] + d.uniform("z", -50, 50)], axis=1)
            bend = np.stack([d.uniform(axis, -14.0, 14.0) for axis in "xyz"], axis=1)
            ends.append(np.stack([hilum[:, :3], 0.5 * (hilum[:, :3] + end) + bend, end], axis=1))
    control = np.stack(ends, axis=1)
    n, m = control.shape[:2]
    path = curve(control.reshape(n * m, 3, 3), points).reshape(n, m * points, 3)
    u, v = view.rows((slice(None), None)).project(path[..., 0], path[..., 1], path[..., 2])
    taper = np.tile(4.2 - 3.0 * np.arange(points) / (points - 1), m)
    return u, v, taper[None] * thick[:, None]


def vessels(canvas: Canvas, u: Array, v: Array, radius: Array) -> Tensor:
    """How much of each pixel vessels cover, in [0, 1]."""
    blur = torch.from_numpy((1.0 / np.maximum(canvas.view.spacing, 1.5)).astype(np.float32))[:, None, None]
    return (
        canvas.distance(u, v, radius, 5.5 + 0.5 * max(FIELD_LEAST / canvas.size, 1.5))
        .mul(-blur)
        .add_(0.5)
        .clamp_(0.0, 1.0)
    )


def rib_height(rib: Array, z: Array, lm: dict[str, Array]) -> Array:
    """Where the middle of a rib (numbered from 0 at the top) lies at depth z: y in mm."""
    return RIB_GAP * lm["scale"] * (rib + 0.5 - RIB_FIRST) + lm["top"] + RIB_TILT * z


def cage(canvas: Canvas, lm: dict[str, Array], broken: Array) -> Tensor:
    """Optical depth of the ribs: where a family of planes that slope down to the front meets the chest's shell.

    `broken` float64 (N, 4): side (-1, 1), first rib, number of ribs, step in mm of the outer fragment (0: none).
    """
    view, f32 = canvas.view, canvas.column
    near, far = canvas.span("cage", ALL)
    path = (far - near).mul_(1.0 / 180.0)
    cos, sin = f32(view.cos), f32(view.sin)
    gap = RIB_GAP * lm["scale"]
    lean_cos, lean_sin = turn(view.roll)
    tilt, down, start = f32(RIB_TILT / gap), canvas.y * f32(lean_cos / gap), f32(lm["top"] / gap - RIB_FIRST)
    total = torch.zeros_like(path)
    hurt = np.flatnonzero(broken[:, 3] != 0.0)
    pick = torch.from_numpy(hurt)
    for w in (near, far):
        z, x = w * cos - canvas.x * sin, canvas.x * cos + w * sin
        phase = (down - start) - z * tilt - x * f32(lean_sin / gap)
        if len(hurt):
            side, first, count, step = (f32(broken[hurt, k]) for k in range(4))
            rib, away = phase[pick].floor(), x[pick] * side
            outer = (away > 60.0) & (away < 105.0) & (z[pick] < 25.0) & (rib >= first) & (rib < first + count)
            phase[pick] = phase[pick] + outer * (step / f32(gap)[pick])
        edge = phase.sub_(phase.floor()).sub_(0.5).abs_()
        band = edge.neg_().add_(0.27).mul_(6.0).clamp_(0.0, 1.0)
        bony = z.neg_().add_(62.0).mul_(0.05).clamp_(0.0, 1.0)  # cartilage in front hardly shows
        total.add_(band.mul_(bony))
    thin = path.neg_().add_(1.4).clamp_(0.35, 1.0)  # the wall is seen edge-on at the sides
    shown = (f32(lm["dome"] + 85.0) - canvas.y).mul_(0.02).clamp_(0.0, 1.0)  # the lowest ribs end at the sides
    return total.mul_(thin).mul_(shown).mul_(0.34).mul_((far - near).clamp_(0.0, 30.0).mul_(1.0 / 30.0))
