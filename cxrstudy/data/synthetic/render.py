"""`sample`: indices to images, labels, masks and reports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from cxrstudy.data.synthetic import anatomy, devices, findings, wording
from cxrstudy.data.synthetic.devices import Devices
from cxrstudy.data.synthetic.draws import Array
from cxrstudy.data.synthetic.findings import Findings
from cxrstudy.data.synthetic.institution import BLOCK, POOL, Institution, Roster, roster
from cxrstudy.data.synthetic.institution import institution as find_institution
from cxrstudy.data.synthetic.projection import POINTS, Canvas, Scene, Tensor, View, turn
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS

GROUP = 512  # rows whose parameters are drawn together
CHUNK_PIXELS = (
    64 * 64 * 64
)  # pixels drawn together: 16 rows at 64 px are half as fast as 64, for the calls' sake
GLYPHS = torch.tensor([  # "L" and "R", five dots wide and seven high
    [int(dot) for dot in glyph]
    for glyph in ("10000" * 6 + "11111", "11110" "10001" "10001" "11110" "10100" "10010" "10001")
], dtype=torch.float32)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """N images with all that is known of them; L labels, F findings and D devices in the order of the vocabulary.
    `describe` leaves image, masks, tips and pixel_spacing None."""

    image: Tensor | None  # float32 (N, 1, size, size) in [0, 1], bone bright
    labels: Array  # float32 (N, L), the truth in {0, 1}
    reported: Array  # float32 (N, L), structured labels with their errors, NaN where not recorded
    masks: Array | None  # bool (N, D, size, size)
    report: list[str]
    told: Array  # float32 (N, L), what the report was told to say: 1 present, 0 absent, 0.5 doubted, NaN not mentioned
    patient_id: Array  # str (N,)
    study_id: Array  # str (N,)
    view: Array  # str (N,): "PA", "AP", "LATERAL"
    age: Array  # float64 (N,), years
    sex: Array  # str (N,): "F", "M"
    severity: Array  # float64 (N, F) in [0, 1], NaN where absent
    side: Array  # str (N, F): "right", "left", "bilateral", "" where absent
    malpositioned: Array  # bool (N, D), as devices.RULES say; False where absent
    scanner: Array  # str (N,)
    tips: (
        Array | None
    )  # float64 (N, D, 2): column and row of the device's tip in pixels, NaN where absent
    pixel_spacing: Array | None  # float64 (N,), mm


def look(who: Roster, site: Institution, size: int) -> View:
    """How each row is imaged: distances, positioning, field. A lateral has the patient's left at the detector."""
    d = who.image_draws
    cos, sin = turn(d.normal("turn", 0.0, np.where(who.ap, 0.08, 0.045)))
    cos, sin = np.where(who.lateral, -sin, cos), np.where(who.lateral, cos, sin)
    roll = d.normal("roll", 0.0, np.where(who.ap, 0.045, 0.025))
    near = np.where(who.ap, -1.0, 1.0)  # AP: the plate lies behind the back
    source = np.where(
        who.ap, d.uniform("source", 1150.0, 1500.0), d.uniform("source", 1750.0, 1850.0)
    )
    shift_u, shift_v = d.normal("u", 0.0, np.where(who.ap, 12.0, 8.0)), d.normal("v", 0.0, 13.0)
    return View(
        cos, sin, roll, near, source, shift_u, shift_v, d.uniform("field", *site.plate) / size
    )


def pixels(points: Array, view: View, size: int) -> Array:
    """Body points (n, D, 3) as column and row of the image, (n, D, 2); whole numbers are pixel centres."""
    u, v = view.rows(POINTS).project(points[..., 0], points[..., 1], points[..., 2])
    return np.stack([u, v], axis=-1) / view.spacing[:, None, None] + (size / 2 - 0.5)


def power(base: Any) -> Any:
    """base^-8 of an array or tensor, by operations that round correctly."""
    base = base * base
    base = base * base
    return 1.0 / (base * base)


def machine(who: Roster, site: Institution) -> tuple[Array, dict[str, Array]]:
    """Each row's scanner, the exam's own: names (N,) and parameters (N,) by name."""
    both = (*site.fixed, *site.mobile)
    chosen = np.where(
        who.ap, len(site.fixed) + who.exam_draws.bits("mobile") % np.uint64(len(site.mobile)),
        who.exam_draws.bits("fixed") % np.uint64(len(site.fixed)),
    ).astype(np.int64)  # fmt: skip
    table = {
        f.name: np.array([getattr(scanner, f.name) for scanner in both])[chosen]
        for f in fields(both[0])
    }
    return table.pop("name"), table


def expose(
    depth: Tensor, canvas: Canvas, who: Roster, site: Institution, lm: dict[str, Array]
) -> Tensor:
    """Optical depth to a displayed image in [0, 1], bone bright.

    A gamma-distributed beam spectrum gives the transmission (1 + depth/8)^-8, Beer-Lambert with beam hardening; the
    display curve T0 / (T0 + T) is a sigmoid in the depth, like the tables of digital detectors.
    """
    d, size, column = who.image_draws, depth.shape[-1], canvas.column
    scanner = machine(who, site)[1]
    gain = (
        d.uniform("gain", *site.gain) * scanner["gain"] * np.where(who.lateral, 0.1, 0.125)
    )  # an eighth of it
    aim = lm["body.depth"] - 0.5 * lm["lung.depth"]  # automatic exposure: between lung and abdomen
    aimed = power(1.0 + gain * aim)
    noise = (
        d.planes("noise", size, size)
        .to(canvas.device)
        .mul_(column(scanner["noise"] * max(size / 64.0, 1.0) ** 0.5))
    )
    beam = (
        power((depth * column(gain)).add_(1.0))
        .mul_(noise.add_(1.0))
        .add_(column(aimed * scanner["scatter"]))
    )
    middle = column(aimed * d.normal("exposure", 1.0, 0.13))
    shown = middle / (beam + middle)
    low = column(scanner["dark"] + d.uniform("low", -0.02, 0.03))
    high = column(scanner["bright"] + d.uniform("high", -0.04, 0.04))
    shown = shown.sub_(low).div_(high - low).clamp_(0.0, 1.0)
    return torch.maximum(shown, marker(canvas, who, scanner["marker"]))


def marker(canvas: Canvas, who: Roster, share: Array) -> Tensor:
    """Burned-in side markers in [0, 1]: an L on the patient's left or an R on the right, in an upper corner."""
    d, half = who.image_draws, canvas.view.spacing * canvas.size / 2
    right = d.chance("marker.right", 0.4) & ~who.lateral
    dot = d.uniform("marker.dot", 1.6, 2.6)  # mm
    u = np.where(right, -1.0, 1.0) * half * d.uniform("marker.u", 0.72, 0.9)
    v = -half * d.uniform("marker.v", 0.6, 0.93)
    column = ((canvas.u - canvas.column(u)) / canvas.column(dot)).floor().long()
    row = ((canvas.v - canvas.column(v)) / canvas.column(dot)).floor().long()
    on = ((column >= 0) & (column < 5)) & ((row >= 0) & (row < 7))
    place = (row.clamp(0, 6) * 5 + column.clamp(0, 4)).view(len(right), -1)
    lit = (
        GLYPHS.to(canvas.device)[canvas.put(right.astype(np.int64))].gather(1, place).view(on.shape)
        * on
    )
    return lit.mul_(canvas.column(d.chance("marker", share) * d.uniform("marker.light", 0.75, 1.0)))


def sample(
    indices: Sequence[int] | Array,
    *,
    institution: str = "study",
    size: int,
    seed: int = 0,
    device: str = "cpu",
) -> Batch:
    """The images of some indices (any integers from 0) of an institution, `size` pixels to the side.

    A sample depends on (seed, institution, index) alone, to the bit, whatever is asked for beside it. "public" is the
    pool: its blocks of 16 indices go round public-0 to public-7. Words after a name change one factor of it (see
    `institution`). Planes are computed, and images left, on the torch `device`; other devices may round differently
    (within 1e-3).
    """
    if not 32 <= size <= 1024:
        raise ValueError(f"size {size} is not in 32..1024")
    return _draw(np.asarray(indices, dtype=np.int64).reshape(-1), institution, size, seed, device)


def describe(indices: Sequence[int] | Array, *, institution: str = "study", seed: int = 0) -> Batch:
    """What `sample` tells of some indices, without rendering."""
    return _draw(np.asarray(indices, dtype=np.int64).reshape(-1), institution, None, seed)


def alone(
    indices: Sequence[int] | Array,
    label: str,
    *,
    institution: str = "study",
    size: int,
    severity: float = 0.7,
) -> tuple[Tensor, Tensor, Array]:
    """The x-rays of some indices as if `label` were all that their patients had: images with it and without, (N, 1,
    size, size) each, and masks (N, D, size, size). For looking at, and for tests of what a finding adds."""
    with torch.no_grad():
        site = find_institution(institution)
        case, _ = _case(np.asarray(indices, dtype=np.int64), site, 0)
        case.found.present[:] = case.held.present[:] = case.held.monitored[:] = False
        bare = _render(case, site, size)[0]
        if label in FINDINGS:
            case.found.present[:, FINDINGS.index(label)] = True
            case.found.severity[:, FINDINGS.index(label)] = severity
        else:
            case.held.present[:, DEVICES.index(label)] = True
        image, masks, _, _ = _render(case, site, size)
        return image, bare, masks


def _draw(index: Array, name: str, size: int | None, seed: int, device: str = "cpu") -> Batch:
    """`sample`, or `describe` where there is no size."""
    if index.size and index.min() < 0:
        raise ValueError("indices start at 0")
    stem, *words = re.split(r"-(?=[a-z])", name, maxsplit=1)
    with torch.no_grad():
        if stem != "public":
            return _one(index, find_institution(name), size, seed, device)
        block = index // BLOCK
        number, own = block % POOL, block // POOL * BLOCK + index % BLOCK
        rows = [np.flatnonzero(number == k) for k in range(POOL)]
        sites = [find_institution("-".join([f"public-{k}", *words])) for k in range(POOL)]
        parts = [
            _one(own[r], site, size, seed, device) for site, r in zip(sites, rows, strict=True)
        ]
        return _join(parts, np.argsort(np.concatenate(rows)))


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
            joined[name] = torch.cat(values)[torch.from_numpy(back).to(values[0].device)]
        else:
            joined[name] = np.concatenate(values)[back]
    return Batch(**joined)  # type: ignore[arg-type]


@dataclass
class Case:
    """All that is drawn of some rows before anything is rendered."""

    who: Roster
    female: Array
    age: Array
    found: Findings
    held: Devices


def _case(index: Array, site: Institution, seed: int) -> tuple[Case, Case]:
    """Some indices' exams, and the exams before them (the same where an exam is the patient's first)."""
    who = roster(index, site, seed)
    female = who.patient_draws.chance("female", site.female)
    start = np.clip(who.patient_draws.normal("age", *site.age), 18.0, 95.0)
    cases = []
    for exam, number in (
        (who.exam_draws, who.exam),
        (who.prior_draws, np.maximum(who.exam - 1, 0)),
    ):
        age = start + 0.1 * number
        found = findings.draw(who.patient_draws, exam, site, who.acuity, age, number)
        cases.append(
            Case(
                who,
                female,
                age,
                found,
                devices.draw(who.patient_draws, exam, site, who.acuity, age, found),
            )
        )
    return cases[0], cases[1]


def _one(index: Array, site: Institution, size: int | None, seed: int, device: str) -> Batch:
    """`_draw` for one institution."""
    now, before = _case(index, site, seed)
    who, found, held = now.who, now.found, now.held
    labels = np.concatenate([found.present, held.present], axis=1).astype(np.float32)
    patients = [f"{site.name}-p{k:08d}" for k in who.number.tolist()]
    exams = [f"{p}-s{k}" for p, k in zip(patients, who.exam.tolist(), strict=True)]
    report, told = wording.write(
        who.exam_draws, site, (found, held), (before.found, before.held), who.exam > 0
    )
    image, masks, tips, spacing = (None,) * 4 if size is None else _render(now, site, size, device)
    return Batch(
        image=image, labels=labels, reported=_record(who, site, labels), masks=masks, report=report, told=told,
        patient_id=np.array(patients, dtype=str), study_id=np.array(exams, dtype=str), age=now.age,
        view=np.where(who.lateral, "LATERAL", np.where(who.ap, "AP", "PA")), sex=np.where(now.female, "F", "M"),
        severity=np.where(found.present, found.severity, np.nan), malpositioned=held.malpositioned,
        side=np.where(found.present, np.array(wording.SIDES)[found.side], ""), scanner=machine(who, site)[0],
        tips=tips, pixel_spacing=spacing,
    )  # fmt: skip


def prepare(
    case: Case, site: Institution, size: int
) -> tuple[Scene, dict[str, Array], View, Array]:
    """The ill bodies of some rows as they are imaged: scene, landmarks, view, broken ribs."""
    who, d = case.who, case.who.patient_draws
    scene, lm = anatomy.build(d, who.exam_draws, case.female, case.age, who.ap, who.lateral)
    findings.deform(case.found, scene, lm, who.exam_draws)
    findings.opacities(case.found, scene, lm, d)
    return scene, lm, look(who, site, size), findings.breaks(case.found, d, scene, lm)


Piece = tuple[slice, Tensor, Tensor, Array, Array]


def _pieces(case: Case, site: Institution, size: int, device: str) -> Iterator[Piece]:
    """Images and masks on the device, tips in pixels and pixel spacing, with the rows they are of. Parameters are drawn
    for many rows at once, planes for a chunk."""
    chunk = max(1, CHUNK_PIXELS // (size * size))
    for first in range(0, len(case.age), GROUP):
        rows = slice(first, first + GROUP)
        part = Case(
            case.who.rows(rows),
            case.female[rows],
            case.age[rows],
            case.found.rows(rows),
            case.held.rows(rows),
        )
        who, found, held, patient = part.who, part.found, part.held, part.who.patient_draws
        scene, lm, view, broken = prepare(part, site, size)
        thick = 1.0 + 0.35 * found.on("edema") + 0.12 * patient.normal("vessels")
        tree = anatomy.branches(patient.child("tree"), scene, view, thick, size)
        wires, ends = devices.lay(
            held, who.exam_draws, scene, lm, found, view, size, site.device_contrast
        )
        tips = pixels(ends, view, size)
        whole = Canvas.of(scene, view, size, device)
        for low in range(0, len(part.age), chunk):
            few = slice(low, low + chunk)
            here, canvas, ill = who.rows(few), whole.rows(few), found.rows(few)
            marks = {k: v[few] for k, v in lm.items()}
            depth, air, texture, vessel = anatomy.healthy(
                canvas,
                here.patient_draws,
                here.image_draws,
                marks,
                tuple(t[few] for t in tree),
                broken[few],
            )
            findings.paint(depth, canvas, air, marks, ill, here.ap, texture, vessel)
            depth.clamp_(min=0.0)
            masks = devices.render(depth, canvas, held.rows(few), wires.between(low, low + chunk))
            image = expose(depth, canvas, here, site, marks)
            yield (
                slice(first + low, first + low + len(depth)),
                image,
                masks,
                tips[few],
                view.spacing[few],
            )


def _render(
    case: Case, site: Institution, size: int, device: str = "cpu"
) -> tuple[Tensor, Array, Array, Array]:
    """All that `_pieces` gives, joined: images stay on the device."""
    n = len(case.age)
    image = torch.empty((n, 1, size, size), device=device)
    masks, tips, spacing = (
        np.empty((n, len(DEVICES), size, size), dtype=bool),
        np.empty((n, len(DEVICES), 2)),
        np.empty(n),
    )
    for put, planes, shown, ends, mm in _pieces(case, site, size, device):
        image[put, 0], masks[put], tips[put], spacing[put] = planes, shown.cpu().numpy(), ends, mm
    return image, masks, tips, spacing


def _record(who: Roster, site: Institution, labels: Array) -> Array:
    """Structured labels: the truth with the institution's errors, NaN where not recorded."""
    out, d = labels.copy(), who.exam_draws
    lost = d.chance("blank", site.exam_blank)
    for k, name in enumerate(LABELS):
        error = d.uniform(f"record.{name}") < np.where(
            labels[:, k] > 0, site.label_miss, site.label_false
        )
        out[:, k] = np.where(error, 1.0 - labels[:, k], labels[:, k])
        out[lost | d.chance(f"blank.{name}", site.label_blank), k] = np.nan
    return out
