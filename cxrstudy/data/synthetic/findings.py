"""Findings: who has them, how bad and on which side, and what they do to the body and to the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from cxrstudy.data.synthetic.anatomy import BONE, SIDES, SOFT, SOLID, rib_height
from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.projection import ALL, Canvas, Rows, Scene, Tensor, Window
from cxrstudy.data.vocabulary import FINDINGS

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.institution import Institution

RIGHT, LEFT, BOTH = 0, 1, 2
BREAKS = 4  # at most, of neighbouring ribs
SOLIDS = (  # finding, shape, how much fuller than an ellipsoid, share of the contrast of solid tissue
    ("consolidation", "consolidation", 1.5, 0.8),
    ("nodule_mass", "nodule_mass", 1.0, 1.8),
    ("atelectasis", "plate", 1.0, 0.7),
)
TWO_SIDED = {
    "cardiomegaly": 1.0,
    "edema": 1.0,
    "pleural_effusion": 0.4,
    "atelectasis": 0.3,
    "consolidation": 0.15,
}
KEEP = {
    "cardiomegaly": 0.95,
    "nodule_mass": 0.97,
    "fracture": 0.95,
}  # chance that a state stays to the next exam
INDEX = {name: k for k, name in enumerate(FINDINGS)}


@dataclass
class Findings(Rows):
    """Per row and finding (N, 8), in the order of FINDINGS: present, severity in [0, 1], side (RIGHT, LEFT, BOTH)."""

    present: Array
    severity: Array
    side: Array
    failure: Array  # (N,) heart failure, the cause behind cardiomegaly, edema and effusion

    def on(self, name: str) -> Array:
        """float64 (N,): 1 where the finding is present."""
        return self.present[:, INDEX[name]].astype(np.float64)

    def where(self, name: str) -> tuple[Array, Array]:
        """float64 (N,) twice: 1 where the finding is on the right, on the left."""
        side = self.side[:, INDEX[name]]
        return self.on(name) * (side != LEFT), self.on(name) * (side != RIGHT)


def sticky(patient: Draws, exam: Draws, name: str, keep: float = 0.8) -> Array:
    """A uniform draw (N,) that stays the patient's from exam to exam with chance `keep`, so that states last."""
    return np.where(exam.chance(f"keep.{name}", keep), patient.uniform(name), exam.uniform(name))


def draw(
    patient: Draws, exam: Draws, site: Institution, acuity: Array, age: Array, number: Array
) -> Findings:
    """The findings of each row's exam; `acuity` (N,) 0 ambulatory, 1 ward, 2 intensive care; `number` of the exam."""
    old = np.clip((age - 20.0) / 60.0, 0.0, 1.2)
    p = {name: np.asarray(values)[acuity] for name, values in site.finding_rates.items()}
    failure = sticky(patient, exam, "failure", 0.9) < p.pop("heart_failure") * (0.3 + old)
    p["cardiomegaly"] = np.where(failure, 0.75, p["cardiomegaly"] * (0.5 + old))
    p["edema"] = np.where(failure, 0.22 + 0.17 * acuity, p["edema"])
    has = {name: sticky(patient, exam, name, KEEP.get(name, 0.8)) < p[name] for name in FINDINGS}
    for name, more in (
        ("pleural_effusion", 0.25 * failure + 0.15 * has["edema"]), ("atelectasis", 0.15 * has["pleural_effusion"]),
    ):  # fmt: skip
        has[name] = sticky(patient, exam, name) < p[name] + more
    severity, side = [], []
    for name in FINDINGS:
        course = patient.normal(f"{name}.trend", 0.0, 0.10) * number + exam.normal(
            f"{name}.drift", 0.0, 0.10
        )
        severity.append(np.clip(patient.uniform(f"{name}.severity") + course, 0.0, 1.0))
        one = patient.chance(f"{name}.side", 0.5).astype(np.int64)
        side.append(np.where(patient.chance(f"{name}.both", TWO_SIDED.get(name, 0.0)), BOTH, one))
    present = np.stack([has[name] for name in FINDINGS], axis=1)
    return Findings(present, np.stack(severity, axis=1), np.stack(side, axis=1), failure)


def deform(found: Findings, scene: Scene, lm: dict[str, Array], exam: Draws) -> None:
    """Let the findings change the body: a larger heart, a raised dome, a shifted mediastinum."""
    grow = 1.0 + found.on("cardiomegaly") * (0.05 + 0.22 * found.severity[:, INDEX["cardiomegaly"]])
    for name in ("heart", "atrium"):
        shape = scene.shapes[name].copy()
        shape[:, 3:6] *= grow[:, None]
        shape[:, 0] += 10.0 * (grow - 1.0) * 4.0 * (name == "heart")
        scene.shapes[name] = shape
    shift = np.zeros(scene.number)
    losses, gases = found.where("atelectasis"), found.where("pneumothorax")
    for (sign, side), loss, gas in zip(SIDES, losses, gases, strict=True):
        dome = scene.shapes[f"dome.{side}"].copy()
        dome[:, 1] -= loss * (5.0 + 14.0 * found.severity[:, INDEX["atelectasis"]])
        scene.shapes[f"dome.{side}"] = dome
        shift += sign * (4.0 * loss - 8.0 * gas * found.severity[:, INDEX["pneumothorax"]])
    lm["shift"] = shift + exam.normal("lean", 0.0, 3.0)
    for name in ("heart", "atrium", "mediastinum", "trachea", "arch"):
        scene.shapes[name] = scene.shapes[name] + lm["shift"][:, None] * np.eye(7)[0]


def breaks(found: Findings, patient: Draws, scene: Scene, lm: dict[str, Array]) -> Array:
    """Broken ribs for `anatomy.cage`: float64 (N, 4) side, first rib, count, step in mm; puts the blood and callus
    about each break into the scene."""
    side = np.where(found.side[:, INDEX["fracture"]] == RIGHT, -1.0, 1.0)
    count = 2.0 + np.floor(2.99 * found.severity[:, INDEX["fracture"]])
    step = found.on("fracture") * patient.uniform("fracture.step", 9.0, 13.0)
    first = np.floor(patient.uniform("fracture.rib", 4.0, 7.0))
    for k in range(BREAKS):
        there = found.on("fracture") * (k < count)
        x, z = side * patient.uniform(f"fracture.x{k}", 56.0, 74.0), -60.0 * lm["depth"]
        y = rib_height(first + k, z, lm)
        radius = 0.01 + there * patient.uniform(f"fracture.size{k}", 6.0, 9.0)
        scene.add(f"break{k}", (x, y, z), (radius, radius * 0.8, radius))
    return np.stack([side, first, count, step], axis=1)


def opacities(found: Findings, scene: Scene, lm: dict[str, Array], patient: Draws) -> None:
    """Put the shapes of the opacities into the scene; radii near 0 where absent (assumed sizes, in mm)."""
    for on, (s, side) in enumerate(SIDES):
        d, lung = patient.child(f"opacity.{side}"), scene.shapes[f"lung.{side}"]
        for name, low, high in (("consolidation", 20.0, 42.0), ("nodule_mass", 10.0, 23.0)):
            there = found.where(name)[on]
            x = (
                lung[:, 0] + s * d.uniform(f"{name}.x", -0.3, 0.6) * lung[:, 3]
            )  # outwards from the lung's middle
            y = lung[:, 1] + d.uniform(f"{name}.y", -0.72, 0.12) * lung[:, 4]
            z = lung[:, 2] + d.uniform(f"{name}.z", -0.5, 0.5) * lung[:, 5]
            r = 0.01 + there * (low + (high - low) * found.severity[:, INDEX[name]]) * lm["scale"]
            flat = 1.0 if name == "nodule_mass" else d.uniform("flat", 0.65, 1.0)
            scene.add(
                f"{name}.{side}", (x, y, z), (r, r * flat, r), d.normal(f"{name}.tilt", 0.0, 0.5)
            )
        there = found.where("atelectasis")[on]
        top = scene.shapes[f"dome.{side}"][:, 1] - 110.0
        x, z = (
            lung[:, 0] + s * d.uniform("plate.x", -19.0, 16.0),
            lung[:, 2] + d.uniform("plate.z", -33.0, 25.0),
        )
        long = 0.01 + there * d.uniform("plate.long", 26.0, 44.0)
        thick = 0.01 + there * (3.0 + 4.0 * found.severity[:, INDEX["atelectasis"]])
        spot = (x, top - d.uniform("plate.y", -8.0, 22.0), z)
        scene.add(f"plate.{side}", spot, (long, thick, long), d.normal("plate.tilt", 0.0, 0.35))
        lm[f"level.{side}"] = top + 20.0 - 45.0 * found.severity[:, INDEX["pleural_effusion"]]
        lost = (
            14.0 + 34.0 * found.severity[:, INDEX["pneumothorax"]]
        )  # mm between the chest wall and the lung
        rest = lung.copy()
        rest[:, 0] -= s * lost * 0.5
        rest[:, 1] += lost * 0.75
        for axis, share in ((3, 0.5), (4, 0.5), (5, 0.3)):
            rest[:, axis] -= lost * share
        scene.shapes[f"rest.{side}"] = rest
        scene.shapes[f"pleura.{side}"] = rest + np.array([0, 0, 0, 2.2, 2.2, 2.2, 0])
        x, y, z = scene.shapes[f"hilum.{side}"][:, :3].T
        haze = 0.01 + found.on("edema")
        scene.add(f"haze.{side}", (x, y + 12.0, z), (62 * haze, 82 * haze, 60 * haze))


def paint(
    depth: Tensor, canvas: Canvas, air: dict[str, Tensor], lm: dict[str, Array], found: Findings,
    supine: Array, texture: Tensor, vessel: Tensor,
) -> None:  # fmt: skip
    """Add the findings' optical depth to `depth` in place; each costs only the rows that have it."""
    for on, side in enumerate(("right", "left")):
        for name, shape, fuller, strength in SOLIDS:
            rows = np.flatnonzero(found.where(name)[on])
            if len(rows):
                part, pick = canvas.rows(rows), canvas.put(rows)
                chord, window = part.half(f"{shape}.{side}")
                chord = torch.minimum(chord.mul_(2.0 * fuller), air[side][pick][window])
                if name == "consolidation":
                    chord.mul_(texture[pick][window].mul(0.5).add_(0.75).clamp_(0.2, 1.0))
                add(depth, pick, window, chord.mul_(strength * SOLID))
        rows = np.flatnonzero(found.where("pleural_effusion")[on])
        if len(rows):
            part, pick = canvas.rows(rows), canvas.put(rows)
            bad, flat = found.severity[rows, INDEX["pleural_effusion"]], supine[rows] * 0.7
            top = canvas.column(lm[f"level.{side}"][rows])
            lung, window = part.soft(f"lung.{side}")
            wall = (1.0 - lung).clamp_(
                0.0, 1.0
            )  # 0 at the lung's middle, 1 at its wall: where the meniscus climbs
            full = (
                (part.y[:, window[1]] - top).add(wall.mul_(30.0)).mul_(1.0 / 14.0).clamp_(0.0, 1.0)
            )
            veil = canvas.column(flat * (0.10 + 0.22 * bad))
            full = torch.maximum(full.mul_(1.0 - canvas.column(flat * 0.45)), veil)
            add(depth, pick, window, full.mul_(air[side][pick][window]).mul_(SOLID * 0.8))
        rows = np.flatnonzero(found.where("pneumothorax")[on])
        if len(rows):
            part, pick = canvas.rows(rows), canvas.put(rows)
            window = part.window(f"lung.{side}")
            cavity = air[side][pick][window]
            core = part.half(f"rest.{side}", window)[0]
            left = torch.minimum(core * 2.0, cavity)
            line = part.half(f"pleura.{side}", window)[0].sub_(core).mul_(SOLID * 0.9)
            bare = vessel[pick][window] * (left <= 0.0)  # no vessels beyond the lung's edge
            add(
                depth,
                pick,
                window,
                (line - bare).mul_(cavity > 0.0).sub_((cavity - left).mul_(SOFT - SOLID)),
            )
    rows = np.flatnonzero(found.on("fracture"))
    if len(rows):
        part, pick = canvas.rows(rows), canvas.put(rows)
        for k in range(BREAKS):
            chord, window = part.half(f"break{k}")
            add(depth, pick, window, chord.mul_(2.2 * BONE))
    rows = np.flatnonzero(found.on("edema"))
    if len(rows):
        part, pick = canvas.rows(rows), canvas.put(rows)
        haze = part.soft("haze.right", ALL)[0].add_(part.soft("haze.left", ALL)[0])
        lungs = air["right"][pick].add(air["left"][pick])
        cloud = texture[pick].mul(0.55).add_(0.8).clamp_(0.2, 1.5)
        weight = canvas.column(0.055 + 0.115 * found.severity[rows, INDEX["edema"]])
        add(
            depth,
            pick,
            ALL,
            haze.clamp_(0.0, 1.0).add_(0.25).mul_(cloud).mul_(lungs).mul_(weight * SOLID),
        )


def add(depth: Tensor, pick: Tensor, window: Window, plane: Tensor) -> None:
    """Add a plane in a window to some rows of `depth`."""
    part = depth[pick]
    part[window] += plane
    depth[pick] = part
