"""How hard the synthetic institution is, and how fast it is drawn: the table of its data card.

    python tests/benchmarks/calibrate_synthetic.py                      # some 40 minutes on one core
    python tests/benchmarks/calibrate_synthetic.py --real FOLDER        # also: ChestX-ray14 against synthetic
    python tests/benchmarks/calibrate_synthetic.py --only speed pixels  # parts of it; other rows stay

Writes ``data_cards/synthetic_calibration.csv``: measure, label, value (AUROC, or images a second), 95% interval over
test patients, the images trained and tested on, px, and the generator's version. `pixels` is logistic regression on
32 x 32 pixels; `supervised` a small CNN trained on the truth; `supervised by size` the same on fewer images at several
sizes; `turing` a small CNN that tells real x-rays from synthetic ones of the same size and grey levels, cross-fitted.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from torch import nn

from cxrstudy.data import synthetic
from cxrstudy.data.cards import load_manifest
from cxrstudy.data.images import read_image
from cxrstudy.data.vocabulary import DEVICES, FINDINGS, LABELS
from cxrstudy.evaluate.classification import fit_probe
from cxrstudy.evaluate.metrics import auroc, bootstrap, interval
from cxrstudy.pretrain.augment import augment

OUT = Path(__file__).resolve().parents[2] / "data_cards" / "synthetic_calibration.csv"
TEST, VALIDATION, TRAIN = (
    100_000,
    200_000,
    300_000,
)  # where each set's indices start: blocks of patients apart
SIZES = (32, 64, 96, 128)
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
Rows = list[dict[str, object]]


def draw(
    start: int, count: int, size: int, institution: str = "study"
) -> tuple[torch.Tensor, np.ndarray, synthetic.Batch]:
    """Images uint8 (N,H,W), labels (N,L), and what else is told of them."""
    pixels = np.empty((count, size, size), np.uint8)
    for low in range(0, count, 512):
        index = range(start + low, start + min(low + 512, count))
        batch = synthetic.sample(index, institution=institution, size=size)
        pixels[low : low + len(index)] = np.rint(np.asarray(batch.image)[:, 0] * 255)
    told = synthetic.describe(range(start, start + count), institution=institution)
    return torch.from_numpy(pixels), told.labels, told


def score(
    measure: str,
    y: np.ndarray,
    s: np.ndarray,
    patients: np.ndarray,
    names: Sequence[str],
    **facts: object,
) -> Rows:
    """Rows of AUROC with intervals, label by label and their means over findings and over devices."""
    value, samples = auroc(y, s), bootstrap(auroc, y, s, groups=patients, resamples=1000)
    rows = []
    for name in (*names, "findings", "devices"):
        group = {"findings": FINDINGS, "devices": DEVICES}.get(name, (name,))
        which = [k for k, n in enumerate(names) if n in group]
        if not which or (name in ("findings", "devices") and len(which) < len(group)):
            continue
        low, high = interval(np.nanmean(samples[:, which], axis=1)[:, None])
        facts |= {"tested": len(y)}
        rows.append(
            {
                "measure": measure,
                "label": name,
                "value": float(np.mean(value[which])),
                "low": float(low[0]),
                "high": float(high[0]),
            }
            | facts
        )
    return rows


def pixels() -> Rows:
    """Logistic regression on 32 x 32 pixels, drawn at 64 px and averaged."""
    small = lambda images: nn.functional.avg_pool2d(images[:, None].float(), 2).flatten(1)  # noqa: E731
    x, y, _ = draw(TRAIN, 4000, 64)
    x_val, y_val, _ = draw(VALIDATION, 2000, 64)
    x_test, y_test, told = draw(TEST, 4000, 64)
    probe = fit_probe(small(x), y, strengths=STRENGTHS, x_val=small(x_val), y_val=y_val)
    s, ill = probe.decision_function(small(x_test)), told.view == "AP"
    rows = score("pixels", y_test, s, told.patient_id, LABELS, px=32, trained=4000)
    d = len(FINDINGS)
    return rows + score(
        "pixels, AP only",
        y_test[ill][:, d:],
        s[ill][:, d:],
        told.patient_id[ill],
        DEVICES,
        px=32,
        trained=4000,
    )


def train(
    x: torch.Tensor, y: np.ndarray, epochs: int, width: int = 32, seed: int = 0
) -> Callable[[torch.Tensor], np.ndarray]:
    """A small CNN fitted to labels (N,L); gives scores of images."""
    torch.manual_seed(seed)
    shape = {
        "channels": tuple(width * k for k in (1, 2, 4, 8)),
        "stem_width": width // 2,
        "in_chans": 1,
    }
    model = timm.create_model("resnet10t", num_classes=y.shape[1], global_pool="avgmax", **shape)
    model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    generator, target = torch.Generator().manual_seed(seed), torch.from_numpy(y).float()
    normal = lambda images: (images[:, None].float() / 255 - 0.5) / 0.25  # noqa: E731
    for step in range(steps):
        if step % (len(x) // 64) == 0:
            order = torch.randperm(len(x), generator=generator)
        take = order[step % (len(x) // 64) * 64 :][:64]
        batch = augment(normal(x[take]), generator).contiguous(memory_format=torch.channels_last)
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch), target[take])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()

    def scores(images: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([model(normal(part)) for part in images.split(256)]).numpy()

    return scores


def supervised() -> Rows:
    """What a network learns from plenty of true labels."""
    x, y, _ = draw(TRAIN, 20_000, 64)
    x_test, y_test, told = draw(TEST, 4000, 64)
    s, ill, d = train(x, y, 10)(x_test), told.view == "AP", len(FINDINGS)
    rows = score("supervised", y_test, s, told.patient_id, LABELS, px=64, trained=20_000)
    return rows + score(
        "supervised, AP only",
        y_test[ill][:, d:],
        s[ill][:, d:],
        told.patient_id[ill],
        DEVICES,
        px=64,
        trained=20_000,
    )


def sizes() -> Rows:
    """The same on half the images, at several sizes, and with faint devices."""
    rows: Rows = []
    for site, px in (*(("study", px) for px in SIZES), ("study-faint", 64)):
        x, y, _ = draw(TRAIN, 6000, px, site)
        x_test, y_test, told = draw(TEST, 3000, px, site)
        s = train(x, y, 8)(x_test)
        measure = "supervised, faint" if "faint" in site else "supervised by size"
        rows += score(measure, y_test, s, told.patient_id, LABELS, px=px, trained=6000)
        print(measure, px, round(float(np.mean([r["value"] for r in rows[-2:]])), 3), flush=True)  # type: ignore[call-overload]
    return rows


def turing(real: str, px: int = 64) -> Rows:
    """Can a small network tell real x-rays from synthetic ones, once size, views and histogram agree?"""
    manifest = load_manifest("nih_chestxray14", root=real)
    pictures = np.stack([read_image(path, px) for path in manifest["path"]])
    told = synthetic.describe(range(TEST, TEST + 20_000))
    rows = [np.flatnonzero(told.view == view)[k] for k, view in enumerate(manifest["view"])]
    drawn = np.concatenate(
        [
            np.asarray(synthetic.sample(TEST + np.array(part), size=px).image)[:, 0]
            for part in np.array_split(rows, 8)
        ]
    )
    for k, picture in enumerate(
        pictures
    ):  # the synthetic one takes the grey levels of its real partner, rank by rank
        order = np.argsort(drawn[k], axis=None, kind="stable")
        drawn[k].flat[order] = np.sort(picture, axis=None)
    x = torch.from_numpy(np.concatenate([pictures, drawn.astype(np.uint8)]))
    y = np.repeat([[1.0], [0.0]], len(pictures), axis=0)
    patients = np.concatenate([manifest["patient_id"].to_numpy(str), told.patient_id[rows]])
    fold = pd.Series(pd.factorize(patients)[0]).to_numpy() % 4
    s = np.empty((len(x), 1))
    for k in range(4):
        s[fold == k] = train(x[torch.from_numpy(fold != k)], y[fold != k], 8)(
            x[torch.from_numpy(fold == k)]
        )
    return score("turing", y, s, patients, ["real"], px=px, trained=int(0.75 * len(x)))


def speed() -> Rows:
    """Images a second of one thread: the generator's, and of a training step of `mini`'s network."""
    rows: Rows = []
    for px, count in ((64, 1024), (128, 512), (512, 48)):
        synthetic.sample(range(count // 4), size=px)
        rates = []
        for k in range(3):
            start = time.process_time()
            synthetic.sample(range(k * count, (k + 1) * count), size=px)
            rates.append(count / (time.process_time() - start))
        rows.append(
            {
                "measure": "images a second drawn",
                "label": "",
                "value": float(np.median(rates)),
                "low": min(rates),
                "high": max(rates),
                "px": px,
                "tested": count,
            }
        )
    from cxrstudy.encoders import build_encoder

    encoder, rates = build_encoder("cnn_mini", 64), []
    optimiser = torch.optim.AdamW(encoder.parameters(), fused=True)
    for _ in range(4):
        start = time.process_time()
        for _ in range(8):
            optimiser.zero_grad()
            encoder.pool(torch.randn(64, 1, 64, 64)).square().mean().backward()
            optimiser.step()
        rates.append(512 / (time.process_time() - start))
    rates = rates[1:]
    return [
        *rows,
        {
            "measure": "images a second trained",
            "label": "cnn_mini",
            "value": float(np.median(rates)),
            "low": min(rates),
            "high": max(rates),
            "px": 64,
            "tested": 512,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, Callable[[], Rows]] = {
        "speed": speed,
        "pixels": pixels,
        "supervised": supervised,
        "sizes": sizes,
    }
    parser.add_argument("--only", nargs="+", choices=[*parts, "turing"], default=[])
    parser.add_argument("--real", default="", help="folder of ChestX-ray14 images and their table")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.real:
        parts["turing"] = lambda: turing(asked.real)
    shown = ["measure", "label", "px", "value", "low", "high"]
    for name, part in parts.items():
        if asked.only and name not in asked.only:
            continue
        start = time.monotonic()
        rows = pd.DataFrame(part()).assign(part=name, generator=synthetic.VERSION)
        kept = (
            pd.read_csv(OUT, dtype={"generator": str})
            if OUT.is_file()
            else pd.DataFrame(columns=rows.columns)
        )
        kept = kept[(kept["part"] != name) & (kept["generator"] == synthetic.VERSION)]
        pd.concat([kept, rows]).round(4).to_csv(OUT, index=False)
        print(
            f"{name}: {time.monotonic() - start:.0f} s\n{rows[shown].to_string(index=False)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
