"""Findings: who has them, how bad and on which side, and what they do to the body and to the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from cxrstudy.data.synthetic.anatomy import SOFT, SOLID, Canvas, Scene, Tensor
from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.vocabulary import FINDINGS

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.institution import Institution

RIGHT, LEFT, BOTH = 0, 1, 2
INDEX = {name: k for k, name in enumerate(FINDINGS)}


@dataclass
class Findings:
    """Per row and finding (N, 8), in the order of FINDINGS: present, severity in [0, 1], side (RIGHT, LEFT, BOTH)."""

    present: Array
    severity: Array
    side: Array
    failure: Array  # (N,) heart failure, the cause behind cardiomegaly, edema and effusion

    def rows(self, index: Array | slice) -> Findings:
        """Some rows."""
        return Findings(self.present[index], self.severity[index], self.side[index], self.failure[index])

    def on(self, name: str) -> Array:
        """float64 (N,): 1 where the finding is present."""
        return self.present[:, INDEX[name]].astype(np.float64)

    def bad(self, name: str) -> Array:
        """float64 (N,): severity where present, else 0."""
        return self.on(name) * self.severity[:, INDEX[name]]

    def where(self, name: str) -> tuple[Array, Array]:
        """float64 (N,) twice: 1 where the finding is on the right, on the left."""
        side = self.side[:, INDEX[name]]
        return self.on(name) * (side != LEFT), self.on(name) * (side != RIGHT)


def sticky(patient: Draws, exam: Draws, name: str, keep: float = 0.8) -> Array:
    """A uniform draw (N,) that stays the patient's from exam to exam with chance `keep`, so that states last."""
    return np.where(exam.chance(f"keep.{name}", keep), patient.uniform(name), exam.uniform(name))


def draw(patient: Draws, exam: Draws, site: Institution, acuity: Array, age: Array) -> Findings:
    """The findings of each row's exam; `acuity` (N,) 0 ambulatory, 1 ward, 2 intensive care."""
    n = len(acuity)
    old = np.clip((age - 20.0) / 60.0, 0.0, 1.2)
    rate = {name: np.asarray(values)[acuity] for name, values in site.finding_rates.items()}
    failure = sticky(patient, exam, "failure", 0.9) < rate["heart_failure"] * (0.3 + old)
    p = {name: rate[name] for name in FINDINGS}
    p["cardiomegaly"] = np.where(failure, 0.75, p["cardiomegaly"] * (0.5 + old))
    p["edema"] = np.where(failure, 0.22 + 0.17 * acuity, p["edema"])
    present = np.zeros((n, len(FINDINGS)), dtype=bool)
    for name in ("cardiomegaly", "edema", "consolidation", "pneumothorax", "nodule_mass", "fracture"):
        present[:, INDEX[name]] = sticky(patient, exam, name) < p[name]
    p["pleural_effusion"] = p["pleural_effusion"] + 0.25 * failure + 0.15 * present[:, INDEX["edema"]]
    present[:, INDEX["pleural_effusion"]] = sticky(patient, exam, "pleural_effusion") < p["pleural_effusion"]
    p["atelectasis"] = p["atelectasis"] + 0.15 * present[:, INDEX["pleural_effusion"]]
    present[:, INDEX["atelectasis"]] = sticky(patient, exam, "atelectasis") < p["atelectasis"]
    severity = np.stack(
        [np.clip(patient.uniform(f"{f}.severity") + exam.normal(f"{f}.drift", 0.0, 0.12), 0, 1) for f in FINDINGS], 1
    )
    both = {"pleural_effusion": 0.4, "atelectasis": 0.3, "consolidation": 0.15, "cardiomegaly": 1.0, "edema": 1.0}
    sides = []
    for name in FINDINGS:
        one = patient.chance(f"{name}.side", 0.5).astype(np.int64)
        sides.append(np.where(patient.chance(f"{name}.both", both.get(name, 0.0)), BOTH, one))
    return Findings(present, severity, np.stack(sides, axis=1), failure)


def deform(found: Findings, scene: Scene, lm: dict[str, Array], exam: Draws) -> None:
    """Let the findings change the body: a larger heart, a raised dome, a shifted mediastinum."""
    grow = 1.0 + found.on("cardiomegaly") * (0.10 + 0.24 * found.severity[:, INDEX["cardiomegaly"]])
    for name in ("heart", "atrium"):
        shape = scene.shapes[name].copy()
        shape[:, 3:6] *= grow[:, None]
        shape[:, 0] += 10.0 * (grow - 1.0) * 4.0 * (name == "heart")
        scene.shapes[name] = shape
    shift = np.zeros(scene.number)
    for sign, side, loss, gas in zip(
        (-1.0, 1.0), ("right", "left"), found.where("atelectasis"), found.where("pneumothorax"), strict=True
    ):
        dome = scene.shapes[f"dome.{side}"].copy()
        dome[:, 1] -= loss * (5.0 + 14.0 * found.severity[:, INDEX["atelectasis"]])
        scene.shapes[f"dome.{side}"] = dome
        shift += sign * (4.0 * loss - 8.0 * gas * found.severity[:, INDEX["pneumothorax"]])
    lm["shift"] = shift + exam.normal("lean", 0.0, 3.0)
    for name in ("heart", "atrium", "mediastinum", "trachea", "arch"):
        scene.shapes[name] = scene.shapes[name] + lm["shift"][:, None] * np.eye(7)[0]


def breaks(found: Findings, patient: Draws) -> Array:
    """Broken ribs for `anatomy.cage`: float64 (N, 4) side, first rib, count, step in mm."""
    side = np.where(found.side[:, INDEX["fracture"]] == RIGHT, -1.0, 1.0)
    count = 2.0 + np.floor(2.99 * found.severity[:, INDEX["fracture"]])
    step = found.on("fracture") * patient.uniform("fracture.step", 7.0, 10.0)
    return np.stack([side, np.floor(patient.uniform("fracture.rib", 4.0, 7.0)), count, step], axis=1)


def inside(scene: Scene, side: str, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """A place in a lung from coordinates within its unit ball (x outwards)."""
    lung = scene.shapes[f"lung.{side}"]
    return (
        lung[:, 0] + np.sign(lung[:, 0]) * x * lung[:, 3],
        lung[:, 1] + y * lung[:, 4],
        lung[:, 2] + z * lung[:, 5],
    )


def opacities(found: Findings, scene: Scene, lm: dict[str, Array], patient: Draws) -> None:
    """Put the shapes of the opacities into the scene; radii near 0 where absent (assumed sizes, in mm)."""
    for side, on in zip(("right", "left"), range(2), strict=True):
        d = patient.child(f"opacity.{side}")
        for name, low, high in (("consolidation", 22.0, 44.0), ("nodule_mass", 8.0, 20.0)):
            there = found.where(name)[on]
            place = inside(scene, side, d.uniform(f"{name}.x", -0.5, 0.5), d.uniform(f"{name}.y", -0.6, 0.5), 0.0 * there)
            z = place[2] + d.uniform(f"{name}.z", -0.5, 0.5) * 80.0 * lm["depth"]
            r = 0.01 + there * (low + (high - low) * found.severity[:, INDEX[name]]) * lm["scale"]
            flat = 1.0 if name == "nodule_mass" else d.uniform("flat", 0.65, 1.0)
            scene.add(f"{name}.{side}", (place[0], place[1], z), (r, r * flat, r), d.normal(f"{name}.tilt", 0.0, 0.5))
        there = found.where("atelectasis")[on]
        x, y, z = inside(scene, side, d.uniform("plate.x", -0.3, 0.25), 0.0 * there, d.uniform("plate.z", -0.4, 0.3))
        y = scene.shapes[f"dome.{side}"][:, 1] - 110.0 - d.uniform("plate.y", -8.0, 22.0)
        long = 0.01 + there * d.uniform("plate.long", 26.0, 44.0)
        thick = 0.01 + there * (3.0 + 4.0 * found.severity[:, INDEX["atelectasis"]])
        scene.add(f"plate.{side}", (x, y, z), (long, thick, long), d.normal("plate.tilt", 0.0, 0.35))
        lm[f"level.{side}"] = scene.shapes[f"dome.{side}"][:, 1] - 88.0 - 55.0 * found.severity[:, INDEX["pleural_effusion"]]
        lost = 14.0 + 34.0 * found.severity[:, INDEX["pneumothorax"]]  # mm between the chest wall and the lung
        rest = scene.shapes[f"lung.{side}"].copy()
        rest[:, 0] -= np.sign(rest[:, 0]) * lost * 0.5
        rest[:, 1] += lost * 0.75
        for axis, share in ((3, 0.5), (4, 0.5), (5, 0.3)):
            rest[:, axis] -= lost * share
        scene.shapes[f"rest.{side}"] = rest
        scene.shapes[f"pleura.{side}"] = rest + np.array([0, 0, 0, 2.2, 2.2, 2.2, 0])
        hilum = scene.shapes[f"hilum.{side}"]
        haze = 0.01 + found.on("edema")
        scene.add(f"haze.{side}", tuple(hilum[:, :3].T + np.array([[0], [12], [0]])), (62 * haze, 82 * haze, 60 * haze))


def paint(
    depth: Tensor, canvas: Canvas, air: dict[str, Tensor], lm: dict[str, Array], found: Findings,
    supine: Array, texture: Tensor, vessel: Tensor,
) -> None:  # fmt: skip
    """Add the findings' optical depth to `depth` in place; each costs only the rows that have it."""
    for on, side in enumerate(("right", "left")):
        for name, strength in (("consolidation", 0.85), ("nodule_mass", 1.0), ("atelectasis", 0.7)):
            rows = np.flatnonzero(found.where(name)[on])
            if len(rows):
                part, pick = canvas.rows(rows), torch.from_numpy(rows)
                key = "plate" if name == "atelectasis" else name
                chord = part.half(f"{key}.{side}").mul_(2.0)
                chord = torch.minimum(chord, air[side][pick])
                if name == "consolidation":
                    chord.mul_(texture[pick].mul(0.5).add_(0.75).clamp_(0.2, 1.0))
                depth[pick] = depth[pick] + chord.mul_(strength * SOLID)
        rows = np.flatnonzero(found.where("pleural_effusion")[on])
        if len(rows):
            part, pick = canvas.rows(rows), torch.from_numpy(rows)
            bad, flat = found.severity[rows, INDEX["pleural_effusion"]], supine[rows] * 0.7
            top = canvas.column(lm[f"level.{side}"][rows])
            wall = 1.0 - part.soft(f"lung.{side}")  # 0 at the lung's middle, 1 at its wall: where the meniscus climbs
            full = (part.y - top).add(wall.clamp_(0.0, 1.0).mul_(30.0)).mul_(1.0 / 14.0).clamp_(0.0, 1.0)
            veil = canvas.column(flat * (0.10 + 0.22 * bad))
            full = torch.maximum(full.mul_(1.0 - canvas.column(flat * 0.45)), veil)
            depth[pick] = depth[pick] + full.mul_(air[side][pick]).mul_(SOLID * 0.8)
        rows = np.flatnonzero(found.where("pneumothorax")[on])
        if len(rows):
            part, pick = canvas.rows(rows), torch.from_numpy(rows)
            core = part.half(f"rest.{side}")
            left = torch.minimum(core * 2.0, air[side][pick])
            line = part.half(f"pleura.{side}").sub_(core).mul_(SOLID * 0.9)
            gone = air[side][pick] - left
            depth[pick] = depth[pick] - gone.mul_(SOFT - SOLID) + line.mul_((air[side][pick] > 0).float())
            depth[pick] = depth[pick] - vessel[pick] * ((left <= 0) & (air[side][pick] > 0))
    rows = np.flatnonzero(found.on("edema"))
    if len(rows):
        part, pick = canvas.rows(rows), torch.from_numpy(rows)
        haze = part.soft("haze.right").add_(part.soft("haze.left"))
        lungs = air["right"][pick].add(air["left"][pick])
        cloud = texture[pick].mul(0.55).add_(0.8).clamp_(0.2, 1.5)
        weight = canvas.column(0.06 + 0.13 * found.severity[rows, INDEX["edema"]])
        depth[pick] = depth[pick] + haze.clamp_(0.0, 1.0).add_(0.25).mul_(cloud).mul_(lungs).mul_(weight * SOLID)

