"""A healthy 3-D patient of ellipsoids, shells and curves, and what a beam meets in it.

Radii and places are plausible adult values (assumed, set by eye against frontal x-rays); attenuation is that of water
near 70 keV (0.019/mm, NIST XCOM), lung a quarter of it. For the frame see `projection`.
"""

from __future__ import annotations

import numpy as np
import torch

from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.projection import (
    ALL,
    FIELD_LEAST,
    POINTS,
    Canvas,
    Scene,
    Tensor,
    View,
    curve,
    turn,
)

SOFT, LUNG, BONE = (
    0.019,
    0.005,
    0.030,
)  # attenuation per mm: soft tissue, lung, what bone adds to soft tissue
SOLID = SOFT - LUNG  # what a solid opacity adds where it replaces lung
BRANCHES = 8  # vessels a lung
RIB_GAP, RIB_TILT, RIB_FIRST = (
    23.0,
    0.42,
    1.8,
)  # mm between ribs; slope down to the front; ribs above the apex
SIDES = ((-1.0, "right"), (1.0, "left"))
BONES = (  # optical depth a mm of half chord
    ("clavicle.{}", 0.06), ("collar.{}", 0.06), ("scapula.{}", 0.030), ("humerus.{}", 0.012), ("shaft.{}", 0.03),
    ("sternum", 0.02),
)  # fmt: skip
TRUNK = ("trapezius", "shoulder", "axilla", "arm")
SHADOWS = (  # soft tissue that shows against a lung: shape, lung, share of the contrast
    ("arch", "left", 0.8), ("hilum.right", "right", 0.8), ("hilum.left", "left", 0.8), ("atrium", "right", 0.8),
    ("aorta", "left", 0.6),
)  # fmt: skip


def build(
    patient: Draws, exam: Draws, female: Array, age: Array, supine: Array, lateral: Array
) -> tuple[Scene, dict[str, Array]]:
    """The healthy body of each row: its scene, and landmarks (N,) that devices, findings and rendering use."""
    scene = Scene({}, len(patient.key))
    add, normal = scene.add, patient.normal
    scale = normal("height", np.where(female, 0.94, 1.02), 0.05)
    habitus = normal("habitus", 1.0, 0.12)
    breath = exam.normal("inspiration", np.where(supine, -7.0, 2.0), 9.0)  # mm the domes go down
    wide = scale * normal("chest.width", 1.0, 0.05)
    depth = scale * normal("chest.depth", 1.0, 0.06) * (0.85 + 0.15 * habitus)
    low = normal("chest.length", 74.0, 9.0) * scale + breath  # the right dome's top
    rise = normal("dome.left", 11.0, 6.0)
    body = wide * (0.7 + 0.3 * habitus)
    add("torso", (0, 130, -5), (170 * body, 395 * scale, 108 * depth * habitus))
    add("neck", (0, -205, -15), (62 * scale, 120, 62 * scale))
    bust = np.where(female, patient.uniform("bust", 0.2, 1.3), 0.4 * (habitus > 1.05)) + 0.01
    up = np.where(lateral, -130.0, 0.0)  # the arms are raised for a lateral view
    away = exam.normal("arms", np.where(supine, -2.0, 12.0), 8.0)  # mm from the trunk
    shrug, sway, sag = (
        exam.normal("shrug", -0.2, 0.06),
        exam.normal("bust.x", 0, 5),
        exam.normal("bust.y", 0, 9),
    )
    for s, name in SIDES:
        x = s * wide
        add(
            f"trapezius.{name}",
            (x * 66, -140 * scale, -30),
            (112 * wide, 36 * habitus, 48),
            s * 0.3,
        )
        add(
            f"shoulder.{name}",
            (x * 156, -92 * scale + up, -15),
            (84, 60 * habitus, 66 * habitus),
            s * 0.5,
        )
        add(
            f"axilla.{name}",
            (x * 138, -8 * scale + 0.5 * up, -15),
            (50, 120, 62 * habitus),
            s * 0.12,
        )
        hang = np.where(lateral, -330.0, 62.0)  # beside the chest, or raised
        add(
            f"arm.{name}",
            (s * (206 * wide + away), hang, -12),
            (44 * habitus, 168, 46 * habitus),
            s * -0.08,
        )
        add(f"shaft.{name}", (s * (204 * wide + away), hang, -12), (11, 150, 11), s * -0.08)
        add(f"lung.{name}", (x * 72, 25 * scale, -8), (64 * wide, 153 * scale, 82 * depth))
        add(f"scapula.{name}", (x * np.where(supine, 120, 142), -62, -75), (22, 62, 5), s * -0.28)
        lift = x * 74 * (shrug + 0.2)  # an S: the inner half rises more than the outer
        add(
            f"clavicle.{name}",
            (x * 44, -107 * scale - 0.3 * s * lift, 50),
            (46 * wide, 6.5, 6),
            s * (shrug - 0.08),
        )
        add(
            f"collar.{name}",
            (x * 112, -117 * scale + s * lift, 28),
            (46 * wide, 6, 6),
            s * (shrug + 0.24),
        )
        add(f"humerus.{name}", (x * 181, -88 * scale + up, -10), (23, 27, 23), s * -0.2)
        add(f"hilum.{name}", (x * 43 - s, -8 - 8 * s, -8), (15, 24, 16), s * 0.35)
        add(f"dome.{name}", (x * 76, low + rise * (s > 0) + 110, 8), (78 * wide, 110, 90 * depth))
        add(
            f"breast.{name}",
            (s * (80 + sway), 62 + sag + 15 * bust, 85),
            (66, 60, 30 * bust),
            s * 0.3,
        )
    heart, tall = normal("heart.size", 1.0, 0.085) * scale, normal("heart.shape", 1.0, 0.06)
    level = 42 * scale + 0.6 * (low - 74)  # the heart rests on the domes
    add(
        "heart",
        (20 * scale, level, 28),
        (48 * heart / tall, 66 * heart, 50 * heart),
        normal("axis", -0.75, 0.12),
    )
    add("atrium", (-14 * scale, level - 4, 15), (32 * heart / tall, 48 * heart, 38 * heart), -0.1)
    add("mediastinum", (0, -40, 5), (24 * scale * normal("mediastinum", 1.05, 0.12), 165, 62))
    knob = normal("knob", 15.0, 2.5) + 0.10 * (age - 50)
    add("arch", (20 * scale, -58 * scale, -12), (np.maximum(knob, 8.0) * scale, 19, 24))
    add("aorta", (14 * scale, 20, -42), (14 * scale, 95, 14), normal("tortuous", 0.02, 0.05))
    add(
        "spine",
        (0, 30, -62 * depth),
        (17 * scale, 330, 17 * scale),
        normal("scoliosis", 0.0, 0.025),
    )
    add("sternum", (0, -25 * scale, 88 * depth), (16, 80 * scale, 5))
    add("trachea", (-1.5, -118 * scale, 0), (9 * scale, 82 * scale, 9))
    gas = patient.uniform("bubble")
    add("bubble", (58 * wide, low + rise + 28, 10), (10 + 18 * gas, 6 + 12 * gas, 10 + 16 * gas))
    add("cage", (0, 10, -8), (135 * wide, 152 * scale, 92 * depth))
    return scene, {
        "scale": scale, "wide": wide, "depth": depth, "dome": low, "dome.left": low + rise,
        "top": -128.0 * scale, "carina": -38.0 * scale,
        "bust": bust, "body.depth": SOFT * np.where(lateral, 330.0 * body, 216.0 * depth * habitus),
        "lung.depth": SOLID * np.where(lateral, 230.0 * wide, 150.0 * depth),
    }  # fmt: skip


def overlap(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Length in mm that two spans along the beam share."""
    return torch.minimum(a[1], b[1]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0.0)


def lungs(canvas: Canvas) -> dict[str, Tensor]:
    """Millimetres of pleural cavity along the beam, a side: the lung's ellipsoid less dome, heart and mediastinum."""
    air = {}
    for side in ("right", "left"):
        window = canvas.window(f"lung.{side}")
        whole = canvas.span(f"lung.{side}", window)
        length = whole[1] - whole[0]
        for name in ("heart", "mediastinum", f"dome.{side}"):
            length.sub_(overlap(whole, canvas.span(name, window)))
        air[side] = torch.zeros(len(canvas.numbers), canvas.size, canvas.size, device=canvas.device)
        air[side][window] = length.clamp_(min=0.0)
    return air


def branches(
    draws: Draws, scene: Scene, view: View, thick: Array, size: int
) -> tuple[Array, Array, Array]:
    """The lung's vessels, from both hila to the wall: image mm u, v and radii, each (N, P)."""
    points = 16 if size <= 64 else 24 + size // 4
    ends = []
    for name in ("right", "left"):
        hilum, lung = scene.shapes[f"hilum.{name}"], scene.shapes[f"lung.{name}"]
        for k in range(BRANCHES):
            d = draws.child(f"{name}{k}")
            fan = (k + d.uniform("fan")) / BRANCHES * 2.0 - 1.0  # from the apex to the base
            reach = d.uniform("reach", 0.55, 0.95)
            out = np.sqrt(np.maximum(1.0 - fan * fan, 0.05)) * np.sign(lung[:, 0])
            x = lung[:, 0] * 0.8 + out * lung[:, 3] * reach * 0.9
            end = np.stack(
                [x, lung[:, 1] + fan * lung[:, 4] * reach, lung[:, 2] + d.uniform("z", -50, 50)],
                axis=1,
            )
            bend = np.stack([d.uniform(axis, -14.0, 14.0) for axis in "xyz"], axis=1)
            ends.append(np.stack([hilum[:, :3], 0.5 * (hilum[:, :3] + end) + bend, end], axis=1))
    control = np.stack(ends, axis=1)
    n, m = control.shape[:2]
    path = curve(control.reshape(n * m, 3, 3), points).reshape(n, m * points, 3)
    u, v = view.rows(POINTS).project(path[..., 0], path[..., 1], path[..., 2])
    taper = np.tile(4.2 - 3.0 * np.arange(points) / (points - 1), m)
    return u, v, taper[None] * thick[:, None]


def vessels(canvas: Canvas, u: Array, v: Array, radius: Array) -> Tensor:
    """How much of each pixel vessels cover, in [0, 1]."""
    blur = canvas.column(-1.0 / np.maximum(canvas.view.spacing, 1.5))
    far = canvas.distance(u, v, radius, 5.5 + 0.5 * max(FIELD_LEAST / canvas.size, 1.5))
    return far.mul(blur).add_(0.5).clamp_(0.0, 1.0)


def rib_height(rib: Array, z: Array, lm: dict[str, Array]) -> Array:
    """Where the middle of a rib (numbered from 0 at the top) lies at depth z: y in mm."""
    return RIB_GAP * lm["scale"] * (rib + 0.5 - RIB_FIRST) + lm["top"] + RIB_TILT * z


def cage(canvas: Canvas, lm: dict[str, Array], broken: Array) -> Tensor:
    """Optical depth of the ribs: where a family of planes that slope down to the front meets the chest's shell.

    `broken` float64 (N, 4): side (-1, 1), first rib, number of ribs, step in mm of the outer fragment (0: none).
    """
    view, f32 = canvas.view, canvas.column
    near, far = canvas.span("cage", ALL)
    path = (far - near).mul_(1.0 / 180.0)
    cos, sin = f32(view.cos), f32(view.sin)
    gap = RIB_GAP * lm["scale"]
    lean_cos, lean_sin = turn(view.roll)
    tilt, down, start = (
        f32(RIB_TILT / gap),
        canvas.y * f32(lean_cos / gap),
        f32(lm["top"] / gap - RIB_FIRST),
    )
    total = torch.zeros_like(path)
    hurt = np.flatnonzero(broken[:, 3] != 0.0)
    pick = canvas.put(hurt)
    for w in (near, far):
        z, x = w * cos - canvas.x * sin, canvas.x * cos + w * sin
        phase = (down - start) - z * tilt - x * f32(lean_sin / gap)
        if len(hurt):
            side, first, count, step = (f32(broken[hurt, k]) for k in range(4))
            rib, away = phase[pick].floor(), x[pick] * side
            outer = (
                (away > 60.0)
                & (away < 105.0)
                & (z[pick] < 25.0)
                & (rib >= first)
                & (rib < first + count)
            )
            phase[pick] = phase[pick] + outer * (step / f32(gap)[pick])
        edge = phase.sub_(phase.floor()).sub_(0.5).abs_()
        band = edge.neg_().add_(0.27).mul_(6.0).clamp_(0.0, 1.0)
        bony = z.mul(-0.008).add_(0.85).clamp_(0.55, 1.0)  # in front, ribs are flatter
        bony.mul_(z.neg_().add_(62.0).mul_(0.05).clamp_(0.0, 1.0))  # and cartilage hardly shows
        total.add_(band.mul_(bony))
    thin = path.neg_().add_(1.4).clamp_(0.35, 1.0)  # the wall is seen edge-on at the sides
    shown = (
        (f32(lm["dome"] + 85.0) - canvas.y).mul_(0.02).clamp_(0.0, 1.0)
    )  # the lowest ribs end at the sides
    return (
        total.mul_(thin)
        .mul_(shown)
        .mul_(0.34)
        .mul_((far - near).clamp_(0.0, 30.0).mul_(1.0 / 30.0))
    )


def healthy(
    canvas: Canvas,
    patient: Draws,
    image: Draws,
    lm: dict[str, Array],
    tree: tuple[Array, ...],
    broken: Array,
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """What the beam meets in the body, findings and devices apart: optical depth, mm of pleural cavity a side, a
    smooth texture, and the optical depth of the vessels; planes are float32 (n, size, size)."""
    air = lungs(canvas)
    body = canvas.half("torso", ALL)[0]
    for name in ("neck", *(f"{part}.{side}" for _, side in SIDES for part in TRUNK)):
        part, window = canvas.half(name)
        body[window] = torch.maximum(body[window], part)
    for name in ("breast.right", "breast.left"):
        part, window = canvas.soft(name)
        body[window] += part.mul_(canvas.column(17.0 * lm["bust"]))
    depth = body.mul_(2.0 * SOFT)
    both = air["right"] + air["left"]
    texture, grain = canvas.texture(image, "texture", 12), canvas.texture(image, "grain", 28)
    vessel = vessels(canvas, *tree).mul_((both * 0.02).clamp_(0.0, 1.0)).mul_(0.20)
    dense = (
        1.0 - 0.05 * patient.normal("density") - 0.05 * image.normal("density")
    )  # of the healthy lung
    depth.add_(vessel).sub_(both * canvas.column(SOLID * dense))
    depth.add_((texture * 0.6 + grain).mul_(both).mul_(0.0013)).add_(
        canvas.texture(image, "tissue", 7).mul_(0.14)
    )
    for name, side, share in SHADOWS:
        part, window = canvas.half(name)
        depth[window] += torch.minimum(part.mul_(2.0), air[side][window]).mul_(SOLID * share)
    spine, window = canvas.half("spine")
    gap = (canvas.y[:, window[1]] - canvas.column(lm["dome"])).mul_(
        1.0 / 27.0
    )  # discs between vertebrae
    gap = (gap - gap.floor()).sub_(0.5).abs_().mul_(-5.0).add_(1.2).clamp_(0.0, 1.0)
    depth[window] += spine.mul_(2.0 * BONE * 0.55).mul_(1.0 - gap * 0.25)
    for name, strength in BONES:
        for side in ("right", "left") if "{" in name else ("",):
            part, window = canvas.half(name.format(side))
            depth[window] += part.clamp_(max=8.0 if name[0] == "c" else 16.0).mul_(strength)
    for name in ("trachea", "bubble"):
        part, window = canvas.half(name)
        depth[window] -= part.mul_(2.0 * SOFT)
    return depth.add_(cage(canvas, lm, broken)), air, texture, vessel
