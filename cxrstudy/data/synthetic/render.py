"""Render exams: optical depth of the body, findings and devices, then the detector and display."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cxrstudy.data.synthetic import anatomy, devices, findings
from cxrstudy.data.synthetic.devices import Devices
from cxrstudy.data.synthetic.draws import Array
from cxrstudy.data.synthetic.findings import FindingPainter, Findings
from cxrstudy.data.synthetic.institution import Institution, PatientExams, patient_exams
from cxrstudy.data.synthetic.projection import POINTS, Geometry, PerRow, Projector, Scene, cos_sin
from cxrstudy.data.vocabulary import DEVICES

GROUP = 512  # rows whose parameters are drawn together
# Pixels rendered together. With 16 instead of 64 rows at 64 px, rendering is half as fast
CHUNK_PIXELS = 64 * 64 * 64
GLYPHS = torch.tensor([  # "L" and "R", 5 dots wide and 7 high
    [int(dot) for dot in glyph]
    for glyph in ("10000" * 6 + "11111", "11110" "10001" "10001" "11110" "10100" "10010" "10001")
], dtype=torch.float32)  # fmt: skip


@dataclass
class ExamState(PerRow):
    """All that is drawn of some exams before rendering, one entry per image."""

    who: PatientExams
    female: Array
    age: Array  # years
    found: Findings
    held: Devices


def exam_states(index: Array, site: Institution, seed: int) -> tuple[ExamState, ExamState]:
    """Return the exams of some indices, and the exams before (the same if an exam is the first)."""
    who = patient_exams(index, site, seed)
    female = who.patient_draws.bernoulli("female", site.female)
    start = np.clip(who.patient_draws.normal("age", *site.age), 18.0, 95.0)

    def state(exam: Any, number: Array) -> ExamState:
        age, patient = start + 0.1 * number, who.patient_draws
        found = findings.draw_findings(patient, exam, site, who.acuity, age, number)
        held = devices.draw_devices(patient, exam, site, who.acuity, age, found)
        return ExamState(who, female, age, found, held)

    return state(who.exam_draws, who.exam), state(who.prior_draws, np.maximum(who.exam - 1, 0))


@dataclass
class Body:
    """The bodies of some exams as they are imaged."""

    scene: Scene
    lm: dict[str, Array]  # landmarks (N,)
    geometry: Geometry
    fractures: Array  # (N, 4)


def build_patient(state: ExamState, site: Institution, size: int) -> Body:
    """Return the bodies of some exams with their findings, and the geometry of their images."""
    who, patient = state.who, state.who.patient_draws
    scene, lm = anatomy.build_body(
        patient, who.exam_draws, state.female, state.age, who.ap, who.lateral
    )
    findings.deform_body(state.found, scene, lm, who.exam_draws)
    findings.place_findings(state.found, scene, lm, patient)
    fractures = findings.place_fractures(state.found, patient, scene, lm)
    return Body(scene, lm, imaging_geometry(who, site, size), fractures)


def imaging_geometry(who: PatientExams, site: Institution, size: int) -> Geometry:
    """Return the geometry of each row's image. A lateral has the patient's left at the detector."""
    d = who.image_draws
    cos, sin = cos_sin(d.normal("turn", 0.0, np.where(who.ap, 0.08, 0.045)))
    cos, sin = np.where(who.lateral, -sin, cos), np.where(who.lateral, cos, sin)
    roll = d.normal("roll", 0.0, np.where(who.ap, 0.045, 0.025))
    detector = np.where(who.ap, -1.0, 1.0)  # AP: the detector is behind the back
    near, far = d.uniform("source", 1150.0, 1500.0), d.uniform("source", 1750.0, 1850.0)
    shift_u, shift_v = d.normal("u", 0.0, np.where(who.ap, 12.0, 8.0)), d.normal("v", 0.0, 13.0)
    spacing = d.uniform("field", *site.plate) / size
    source = np.where(who.ap, near, far)
    return Geometry(cos, sin, roll, detector, source, shift_u, shift_v, spacing)


def to_pixels(points: Array, geometry: Geometry, size: int) -> Array:
    """Return column and row (n, D, 2) of points (n, D, 3); integers are pixel centres."""
    u, v = geometry.rows(POINTS).project(points[..., 0], points[..., 1], points[..., 2])
    return np.stack([u, v], axis=-1) / geometry.spacing[:, None, None] + (size / 2 - 0.5)


def inverse_power_8(base: Any) -> Any:
    """Return base^-8 of an array or tensor, with operations that are rounded correctly."""
    base = base * base
    base = base * base
    return 1.0 / (base * base)


def assign_scanners(who: PatientExams, site: Institution) -> tuple[Array, dict[str, Array]]:
    """Return the names (N,) of each exam's scanner, and its parameters (N,) by name."""
    both, draws = (*site.fixed, *site.mobile), who.exam_draws
    mobile = len(site.fixed) + draws.bits("mobile") % np.uint64(len(site.mobile))
    fixed = draws.bits("fixed") % np.uint64(len(site.fixed))
    chosen = np.where(who.ap, mobile, fixed).astype(np.int64)
    names = [f.name for f in fields(both[0])]
    table = {name: np.array([getattr(m, name) for m in both])[chosen] for name in names}
    return table.pop("name"), table


def expose(
    depth: Tensor, projector: Projector, who: PatientExams, site: Institution, lm: dict[str, Array]
) -> Tensor:
    """Return displayed images in [0, 1], bone bright, from optical depth (n, size, size).

    A gamma-distributed beam spectrum gives the transmission T = (1 + depth/8)^-8, that is the law
    of Beer and Lambert with beam hardening. The display curve T0 / (T0 + T) is a sigmoid of the
    optical depth, like the look-up tables of digital detectors.
    """
    d, size, per_image = who.image_draws, depth.shape[-1], projector.per_image
    scanner = assign_scanners(who, site)[1]
    # Detector gain, with the eighth of the spectrum; a lateral is exposed more
    gain = d.uniform("gain", *site.gain) * scanner["gain"] * np.where(who.lateral, 0.1, 0.125)
    aim = lm["body.depth"] - 0.5 * lm["lung.depth"]  # automatic exposure: between lung and abdomen
    target = inverse_power_8(1.0 + gain * aim)
    noise_level = per_image(scanner["noise"] * max(size / 64.0, 1.0) ** 0.5)
    noise = d.white_noise("noise", size, size).to(projector.device).mul_(noise_level)
    beam = inverse_power_8((depth * per_image(gain)).add_(1.0))
    beam = beam.mul_(noise.add_(1.0)).add_(per_image(target * scanner["scatter"]))
    middle = per_image(target * d.normal("exposure", 1.0, 0.13))
    shown = middle / (beam + middle)
    low = per_image(scanner["dark"] + d.uniform("low", -0.02, 0.03))
    high = per_image(scanner["bright"] + d.uniform("high", -0.04, 0.04))
    shown = shown.sub_(low).div_(high - low).clamp_(0.0, 1.0)
    return torch.maximum(shown, side_marker(projector, who, scanner["marker"]))


def side_marker(projector: Projector, who: PatientExams, share: Array) -> Tensor:
    """Return burned-in side markers in [0, 1]: an L or an R in the upper corner of its side."""
    d, half = who.image_draws, projector.geometry.spacing * projector.size / 2
    right = d.bernoulli("marker.right", 0.4) & ~who.lateral
    dot = projector.per_image(d.uniform("marker.dot", 1.6, 2.6))  # mm
    u = np.where(right, -1.0, 1.0) * half * d.uniform("marker.u", 0.72, 0.9)
    v = -half * d.uniform("marker.v", 0.6, 0.93)
    column = ((projector.u - projector.per_image(u)) / dot).floor().long()
    row = ((projector.v - projector.per_image(v)) / dot).floor().long()
    on = ((column >= 0) & (column < 5)) & ((row >= 0) & (row < 7))
    place = (row.clamp(0, 6) * 5 + column.clamp(0, 4)).view(len(right), -1)
    glyph = GLYPHS.to(projector.device)[projector.to_device(right.astype(np.int64))]
    lit = glyph.gather(1, place).view(on.shape) * on
    light = d.bernoulli("marker", share) * d.uniform("marker.light", 0.75, 1.0)
    return lit.mul_(projector.per_image(light))


def _vessel_tree(state: ExamState, body: Body, size: int) -> tuple[Array, Array, Array]:
    """Return the vessels of each lung; edema widens them."""
    patient = state.who.patient_draws
    thick = 1.0 + 0.35 * state.found.on("edema") + 0.12 * patient.normal("vessels")
    return anatomy.vessel_tree(patient.child("tree"), body.scene, body.geometry, thick, size)


def _healthy(
    state: ExamState, lm: dict[str, Array], projector: Projector, tree: tuple[Array, ...],
    fractures: Array,
) -> FindingPainter:  # fmt: skip
    """Return the optical depth without findings and devices, ready for the findings."""
    who = state.who
    depth, air, texture, vessels = anatomy.healthy_optical_depth(
        projector, who.patient_draws, who.image_draws, lm, tree, fractures
    )
    return FindingPainter(depth, projector, air, lm, state.found, who.ap, texture, vessels)


Chunk = tuple[slice, Tensor, Tensor, Array, Array]


def render_chunks(state: ExamState, site: Institution, size: int, device: str) -> Iterator[Chunk]:
    """Yield rows, images and masks on the device, tips in pixels and pixel spacing in mm.

    Parameters are drawn for many rows at once, planes are computed for a chunk of them.
    """
    chunk = max(1, CHUNK_PIXELS // (size * size))
    for first in range(0, len(state.age), GROUP):
        part = state.rows(slice(first, first + GROUP))
        body = build_patient(part, site, size)
        tree = _vessel_tree(part, body, size)
        curves, ends = devices.place_devices(
            part.held, part.who.exam_draws, body.scene, body.lm, part.found, body.geometry, size,
            site.device_contrast,
        )  # fmt: skip
        tips = to_pixels(ends, body.geometry, size)
        whole = Projector.of(body.scene, body.geometry, size, device)
        for low in range(0, len(part.age), chunk):
            few = slice(low, low + chunk)
            here, projector = part.rows(few), whole.rows(few)
            lm = {k: v[few] for k, v in body.lm.items()}
            vessels = tuple(t[few] for t in tree)
            painter = _healthy(here, lm, projector, vessels, body.fractures[few])
            painter.paint()
            depth = painter.depth.clamp_(min=0.0)
            shown = curves.between(low, low + chunk)
            masks = devices.render_devices(depth, projector, here.held, shown)
            image = expose(depth, projector, here.who, site, lm)
            rows = slice(first + low, first + low + len(depth))
            yield rows, image, masks, tips[few], body.geometry.spacing[few]


def render(
    state: ExamState, site: Institution, size: int, device: str = "cpu"
) -> tuple[Tensor, Array, Array, Array]:
    """Return all chunks joined: images (on the device), masks, tips and pixel spacing."""
    n = len(state.age)
    image = torch.empty((n, 1, size, size), device=device)
    masks = np.empty((n, len(DEVICES), size, size), dtype=bool)
    tips, spacing = np.empty((n, len(DEVICES), 2)), np.empty(n)
    for rows, planes, shown, ends, mm in render_chunks(state, site, size, device):
        image[rows, 0], masks[rows], tips[rows] = planes, shown.cpu().numpy(), ends
        spacing[rows] = mm
    return image, masks, tips, spacing


def findings_optical_depth(state: ExamState, site: Institution, size: int) -> Tensor:
    """Return the optical depth that findings add where they are, float32 (N, size, size).

    Changes of the body's shape (a larger heart, a shifted mediastinum) are not part of it.
    """
    body = build_patient(state, site, size)
    projector = Projector.of(body.scene, body.geometry, size)
    tree = _vessel_tree(state, body, size)
    painter = _healthy(state, body.lm, projector, tree, body.fractures)
    painter = replace(painter, depth=torch.zeros_like(painter.depth))
    painter.paint()
    return painter.depth
