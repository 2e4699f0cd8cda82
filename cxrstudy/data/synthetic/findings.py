"""Draw findings with severity and side, and add them to the body and to its optical depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cxrstudy.data.synthetic.anatomy import BONE, SIDES, SOFT, SOFT_MINUS_LUNG, rib_height
from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.projection import ALL, PerRow, Projector, Scene, Window
from cxrstudy.data.vocabulary import FINDINGS

if TYPE_CHECKING:
    from cxrstudy.data.synthetic.institution import Institution

RIGHT, LEFT, BOTH = 0, 1, 2
MAX_FRACTURES = 4  # of neighbouring ribs
SOLIDS = (  # finding, shape, path relative to an ellipsoid's, share of the contrast of soft tissue
    ("consolidation", "consolidation", 1.5, 0.8),
    ("nodule_mass", "nodule_mass", 1.0, 1.8),
    ("atelectasis", "plate", 1.0, 0.7),
)
TWO_SIDED = {  # share of patients in whom a finding is bilateral
    "cardiomegaly": 1.0, "edema": 1.0, "pleural_effusion": 0.4, "atelectasis": 0.3,
    "consolidation": 0.15,
}  # fmt: skip
PERSISTENCE = {"cardiomegaly": 0.95, "nodule_mass": 0.97, "fracture": 0.95}  # else 0.8
INDEX = {name: k for k, name in enumerate(FINDINGS)}


@dataclass
class Findings(PerRow):
    """Findings per row, (N, 8) in the order of FINDINGS."""

    present: Array
    severity: Array  # in [0, 1]
    side: Array  # RIGHT, LEFT or BOTH
    failure: Array  # (N,) heart failure, the cause of cardiomegaly, edema and effusion

    def on(self, name: str) -> Array:
        """Return 1 where the finding is present, else 0; float64 (N,)."""
        return self.present[:, INDEX[name]].astype(np.float64)

    def by_side(self, name: str) -> tuple[Array, Array]:
        """Return 1 where the finding is on the right, and 1 where on the left; float64 (N,)."""
        side = self.side[:, INDEX[name]]
        return self.on(name) * (side != LEFT), self.on(name) * (side != RIGHT)


def persistent_draw(patient: Draws, exam: Draws, name: str, persistence: float = 0.8) -> Array:
    """Return a uniform draw (N,) that is the patient's with probability `persistence`.

    Otherwise it is the exam's. States that are drawn so last over several exams.
    """
    kept = exam.bernoulli(f"keep.{name}", persistence)
    return np.where(kept, patient.uniform(name), exam.uniform(name))


def draw_findings(
    patient: Draws, exam: Draws, site: Institution, acuity: Array, age: Array, number: Array
) -> Findings:
    """Return the findings of each row's exam.

    Args:
        patient: the patient's random stream.
        exam: the exam's random stream.
        site: the institution with its rates.
        acuity: (N,), 0 ambulatory, 1 ward, 2 intensive care.
        age: (N,), years.
        number: (N,), number of the exam, from 0.
    """
    old = np.clip((age - 20.0) / 60.0, 0.0, 1.2)
    p = {name: np.asarray(values)[acuity] for name, values in site.finding_rates.items()}
    p_failure = p.pop("heart_failure") * (0.3 + old)
    failure = persistent_draw(patient, exam, "failure", 0.9) < p_failure
    p["cardiomegaly"] = np.where(failure, 0.75, p["cardiomegaly"] * (0.5 + old))
    p["edema"] = np.where(failure, 0.22 + 0.17 * acuity, p["edema"])
    u = {k: persistent_draw(patient, exam, k, PERSISTENCE.get(k, 0.8)) for k in FINDINGS}
    has = {name: u[name] < p[name] for name in FINDINGS}
    more = {  # both from the effusions drawn above
        "pleural_effusion": 0.25 * failure + 0.15 * has["edema"],
        "atelectasis": 0.15 * has["pleural_effusion"],
    }
    has |= {name: u[name] < p[name] + extra for name, extra in more.items()}
    severity, side = [], []
    for name in FINDINGS:
        trend = patient.normal(f"{name}.trend", 0.0, 0.10) * number
        change = trend + exam.normal(f"{name}.drift", 0.0, 0.10)
        severity.append(np.clip(patient.uniform(f"{name}.severity") + change, 0.0, 1.0))
        one = patient.bernoulli(f"{name}.side", 0.5).astype(np.int64)
        both = patient.bernoulli(f"{name}.both", TWO_SIDED.get(name, 0.0))
        side.append(np.where(both, BOTH, one))
    present = np.stack([has[name] for name in FINDINGS], axis=1)
    return Findings(present, np.stack(severity, axis=1), np.stack(side, axis=1), failure)


def deform_body(found: Findings, scene: Scene, lm: dict[str, Array], exam: Draws) -> None:
    """Change the body's shapes: a larger heart, a raised dome, a shifted mediastinum."""
    grow = 1.0 + found.on("cardiomegaly") * (0.05 + 0.22 * found.severity[:, INDEX["cardiomegaly"]])
    for name in ("heart", "atrium"):
        shape = scene.shapes[name].copy()
        shape[:, 3:6] *= grow[:, None]
        shape[:, 0] += 10.0 * (grow - 1.0) * 4.0 * (name == "heart")
        scene.shapes[name] = shape
    shift = np.zeros(scene.n_rows)
    losses, gases = found.by_side("atelectasis"), found.by_side("pneumothorax")
    for (sign, side), loss, gas in zip(SIDES, losses, gases, strict=True):
        dome = scene.shapes[f"dome.{side}"].copy()
        dome[:, 1] -= loss * (5.0 + 14.0 * found.severity[:, INDEX["atelectasis"]])
        scene.shapes[f"dome.{side}"] = dome
        shift += sign * (4.0 * loss - 8.0 * gas * found.severity[:, INDEX["pneumothorax"]])
    lm["shift"] = shift + exam.normal("lean", 0.0, 3.0)
    for name in ("heart", "atrium", "mediastinum", "trachea", "arch"):
        scene.shapes[name] = scene.shapes[name] + lm["shift"][:, None] * np.eye(7)[0]


def place_fractures(found: Findings, patient: Draws, scene: Scene, lm: dict[str, Array]) -> Array:
    """Add the blood and callus about each fracture to the scene.

    Returns:
        float64 (N, 4) for `anatomy.rib_optical_depth`: side, first rib, count, step in mm.
    """
    side = np.where(found.side[:, INDEX["fracture"]] == RIGHT, -1.0, 1.0)
    count = 2.0 + np.floor(2.99 * found.severity[:, INDEX["fracture"]])
    step = found.on("fracture") * patient.uniform("fracture.step", 9.0, 13.0)
    first = np.floor(patient.uniform("fracture.rib", 4.0, 7.0))
    for k in range(MAX_FRACTURES):
        there = found.on("fracture") * (k < count)
        x, z = side * patient.uniform(f"fracture.x{k}", 56.0, 74.0), -60.0 * lm["depth"]
        y = rib_height(first + k, z, lm)
        radius = 0.01 + there * patient.uniform(f"fracture.size{k}", 6.0, 9.0)
        scene.add(f"break{k}", (x, y, z), (radius, radius * 0.8, radius))
    return np.stack([side, first, count, step], axis=1)


def place_findings(found: Findings, scene: Scene, lm: dict[str, Array], patient: Draws) -> None:
    """Add the shapes of the findings to the scene: assumed sizes in mm, radii near 0 if absent."""
    for on, (s, side) in enumerate(SIDES):
        d, lung = patient.child(f"opacity.{side}"), scene.shapes[f"lung.{side}"]
        for name, low, high in (("consolidation", 20.0, 42.0), ("nodule_mass", 10.0, 23.0)):
            there = found.by_side(name)[on]
            # Outwards from the lung's middle
            x = lung[:, 0] + s * d.uniform(f"{name}.x", -0.3, 0.6) * lung[:, 3]
            y = lung[:, 1] + d.uniform(f"{name}.y", -0.72, 0.12) * lung[:, 4]
            z = lung[:, 2] + d.uniform(f"{name}.z", -0.5, 0.5) * lung[:, 5]
            r = 0.01 + there * (low + (high - low) * found.severity[:, INDEX[name]]) * lm["scale"]
            flat = 1.0 if name == "nodule_mass" else d.uniform("flat", 0.65, 1.0)
            tilt = d.normal(f"{name}.tilt", 0.0, 0.5)
            scene.add(f"{name}.{side}", (x, y, z), (r, r * flat, r), tilt)
        there = found.by_side("atelectasis")[on]
        top = scene.shapes[f"dome.{side}"][:, 1] - 110.0
        x = lung[:, 0] + s * d.uniform("plate.x", -19.0, 16.0)
        z = lung[:, 2] + d.uniform("plate.z", -33.0, 25.0)
        long = 0.01 + there * d.uniform("plate.long", 26.0, 44.0)
        thick = 0.01 + there * (3.0 + 4.0 * found.severity[:, INDEX["atelectasis"]])
        centre = (x, top - d.uniform("plate.y", -8.0, 22.0), z)
        scene.add(f"plate.{side}", centre, (long, thick, long), d.normal("plate.tilt", 0.0, 0.35))
        lm[f"level.{side}"] = top + 20.0 - 45.0 * found.severity[:, INDEX["pleural_effusion"]]
        # mm between the chest wall and the collapsed lung
        gap = 14.0 + 34.0 * found.severity[:, INDEX["pneumothorax"]]
        collapsed = lung.copy()
        collapsed[:, 0] -= s * gap * 0.5
        collapsed[:, 1] += gap * 0.75
        for axis, share in ((3, 0.5), (4, 0.5), (5, 0.3)):
            collapsed[:, axis] -= gap * share
        scene.shapes[f"collapsed.{side}"] = collapsed
        scene.shapes[f"pleura.{side}"] = collapsed + np.array([0, 0, 0, 2.2, 2.2, 2.2, 0])
        x, y, z = scene.shapes[f"hilum.{side}"][:, :3].T
        haze = 0.01 + found.on("edema")
        scene.add(f"haze.{side}", (x, y + 12.0, z), (62 * haze, 82 * haze, 60 * haze))


@dataclass
class FindingPainter:
    """Adds the optical depth of findings to `depth`, float32 (n, size, size), in place.

    Each finding is computed for the rows that have it only.
    """

    depth: Tensor
    projector: Projector
    air: dict[str, Tensor]  # mm of pleural cavity, by side
    lm: dict[str, Array]
    found: Findings
    supine: Array
    texture: Tensor
    vessels: Tensor  # optical depth

    def paint(self) -> None:
        """Add all findings. The order is fixed, since sums of floats depend on it."""
        for on, side in enumerate(("right", "left")):
            for name, shape, fuller, strength in SOLIDS:
                rows = np.flatnonzero(self.found.by_side(name)[on])
                if len(rows):
                    self._solid(rows, name, f"{shape}.{side}", side, fuller, strength)
            rows = np.flatnonzero(self.found.by_side("pleural_effusion")[on])
            if len(rows):
                self._effusion(rows, side)
            rows = np.flatnonzero(self.found.by_side("pneumothorax")[on])
            if len(rows):
                self._pneumothorax(rows, side)
        rows = np.flatnonzero(self.found.on("fracture"))
        if len(rows):
            part = self.projector.rows(rows)
            for k in range(MAX_FRACTURES):
                chord, window = part.half_chord(f"break{k}")
                self._add(rows, window, chord.mul_(2.2 * BONE))
        rows = np.flatnonzero(self.found.on("edema"))
        if len(rows):
            self._edema(rows)

    def _add(self, rows: Array, window: Window, plane: Tensor) -> None:
        """Add a plane in a window to some rows of the optical depth."""
        pick = self.projector.to_device(rows)
        part = self.depth[pick]
        part[window] += plane
        self.depth[pick] = part

    def _solid(
        self, rows: Array, name: str, shape: str, side: str, fuller: float, strength: float
    ) -> None:
        """Replace lung by soft tissue within a shape."""
        pick = self.projector.to_device(rows)
        chord, window = self.projector.rows(rows).half_chord(shape)
        chord = torch.minimum(chord.mul_(2.0 * fuller), self.air[side][pick][window])
        if name == "consolidation":
            chord.mul_(self.texture[pick][window].mul(0.5).add_(0.75).clamp_(0.2, 1.0))
        self._add(rows, window, chord.mul_(strength * SOFT_MINUS_LUNG))

    def _effusion(self, rows: Array, side: str) -> None:
        """Add fluid: a meniscus that climbs at the wall if upright, a veil if supine."""
        part, pick = self.projector.rows(rows), self.projector.to_device(rows)
        severity = self.found.severity[rows, INDEX["pleural_effusion"]]
        flat = self.supine[rows] * 0.7
        top = part.per_image(self.lm[f"level.{side}"][rows])
        lung, window = part.blob(f"lung.{side}")
        wall = (1.0 - lung).clamp_(0.0, 1.0)  # 0 at the lung's middle, 1 at its wall
        full = (part.y[:, window[1]] - top).add(wall.mul_(30.0)).mul_(1.0 / 14.0).clamp_(0.0, 1.0)
        veil = part.per_image(flat * (0.10 + 0.22 * severity))
        full = torch.maximum(full.mul_(1.0 - part.per_image(flat * 0.45)), veil)
        self._add(rows, window, full.mul_(self.air[side][pick][window]).mul_(SOFT_MINUS_LUNG * 0.8))

    def _pneumothorax(self, rows: Array, side: str) -> None:
        """Replace lung by air outside the collapsed lung, and draw the visceral pleura."""
        part, pick = self.projector.rows(rows), self.projector.to_device(rows)
        window = part.window(f"lung.{side}")
        cavity = self.air[side][pick][window]
        core = part.half_chord(f"collapsed.{side}", window)[0]
        lung = torch.minimum(core * 2.0, cavity)
        line = part.half_chord(f"pleura.{side}", window)[0].sub_(core).mul_(SOFT_MINUS_LUNG * 0.9)
        bare = self.vessels[pick][window] * (lung <= 0.0)  # no vessels beyond the lung's edge
        change = (line - bare).mul_(cavity > 0.0).sub_((cavity - lung).mul_(SOFT - SOFT_MINUS_LUNG))
        self._add(rows, window, change)

    def _edema(self, rows: Array) -> None:
        """Add haze around both hila."""
        part, pick = self.projector.rows(rows), self.projector.to_device(rows)
        haze = part.blob("haze.right", ALL)[0].add_(part.blob("haze.left", ALL)[0])
        lungs = self.air["right"][pick].add(self.air["left"][pick])
        cloud = self.texture[pick].mul(0.55).add_(0.8).clamp_(0.2, 1.5)
        severity = self.found.severity[rows, INDEX["edema"]]
        weight = part.per_image(0.055 + 0.115 * severity)
        haze = haze.clamp_(0.0, 1.0).add_(0.25).mul_(cloud).mul_(lungs)
        self._add(rows, ALL, haze.mul_(weight * SOFT_MINUS_LUNG))
