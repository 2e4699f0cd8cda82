"""Lines and tubes: who has them, how they run through the body as 3-D curves, and how they look.

Courses and tip positions follow usual radiology teaching (endotracheal tip 3-7 cm above the carina, central venous tip
near the cavo-atrial junction, gastric tip below the dome); calibres are of common adult devices (assumed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from cxrstudy.data.synthetic.anatomy import ALL, Canvas, Scene, Tensor, View, curve
from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.findings import LEFT, RIGHT, Findings, sticky
from cxrstudy.data.vocabulary import DEVICES

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.institution import Institution

ETT, CVC, PICC, SWAN, NGT, CHEST, PACER, LEAD = range(len(DEVICES) + 1)
ELECTRODES = 4  # at most, on the chest of a monitored patient: look-alikes that are no device
RADIUS = (5.5, 1.3, 1.0, 1.4, 2.4, 4.6, 1.2, 0.8)  # mm, outer; the last is a lead of the monitor, no device
HOLLOW = (1.0, 0.0, 0.0, 0.0, 0.6, 1.0, 0.0, 0.0)  # 1: only the walls show, 0: solid
CONTRAST = {"clear": 1.0, "faint": 0.45}  # named settings of a device's optical depth
STRENGTH = (0.60, 0.42, 0.42, 0.42, 0.38, 0.75, 0.65, 0.30)  # optical depth of a solid line two pixels wide or more


@dataclass
class Devices:
    """Per row and device: present (N, 7), side (N, 7) RIGHT or LEFT, malpositioned (N, 7), tips (N, 7, 3) in mm."""

    present: Array
    side: Array
    malpositioned: Array
    tips: Array
    monitored: Array  # (N,) electrodes on the chest

    def rows(self, index: Array | slice) -> Devices:
        """Some rows."""
        return Devices(
            self.present[index], self.side[index], self.malpositioned[index], self.tips[index], self.monitored[index]
        )


def draw(patient: Draws, exam: Draws, site: Institution, acuity: Array, age: Array, found: Findings) -> Devices:
    """The devices of each row's exam. Each lasts over a patient's exams with chance 0.75 an exam."""
    rate = {name: np.asarray(values)[acuity] for name, values in site.device_rates.items()}
    p = {name: rate[name] for name in DEVICES}
    has: dict[str, Array] = {}
    for name in ("endotracheal_tube", "central_venous_catheter", "picc", "swan_ganz_catheter"):
        has[name] = sticky(patient, exam, name, 0.75) < p[name]
    feed = np.where(has["endotracheal_tube"], 0.7, p["nasogastric_tube"])
    has["nasogastric_tube"] = sticky(patient, exam, "nasogastric_tube", 0.75) < feed
    drain = p["chest_tube"] + (acuity > 0) * (0.35 * found.on("pneumothorax") + 0.08 * found.on("pleural_effusion"))
    has["chest_tube"] = sticky(patient, exam, "chest_tube", 0.75) < drain
    pace = p["pacemaker"] * np.clip((age - 20.0) / 40.0, 0.2, 1.6) + 0.10 * found.failure
    has["pacemaker"] = patient.chance("pacemaker", pace)  # it stays
    present = np.stack([has[name] for name in DEVICES], axis=1)
    right = (0.5, 0.7, 0.55, 0.8, 0.5, 0.5, 0.25)  # share on the patient's right
    side = np.stack(
        [np.where(patient.chance(f"{n}.right", r), RIGHT, LEFT) for n, r in zip(DEVICES, right, strict=True)], axis=1
    )
    drained = found.on("pneumothorax") + found.on("pleural_effusion") > 0
    gas = found.side[:, 2] if found.side.shape[1] else side[:, CHEST]
    fluid = found.side[:, 1]
    sick = np.where(found.on("pneumothorax") > 0, gas, np.where(fluid > LEFT, side[:, CHEST], fluid))
    side[:, CHEST] = np.where(drained, sick, side[:, CHEST])
    monitored = exam.chance("monitored", np.array(site.monitored)[acuity])
    return Devices(present, side, np.zeros_like(present), np.full((*present.shape, 3), np.nan), monitored)


def path(*points: tuple) -> Array:
    """Control points of broadcastable coordinates: (N, C, 3)."""
    flat = np.broadcast_arrays(*[np.asarray(v, dtype=np.float64) for p in points for v in p])
    return np.stack(flat, axis=-1).reshape(len(flat[0]), len(points), 3)


def course(device: int, d: Draws, side: Array, lm: dict[str, Array], found: Findings, rows: Array) -> list[Array]:
    """Control points (N, C, 3) of a device's curves, the first curve ending at its tip; `s` is +1 on the left."""
    k, wide, shift = lm["scale"][rows], lm["wide"][rows], lm["shift"][rows]
    carina, dome, top = lm["carina"][rows], lm["dome"][rows], lm["top"][rows]
    s = np.where(side == RIGHT, -1.0, 1.0)
    j = lambda name, sd: d.normal(name, 0.0, sd)  # noqa: E731
    zero = np.zeros_like(k)
    if device == ETT:
        tip = carina - d.normal("tip", 48.0, 18.0)
        return [path((j("a", 9), top - 110, 45), (shift * 0.5 + j("b", 3), tip - 70, 12), (shift - 1.5, tip, 0))]
    if device == NGT:
        tip = dome + d.uniform("tip", 28.0, 75.0)
        return [path(
            (j("a", 8) + 4, top - 110, 40), (j("b", 4), carina - 60, -22), (shift * 0.5 + 5 + j("c", 4), carina + 30, -32),
            (16 + j("e", 4), dome + 2, -20), (38 + j("f", 6), dome + 26, 5), (d.uniform("x", 48, 86), tip, 20),
        )]  # fmt: skip
    cava, tip = (-21 + shift + j("cava", 3)) * k, carina + d.normal("tip", 34.0, 16.0)
    neck = [(s * (38 + j("a", 7)), top - 75, 20), (s * (30 + j("b", 5)), top - 5, 15)]
    arm = [(s * 192 * wide, -52 + j("a", 14), 0), (s * 138 * wide, -84 + j("b", 7), 10)]
    collar = [(s * 86 * wide, top + 16 + j("c", 5), 25), (s * 44 * wide, top + 22 + j("e", 5), 25)]
    join = [(np.where(s > 0, 2.0, -19.0) + shift, carina - 34, 18), (cava, carina - 4, 12)]
    if device == CVC:
        end = (cava + j("x", 3), tip, 8)
        subclavian = d.chance("subclavian", 0.25)
        high, low = path(*neck, *join, end), path((s * 118 * wide, top + 26 + j("g", 8), 45), collar[1], *join, end)
        return [np.where(subclavian[:, None, None], low, high)]
    if device == PICC:
        return [path(*arm, *collar, *join, (cava + j("x", 3), tip, 8))]
    if device == SWAN:
        heart = [(-22 + shift, 40 * k, 20), (12 + shift, 62 * k + j("g", 5), 45), (26 + shift, 28 * k, 45)]
        far = d.uniform("far", 0.3, 1.0)
        return [path(*neck, *join, *heart, (10 + shift, -6 * k, 20), (-40 * far, (4 + j("h", 5)) * k, 0))]
    if device == CHEST:
        gas = found.on("pneumothorax")[rows] > 0
        aim = np.where(gas | d.chance("up", 0.4), d.uniform("high", -105, -60), d.uniform("low", 15, 60))
        entry = d.uniform("entry", 25.0, 75.0)
        x = s * wide
        return [path(
            (x * 195, entry + 45 + j("a", 8), 10), (x * 134, entry + j("b", 5), 5),
            (x * (112 + j("c", 5)), 0.5 * (entry + aim), -20), (x * d.uniform("x", 45, 85), aim * k, -30),
        )]  # fmt: skip
    box = (s * 88 * wide + j("a", 13), -68 + j("b", 18), 90)
    vein = [box, (s * (70 + j("c", 5)) * wide, top + 14, 55), (s * 40 * wide, top + 26 + j("e", 4), 30), *join]
    ventricle = path(
        *vein, (-18 + shift, 42 * k, 20), (18 + shift, 72 * k + j("f", 4), 42), (52 + shift, 76 * k + j("g", 6), 50)
    )
    atrial = path(*vein, (-24 + shift, 46 * k, 18), (-30 + shift, 52 * k, 30), (-26 + shift, 20 * k + j("h", 4), 40))
    del zero
    return [ventricle, atrial]


@dataclass
class Wires:
    """The curves of some rows' devices, rows ascending: row and device (M,), image mm u, v (M, P), optical depth (M,)."""

    row: Array
    device: Array
    u: Array
    v: Array
    level: Array

    def rows(self, low: int, high: int) -> Wires:
        """The curves of the rows low to high, renumbered from 0."""
        few = slice(*np.searchsorted(self.row, (low, high)))
        return Wires(self.row[few] - low, self.device[few], self.u[few], self.v[few], self.level[few])


def lay(
    held: Devices,
    draws: Draws,
    scene: Scene,
    lm: dict[str, Array],
    found: Findings,
    view: View,
    size: int,
    contrast: str,
) -> Wires:
    """Lay the devices into the body: their curves as seen; puts tips into `held` and the pacemaker into the scene."""
    points = 5 * size // 2
    row, device, level, box = [], [], [], np.zeros((len(held.present), 3))
    parts: list[tuple[Array, Array]] = []
    for number, name in enumerate(DEVICES):
        rows = np.flatnonzero(held.present[:, number])
        d = draws.rows(rows).child(name)
        strength = STRENGTH[number] * CONTRAST[contrast] * d.uniform("strength", 0.75, 1.25)
        for lead, control in enumerate(course(number, d, held.side[rows, number], lm, found, rows)):
            keep = np.flatnonzero(d.chance("two leads", 0.6)) if lead else np.arange(len(rows))
            line, seen = curve(control[keep], points), view.rows(rows[keep]).rows((slice(None), None))
            parts.append(seen.project(line[..., 0], line[..., 1], line[..., 2]))
            row.append(rows[keep])
            device.append(np.full(len(keep), number))
            level.append(strength[keep])
            if not lead:
                held.tips[rows, number] = control[:, -1]
            if number == PACER:
                box[rows] = control[:, 0]
    scene.add("generator", tuple(box.T), (24.0, 20.0, 5.0))
    for k in range(ELECTRODES):
        d = draws.child(f"electrode{k}")
        on = held.monitored & d.chance("on", 0.75)
        x, y = d.normal("x", (-1.0) ** k * 85.0, 22.0), d.normal("y", -85.0 if k < 2 else 75.0, 30.0)
        size_mm = 0.01 + on * d.uniform("size", 4.5, 8.0)
        scene.add(f"electrode{k}", (x, y, 95.0), (size_mm, size_mm, 3.0))
        rows = np.flatnonzero(on & d.chance("wire", 0.7))
        d = d.rows(rows)
        x, y, far = x[rows], y[rows], d.normal("far", 60.0, 60.0)
        bend = (0.6 * x + d.normal("bend", 0.0, 30.0), 0.5 * (y + 150.0) + d.normal("sag", 0.0, 25.0), 95.0)
        line = curve(path((far * np.sign(x), 230.0, 95.0), bend, (x, y, 95.0)), points)
        parts.append(view.rows(rows).rows((slice(None), None)).project(line[..., 0], line[..., 1], line[..., 2]))
        row.append(rows)
        device.append(np.full(len(rows), LEAD))
        level.append(STRENGTH[LEAD] * d.uniform("strength", 0.6, 1.3))
    order = np.argsort(np.concatenate(row), kind="stable")
    u, v = (np.concatenate([p[k] for p in parts])[order] for k in range(2))
    return Wires(np.concatenate(row)[order], np.concatenate(device)[order], u, v, np.concatenate(level)[order])


def render(depth: Tensor, canvas: Canvas, held: Devices, wires: Wires) -> Tensor:
    """Add the devices' optical depth to `depth` in place; their masks, bool (n, 7, size, size)."""
    size, spacing = canvas.size, canvas.view.spacing
    masks = torch.zeros((len(depth), len(DEVICES), size, size), dtype=torch.bool)
    column = lambda value: torch.from_numpy(np.asarray(value, dtype=np.float32))[:, None, None]  # noqa: E731
    added = torch.zeros((len(wires.row), size, size))
    for thick in (False, True):  # in two, as a wide reach is slow
        few = np.flatnonzero((np.array(RADIUS)[wires.device] > 3.0) == thick)
        if not len(few):
            continue
        device, mm = wires.device[few], spacing[wires.row[few]]
        radius = np.maximum(np.array(RADIUS)[device], 0.55 * mm)  # a line below a pixel blooms to about one
        part = canvas.rows(wires.row[few])
        reach = (5.5 if thick else max(2.4, 0.55 * FIELD_MOST / size)) + 0.5 * max(FIELD_MOST / size, 1.0)
        far = part.distance(wires.u[few], wires.v[few], np.broadcast_to(radius[:, None], wires.u[few].shape), reach)
        blur = column(-1.0 / np.maximum(mm, 1.0))
        shown = (far * blur).add_(0.5).clamp_(0.0, 1.0)
        hollow = column(0.45 * np.array(HOLLOW)[device])
        shown.sub_((far + 1.6).mul_(blur).add_(0.5).clamp_(0.0, 1.0).mul_(hollow))  # walls 1.6 mm thick
        added[torch.from_numpy(few)] = shown.mul_(column(wires.level[few]))
        for k, (row, which) in enumerate(zip(wires.row[few].tolist(), device.tolist(), strict=True)):
            if which != LEAD:
                masks[row, which] |= far[k] <= 0.0
    for k, row in enumerate(wires.row.tolist()):  # one by one: the order of a row's sum is fixed
        depth[row] += added[k]
    rows = np.flatnonzero(held.monitored)
    if len(rows):
        part, pick = canvas.rows(rows), torch.from_numpy(rows)
        for k in range(ELECTRODES):
            disc, window = part.soft(f"electrode{k}")
            few = depth[pick]
            few[window] += disc.mul_(4.0).clamp_(0.0, 1.0).mul_(0.45)
            depth[pick] = few
    rows = np.flatnonzero(held.present[:, PACER])
    if len(rows):
        pick, level = torch.from_numpy(rows), STRENGTH[PACER] * 1.2
        can = canvas.rows(rows).soft("generator", ALL)[0]
        masks[pick, PACER] |= can > 0.0
        depth[pick] = depth[pick] + can.mul_(4.0).clamp_(0.0, 1.0).mul_(level)
    return masks


FIELD_MOST = 450.0  # mm, the largest side of an image
