"""Lines and tubes: who has them, how they run through the body as 3-D curves, and how they look.

Courses and tip positions follow usual teaching; calibres are of common adult devices (both assumed). Where a tip must
lie is stated once, in RULES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.findings import LEFT, RIGHT, Findings, sticky
from cxrstudy.data.synthetic.projection import (
    ALL,
    FIELD_MOST,
    POINTS,
    Canvas,
    Rows,
    Scene,
    Tensor,
    View,
    curve,
)
from cxrstudy.data.vocabulary import DEVICES

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.institution import Institution

ETT, CVC, PICC, SWAN, NGT, CHEST, PACER, LEAD = range(len(DEVICES) + 1)
RADIUS = np.array(
    [5.5, 1.3, 1.0, 1.4, 2.4, 4.6, 1.2, 0.8]
)  # mm, outer; the last is a monitor's lead, no device
HOLLOW = np.array([1.0, 0.0, 0.0, 0.0, 0.6, 1.0, 0.0, 0.0])  # 1: only the walls show, 0: solid
STRENGTH = (
    0.42,
    0.32,
    0.32,
    0.32,
    0.28,
    0.48,
    0.44,
    0.26,
)  # optical depth of a solid line two pixels wide or more
CONTRAST = {"clear": 1.0, "faint": 0.45}  # named settings of a device's optical depth
RULES = (  # whence `reach` (mm) counts, well placed between, drawn mean and sd, drawn ranges of the misplaced
    ("above the carina", 30.0, 70.0, (50.0, 8.0), ((-25.0, 18.0), (78.0, 95.0))),
    ("below the carina", -15.0, 60.0, (15.0, 19.0), ((66.0, 100.0), (-45.0, -22.0))),
    ("below the carina", -15.0, 60.0, (15.0, 19.0), ((66.0, 100.0), (-45.0, -22.0))),
    ("right of the midline", 0.0, 45.0, (24.0, 6.5), ((52.0, 80.0), (52.0, 80.0))),
    ("below the left dome's top", 15.0, 90.0, (45.0, 9.0), ((-120.0, 2.0), (-120.0, 2.0))),
    ("inside the rib cage", 15.0, 100.0, (62.0, 13.0), ((-16.0, 8.0), (-16.0, 8.0))),
    ("left of the midline", 15.0, 80.0, (50.0, 8.0), ((-32.0, 2.0), (-32.0, 2.0))),
)
RIGHT_SIDED = (0.5, 0.7, 0.55, 0.8, 0.5, 0.5, 0.25)  # share on the patient's right; assumed
ELECTRODES = 4  # at most, on a monitored patient's chest: look-alikes that are no device


@dataclass
class Devices(Rows):
    """Per row and device (N, 7): present, side (RIGHT, LEFT), reach of the tip in mm and malpositioned, both as RULES
    say; monitored (N,): electrodes on the chest."""

    present: Array
    side: Array
    reach: Array
    malpositioned: Array
    monitored: Array


def draw(
    patient: Draws, exam: Draws, site: Institution, acuity: Array, age: Array, found: Findings
) -> Devices:
    """The devices of each row's exam. Each state lasts over a patient's exams with chance 0.75 an exam."""
    p = {name: np.asarray(values)[acuity] for name, values in site.device_rates.items()}
    tube = sticky(patient, exam, "endotracheal_tube", 0.75) < p["endotracheal_tube"]
    p["nasogastric_tube"] = np.where(tube, 0.7, p["nasogastric_tube"])
    drain = 0.35 * found.on("pneumothorax") + 0.08 * found.on("pleural_effusion")
    p["chest_tube"] = p["chest_tube"] + (acuity > 0) * drain
    p["pacemaker"] = p["pacemaker"] * np.clip((age - 20.0) / 40.0, 0.2, 1.6) + 0.10 * found.failure
    keep = dict.fromkeys(DEVICES, 0.75) | {"pacemaker": 1.0}
    present = np.stack(
        [sticky(patient, exam, name, keep[name]) < p[name] for name in DEVICES], axis=1
    )
    sides, reaches = [], []
    for k, name in enumerate(DEVICES):
        _, _, _, (mean, sd), (one, two) = RULES[k]
        sides.append(np.where(patient.chance(f"{name}.right", RIGHT_SIDED[k]), RIGHT, LEFT))
        d = exam.child(f"{name}.tip")
        wrong = np.where(d.chance("which", 0.6), d.uniform("one", *one), d.uniform("two", *two))
        well = np.clip(
            patient.normal(f"{name}.reach", mean, sd) + d.normal("move", 0.0, 2.0),
            RULES[k][1] + 1.0,
            RULES[k][2] - 1.0,
        )
        reaches.append(np.where(d.chance("wrong", site.malposition), wrong, well))
    side, reach = np.stack(sides, axis=1), np.stack(reaches, axis=1)
    gas, fluid = (found.where(name) for name in ("pneumothorax", "pleural_effusion"))
    for right, left in (fluid, gas):  # a drain lies where the fluid is, or rather the gas
        one_sided = right + left == 1
        side[:, CHEST] = np.where(one_sided, np.where(right > 0, RIGHT, LEFT), side[:, CHEST])
    low, high = (np.array([rule[k] for rule in RULES]) for k in (1, 2))
    wrong = present & ((reach < low) | (reach > high))
    return Devices(
        present, side, reach, wrong, exam.chance("monitored", np.asarray(site.monitored)[acuity])
    )


def path(*points: tuple) -> Array:
    """Control points of broadcastable coordinates: (N, C, 3)."""
    flat = np.broadcast_arrays(*[np.asarray(v, dtype=np.float64) for p in points for v in p])
    return np.stack(flat, axis=-1).reshape(len(flat[0]), len(points), 3)


def course(
    device: int, d: Draws, side: Array, reach: Array, lm: dict[str, Array], gas: Array
) -> list[Array]:
    """Control points (n, C, 3) of a device's curves, the first curve ending at its tip; `s` is +1 on the left."""
    k, wide, shift, carina, dome, top = (
        lm[name] for name in ("scale", "wide", "shift", "carina", "dome.left", "top")
    )
    s = np.where(side == RIGHT, -1.0, 1.0)
    j = lambda name, sd: d.normal(name, 0.0, sd)  # noqa: E731
    if device == ETT:
        tip, low = (
            carina - reach,
            reach < 0.0,
        )  # below the carina it lies in the right main bronchus
        end = (shift - 1.5 + np.where(low, reach, 0.0), np.where(low, carina - 0.6 * reach, tip), 0)
        return [
            path(
                (j("a", 9), top - 110, 45),
                (shift * 0.5 + j("b", 3), np.minimum(tip, carina) - 70, 12),
                end,
            )
        ]
    if device == NGT:
        tip, high = dome + reach, reach < 15.0
        stop = lambda y, share: np.where(high, carina - 60 + (tip - carina + 60) * share, y)  # noqa: E731
        return [path(
            (j("a", 8) + 4, top - 110, 40), (j("b", 4), carina - 60, -22),
            (shift * 0.5 + 5 + j("c", 4), stop(carina + 30, 0.3), -32),
            (np.where(high, 7, 16) + j("e", 4), stop(dome - 4, 0.6), -20),
            (np.where(high, 9, 38) + j("f", 6), stop(dome + 0.5 * reach, 0.8), np.where(high, -20, 5)),
            (np.where(high, 10, d.uniform("x", 48, 86)), tip, np.where(high, -20, 20)),
        )]  # fmt: skip
    cava = (-21 + shift + j("cava", 3)) * k
    neck = [(s * (38 + j("a", 7)), top - 75, 20), (s * (30 + j("b", 5)), top - 5, 15)]
    arm = [(s * 192 * wide, -52 + j("a", 14), 0), (s * 138 * wide, -84 + j("b", 7), 10)]
    collar = [(s * 86 * wide, top + 16 + j("c", 5), 25), (s * 44 * wide, top + 22 + j("e", 5), 25)]
    high = np.minimum(carina - 34, carina + reach - 20) if device in (CVC, PICC) else carina - 34
    join = [(np.where(s > 0, 2.0, -19.0) + shift, high, 18)]
    end = (cava + j("x", 3), carina + reach, 8)
    if device in (CVC, PICC):
        join.append((cava, high + 0.5 * (carina + reach - high), 12))
    else:
        join.append((cava, carina - 4, 12))
    if device == CVC:
        under = path((s * 118 * wide, top + 26 + j("g", 8), 45), collar[1], *join, end)
        return [
            np.where(d.chance("subclavian", 0.25)[:, None, None], under, path(*neck, *join, end))
        ]
    if device == PICC:
        return [path(*arm, *collar, *join, end)]
    if device == SWAN:
        heart = [
            (-22 + shift, 40 * k, 20),
            (12 + shift, 62 * k + j("g", 5), 45),
            (26 + shift, 28 * k, 45),
        ]
        return [
            path(
                *neck,
                *join,
                *heart,
                (10 + shift, -6 * k, 20),
                (-reach, (4 + j("h", 5) + 0.3 * reach) * k, 0),
            )
        ]
    if device == CHEST:
        aim = (
            np.where(
                gas | d.chance("up", 0.4), d.uniform("high", -105, -60), d.uniform("low", 15, 60)
            )
            * k
        )
        entry, tip, out = d.uniform("entry", 25.0, 75.0), 134.0 * wide - reach, reach < 15.0
        aim = np.where(out, entry - 25.0, aim)
        return [path(
            (s * (195 * wide), entry + 45 + j("a", 8), 10), (s * np.where(out, 148, 134) * wide, entry + j("b", 5), 5),
            (s * np.where(out, 142 * wide, (112 + j("c", 5)) * wide), 0.5 * (entry + aim), -20), (s * tip, aim, -30),
        )]  # fmt: skip
    can = (s * 88 * wide + j("a", 13), -68 + j("b", 18), 76)
    vein = [
        can,
        (s * (70 + j("c", 5)) * wide, top + 14, 55),
        (s * 40 * wide, top + 26 + j("e", 4), 30),
        *join,
    ]
    floor = 76 * k + j("f", 5)
    beyond = np.minimum(
        18.0, reach - 6.0
    )  # of a lead that has slipped back nothing crosses the valve
    ventricle = path(
        *vein,
        (-22 + shift, 42 * k, 20),
        (beyond + shift, floor - 6, 42),
        (reach + shift, floor, 50),
    )
    atrial = path(
        *vein,
        (-24 + shift, 46 * k, 18),
        (-30 + shift, 52 * k, 30),
        (-26 + shift, 20 * k + j("h", 4), 40),
    )
    return [ventricle, atrial]


@dataclass
class Wires:
    """Curves of some rows' devices, rows ascending: row, device (M,), image mm u, v (M, P), optical depth (M,)."""

    row: Array
    device: Array
    u: Array
    v: Array
    level: Array

    def between(self, low: int, high: int) -> Wires:
        """The curves of the rows low to high, renumbered from 0."""
        few = slice(*np.searchsorted(self.row, (low, high)))
        return Wires(
            self.row[few] - low, self.device[few], self.u[few], self.v[few], self.level[few]
        )


def lay(
    held: Devices,
    exam: Draws,
    scene: Scene,
    lm: dict[str, Array],
    found: Findings,
    view: View,
    size: int,
    contrast: str,
) -> tuple[Wires, Array]:
    """Lay the devices into the body: their curves as seen, and their tips in the body (N, 7, 3), NaN where absent. The
    pacemaker's box and the electrodes go into the scene."""
    n, points = len(held.present), 5 * size // 2
    tips, box, curves = np.full((n, len(DEVICES), 3), np.nan), np.zeros((n, 3)), []

    def put(rows: Array, device: int, control: Array, level: Array) -> None:
        line = curve(control, points)
        seen = view.rows(rows).rows(POINTS).project(line[..., 0], line[..., 1], line[..., 2])
        curves.append((rows, np.full(len(rows), device), *seen, level))

    for k, name in enumerate(DEVICES):
        rows = np.flatnonzero(held.present[:, k])
        d, marks = exam.rows(rows).child(name), {key: value[rows] for key, value in lm.items()}
        level = STRENGTH[k] * CONTRAST[contrast] * d.uniform("strength", 0.75, 1.25)
        gas = found.on("pneumothorax")[rows] > 0
        first, *more = course(k, d, held.side[rows, k], held.reach[rows, k], marks, gas)
        put(rows, k, first, level)
        tips[rows, k] = first[:, -1]
        for control in more:  # the second lead
            few = np.flatnonzero(d.chance("two leads", 0.6))
            put(rows[few], k, control[few], level[few])
            box[rows] = first[:, 0]
    scene.add("generator", tuple(box.T), (24.0, 20.0, 5.0))
    for k in range(ELECTRODES):
        d = exam.child(f"electrode{k}")
        on = held.monitored & d.chance("on", 0.75)
        x, y = (
            d.normal("x", 85.0 if k % 2 else -85.0, 22.0),
            d.normal("y", -85.0 if k < 2 else 75.0, 30.0),
        )
        radius = 0.01 + on * d.uniform("size", 4.5, 8.0)
        scene.add(f"electrode{k}", (x, y, 95.0), (radius, radius, 3.0))
        bend = (
            0.6 * x + d.normal("bend", 0.0, 30.0),
            0.5 * (y + 150.0) + d.normal("sag", 0.0, 25.0),
            95.0,
        )
        wire = path((np.sign(x) * d.normal("far", 60.0, 60.0), 230.0, 95.0), bend, (x, y, 95.0))
        rows = np.flatnonzero(on & d.chance("wire", 0.7))
        put(rows, LEAD, wire[rows], STRENGTH[LEAD] * d.uniform("strength", 0.6, 1.3)[rows])
    row, device, u, v, level = (np.concatenate([c[k] for c in curves]) for k in range(5))
    order = np.argsort(row, kind="stable")
    return Wires(row[order], device[order], u[order], v[order], level[order]), tips


def render(depth: Tensor, canvas: Canvas, held: Devices, wires: Wires) -> Tensor:
    """Add the devices' optical depth to `depth` in place; their masks, bool (n, 7, size, size)."""
    size, spacing = canvas.size, canvas.view.spacing
    masks = torch.zeros(
        (len(depth), len(DEVICES), size, size), dtype=torch.bool, device=canvas.device
    )
    added = torch.zeros((len(wires.row), size, size), device=canvas.device)
    for thick in (False, True):  # in two, as a wide reach is slow
        few = np.flatnonzero((RADIUS[wires.device] > 3.0) == thick)
        device, mm, part = wires.device[few], spacing[wires.row[few]], canvas.rows(wires.row[few])
        if not len(few):
            continue
        radius = np.maximum(RADIUS[device], 0.55 * mm)  # a line below a pixel blooms to about one
        reach = (5.5 if thick else max(2.4, 0.55 * FIELD_MOST / size)) + 0.5 * max(
            FIELD_MOST / size, 1.0
        )
        far = part.distance(
            wires.u[few], wires.v[few], np.broadcast_to(radius[:, None], wires.u[few].shape), reach
        )
        blur = canvas.column(-1.0 / np.maximum(mm, 1.0))
        shown = (far * blur).add_(0.5).clamp_(0.0, 1.0)
        hollow = canvas.column(0.45 * HOLLOW[device])
        shown.sub_(
            (far + 1.6).mul_(blur).add_(0.5).clamp_(0.0, 1.0).mul_(hollow)
        )  # walls 1.6 mm thick
        added[canvas.put(few)] = shown.mul_(canvas.column(wires.level[few]))
        for k, (row, which) in enumerate(
            zip(wires.row[few].tolist(), device.tolist(), strict=True)
        ):
            if which != LEAD:
                masks[row, which] |= far[k] <= 0.0
    for k, row in enumerate(wires.row.tolist()):  # one by one: the order of a row's sum is fixed
        depth[row] += added[k]
    for name, level in (
        *((f"electrode{k}", 0.45) for k in range(ELECTRODES)),
        ("generator", 1.2 * STRENGTH[PACER]),
    ):
        rows = np.flatnonzero(held.present[:, PACER] if name == "generator" else held.monitored)
        if len(rows):
            pick, disc = canvas.put(rows), canvas.rows(rows).soft(name, ALL)[0]
            if name == "generator":
                masks[pick, PACER] |= disc > 0.0
            depth[pick] = depth[pick] + disc.mul_(4.0).clamp_(0.0, 1.0).mul_(level)
    return masks
