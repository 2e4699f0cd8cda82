"""Measure how difficult the synthetic institution is, and how fast it is rendered.

    python tests/benchmarks/calibrate_synthetic.py  # about 40 minutes, one core
    python tests/benchmarks/calibrate_synthetic.py --real FOLDER  # also: real against synthetic
    python tests/benchmarks/calibrate_synthetic.py --only speed pixels  # parts; other rows stay

Writes ``data_cards/synthetic_calibration.csv``, the table of the data card. Its columns are
measure, label, value (AUROC, or images per second), 95% interval over test patients, numbers of
images trained and tested on, px, and the generator's version. The measures:

- `pixels`: logistic regression on 32 x 32 pixels;
- `supervised`: a small CNN trained on the true labels;
- `supervised by size`: the same on fewer images at several sizes;
- `turing`: a small CNN that distinguishes real from synthetic x-rays of the same size and grey
  levels, cross-fitted.
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
from cxrstudy.encoders import build_encoder
from cxrstudy.evaluate.classification import fit_probe
from cxrstudy.evaluate.metrics import auroc, bootstrap, interval
from cxrstudy.pretrain.augment import augment

OUT = Path(__file__).resolve().parents[2] / "data_cards" / "synthetic_calibration.csv"
# First index of each set, far apart, so that no patient is in two sets
TEST, VALIDATION, TRAIN = 100_000, 200_000, 300_000
SIZES = (32, 64, 96, 128)
L2_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
Rows = list[dict[str, object]]


def draw(
    start: int, count: int, size: int, institution: str = "study"
) -> tuple[torch.Tensor, np.ndarray, synthetic.Batch]:
    """Return images uint8 (N,H,W), labels (N,L), and a batch without images."""
    pixels = np.empty((count, size, size), np.uint8)
    for low in range(0, count, 512):
        index = range(start + low, start + min(low + 512, count))
        batch = synthetic.sample(index, institution=institution, size=size)
        pixels[low : low + len(index)] = np.rint(np.asarray(batch.image)[:, 0] * 255)
    described = synthetic.describe(range(start, start + count), institution=institution)
    return torch.from_numpy(pixels), described.labels, described


def score(
    measure: str, y: np.ndarray, s: np.ndarray, patients: np.ndarray, names: Sequence[str],
    **facts: object,
) -> Rows:  # fmt: skip
    """Return rows of AUROC with intervals: by label, and means over findings and over devices."""
    value, samples = auroc(y, s), bootstrap(auroc, y, s, groups=patients, resamples=1000)
    facts |= {"tested": len(y)}
    groups = [(name, (name,)) for name in names]
    groups += [("findings", FINDINGS), ("devices", DEVICES)]
    rows = []
    for title, group in groups:
        which = [k for k, name in enumerate(names) if name in group]
        if len(which) == len(group):
            low, high = interval(np.nanmean(samples[:, which], axis=1)[:, None])
            mean = float(np.mean(value[which]))
            row = {"measure": measure, "label": title, "value": mean}
            rows.append(row | {"low": float(low[0]), "high": float(high[0])} | facts)
    return rows


def score_devices_ap(
    measure: str, y: np.ndarray, s: np.ndarray, described: synthetic.Batch, **facts: object
) -> Rows:
    """Return rows for devices in AP images only."""
    ap, first = described.view == "AP", len(FINDINGS)
    patients = described.patient_id[ap]
    return score(
        f"{measure}, AP only", y[ap][:, first:], s[ap][:, first:], patients, DEVICES, **facts
    )


def pixels() -> Rows:
    """Fit logistic regression to 32 x 32 pixels, averaged from 64 px."""

    def small(images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images[:, None].float(), 2).flatten(1)

    x, y, _ = draw(TRAIN, 4000, 64)
    x_val, y_val, _ = draw(VALIDATION, 2000, 64)
    x_test, y_test, described = draw(TEST, 4000, 64)
    probe = fit_probe(small(x), y, strengths=L2_PENALTIES, x_val=small(x_val), y_val=y_val)
    s, facts = probe.decision_function(small(x_test)), {"px": 32, "trained": 4000}
    rows = score("pixels", y_test, s, described.patient_id, LABELS, **facts)
    return rows + score_devices_ap("pixels", y_test, s, described, **facts)


def train(
    x: torch.Tensor, y: np.ndarray, epochs: int, width: int = 32, seed: int = 0
) -> Callable[[torch.Tensor], np.ndarray]:
    """Fit a small CNN to labels (N,L); return a function from images to scores."""
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
    """Train a CNN on many true labels."""
    x, y, _ = draw(TRAIN, 20_000, 64)
    x_test, y_test, described = draw(TEST, 4000, 64)
    s, facts = train(x, y, 10)(x_test), {"px": 64, "trained": 20_000}
    rows = score("supervised", y_test, s, described.patient_id, LABELS, **facts)
    return rows + score_devices_ap("supervised", y_test, s, described, **facts)


def sizes() -> Rows:
    """Train the same CNN on fewer images, at several sizes, and with faint devices."""
    rows: Rows = []
    for site, px in (*(("study", px) for px in SIZES), ("study-faint", 64)):
        x, y, _ = draw(TRAIN, 6000, px, site)
        x_test, y_test, described = draw(TEST, 3000, px, site)
        s = train(x, y, 8)(x_test)
        measure = "supervised, faint" if "faint" in site else "supervised by size"
        rows += score(measure, y_test, s, described.patient_id, LABELS, px=px, trained=6000)
        print(measure, px, round(float(np.mean([r["value"] for r in rows[-2:]])), 3), flush=True)  # type: ignore[call-overload]
    return rows


def turing(real: str, px: int = 64) -> Rows:
    """Train a CNN to distinguish real from synthetic x-rays of equal size, views and histogram."""
    manifest = load_manifest("nih_chestxray14", root=real)
    pictures = np.stack([read_image(path, px) for path in manifest["path"]])
    described = synthetic.describe(range(TEST, TEST + 20_000))
    rows = [np.flatnonzero(described.view == view)[k] for k, view in enumerate(manifest["view"])]
    parts = [TEST + np.array(part) for part in np.array_split(rows, 8)]
    drawn = np.concatenate(
        [np.asarray(synthetic.sample(part, size=px).image)[:, 0] for part in parts]
    )
    # Each synthetic image gets the histogram of its real partner
    for k, picture in enumerate(pictures):
        order = np.argsort(drawn[k], axis=None, kind="stable")
        drawn[k].flat[order] = np.sort(picture, axis=None)
    x = torch.from_numpy(np.concatenate([pictures, drawn.astype(np.uint8)]))
    y = np.repeat([[1.0], [0.0]], len(pictures), axis=0)
    patients = np.concatenate([manifest["patient_id"].to_numpy(str), described.patient_id[rows]])
    fold = pd.Series(pd.factorize(patients)[0]).to_numpy() % 4
    s = np.empty((len(x), 1))
    for k in range(4):
        test = torch.from_numpy(fold == k)
        s[fold == k] = train(x[~test], y[fold != k], 8)(x[test])
    return score("turing", y, s, patients, ["real"], px=px, trained=int(0.75 * len(x)))


def speed() -> Rows:
    """Measure images per second of one thread: rendering, and training the network of `mini`."""

    def row(measure: str, label: str, rates: list[float], px: int, count: int) -> dict[str, object]:
        row = {"measure": f"images a second {measure}", "label": label}
        low, value, high = min(rates), float(np.median(rates)), max(rates)
        return row | {"value": value, "low": low, "high": high, "px": px, "tested": count}

    rows: Rows = []
    for px, count in ((64, 1024), (128, 512), (512, 48)):
        synthetic.sample(range(count // 4), size=px)  # warm up
        rates = []
        for k in range(3):
            start = time.process_time()
            synthetic.sample(range(k * count, (k + 1) * count), size=px)
            rates.append(count / (time.process_time() - start))
        rows.append(row("drawn", "", rates, px, count))

    encoder, rates = build_encoder("cnn_mini", 64), []
    optimiser = torch.optim.AdamW(encoder.parameters(), fused=True)
    for _ in range(4):
        start = time.process_time()
        for _ in range(8):
            optimiser.zero_grad()
            encoder.pool(torch.randn(64, 1, 64, 64)).square().mean().backward()
            optimiser.step()
        rates.append(512 / (time.process_time() - start))
    return [*rows, row("trained", "cnn_mini", rates[1:], 64, 512)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, Callable[[], Rows]] = {"speed": speed, "pixels": pixels}
    parts |= {"supervised": supervised, "sizes": sizes}
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
        if OUT.is_file():
            old = pd.read_csv(OUT, dtype={"generator": str})
            old = old[(old["part"] != name) & (old["generator"] == synthetic.VERSION)]
        else:
            old = rows.iloc[:0]
        pd.concat([old, rows]).round(4).to_csv(OUT, index=False)
        print(f"{name}: {time.monotonic() - start:.0f} s\n{rows[shown].to_string(index=False)}")


if __name__ == "__main__":
    main()
