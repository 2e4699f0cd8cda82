"""Pictures of x-rays: of a prepared data set, and of what the synthetic institution can draw."""

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from cxrstudy.data import synthetic
from cxrstudy.data.images import Prepared, read_image
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, phrase
from cxrstudy.instrument import present
from cxrstudy.plots import Shown, show

SIZE = 256  # px, of what is drawn for looking at


def images(
    pictures: np.ndarray,
    captions: list[str],
    *,
    masks: np.ndarray | None = None,
    marks: np.ndarray | None = None,
    title: str = "",
    columns: int = 4,
) -> Shown:
    """A panel of x-rays (N,H,W); ``masks`` (N,D,H,W) are drawn over them in the order of DEVICES, with a key; ``marks``
    (N,H,W) are outlined where they reach half their highest value."""
    rows = -(-len(pictures) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(2.3 * columns, 2.9 * rows), squeeze=False)
    palette = sns.color_palette("colorblind", len(DEVICES))
    drawn: set[int] = set()
    for axes in panels.flat:
        axes.axis("off")
    for k, (axes, picture, caption) in enumerate(
        zip(panels.flat, pictures, captions, strict=False)
    ):
        axes.imshow(
            picture,
            cmap="gray",
            vmin=0,
            vmax=255 if picture.dtype == np.uint8 else 1,
            interpolation="bicubic",
        )
        axes.set_title(textwrap.fill(caption, 34), fontsize=6.5)
        if marks is not None and marks[k].max() > 0.02:
            axes.contour(
                marks[k], levels=[0.5 * marks[k].max()], colors=[palette[1]], linewidths=0.9
            )
        if masks is not None:
            for d, mask in enumerate(masks[k]):
                if mask.any():
                    drawn.add(d)
                    over = np.zeros((*mask.shape, 4))
                    over[mask] = (*palette[d], 0.65)
                    axes.imshow(over, interpolation="nearest")
    if drawn:
        handles = [
            plt.Line2D([], [], color=palette[d], lw=3, label=phrase(DEVICES[d]))
            for d in sorted(drawn)
        ]
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=4,
            fontsize=8,
            frameon=False,
            bbox_to_anchor=(0.5, -0.03 - 0.02 * (len(handles) > 4)),
        )
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    return show(figure, f"{title} {len(pictures)} x-rays: {'; '.join(captions)}.", raster=True)


def gallery(prepared: Prepared, *, count: int = 8, size: int = SIZE) -> Shown:
    """Some of a data set's x-rays with what is recorded of them: synthetic ones drawn anew at ``size`` with their
    devices marked, real ones as prepared; a word instead where the terms do not allow images to be passed on."""
    if not prepared.info["show_images"]:
        return Shown(
            "<p>The terms of this data set do not allow its images to be shown here.</p>",
            "no images shown",
        )
    labels = [column for column in prepared.manifest if column.startswith("label:")]
    interest = prepared.manifest[labels].sum(axis=1).to_numpy()
    spread = np.linspace(0, len(interest) - 1, count).astype(
        int
    )  # from nothing at all to the fullest label sets
    chosen = prepared.manifest.iloc[np.argsort(interest, kind="stable")[spread]]
    captions = []
    for _, row in chosen.iterrows():
        names = [phrase(column[6:]) for column in labels if row[column] == 1]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        captions.append(
            f"{row.get('view', '')}: {', '.join(names[:4]) or 'no label recorded'}{more}"
        )
    masks = None
    if prepared.info["generator"]:
        parts = chosen["path"].str.split(":", expand=True)
        batch = synthetic.sample(
            parts[3].astype(int).to_numpy(),
            institution=parts.iloc[0, 1],
            size=size,
            seed=int(parts.iloc[0, 2]),
        )
        pictures, masks = np.asarray(batch.image)[:, 0], np.asarray(batch.masks)
    else:
        pictures = prepared.images[chosen.index.to_numpy()]
    return images(
        pictures,
        captions,
        masks=masks,
        title=f"{prepared.info['institution']} ({prepared.info['kind']}).",
    )


def _grey(batch: synthetic.Batch) -> np.ndarray:
    """(N,H,W) pictures of a batch."""
    return np.asarray(batch.image)[:, 0]


def _pairs(count: int, institution: str = "study") -> np.ndarray:
    """Indices of the first ``count`` laterals; the frontal of the same exam is the index before."""
    views = synthetic.describe(range(400), institution=institution).view
    return np.flatnonzero(views == "LATERAL")[:count]


def findings_alone() -> Shown:
    """Every finding alone in the same patient, frontal above lateral, outlined where it changes the image."""
    lateral = _pairs(1)[0]
    views = []
    for name in FINDINGS:
        image, bare, _ = synthetic.alone([lateral - 1, lateral], name, size=SIZE)
        views.append((np.asarray(image)[:, 0], np.abs(np.asarray(image - bare)[:, 0])))
    order = [(k, view) for start in (0, 4) for view in (0, 1) for k in range(start, start + 4)]
    return images(
        np.stack([views[k][0][view] for k, view in order]),
        [f"{phrase(FINDINGS[k])}, {('PA', 'lateral')[view]}" for k, view in order],
        marks=np.stack([views[k][1][view] for k, view in order]),
        title="Findings, each alone in one synthetic patient.",
    )


def devices_alone() -> Shown:
    """Every line or tube alone, frontal above lateral, with its mask."""
    lateral = _pairs(3)[2]
    drawn = [synthetic.alone([lateral - 1, lateral], name, size=SIZE) for name in DEVICES]
    order = [
        (k, view) for part in (range(4), range(4, len(DEVICES))) for view in (0, 1) for k in part
    ]
    order.insert(-3, (0, -1))  # the eighth place of the third row stays empty
    none = np.ones((SIZE, SIZE))
    return images(
        np.stack([np.asarray(drawn[k][0])[view, 0] if view >= 0 else none for k, view in order]),
        [
            f"{phrase(DEVICES[k])}, {('PA', 'lateral')[view]}" if view >= 0 else ""
            for k, view in order
        ],
        masks=np.stack(
            [drawn[k][2][view] if view >= 0 else np.zeros_like(drawn[k][2][0]) for k, view in order]
        ),
        title="Lines and tubes, each alone in one synthetic patient.",
    )


def over_time(patients: int = 2) -> Shown:
    """Patients with four exams: devices come and go, disease takes its course."""
    told = synthetic.describe(range(2000))
    frontal = pd.Series(told.patient_id)[told.view != "LATERAL"]
    long = frontal.groupby(frontal).filter(lambda who: len(who) == 4)
    change = {p: np.ptp(told.labels[rows.index], axis=0).sum() for p, rows in long.groupby(long)}
    chosen = sorted(change, key=lambda p: -change[p])[:patients]
    index = np.concatenate([long[long == p].index.to_numpy() for p in chosen])
    batch = synthetic.sample(index, size=SIZE)
    captions = [f"exam {k % 4 + 1}: {present(batch, k)}" for k in range(len(index))]
    return images(
        _grey(batch), captions, masks=batch.masks, title="The same patients over time, a row each."
    )


def institutions() -> Shown:
    """The first frontal x-rays of four institutions, a column each: other scanners, other patients."""
    names = ("study", "public-0", "public-3", "public-6")
    batches = []
    for name in names:
        frontal = np.flatnonzero(synthetic.describe(range(60), institution=name).view != "LATERAL")[
            4:16:4
        ]
        batches.append(synthetic.sample(frontal, institution=name, size=SIZE))
    order = [(row, k) for row in range(3) for k in range(len(names))]
    captions = [
        f"{names[k]}, {batches[k].scanner[row].removeprefix(names[k] + '-')}" for row, k in order
    ]
    pictures = np.stack([_grey(batches[k])[row] for row, k in order])
    return images(pictures, captions, title="Four synthetic institutions.")


def beside_real(prepared: Prepared) -> Shown:
    """Real x-rays in the upper row, read again at full size, and synthetic ones of the same views in the lower."""
    frontal = prepared.manifest[prepared.manifest["view"].isin(["PA", "AP"])]
    chosen = frontal.iloc[np.linspace(0, len(frontal) - 1, 6).astype(int)[1:5]]
    real = np.stack([read_image(path, SIZE) for path in chosen["path"]]) / 255
    told = synthetic.describe(range(400))
    rows = [np.flatnonzero(told.view == view)[7 * k] for k, view in enumerate(chosen["view"])]
    drawn = synthetic.sample(rows, size=SIZE)
    captions = [f"real: {prepared.info['institution']}, {view}" for view in chosen["view"]]
    captions += [f"synthetic: {present(drawn, k)}" for k in range(4)]
    return images(
        np.concatenate([real, _grey(drawn)]), captions, title="Real x-rays above, synthetic below."
    )


WITHHELD = Shown(
    "<p>The terms of this data set do not allow its images to be shown here.</p>", "no images shown"
)


def overlays(prepared: Prepared, cases: list[dict[str, Any]], *, title: str = "") -> Shown:
    """The best, median and worst test image of each device (``cases`` of ``segmentation.run``), a row a device:
    the true mask outlined by a solid line, the predicted one by a dashed one; a word where images may not be shown."""
    if not prepared.info["show_images"]:
        return WITHHELD
    rows = -(-len(cases) // 3)
    figure, panels = plt.subplots(rows, 3, figsize=(8.4, 2.9 * rows), squeeze=False)
    palette, said = sns.color_palette("colorblind"), []
    lines = (("truth", palette[1], "solid"), ("predicted", palette[9], "dashed"))
    for axes in panels.flat:
        axes.axis("off")
    for axes, case in zip(panels.flat, cases, strict=False):
        axes.imshow(
            prepared.images[case["row"]], cmap="gray", vmin=0, vmax=255, interpolation="bicubic"
        )
        for key, colour, style in lines:
            if case[key].any():
                axes.contour(
                    case[key], levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.1
                )
        nothing = "" if case["predicted"].any() else ", nothing drawn"
        said.append(f"{phrase(case['device'])}, {case['which']}: Dice {case['dice']:.2f}{nothing}")
        axes.set_title(textwrap.fill(said[-1], 40), fontsize=7.5)
    handles = [
        plt.Line2D([], [], color=colour, ls=style, label=key) for key, colour, style in lines
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=2,
        fontsize=8,
        bbox_to_anchor=(0.5, -0.25 / rows / 2.9),
    )
    if title:
        figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.15 / 2.9 / rows))
    return show(
        figure,
        f"{title} True and predicted outlines of {len(cases)} x-rays: {'; '.join(said)}.",
        raster=True,
    )


def continuity(prepared: Prepared, example: dict[str, Any], *, title: str = "") -> Shown:
    """One tube (``example`` of ``continuity.continuity``): the x-ray with the tube outlined and its tip marked,
    then by layer the cosine similarity of the patch at the tip to all patches, colours over each layer's range."""
    if not prepared.info["show_images"]:
        return WITHHELD
    maps, (column, row) = example["maps"], example["tip"]
    figure, panels = plt.subplots(
        1, 1 + len(maps), figsize=(2.2 * (1 + len(maps)), 2.7), squeeze=False
    )
    size, said = prepared.info["size"], []
    extent = (-0.5, size - 0.5, size - 0.5, -0.5)
    panels[0, 0].imshow(
        prepared.images[example["row"]], cmap="gray", vmin=0, vmax=255, interpolation="bicubic"
    )
    panels[0, 0].contour(
        example["mask"], levels=[0.5], colors=[sns.color_palette("colorblind")[1]], linewidths=1.1
    )
    panels[0, 0].set_title(f"{phrase(example['device'])} and its tip", fontsize=7.5)
    for axes, (layer, values) in zip(panels[0, 1:], maps.items(), strict=True):
        axes.imshow(values, cmap="viridis", extent=extent, interpolation="nearest")
        said.append(
            f"{layer}, {len(values)} x {len(values)} patches: {values.min():.2f} to {values.max():.2f}"
        )
        axes.set_title(said[-1].replace(": ", "\n"), fontsize=7.5)
    for axes in panels.flat:
        axes.plot(column, row, "x", color="white", ms=9, mew=3.5)
        axes.plot(column, row, "x", color="black", ms=8, mew=1.5)
        axes.axis("off")
    if title:
        figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    what = f"{title} Cosine similarity of the patch at the tip of a {phrase(example['device'])} to all patches"
    return show(figure, f"{what}, by layer: {'; '.join(said)}.", raster=True)
