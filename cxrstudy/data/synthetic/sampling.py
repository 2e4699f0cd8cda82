"""Return images, labels, masks and reports of indices: `sample`, `describe`, `isolate_label`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cxrstudy.data.synthetic import render, report_text
from cxrstudy.data.synthetic.draws import Array
from cxrstudy.data.synthetic.institution import (
    BLOCK,
    POOL,
    POOLS,
    Institution,
    PatientExams,
)
from cxrstudy.data.synthetic.institution import institution as find_institution
from cxrstudy.data.synthetic.institution import patient_exams as exams_of
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS


@dataclass(frozen=True)
class Batch:
    """N images with all that is known of them.

    L labels, F findings and D devices are in the order of the vocabulary. `describe` leaves image,
    masks, tips and pixel_spacing None.
    """

    image: Tensor | None  # float32 (N, 1, size, size) in [0, 1], bone bright
    labels: Array  # float32 (N, L), the truth in {0, 1}
    reported: Array  # float32 (N, L), structured labels with their errors, NaN if not recorded
    masks: Array | None  # bool (N, D, size, size)
    report: list[str]
    report_labels: Array  # float32 (N, L): 1 present, 0 absent, 0.5 uncertain, NaN not mentioned
    patient_id: Array  # str (N,)
    study_id: Array  # str (N,)
    view: Array  # str (N,): "PA", "AP", "LATERAL"
    age: Array  # float64 (N,), years
    sex: Array  # str (N,): "F", "M"
    severity: Array  # float64 (N, F) in [0, 1], NaN if absent
    side: Array  # str (N, F): "right", "left", "bilateral", "" if absent
    malpositioned: Array  # bool (N, D), by devices.TIP_RULES; False if absent
    scanner: Array  # str (N,)
    tips: Array | None  # float64 (N, D, 2): column and row of the tip in px, NaN if absent
    pixel_spacing: Array | None  # float64 (N,), mm


def sample(
    indices: Sequence[int] | Array,
    *,
    institution: str = "study",
    size: int,
    seed: int = 0,
    device: str = "cpu",
) -> Batch:
    """Return the images of some indices of an institution.

    A sample depends on (seed, institution, index) only, to the bit, not on the other indices.

    Args:
        indices: any integers from 0.
        institution: a name as `institution.institution` reads it. The blocks of 16 indices of
            "public" are from public-0 to public-7 in turn, those of "unseen" from public-8 to
            public-15.
        size: pixels per side, 32 to 1024.
        seed: any integer.
        device: the torch device on which planes are computed and images stay. Devices other than
            the CPU may round differently (within 1e-3).

    Raises:
        ValueError: the size, an index or the name is not valid.
    """
    if not 32 <= size <= 1024:
        raise ValueError(f"size {size} is not between 32 and 1024")
    return _sample(indices, institution, size, seed, device)


def describe(indices: Sequence[int] | Array, *, institution: str = "study", seed: int = 0) -> Batch:
    """Return what `sample` returns, without rendering: image, masks and tips are None."""
    return _sample(indices, institution, None, seed)


def isolate_label(
    indices: Sequence[int] | Array,
    label: str,
    *,
    institution: str = "study",
    size: int,
    severity: float = 0.7,
) -> tuple[Tensor, Tensor, Array, Array]:
    """Render the patients of some indices as if `label` were all that they had.

    Returns:
        Images with the label and without it, float32 (N, 1, size, size) each; masks of devices,
        bool (N, D, size, size); and the extent of a finding, float32 (N, size, size). The extent is
        the absolute optical depth that the finding adds where it is. Cardiomegaly adds none, so its
        extent is the absolute difference of the two images.
    """
    with torch.no_grad():
        site = find_institution(institution)
        state, _ = render.exam_states(np.asarray(indices, dtype=np.int64), site, 0)
        found, held = state.found, state.held
        found.present[:] = held.present[:] = held.monitored[:] = False
        bare = render.render(state, site, size)[0]
        if label in FINDINGS:
            found.present[:, FINDINGS.index(label)] = True
            found.severity[:, FINDINGS.index(label)] = severity
        else:
            held.present[:, DEVICES.index(label)] = True
        image, masks, _, _ = render.render(state, site, size)
        extent = render.findings_optical_depth(state, site, size).abs()
        if label == "cardiomegaly":
            extent = (image - bare)[:, 0].abs()
        return image, bare, masks, extent.numpy()


def acquisition(
    indices: Sequence[int] | Array, *, institution: str, seed: int = 0
) -> dict[str, Array]:
    """Return what an image shows beside findings and devices, each (N,), of one institution.

    Keys are ``habitus`` (relative width of soft tissue), ``inspiration`` (mm that the domes go
    down), ``rotation`` (degrees about the long axis), ``exposure`` (relative) and ``scanner``.
    """
    site = find_institution(institution)
    who = exams_of(np.asarray(indices, dtype=np.int64), site, seed)
    return {
        "habitus": who.patient_draws.normal("habitus", 1.0, 0.12),
        "inspiration": who.exam_draws.normal("inspiration", np.where(who.ap, -7.0, 2.0), 9.0),
        "rotation": np.rad2deg(who.image_draws.normal("turn", 0.0, np.where(who.ap, 0.08, 0.045))),
        "exposure": who.image_draws.normal("exposure", 1.0, 0.13),
        "scanner": render.assign_scanners(who, site)[0],
    }


def _sample(
    indices: Sequence[int] | Array, name: str, size: int | None, seed: int, device: str = "cpu"
) -> Batch:
    """Return a batch; without images if there is no size."""
    index = np.asarray(indices, dtype=np.int64).reshape(-1)
    if index.size and index.min() < 0:
        raise ValueError("indices start at 0")
    base, *suffixes = re.split(r"-(?=[a-z])", name, maxsplit=1)
    with torch.no_grad():
        if base not in POOLS:
            return _sample_site(index, find_institution(name), size, seed, device)
        block = index // BLOCK
        number, own = block % POOL, block // POOL * BLOCK + index % BLOCK
        rows = [np.flatnonzero(number == k) for k in range(POOL)]
        first = POOLS[base]
        names = ["-".join([f"public-{first + k}", *suffixes]) for k in range(POOL)]
        sites = [find_institution(name) for name in names]
        pairs = zip(rows, sites, strict=True)
        parts = [_sample_site(own[r], site, size, seed, device) for r, site in pairs]
        return _join(parts, np.argsort(np.concatenate(rows)))


def _join(parts: list[Batch], order: Array) -> Batch:
    """Return batches as one, with its rows in an order."""
    joined: dict[str, object] = {}
    for name in Batch.__dataclass_fields__:
        values = [getattr(p, name) for p in parts]
        if name == "report":
            flat = [text for value in values for text in value]
            joined[name] = [flat[k] for k in order]
        elif values[0] is None:
            joined[name] = None
        elif name == "image":
            joined[name] = torch.cat(values)[torch.from_numpy(order).to(values[0].device)]
        else:
            joined[name] = np.concatenate(values)[order]
    return Batch(**joined)  # type: ignore[arg-type]


def _sample_site(
    index: Array, site: Institution, size: int | None, seed: int, device: str
) -> Batch:
    """Return a batch of one institution."""
    now, prior = render.exam_states(index, site, seed)
    who, found, held = now.who, now.found, now.held
    labels = np.concatenate([found.present, held.present], axis=1).astype(np.float32)
    patients = [f"{site.name}-p{k:08d}" for k in who.patient.tolist()]
    exams = [f"{p}-s{k}" for p, k in zip(patients, who.exam.tolist(), strict=True)]
    report, report_labels = report_text.write_reports(site, now, prior)
    rendered = (None,) * 4 if size is None else render.render(now, site, size, device)
    image, masks, tips, spacing = rendered
    return Batch(
        image=image, labels=labels, reported=_structured_labels(who, site, labels), masks=masks,
        report=report, report_labels=report_labels,
        patient_id=np.array(patients, dtype=str), study_id=np.array(exams, dtype=str),
        view=np.where(who.lateral, "LATERAL", np.where(who.ap, "AP", "PA")),
        age=now.age, sex=np.where(now.female, "F", "M"),
        severity=np.where(found.present, found.severity, np.nan),
        side=np.where(found.present, np.array(report_text.SIDES)[found.side], ""),
        malpositioned=held.malpositioned, scanner=render.assign_scanners(who, site)[0],
        tips=tips, pixel_spacing=spacing,
    )  # fmt: skip


def _structured_labels(who: PatientExams, site: Institution, labels: Array) -> Array:
    """Return the labels with the institution's errors, NaN where not recorded."""
    out, d = labels.copy(), who.exam_draws
    exam_blank = d.bernoulli("blank", site.exam_blank)
    for k, name in enumerate(LABELS):
        p_error = np.where(labels[:, k] > 0, site.label_miss, site.label_false)
        error = d.uniform(f"record.{name}") < p_error
        out[:, k] = np.where(error, 1.0 - labels[:, k], labels[:, k])
        out[exam_blank | d.bernoulli(f"blank.{name}", site.label_blank), k] = np.nan
    return out
