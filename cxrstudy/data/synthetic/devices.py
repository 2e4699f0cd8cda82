"""Draw lines and tubes: which are present, their path through the body, and how they look.

Paths and tip positions follow usual teaching; diameters are those of common adult devices (both
assumed). TIP_RULES states where a tip must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cxrstudy.data.synthetic import projection
from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.findings import LEFT, RIGHT, Findings, persistent_draw
from cxrstudy.data.synthetic.projection import ALL, POINTS, Geometry, PerRow, Projector, Scene
from cxrstudy.data.vocabulary import DEVICES

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.institution import Institution

ETT, CVC, PICC, SWAN, NGT, CHEST, PACER, LEAD = range(len(DEVICES) + 1)
# Outer radius in mm. The last is the lead of a monitor, which is not a device of the vocabulary
RADIUS = np.array([5.5, 1.3, 1.0, 1.4, 2.4, 4.6, 1.2, 0.8])
HOLLOW = np.array([1.0, 0.0, 0.0, 0.0, 0.6, 1.0, 0.0, 0.0])  # 1: only the walls show; 0: solid
# Optical depth of a solid line that is at least two pixels wide
OPTICAL_DEPTH = (0.42, 0.32, 0.32, 0.32, 0.28, 0.48, 0.44, 0.26)
CONTRAST = {"clear": 1.0, "faint": 0.45}  # factors of the optical depth of devices
TIP_RULES = (
    # what `tip` measures (mm), correct from, to, drawn mean and sd, drawn ranges if misplaced
    ("above the carina", 30.0, 70.0, (50.0, 8.0), ((-25.0, 18.0), (78.0, 95.0))),
    ("below the carina", -15.0, 60.0, (15.0, 19.0), ((66.0, 100.0), (-45.0, -22.0))),
    ("below the carina", -15.0, 60.0, (15.0, 19.0), ((66.0, 100.0), (-45.0, -22.0))),
    ("right of the midline", 0.0, 45.0, (24.0, 6.5), ((52.0, 80.0), (52.0, 80.0))),
    ("below the left dome's top", 15.0, 90.0, (45.0, 9.0), ((-120.0, 2.0), (-120.0, 2.0))),
    ("inside the rib cage", 15.0, 100.0, (62.0, 13.0), ((-16.0, 8.0), (-16.0, 8.0))),
    ("left of the midline", 15.0, 80.0, (50.0, 8.0), ((-32.0, 2.0), (-32.0, 2.0))),
)
RIGHT_SIDED = (0.5, 0.7, 0.55, 0.8, 0.5, 0.5, 0.25)  # share on the patient's right; assumed
ELECTRODES = 4  # at most, on a monitored patient's chest; they look similar to devices


@dataclass
class Devices(PerRow):
    """Devices per row, (N, 7) in the order of DEVICES."""

    present: Array
    side: Array  # RIGHT or LEFT
    tip: Array  # position of the tip in mm, as TIP_RULES measures it
    malpositioned: Array
    monitored: Array  # (N,) electrodes on the chest


def draw_devices(
    patient: Draws, exam: Draws, site: Institution, acuity: Array, age: Array, found: Findings
) -> Devices:
    """Return the devices of each row's exam; a state persists with probability 0.75 per exam.

    Arguments are as those of `findings.draw_findings`; `found` are the findings of the same exam.
    """
    p = {name: np.asarray(values)[acuity] for name, values in site.device_rates.items()}
    intubated = persistent_draw(patient, exam, "endotracheal_tube", 0.75) < p["endotracheal_tube"]
    p["nasogastric_tube"] = np.where(intubated, 0.7, p["nasogastric_tube"])
    drain = 0.35 * found.on("pneumothorax") + 0.08 * found.on("pleural_effusion")
    p["chest_tube"] = p["chest_tube"] + (acuity > 0) * drain
    p["pacemaker"] = p["pacemaker"] * np.clip((age - 20.0) / 40.0, 0.2, 1.6) + 0.10 * found.failure
    persistence = dict.fromkeys(DEVICES, 0.75) | {"pacemaker": 1.0}
    drawn = [persistent_draw(patient, exam, name, persistence[name]) < p[name] for name in DEVICES]
    present = np.stack(drawn, axis=1)
    sides, tips = [], []
    for k, name in enumerate(DEVICES):
        _, low, high, (mean, sd), (one, two) = TIP_RULES[k]
        sides.append(np.where(patient.bernoulli(f"{name}.right", RIGHT_SIDED[k]), RIGHT, LEFT))
        d = exam.child(f"{name}.tip")
        wrong = np.where(d.bernoulli("which", 0.6), d.uniform("one", *one), d.uniform("two", *two))
        correct = patient.normal(f"{name}.reach", mean, sd) + d.normal("move", 0.0, 2.0)
        correct = np.clip(correct, low + 1.0, high - 1.0)
        tips.append(np.where(d.bernoulli("wrong", site.malposition), wrong, correct))
    side, tip = np.stack(sides, axis=1), np.stack(tips, axis=1)
    for name in ("pleural_effusion", "pneumothorax"):  # a drain is on the side of fluid or air
        right, left = found.by_side(name)
        one_sided = right + left == 1
        side[:, CHEST] = np.where(one_sided, np.where(right > 0, RIGHT, LEFT), side[:, CHEST])
    lows, highs = (np.array([rule[k] for rule in TIP_RULES]) for k in (1, 2))
    wrong = present & ((tip < lows) | (tip > highs))
    monitored = exam.bernoulli("monitored", np.asarray(site.monitored)[acuity])
    return Devices(present, side, tip, wrong, monitored)


def control_points(*points: tuple) -> Array:
    """Return control points (N, C, 3) from coordinates in mm that broadcast to (N,)."""
    flat = np.broadcast_arrays(*[np.asarray(v, dtype=np.float64) for p in points for v in p])
    return np.stack(flat, axis=-1).reshape(len(flat[0]), len(points), 3)


class DevicePaths:
    """Control points of devices in some rows; the first curve of a device ends at its tip.

    `side` is +1 on the patient's left; `tip` is in mm as TIP_RULES measures it; `lm` are landmarks.
    """

    def __init__(self, d: Draws, side: Array, tip: Array, lm: dict[str, Array], gas: Array) -> None:
        self.d, self.tip, self.gas = d, tip, gas
        self.side = np.where(side == RIGHT, -1.0, 1.0)
        self.scale, self.wide, self.shift = lm["scale"], lm["wide"], lm["shift"]
        self.carina, self.dome, self.top = lm["carina"], lm["dome.left"], lm["top"]

    def curves(self, device: int) -> list[Array]:
        """Return the control points (n, C, 3) of a device's curves."""
        if device == ETT:
            return [self._endotracheal()]
        if device == NGT:
            return [self._nasogastric()]
        if device in (CVC, PICC, SWAN):
            return [self._venous(device)]
        return [self._chest_tube()] if device == CHEST else self._pacemaker()

    def _jitter(self, name: str, sd: float) -> Array:
        return self.d.normal(name, 0.0, sd)

    def _endotracheal(self) -> Array:
        j, low = self._jitter, self.tip < 0.0  # then it is in the right main bronchus
        tip = self.carina - self.tip
        x = self.shift - 1.5 + np.where(low, self.tip, 0.0)
        return control_points(
            (j("a", 9), self.top - 110, 45),
            (self.shift * 0.5 + j("b", 3), np.minimum(tip, self.carina) - 70, 12),
            (x, np.where(low, self.carina - 0.6 * self.tip, tip), 0),
        )

    def _nasogastric(self) -> Array:
        j, carina, dome = self._jitter, self.carina, self.dome
        tip, high = dome + self.tip, self.tip < 15.0  # high: it ends in the esophagus

        def stop(y: Array, share: float) -> Array:
            return np.where(high, carina - 60 + (tip - carina + 60) * share, y)

        below = stop(dome + 0.5 * self.tip, 0.8)
        return control_points(
            (j("a", 8) + 4, self.top - 110, 40),
            (j("b", 4), carina - 60, -22),
            (self.shift * 0.5 + 5 + j("c", 4), stop(carina + 30, 0.3), -32),
            (np.where(high, 7, 16) + j("e", 4), stop(dome - 4, 0.6), -20),
            (np.where(high, 9, 38) + j("f", 6), below, np.where(high, -20, 5)),
            (np.where(high, 10, self.d.uniform("x", 48, 86)), tip, np.where(high, -20, 20)),
        )

    def _collar(self) -> list[tuple]:
        """Return points of the subclavian vein, below the clavicle."""
        s, j = self.side, self._jitter
        return [
            (s * 86 * self.wide, self.top + 16 + j("c", 5), 25),
            (s * 44 * self.wide, self.top + 22 + j("e", 5), 25),
        ]

    def _to_cava(self, device: int) -> tuple[list[tuple], tuple]:
        """Return points from the brachiocephalic to the superior vena cava, and the venous tip."""
        j, carina = self._jitter, self.carina
        end = carina + self.tip
        cava = (-21 + self.shift + j("cava", 3)) * self.scale
        central = device in (CVC, PICC)
        high = np.minimum(carina - 34, end - 20) if central else carina - 34
        y = high + 0.5 * (end - high) if central else carina - 4
        join = [(np.where(self.side > 0, 2.0, -19.0) + self.shift, high, 18), (cava, y, 12)]
        return join, (cava + j("x", 3), end, 8)

    def _venous(self, device: int) -> Array:
        s, j, k, wide, top = self.side, self._jitter, self.scale, self.wide, self.top
        (join, end), collar = self._to_cava(device), self._collar()
        if device == PICC:
            arm = [(s * 192 * wide, -52 + j("a", 14), 0), (s * 138 * wide, -84 + j("b", 7), 10)]
            return control_points(*arm, *collar, *join, end)
        neck = [(s * (38 + j("a", 7)), top - 75, 20), (s * (30 + j("b", 5)), top - 5, 15)]
        if device == CVC:
            entry = (s * 118 * wide, top + 26 + j("g", 8), 45)
            subclavian = control_points(entry, collar[1], *join, end)
            jugular = control_points(*neck, *join, end)
            chosen = self.d.bernoulli("subclavian", 0.25)[:, None, None]
            return np.where(chosen, subclavian, jugular)
        shift = self.shift
        return control_points(
            *neck,
            *join,
            (-22 + shift, 40 * k, 20),  # right atrium, right ventricle, its outflow
            (12 + shift, 62 * k + j("g", 5), 45),
            (26 + shift, 28 * k, 45),
            (10 + shift, -6 * k, 20),  # pulmonary artery
            (-self.tip, (4 + j("h", 5) + 0.3 * self.tip) * k, 0),
        )

    def _chest_tube(self) -> Array:
        d, s, j, k, wide = self.d, self.side, self._jitter, self.scale, self.wide
        up = self.gas | d.bernoulli("up", 0.4)
        aim = np.where(up, d.uniform("high", -105, -60), d.uniform("low", 15, 60)) * k
        entry, tip, out = d.uniform("entry", 25.0, 75.0), 134.0 * wide - self.tip, self.tip < 15.0
        aim = np.where(out, entry - 25.0, aim)
        inner = np.where(out, 142 * wide, (112 + j("c", 5)) * wide)
        return control_points(
            (s * (195 * wide), entry + 45 + j("a", 8), 10),
            (s * np.where(out, 148, 134) * wide, entry + j("b", 5), 5),
            (s * inner, 0.5 * (entry + aim), -20),
            (s * tip, aim, -30),
        )

    def _pacemaker(self) -> list[Array]:
        """Return the ventricular and the atrial lead; both start at the generator."""
        s, j, k, wide, shift = self.side, self._jitter, self.scale, self.wide, self.shift
        generator = (s * 88 * wide + j("a", 13), -68 + j("b", 18), 76)
        vein = [
            generator,
            (s * (70 + j("c", 5)) * wide, self.top + 14, 55),
            (s * 40 * wide, self.top + 26 + j("e", 4), 30),
            *self._to_cava(PACER)[0],
        ]
        floor = 76 * k + j("f", 5)
        valve = np.minimum(18.0, self.tip - 6.0)  # a lead that slipped back crosses no valve
        ventricle = control_points(
            *vein, (-22 + shift, 42 * k, 20), (valve + shift, floor - 6, 42),
            (self.tip + shift, floor, 50),
        )  # fmt: skip
        atrium = control_points(
            *vein, (-24 + shift, 46 * k, 18), (-30 + shift, 52 * k, 30),
            (-26 + shift, 20 * k + j("h", 4), 40),
        )  # fmt: skip
        return [ventricle, atrium]


@dataclass
class DeviceCurves:
    """Curves of the devices of some rows, in ascending order of rows; M curves of P points."""

    row: Array  # (M,)
    device: Array  # (M,)
    u: Array  # (M, P), image mm
    v: Array
    optical_depth: Array  # (M,)

    def between(self, low: int, high: int) -> DeviceCurves:
        """Return the curves of the rows low to high, renumbered from 0."""
        few = slice(*np.searchsorted(self.row, (low, high)))
        return DeviceCurves(
            self.row[few] - low, self.device[few], self.u[few], self.v[few], self.optical_depth[few]
        )


def place_devices(
    held: Devices, exam: Draws, scene: Scene, lm: dict[str, Array], found: Findings,
    geometry: Geometry, size: int, contrast: str,
) -> tuple[DeviceCurves, Array]:  # fmt: skip
    """Place the devices in the body; the generator and the electrodes are added to the scene.

    Returns:
        The projected curves, and the tips in the body in mm (N, 7, 3), NaN if absent.
    """
    n, points = len(held.present), 5 * size // 2
    tips, generator, curves = np.full((n, len(DEVICES), 3), np.nan), np.zeros((n, 3)), []

    def add(rows: Array, device: int, control: Array, optical_depth: Array) -> None:
        line = projection.catmull_rom(control, points)
        part = geometry.rows(rows).rows(POINTS)
        u, v = part.project(line[..., 0], line[..., 1], line[..., 2])
        curves.append((rows, np.full(len(rows), device), u, v, optical_depth))

    gas = found.on("pneumothorax") > 0
    for k, name in enumerate(DEVICES):
        rows = np.flatnonzero(held.present[:, k])
        d, marks = exam.rows(rows).child(name), {key: value[rows] for key, value in lm.items()}
        depth = OPTICAL_DEPTH[k] * CONTRAST[contrast] * d.uniform("strength", 0.75, 1.25)
        paths = DevicePaths(d, held.side[rows, k], held.tip[rows, k], marks, gas[rows])
        first, *more = paths.curves(k)
        add(rows, k, first, depth)
        tips[rows, k] = first[:, -1]
        for control in more:  # the atrial lead of a pacemaker
            few = np.flatnonzero(d.bernoulli("two leads", 0.6))
            add(rows[few], k, control[few], depth[few])
            generator[rows] = first[:, 0]
    scene.add("generator", tuple(generator.T), (24.0, 20.0, 5.0))
    for k in range(ELECTRODES):
        d = exam.child(f"electrode{k}")
        on = held.monitored & d.bernoulli("on", 0.75)
        x = d.normal("x", 85.0 if k % 2 else -85.0, 22.0)
        y = d.normal("y", -85.0 if k < 2 else 75.0, 30.0)
        radius = 0.01 + on * d.uniform("size", 4.5, 8.0)
        scene.add(f"electrode{k}", (x, y, 95.0), (radius, radius, 3.0))
        start = (np.sign(x) * d.normal("far", 60.0, 60.0), 230.0, 95.0)
        bend_x = 0.6 * x + d.normal("bend", 0.0, 30.0)
        bend = (bend_x, 0.5 * (y + 150.0) + d.normal("sag", 0.0, 25.0), 95.0)
        wire = control_points(start, bend, (x, y, 95.0))
        rows = np.flatnonzero(on & d.bernoulli("wire", 0.7))
        add(rows, LEAD, wire[rows], OPTICAL_DEPTH[LEAD] * d.uniform("strength", 0.6, 1.3)[rows])
    row, device, u, v, depth = (np.concatenate([c[k] for c in curves]) for k in range(5))
    order = np.argsort(row, kind="stable")
    return DeviceCurves(row[order], device[order], u[order], v[order], depth[order]), tips


def render_devices(
    depth: Tensor, projector: Projector, held: Devices, curves: DeviceCurves
) -> Tensor:
    """Add the devices' optical depth to `depth` (n, size, size) in place.

    Returns:
        Masks, bool (n, 7, size, size).
    """
    size, mm_per_px = projector.size, projector.geometry.spacing
    shape = (len(depth), len(DEVICES), size, size)
    masks = torch.zeros(shape, dtype=torch.bool, device=projector.device)
    added = torch.zeros((len(curves.row), size, size), device=projector.device)
    for thick in (False, True):  # thick curves apart, since their wide reach is slow
        few = np.flatnonzero((RADIUS[curves.device] > 3.0) == thick)
        device, rows = curves.device[few], curves.row[few]
        mm, part = mm_per_px[rows], projector.rows(rows)
        if not len(few):
            continue
        radius = np.maximum(RADIUS[device], 0.55 * mm)  # a thinner line fills about one pixel
        reach = 5.5 if thick else max(2.4, 0.55 * projection.MAX_FIELD / size)  # mm
        reach = reach + 0.5 * max(projection.MAX_FIELD / size, 1.0)
        u, v = curves.u[few], curves.v[few]
        far = part.distance(u, v, np.broadcast_to(radius[:, None], u.shape), reach)
        blur = projector.per_image(-1.0 / np.maximum(mm, 1.0))
        shown = (far * blur).add_(0.5).clamp_(0.0, 1.0)
        lumen = (far + 1.6).mul_(blur).add_(0.5).clamp_(0.0, 1.0)  # walls are 1.6 mm thick
        shown.sub_(lumen.mul_(projector.per_image(0.45 * HOLLOW[device])))
        strength = projector.per_image(curves.optical_depth[few])
        added[projector.to_device(few)] = shown.mul_(strength)
        for k, (row, which) in enumerate(zip(rows.tolist(), device.tolist(), strict=True)):
            if which != LEAD:
                masks[row, which] |= far[k] <= 0.0
    for k, row in enumerate(curves.row.tolist()):  # one by one: this fixes the order of the sum
        depth[row] += added[k]
    discs = [(f"electrode{k}", 0.45, held.monitored) for k in range(ELECTRODES)]
    discs.append(("generator", 1.2 * OPTICAL_DEPTH[PACER], held.present[:, PACER]))
    for name, level, present in discs:
        rows = np.flatnonzero(present)
        if len(rows):
            pick, disc = projector.to_device(rows), projector.rows(rows).blob(name, ALL)[0]
            if name == "generator":
                masks[pick, PACER] |= disc > 0.0
            depth[pick] = depth[pick] + disc.mul_(4.0).clamp_(0.0, 1.0).mul_(level)
    return masks
