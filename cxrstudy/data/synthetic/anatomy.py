"""Build a healthy 3-D patient of ellipsoids, shells and curves, and compute its optical depth.

Optical depth is the line integral of attenuation along the beam (no unit). Radii and positions are
plausible adult values: assumed, and adjusted by eye against frontal x-rays. Attenuation is that of
water near 70 keV (0.019/mm, NIST XCOM); lung has a quarter of it. `projection` defines the axes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cxrstudy.data.synthetic import projection
from cxrstudy.data.synthetic.draws import Array, Draws
from cxrstudy.data.synthetic.projection import ALL, POINTS, Geometry, Projector, Scene

# Attenuation per mm of soft tissue and of lung, and what bone adds to soft tissue
SOFT, LUNG, BONE = 0.019, 0.005, 0.030
SOFT_MINUS_LUNG = SOFT - LUNG  # what an opacity adds where it replaces lung
VESSELS = 8  # per lung
RIB_GAP, RIB_TILT = 23.0, 0.42  # mm between ribs; their slope down to the front
RIBS_ABOVE_APEX = 1.8
SIDES = ((-1.0, "right"), (1.0, "left"))
BONES = (  # optical depth per mm of half chord
    ("clavicle.{}", 0.06), ("collar.{}", 0.06), ("scapula.{}", 0.030), ("humerus.{}", 0.012),
    ("shaft.{}", 0.03), ("sternum", 0.02),
)  # fmt: skip
TRUNK = ("trapezius", "shoulder", "axilla", "arm")
SILHOUETTES = (  # soft tissue that shows against a lung: shape, lung, share of the contrast
    ("arch", "left", 0.8), ("hilum.right", "right", 0.8), ("hilum.left", "left", 0.8),
    ("atrium", "right", 0.8), ("aorta", "left", 0.6),
)  # fmt: skip


def build_body(
    patient: Draws, exam: Draws, female: Array, age: Array, supine: Array, lateral: Array
) -> tuple[Scene, dict[str, Array]]:
    """Return the scene of each row's healthy body, and its landmarks.

    Landmarks are float64 (N,), mostly in mm. Devices, findings and rendering use them.
    """
    normal = patient.normal
    scale = normal("height", np.where(female, 0.94, 1.02), 0.05)
    habitus = normal("habitus", 1.0, 0.12)
    breath = exam.normal("inspiration", np.where(supine, -7.0, 2.0), 9.0)  # mm the domes go down
    wide = scale * normal("chest.width", 1.0, 0.05)
    depth = scale * normal("chest.depth", 1.0, 0.06) * (0.85 + 0.15 * habitus)
    dome = normal("chest.length", 74.0, 9.0) * scale + breath  # top of the right dome
    rise = normal("dome.left", 11.0, 6.0)
    body = wide * (0.7 + 0.3 * habitus)
    bust = np.where(female, patient.uniform("bust", 0.2, 1.3), 0.4 * (habitus > 1.05)) + 0.01
    lm = {
        "scale": scale, "wide": wide, "depth": depth, "dome": dome, "dome.left": dome + rise,
        "top": -128.0 * scale, "carina": -38.0 * scale, "bust": bust,
        "body.depth": SOFT * np.where(lateral, 330.0 * body, 216.0 * depth * habitus),
        "lung.depth": SOFT_MINUS_LUNG * np.where(lateral, 230.0 * wide, 150.0 * depth),
    }  # fmt: skip
    scene = Scene({}, len(patient.key))
    scene.add("torso", (0, 130, -5), (170 * body, 395 * scale, 108 * depth * habitus))
    scene.add("neck", (0, -205, -15), (62 * scale, 120, 62 * scale))
    _add_paired(scene, lm, exam, habitus, rise, supine, lateral)
    _add_midline(scene, lm, patient, age, rise)
    return scene, lm


def _add_paired(
    scene: Scene, lm: dict[str, Array], exam: Draws, habitus: Array, rise: Array, supine: Array,
    lateral: Array,
) -> None:  # fmt: skip
    """Add the shapes that exist on both sides."""
    scale, wide, depth, dome, bust = (lm[k] for k in ("scale", "wide", "depth", "dome", "bust"))
    up = np.where(lateral, -130.0, 0.0)  # the arms are raised for a lateral view
    arm_y = np.where(lateral, -330.0, 62.0)  # beside the chest, or raised
    away = exam.normal("arms", np.where(supine, -2.0, 12.0), 8.0)  # mm from the trunk
    shrug, sway = exam.normal("shrug", -0.2, 0.06), exam.normal("bust.x", 0, 5)
    sag = exam.normal("bust.y", 0, 9)
    for s, side in SIDES:
        x = s * wide
        lift = x * 74 * (shrug + 0.2)  # an S-shaped clavicle: its inner half rises more
        scapula_x = x * np.where(supine, 120, 142)
        clavicle_y, collar_y = -107 * scale - 0.3 * s * lift, -117 * scale + s * lift
        arm_x, shaft_x = s * (206 * wide + away), s * (204 * wide + away)
        shoulder = (84, 60 * habitus, 66 * habitus)
        for name, centre, radii, tilt in (
            ("trapezius", (x * 66, -140 * scale, -30), (112 * wide, 36 * habitus, 48), s * 0.3),
            ("shoulder", (x * 156, -92 * scale + up, -15), shoulder, s * 0.5),
            ("axilla", (x * 138, -8 * scale + 0.5 * up, -15), (50, 120, 62 * habitus), s * 0.12),
            ("arm", (arm_x, arm_y, -12), (44 * habitus, 168, 46 * habitus), s * -0.08),
            ("shaft", (shaft_x, arm_y, -12), (11, 150, 11), s * -0.08),
            ("lung", (x * 72, 25 * scale, -8), (64 * wide, 153 * scale, 82 * depth), 0.0),
            ("scapula", (scapula_x, -62, -75), (22, 62, 5), s * -0.28),
            ("clavicle", (x * 44, clavicle_y, 50), (46 * wide, 6.5, 6), s * (shrug - 0.08)),
            ("collar", (x * 112, collar_y, 28), (46 * wide, 6, 6), s * (shrug + 0.24)),
            ("humerus", (x * 181, -88 * scale + up, -10), (23, 27, 23), s * -0.2),
            ("hilum", (x * 43 - s, -8 - 8 * s, -8), (15, 24, 16), s * 0.35),
            ("dome", (x * 76, dome + rise * (s > 0) + 110, 8), (78 * wide, 110, 90 * depth), 0.0),
            ("breast", (s * (80 + sway), 62 + sag + 15 * bust, 85), (66, 60, 30 * bust), s * 0.3),
        ):  # fmt: skip
            scene.add(f"{name}.{side}", centre, radii, tilt)


def _add_midline(
    scene: Scene, lm: dict[str, Array], patient: Draws, age: Array, rise: Array
) -> None:
    """Add the shapes that exist once."""
    add, normal = scene.add, patient.normal
    scale, wide, depth, dome = (lm[k] for k in ("scale", "wide", "depth", "dome"))
    heart, tall = normal("heart.size", 1.0, 0.085) * scale, normal("heart.shape", 1.0, 0.06)
    level = 42 * scale + 0.6 * (dome - 74)  # the heart rests on the domes
    heart_radii = (48 * heart / tall, 66 * heart, 50 * heart)
    add("heart", (20 * scale, level, 28), heart_radii, normal("axis", -0.75, 0.12))
    add("atrium", (-14 * scale, level - 4, 15), (32 * heart / tall, 48 * heart, 38 * heart), -0.1)
    add("mediastinum", (0, -40, 5), (24 * scale * normal("mediastinum", 1.05, 0.12), 165, 62))
    knob = normal("knob", 15.0, 2.5) + 0.10 * (age - 50)
    add("arch", (20 * scale, -58 * scale, -12), (np.maximum(knob, 8.0) * scale, 19, 24))
    add("aorta", (14 * scale, 20, -42), (14 * scale, 95, 14), normal("tortuous", 0.02, 0.05))
    spine_radii = (17 * scale, 330, 17 * scale)
    add("spine", (0, 30, -62 * depth), spine_radii, normal("scoliosis", 0.0, 0.025))
    add("sternum", (0, -25 * scale, 88 * depth), (16, 80 * scale, 5))
    add("trachea", (-1.5, -118 * scale, 0), (9 * scale, 82 * scale, 9))
    gas = patient.uniform("bubble")
    add("bubble", (58 * wide, dome + rise + 28, 10), (10 + 18 * gas, 6 + 12 * gas, 10 + 16 * gas))
    add("cage", (0, 10, -8), (135 * wide, 152 * scale, 92 * depth))


def shared_length(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Return the length in mm that two intervals along the beam have in common."""
    return torch.minimum(a[1], b[1]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0.0)


def pleural_paths(projector: Projector) -> dict[str, Tensor]:
    """Return the path length in mm through each pleural cavity, float32 (n, size, size).

    The cavity is the lung's ellipsoid without the dome, the heart and the mediastinum.
    """
    air = {}
    for _, side in SIDES:
        window = projector.window(f"lung.{side}")
        whole = projector.interval(f"lung.{side}", window)
        length = whole[1] - whole[0]
        for name in ("heart", "mediastinum", f"dome.{side}"):
            length.sub_(shared_length(whole, projector.interval(name, window)))
        shape = (len(projector.coefficients), projector.size, projector.size)
        air[side] = torch.zeros(shape, device=projector.device)
        air[side][window] = length.clamp_(min=0.0)
    return air


def vessel_tree(
    draws: Draws, scene: Scene, geometry: Geometry, thick: Array, size: int
) -> tuple[Array, Array, Array]:
    """Return the vessels from both hila outwards: image mm u, v and radii in mm, each (N, P)."""
    points = 16 if size <= 64 else 24 + size // 4
    control = []
    for _, side in SIDES:
        hilum, lung = scene.shapes[f"hilum.{side}"], scene.shapes[f"lung.{side}"]
        for k in range(VESSELS):
            d = draws.child(f"{side}{k}")
            fan = (k + d.uniform("fan")) / VESSELS * 2.0 - 1.0  # from the apex to the base
            reach = d.uniform("reach", 0.55, 0.95)
            out = np.sqrt(np.maximum(1.0 - fan * fan, 0.05)) * np.sign(lung[:, 0])
            x = lung[:, 0] * 0.8 + out * lung[:, 3] * reach * 0.9
            y, z = lung[:, 1] + fan * lung[:, 4] * reach, lung[:, 2] + d.uniform("z", -50, 50)
            end = np.stack([x, y, z], axis=1)
            bend = np.stack([d.uniform(axis, -14.0, 14.0) for axis in "xyz"], axis=1)
            control.append(np.stack([hilum[:, :3], 0.5 * (hilum[:, :3] + end) + bend, end], axis=1))
    curves = np.stack(control, axis=1)
    n, m = curves.shape[:2]
    path = projection.catmull_rom(curves.reshape(n * m, 3, 3), points).reshape(n, m * points, 3)
    u, v = geometry.rows(POINTS).project(path[..., 0], path[..., 1], path[..., 2])
    taper = np.tile(4.2 - 3.0 * np.arange(points) / (points - 1), m)
    return u, v, taper[None] * thick[:, None]


def vessel_coverage(projector: Projector, u: Array, v: Array, radius: Array) -> Tensor:
    """Return the share of each pixel that vessels cover, in [0, 1]."""
    blur = projector.per_image(-1.0 / np.maximum(projector.geometry.spacing, 1.5))
    reach = 5.5 + 0.5 * max(projection.MIN_FIELD / projector.size, 1.5)
    return projector.distance(u, v, radius, reach).mul(blur).add_(0.5).clamp_(0.0, 1.0)


def rib_height(rib: Array, z: Array, lm: dict[str, Array]) -> Array:
    """Return y in mm of the middle of a rib, numbered from 0 at the top, at depth z in mm."""
    return RIB_GAP * lm["scale"] * (rib + 0.5 - RIBS_ABOVE_APEX) + lm["top"] + RIB_TILT * z


def rib_optical_depth(projector: Projector, lm: dict[str, Array], fractures: Array) -> Tensor:
    """Return the optical depth of the ribs.

    Ribs are where a family of planes that slope down to the front meets the shell of the chest.
    `fractures` float64 (N, 4): side (-1, 1), first rib, number of ribs, and the step of the outer
    fragment in mm (0: no fracture).
    """
    g, f32 = projector.geometry, projector.per_image
    near, far = projector.interval("cage", ALL)
    path = (far - near).mul_(1.0 / 180.0)
    cos, sin = f32(g.cos), f32(g.sin)
    gap = RIB_GAP * lm["scale"]
    roll_cos, roll_sin = projection.cos_sin(g.roll)
    tilt, down = f32(RIB_TILT / gap), projector.y * f32(roll_cos / gap)
    start = f32(lm["top"] / gap - RIBS_ABOVE_APEX)
    total = torch.zeros_like(path)
    broken = np.flatnonzero(fractures[:, 3] != 0.0)
    pick = projector.to_device(broken)
    for w in (near, far):
        z, x = w * cos - projector.x * sin, projector.x * cos + w * sin
        phase = (down - start) - z * tilt - x * f32(roll_sin / gap)  # its integer part: the rib
        if len(broken):
            side, first, count, step = (f32(fractures[broken, k]) for k in range(4))
            rib, away = phase[pick].floor(), x[pick] * side
            outer = (away > 60.0) & (away < 105.0) & (z[pick] < 25.0)
            outer = outer & (rib >= first) & (rib < first + count)
            phase[pick] = phase[pick] + outer * (step / f32(gap)[pick])
        edge = phase.sub_(phase.floor()).sub_(0.5).abs_()
        band = edge.neg_().add_(0.27).mul_(6.0).clamp_(0.0, 1.0)
        bony = z.mul(-0.008).add_(0.85).clamp_(0.55, 1.0)  # ribs are flatter in front
        bony.mul_(z.neg_().add_(62.0).mul_(0.05).clamp_(0.0, 1.0))  # cartilage is hardly visible
        total.add_(band.mul_(bony))
    thin = path.neg_().add_(1.4).clamp_(0.35, 1.0)  # the wall is seen edge-on at the sides
    # The lowest ribs end at the sides
    shown = (f32(lm["dome"] + 85.0) - projector.y).mul_(0.02).clamp_(0.0, 1.0)
    inside = (far - near).clamp_(0.0, 30.0).mul_(1.0 / 30.0)
    return total.mul_(thin).mul_(shown).mul_(0.34).mul_(inside)


def healthy_optical_depth(
    projector: Projector, patient: Draws, image: Draws, lm: dict[str, Array],
    tree: tuple[Array, ...], fractures: Array,
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
    """Return what the beam meets in the body, without findings and devices.

    Returns:
        The optical depth, the path in mm through each pleural cavity, a smooth texture and the
        optical depth of the vessels; all float32 (n, size, size).
    """
    air = pleural_paths(projector)
    body = projector.half_chord("torso", ALL)[0]
    for name in ("neck", *(f"{part}.{side}" for _, side in SIDES for part in TRUNK)):
        part, window = projector.half_chord(name)
        body[window] = torch.maximum(body[window], part)
    for name in ("breast.right", "breast.left"):
        part, window = projector.blob(name)
        body[window] += part.mul_(projector.per_image(17.0 * lm["bust"]))
    depth = body.mul_(2.0 * SOFT)
    both = air["right"] + air["left"]
    texture = projector.smooth_noise(image, "texture", 12)
    grain = projector.smooth_noise(image, "grain", 28)
    vessels = vessel_coverage(projector, *tree).mul_((both * 0.02).clamp_(0.0, 1.0)).mul_(0.20)
    # Density of the healthy lung, of the patient and of the image
    density = 1.0 - 0.05 * patient.normal("density") - 0.05 * image.normal("density")
    depth.add_(vessels).sub_(both * projector.per_image(SOFT_MINUS_LUNG * density))
    depth.add_((texture * 0.6 + grain).mul_(both).mul_(0.0013))
    depth.add_(projector.smooth_noise(image, "tissue", 7).mul_(0.14))
    for name, side, share in SILHOUETTES:
        part, window = projector.half_chord(name)
        length = torch.minimum(part.mul_(2.0), air[side][window])
        depth[window] += length.mul_(SOFT_MINUS_LUNG * share)
    spine, window = projector.half_chord("spine")
    # Discs between the vertebrae, 27 mm apart
    gap = (projector.y[:, window[1]] - projector.per_image(lm["dome"])).mul_(1.0 / 27.0)
    gap = (gap - gap.floor()).sub_(0.5).abs_().mul_(-5.0).add_(1.2).clamp_(0.0, 1.0)
    depth[window] += spine.mul_(2.0 * BONE * 0.55).mul_(1.0 - gap * 0.25)
    for name, strength in BONES:
        for side in ("right", "left") if "{" in name else ("",):
            part, window = projector.half_chord(name.format(side))
            depth[window] += part.clamp_(max=8.0 if name[0] == "c" else 16.0).mul_(strength)
    for name in ("trachea", "bubble"):
        part, window = projector.half_chord(name)
        depth[window] -= part.mul_(2.0 * SOFT)
    return depth.add_(rib_optical_depth(projector, lm, fractures)), air, texture, vessels
