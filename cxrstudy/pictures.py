"""Show x-rays: of a prepared data set, of the synthetic institution, and of results on images."""

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxrstudy.data import synthetic
from cxrstudy.data.images import Prepared, read_image
from cxrstudy.data.synthetic.summary import image_caption, present_labels
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, phrase
from cxrstudy.shown import Shown, show

SIZE = 256  # px of synthetic images that are rendered to look at
EXTENT_LEVEL = 0.3  # the outline of a finding, as a share of its greatest optical depth
PALETTE = sns.color_palette("colorblind")
WITHHELD = Shown(
    "<p>The terms of this data set do not allow its images to be shown here.</p>", "no images shown"
)


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with at least `count` axes that show nothing yet; sizes in inches."""
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    return figure, list(panels.flat)


def _xray(axes: Axes, image: np.ndarray, caption: str = "", font: float = 7.5) -> None:
    """Draw an x-ray: uint8, or float in [0, 1]."""
    top = 255 if image.dtype == np.uint8 else 1
    axes.imshow(image, cmap="gray", vmin=0, vmax=top, interpolation="bicubic")
    axes.set_title(textwrap.fill(caption, 36), fontsize=font)


def images(
    pictures: np.ndarray,
    captions: list[str],
    *,
    masks: np.ndarray | None = None,
    extents: np.ndarray | None = None,
    title: str = "",
    columns: int = 4,
) -> Shown:
    """Return a figure of x-rays (N, H, W).

    Args:
        pictures: uint8, or float in [0, 1].
        captions: one per x-ray; an empty one leaves its place empty.
        masks: bool (N, D, H, W), drawn in colour in the order of DEVICES, with a legend.
        extents: float (N, H, W), outlined at EXTENT_LEVEL of the maximum.
        title: what the figure shows.
        columns: x-rays per row.
    """
    figure, panels = _grid(len(pictures), columns, 2.3, 2.9)
    drawn: set[int] = set()
    for k, caption in enumerate(captions):
        if not caption:
            continue
        _xray(panels[k], pictures[k], caption, 6.5)
        if extents is not None and extents[k].max() > 0.02:
            level = EXTENT_LEVEL * extents[k].max()
            panels[k].contour(extents[k], levels=[level], colors=[PALETTE[1]], linewidths=0.9)
        for d, mask in enumerate(masks[k] if masks is not None else ()):
            if mask.any():
                drawn.add(d)
                overlay = np.zeros((*mask.shape, 4))
                overlay[mask] = (*PALETTE[d], 0.65)
                panels[k].imshow(overlay, interpolation="nearest")
    if drawn:
        lines = [
            plt.Line2D([], [], color=PALETTE[d], lw=3, label=phrase(DEVICES[d]))
            for d in sorted(drawn)
        ]
        place = (0.5, -0.03 - 0.02 * (len(lines) > 4))
        style = {"ncols": 4, "fontsize": 8, "frameon": False, "bbox_to_anchor": place}
        figure.legend(handles=lines, loc="lower center", **style)
    figure.suptitle(title)
    figure.tight_layout()
    said = [caption for caption in captions if caption]
    return show(figure, f"{title} {len(said)} x-rays: {'; '.join(said)}.", raster=True)


def gallery(prepared: Prepared, *, count: int = 8, size: int = SIZE) -> Shown:
    """Return some x-rays of a data set with their recorded labels.

    They range from no label to the most labels. Synthetic x-rays are rendered at `size` px with
    their devices marked. Real ones are shown as prepared, or not at all if their terms forbid it.
    """
    if not prepared.info["show_images"]:
        return WITHHELD
    labels = [column for column in prepared.manifest if column.startswith("label:")]
    order = np.argsort(prepared.manifest[labels].sum(axis=1).to_numpy(), kind="stable")
    chosen = prepared.manifest.iloc[order[np.linspace(0, len(order) - 1, count).astype(int)]]
    captions = []
    for _, row in chosen.iterrows():
        names = [phrase(column[6:]) for column in labels if row[column] == 1]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        said = ", ".join(names[:4]) or "no label recorded"
        captions.append(f"{row.get('view', '')}: {said}{more}")
    title, masks = f"{prepared.info['institution']} ({prepared.info['kind']}).", None
    if prepared.info["generator"]:
        parts = chosen["path"].str.split(":", expand=True)  # synthetic:INSTITUTION:SEED:INDEX
        institution, seed = parts.iloc[0, 1], int(parts.iloc[0, 2])
        index = parts[3].astype(int).to_numpy()
        batch = synthetic.sample(index, institution=institution, size=size, seed=seed)
        pictures, masks = _pixels(batch), np.asarray(batch.masks)
    else:
        pictures = prepared.images[chosen.index.to_numpy()]
    return images(pictures, captions, masks=masks, title=title)


def _pixels(batch: synthetic.Batch) -> np.ndarray:
    """Return a batch's images as float (N, H, W)."""
    return np.asarray(batch.image)[:, 0]


def isolated(labels: tuple[str, ...], *, exam: int = 0, title: str = "") -> Shown:
    """Return each label alone in one patient, PA above lateral, with its extent or mask.

    The patient is that of lateral image number `exam` of the study's institution; the image
    before a lateral is the PA of the same exam.
    """
    lateral = np.flatnonzero(synthetic.describe(range(400)).view == "LATERAL")[exam]
    pictures, captions, masks, extents = [], [], [], []
    for start in range(0, len(labels), 4):
        row = labels[start : start + 4]
        made = [synthetic.isolate_label([lateral - 1, lateral], n, size=SIZE) for n in row]
        for view, word in enumerate(("PA", "lateral")):
            for name, (image, _, mask, extent) in zip(row, made, strict=True):
                pictures.append(np.asarray(image)[view, 0])
                captions.append(f"{phrase(name)}, {word}")
                masks.append(mask[view])
                extents.append(extent[view])
            for _ in range(len(row), 4):  # the rest of an incomplete row stays empty
                pictures.append(pictures[-1])
                captions.append("")
                masks.append(masks[-1])
                extents.append(extents[-1])
    drawn = np.stack(masks), np.stack(extents)
    return images(np.stack(pictures), captions, masks=drawn[0], extents=drawn[1], title=title)


def over_time() -> Shown:
    """Return two patients with four exams, those whose labels change most."""
    described = synthetic.describe(range(2000))
    frontal = pd.Series(described.patient_id)[described.view != "LATERAL"]
    long = frontal.groupby(frontal).filter(lambda exams: len(exams) == 4)
    change = {
        p: np.ptp(described.labels[rows.index], axis=0).sum() for p, rows in long.groupby(long)
    }
    chosen = sorted(change, key=lambda p: -change[p])[:2]
    index = np.concatenate([long[long == p].index.to_numpy() for p in chosen])
    batch = synthetic.sample(index, size=SIZE)
    captions = [f"exam {k % 4 + 1}: {present_labels(batch, k)}" for k in range(len(index))]
    title = "Two patients over time, one per row."
    return images(_pixels(batch), captions, masks=batch.masks, title=title)


def institutions() -> Shown:
    """Return frontal x-rays of four institutions, one per column."""
    pictures, captions = [], []
    for name in ("study", "public-0", "public-3", "public-6"):
        view = synthetic.describe(range(60), institution=name).view
        batch = synthetic.sample(
            np.flatnonzero(view != "LATERAL")[4:16:4], institution=name, size=SIZE
        )
        pictures.append(_pixels(batch))
        captions.append([f"{name}, {s.removeprefix(name + '-')}" for s in batch.scanner])
    by_row = np.stack(pictures, axis=1).reshape(-1, SIZE, SIZE)
    said = [caption for row in zip(*captions, strict=True) for caption in row]
    return images(by_row, said, title="Four synthetic institutions.")


def examples(indices: range = range(0, 610, 61)) -> Shown:
    """Return some images of the study's institution, those that ``examples_table`` describes."""
    batch = synthetic.sample(indices, size=SIZE)
    captions = [image_caption(batch, k, index) for k, index in enumerate(indices)]
    title = "Synthetic x-rays with their devices."
    return images(_pixels(batch), captions, masks=batch.masks, title=title, columns=5)


def faint_devices(size: int = 64) -> Shown:
    """Return four x-rays with clear devices, the same with faint ones, and with their masks."""
    described = synthetic.describe(range(400))
    number = described.labels[:, len(FINDINGS) :].sum(1)
    first = pd.Series(-number, index=described.patient_id).reset_index().drop_duplicates("index")
    rows = first.sort_values(0, kind="stable").index[:4]  # the most devices, one image a patient
    clear, faint = (
        synthetic.sample(rows, institution=name, size=size) for name in ("study", "study-faint")
    )
    pictures = np.concatenate([_pixels(clear), _pixels(faint), _pixels(clear)])
    captions = [f"{index}: {word}" for word in ("clear", "faint", "masks") for index in rows]
    masks = np.concatenate([np.zeros_like(clear.masks)] * 2 + [np.asarray(clear.masks)])
    return images(pictures, captions, masks=masks, title=f"Clear and faint devices at {size} px.")


def beside_real(prepared: Prepared) -> Shown:
    """Return real x-rays, read at SIZE px, above synthetic ones of the same views."""
    frontal = prepared.manifest[prepared.manifest["view"].isin(["PA", "AP"])]
    chosen = frontal.iloc[np.linspace(0, len(frontal) - 1, 6).astype(int)[1:5]]
    real = np.stack([read_image(path, SIZE) for path in chosen["path"]]) / 255
    views = synthetic.describe(range(400)).view
    rows = [np.flatnonzero(views == view)[7 * k] for k, view in enumerate(chosen["view"])]
    batch = synthetic.sample(rows, size=SIZE)
    captions = [f"real: {prepared.info['institution']}, {view}" for view in chosen["view"]]
    captions += [f"synthetic: {present_labels(batch, k)}" for k in range(len(rows))]
    pictures = np.concatenate([real, _pixels(batch)])
    return images(pictures, captions, title="Real x-rays above, synthetic below.")


def overlays(prepared: Prepared, cases: list[dict[str, Any]], *, title: str = "") -> Shown:
    """Return the best, median and worst test image of each device, one row per device.

    The true mask has a solid outline, the predicted one a dashed one. `cases` are those of
    ``segmentation.run``. No image is shown if the data set's terms forbid it.
    """
    if not prepared.info["show_images"]:
        return WITHHELD
    figure, panels = _grid(len(cases), 3, 2.8, 2.9)
    rows, said = len(panels) // 3, []
    lines = (("truth", PALETTE[1], "solid"), ("predicted", PALETTE[9], "dashed"))
    for axes, case in zip(panels, cases, strict=False):
        nothing = "" if case["predicted"].any() else ", nothing predicted"
        said.append(f"{phrase(case['device'])}, {case['which']}: Dice {case['dice']:.2f}{nothing}")
        _xray(axes, prepared.images[case["row"]], said[-1])
        for key, colour, style in lines:
            if case[key].any():
                axes.contour(
                    case[key], levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.1
                )
    handles = [plt.Line2D([], [], color=c, ls=style, label=key) for key, c, style in lines]
    place = (0.5, -0.25 / rows / 2.9)
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=8, bbox_to_anchor=place)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.15 / 2.9 / rows))
    alt = f"{title} True and predicted outlines of {len(cases)} x-rays: {'; '.join(said)}."
    return show(figure, alt, raster=True)


def continuity(prepared: Prepared, example: dict[str, Any], *, title: str = "") -> Shown:
    """Return one tube and, by layer, the cosine similarity of the patch at its tip to all patches.

    The first panel is the x-ray with the tube outlined and its tip marked. Colours span the range
    of each layer. `example` is that of ``continuity.continuity``. No image is shown if the data
    set's terms forbid it.
    """
    if not prepared.info["show_images"]:
        return WITHHELD
    maps, (column, row), device = example["maps"], example["tip"], phrase(example["device"])
    figure, panels = _grid(1 + len(maps), 1 + len(maps), 2.2, 2.7)
    size, said = prepared.info["size"], []
    _xray(panels[0], prepared.images[example["row"]], f"{device} and its tip")
    panels[0].contour(example["mask"], levels=[0.5], colors=[PALETTE[1]], linewidths=1.1)
    for axes, (layer, values) in zip(panels[1:], maps.items(), strict=True):
        extent = (-0.5, size - 0.5, size - 0.5, -0.5)
        axes.imshow(values, cmap="viridis", extent=extent, interpolation="nearest")
        span = f"{values.min():.2f} to {values.max():.2f}"
        said.append(f"{layer}, {len(values)} x {len(values)} patches: {span}")
        axes.set_title(said[-1].replace(": ", "\n"), fontsize=7.5)
    for axes in panels:
        axes.plot(column, row, "x", color="white", ms=9, mew=3.5)
        axes.plot(column, row, "x", color="black", ms=8, mew=1.5)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    what = f"{title} Cosine similarity of the patch at the tip of a {device} to all patches"
    return show(figure, f"{what}, by layer: {'; '.join(said)}.", raster=True)
