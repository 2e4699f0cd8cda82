"""`sample`: indices to images, labels, masks and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing import Any

import numpy as np
import torch

from cxrstudy.data.synthetic import anatomy, devices, findings, wording
from cxrstudy.data.synthetic.anatomy import ALL, BONE, SOFT, SOLID, Canvas, Tensor, View
from cxrstudy.data.synthetic.devices import Devices
from cxrstudy.data.synthetic.draws import Array
from cxrstudy.data.synthetic.findings import Findings
from cxrstudy.data.synthetic.institution import BLOCK, POOL, Institution, Roster, institution, roster
from cxrstudy.data.vocabulary import DEVICES, LABELS

SHADOWS = (  # soft tissue that shows against a lung: shape, lung, share of the contrast
    ("arch", "left", 0.8), ("hilum.right", "right", 0.8), ("hilum.left", "left", 0.8), ("atrium", "right", 0.8),
    ("aorta", "left", 0.6),
)  # fmt: skip
GROUP = 512  # rows whose parameters are drawn together
CHUNK_PIXELS = 64 * 64 * 64  # planes of 256 KB stay in the cache


@dataclass(frozen=True)
class Batch:
    """N images with all that is known of them; L labels and D devices in the order of the vocabulary."""

    image: Tensor | None  # None where only described; float32 (N, 1, size, size) in [0, 1], bone bright
    labels: Array  # float32 (N, L), the truth in {0, 1}
    reported: Array  # float32 (N, L), structured labels with their errors, NaN where not recorded
    masks: Array | None  # bool (N, D, size, size)
    report: list[str]
    patient_id: Array  # str (N,)
    study_id: Array  # str (N,)
    view: Array  # str (N,): "PA", "AP", "LATERAL"
    age: Array  # float64 (N,), years
    sex: Array  # str (N,): "F", "M"
    tips: Array | None  # float64 (N, D, 2): column and row of the device's tip in pixels, NaN where absent
    pixel_spacing: Array | None  # float64 (N,), mm


def look(who: Roster, site: Institution, size: int) -> View:
    """How each row is imaged: distances, positioning, field."""
    d = who.image_draws
    tangent = d.normal("turn", 0.0, np.where(who.ap, 0.08, 0.045))
    roll = d.normal("roll", 0.0, np.where(who.ap, 0.045, 0.025))
    cos, sin = anatomy.turn(tangent)
    near = np.where(who.ap, -1.0, 1.0)  # AP: the plate lies behind the back
    source = np.where(who.ap, d.uniform("source", 1150.0, 1500.0), d.uniform("source", 1750.0, 1850.0))
    shift_u, shift_v = d.normal("u", 0.0, np.where(who.ap, 12.0, 8.0)), d.normal("v", 0.0, 13.0)
    spacing = d.uniform("field", *site.field) / size
    return View(cos, sin, roll, near, source, shift_u, shift_v, spacing)


def pixels(points: Array, view: View, size: int) -> Array:
    """Body points (n, D, 3) as column and row of the image, (n, D, 2); whole numbers are pixel centres."""
    wide = view.rows((slice(None), None))
    u, v = wide.project(points[..., 0], points[..., 1], points[..., 2])
    return np.stack([u, v], axis=-1) / view.spacing[:, None, None] + (size / 2 - 0.5)


def optical_depth(
    canvas: Canvas, who: Roster, lm: dict[str, Array], found: Findings, tree: tuple[Array, ...], broken: Array
) -> Tensor:
    """What the beam meets, without devices: float32 (n, size, size)."""
    d = who.exam_draws
    air = anatomy.lungs(canvas)
    body = canvas.half("torso", ALL)[0]
    for name in ("neck", "trapezius", "shoulder.right", "shoulder.left"):
        part, window = canvas.half(name)
        body[window] = torch.maximum(body[window], part)
    for name in ("breast.right", "breast.left"):
        part, window = canvas.soft(name)
        body[window] += part.mul_(canvas.column(17.0 * lm["bust"]))
    depth = body.mul_(2.0 * SOFT)
    both = air["right"] + air["left"]
    texture = canvas.texture(d, "texture", 12)
    grain = canvas.texture(d, "grain", 28)
    vessel = anatomy.vessels(canvas, *tree)
    vessel.mul_((both * 0.02).clamp_(0.0, 1.0)).mul_(0.20)
    depth.add_(vessel)
    dense = 1.0 - 0.05 * who.patient_draws.normal("density") - 0.05 * d.normal("density")  # of the healthy lung
    depth.sub_(both * canvas.column(SOLID * dense)).add_((texture * 0.6 + grain).mul_(both).mul_(0.0013))
    depth.add_(canvas.texture(d, "tissue", 7).mul_(0.14))
    for name, side, share in SHADOWS:
        part, window = canvas.half(name)
        depth[window] += torch.minimum(part.mul_(2.0), air[side][window]).mul_(SOLID * share)
    spine, window = canvas.half("spine")
    gap = (canvas.y[:, window[1]] - canvas.column(lm["dome"])).mul_(1.0 / 27.0)
    gap = (gap - gap.floor()).sub_(0.5).abs_().mul_(-5.0).add_(1.2).clamp_(0.0, 1.0)
    depth[window] += spine.mul_(2.0 * BONE * 0.55).mul_(1.0 - gap * 0.25)
    for name, strength in (("clavicle", 0.07), ("scapula", 0.036), ("humerus", 0.036)):
        for side in ("right", "left"):
            part, window = canvas.half(f"{name}.{side}")
            depth[window] += part.clamp_(max=11.0).mul_(strength)
    for name in ("trachea", "bubble"):
        part, window = canvas.half(name)
        depth[window] -= part.mul_(2.0 * SOFT)
    depth.add_(anatomy.cage(canvas, lm, broken))
    findings.paint(depth, canvas, air, lm, found, who.ap, texture, vessel)
    return depth.clamp_(min=0.0)


def power(base: Any) -> Any:
    """base^-8 of an array or tensor, by operations that round correctly."""
    base = base * base
    base = base * base
    return 1.0 / (base * base)


def expose(depth: Tensor, who: Roster, site: Institution, lm: dict[str, Array]) -> Tensor:
    """Optical depth to a displayed image in [0, 1], bone bright.

    A gamma-distributed beam spectrum gives the transmission (1 + depth/8)^-8, Beer-Lambert with beam hardening; the
    display curve T0 / (T0 + T) is a sigmoid in the depth, like the tables of digital detectors.
    """
    d, size = who.image_draws, depth.shape[-1]
    column = Canvas.column
    gain = d.uniform("gain", *site.gain) / 8.0
    beam = power((depth * column(gain)).add_(1.0))
    noise = d.planes("noise", size, size).mul_(site.noise * max(size / 64.0, 1.0) ** 0.5)
    beam = beam.add_(0.002).mul_(noise.add_(1.0))
    aim = lm["body.depth"] - 0.5 * lm["lung.depth"]  # automatic exposure: between lung and abdomen
    middle = column(power(1.0 + gain * aim) * d.normal("exposure", 1.0, 0.13))
    shown = middle / (beam + middle)
    low, high = column(d.uniform("low", 0.08, 0.14)), column(d.uniform("high", 0.76, 0.84))
    return shown.sub_(low).div_(high - low).clamp_(0.0, 1.0)


def sample(indices: Sequence[int] | Array, *, institution: str = "study", size: int, seed: int = 0) -> Batch:
    """The images of some indices (any integers from 0) of an institution, `size` pixels to the side.

    A sample depends on (seed, institution, index) alone, to the bit, whatever is asked for beside it. "public" is the
    pool: its blocks of 16 indices go round public-0 to public-7.
    """
    index = np.asarray(indices, dtype=np.int64).reshape(-1)
    if not 32 <= size <= 1024:
        raise ValueError(f"size {size} is not in 32..1024")
    return _draw(index, institution, size, seed)


def describe(indices: Sequence[int] | Array, *, institution: str = "study", seed: int = 0) -> Batch:
    """What `sample` tells of some indices, without rendering: image, masks, tips and pixel_spacing are None."""
    return _draw(np.asarray(indices, dtype=np.int64).reshape(-1), institution, None, seed)


def _draw(index: Array, institution: str, size: int | None, seed: int) -> Batch:
    """`sample`, or `describe` where there is no size."""
    if index.size and index.min() < 0:
        raise ValueError("indices start at 0")
    with torch.no_grad():
        if institution != "public":
            return _one(index, institution, size, seed)
        block = index // BLOCK
        site, own = block % POOL, block // POOL * BLOCK + index % BLOCK
        order, parts = [], []
        for k in np.unique(site):
            rows = np.flatnonzero(site == k)
            order.append(rows)
            parts.append(_one(own[rows], f"public-{k}", size, seed))
        back = np.argsort(np.concatenate(order)) if order else np.zeros(0, dtype=np.int64)
        return _join(parts or [_one(index, "public-0", size, seed)], back)


def _join(parts: list[Batch], back: Array) -> Batch:
    """Batches as one, rows in the order `back`."""
    joined: dict[str, object] = {}
    for name in Batch.__dataclass_fields__:
        values = [getattr(p, name) for p in parts]
        if name == "report":
            flat = [text for value in values for text in value]
            joined[name] = [flat[k] for k in back]
        elif values[0] is None:
            joined[name] = None
        elif name == "image":
            joined[name] = torch.cat(values)[torch.from_numpy(back)]
        else:
            joined[name] = np.concatenate(values)[back]
    return Batch(**joined)  # type: ignore[arg-type]


def _one(index: Array, name: str, size: int | None, seed: int) -> Batch:
    """`_draw` for one institution."""
    site = institution(name)
    who = roster(index, site, seed)
    patient, exam = who.patient_draws, who.exam_draws
    female = patient.chance("female", site.female)
    age = np.clip(patient.normal("age", *site.age), 18.0, 95.0) + 0.1 * who.exam
    found = findings.draw(patient, exam, site, who.acuity, age)
    held = devices.draw(patient, exam, site, who.acuity, age, found)
    labels = np.concatenate([found.present, held.present], axis=1).astype(np.float32)
    patients = [f"{name}-p{k:08d}" for k in who.number.tolist()]
    exams = [f"{p}-s{k}" for p, k in zip(patients, who.exam.tolist(), strict=True)]
    image, masks, tips, spacing = None, None, None, None
    if size is not None:
        image, masks, tips, spacing = _render(who, site, size, female, age, found, held)
    return Batch(
        image=image, labels=labels, reported=_record(who, site, labels), masks=masks,
        report=wording.write(exam, site, found, held), patient_id=np.array(patients, dtype=str),
        study_id=np.array(exams, dtype=str), view=np.where(who.lateral, "LATERAL", np.where(who.ap, "AP", "PA")),
        age=age, sex=np.where(female, "F", "M"), tips=tips, pixel_spacing=spacing,
    )  # fmt: skip


def _render(
    who: Roster, site: Institution, size: int, female: Array, age: Array, found: Findings, held: Devices
) -> tuple[Tensor, Array, Array, Array]:
    """Images, masks, tips in pixels, pixel spacing. Parameters are drawn for many rows at once, planes for a chunk."""
    n = len(who.number)
    image = torch.empty((n, 1, size, size))
    masks = np.empty((n, len(DEVICES), size, size), dtype=bool)
    tips = np.full((n, len(DEVICES), 2), np.nan)
    spacing = np.empty(n)
    chunk = max(1, CHUNK_PIXELS // (size * size))
    for first in range(0, n, GROUP):
        rows = slice(first, first + GROUP)
        part, sick, worn = who.rows(rows), found.rows(rows), held.rows(rows)
        scene, lm = anatomy.build(part.patient_draws, part.exam_draws, female[rows], age[rows], part.ap)
        findings.deform(sick, scene, lm, part.exam_draws)
        findings.opacities(sick, scene, lm, part.patient_draws)
        broken = findings.breaks(sick, part.patient_draws, scene, lm)
        view = look(part, site, size)
        thick = 1.0 + 0.35 * sick.on("edema") + 0.12 * part.patient_draws.normal("vessels")
        tree = anatomy.branches(part.patient_draws.child("tree"), scene, view, thick, size)
        wires = devices.lay(worn, part.exam_draws, scene, lm, sick, view, size, site.device_contrast)
        whole = Canvas.of(scene, view, size)
        tips[rows], spacing[rows] = pixels(worn.tips, view, size), view.spacing
        for low in range(0, len(part.number), chunk):
            few = slice(low, low + chunk)
            here, canvas, ill = part.rows(few), whole.rows(few), sick.rows(few)
            marks = {k: v[few] for k, v in lm.items()}
            depth = optical_depth(canvas, here, marks, ill, tuple(t[few] for t in tree), broken[few])
            put = slice(first + low, first + low + len(depth))
            masks[put] = devices.render(depth, canvas, worn.rows(few), wires.rows(low, low + chunk)).numpy()
            image[put, 0] = expose(depth, here, site, marks)
    return image, masks, tips, spacing


def _record(who: Roster, site: Institution, labels: Array) -> Array:
    """Structured labels: the truth with the institution's errors, NaN where not recorded."""
    out, d = labels.copy(), who.exam_draws
    lost = d.chance("blank", site.exam_blank)
    for k, name in enumerate(LABELS):
        error = d.uniform(f"record.{name}") < np.where(labels[:, k] > 0, site.label_miss, site.label_false)
        out[:, k] = np.where(error, 1.0 - labels[:, k], labels[:, k])
        out[lost | d.chance(f"blank.{name}", site.label_blank), k] = np.nan
    return out


__all__ = ["Batch", "sample"]
