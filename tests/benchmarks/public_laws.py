"""Fit scaling data that others published, and put the fits beside what they published.

- Chinchilla (Hoffmann et al. 2022): 245 runs that Epoch AI read off a figure. Epoch AI fitted the
  joint law again without the five highest losses (Besiroglu et al. 2024, arXiv 2404.10102; their
  repository is epoch-research/analyzing-chinchilla).
- OpenCLIP (Cherti et al. 2023, arXiv 2212.07143, sections 4.1 and 4.2): zero-shot error against
  total compute, a power law E = beta C^alpha on the Pareto frontier. As in their figures.ipynb
  (LAION-AI/scaling-laws-openclip), the frontier of OpenCLIP's models is the least error in each of
  five bins of log compute, at the bin's middle. The frontier of OpenAI's CLIP is its three models.
  Their exponents have two decimals. Four predictions follow from the same law.

The tables belong to their authors and are not part of this project. Rows go to
``book/recorded/public_laws.csv``:

    python tests/benchmarks/public_laws.py ../shared/data/public_scaling   # a second
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cxrstudy.scaling.fit import ScalingFit, fit_joint, fit_scaling
from cxrstudy.scaling.forms import Floats

RECORDED = Path(__file__).resolve().parents[2] / "book" / "recorded"
EPOCH = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
EXPONENTS = {  # dataset: its metric, published exponents of OpenCLIP and of CLIP
    "imagenet1k": ("acc1", 0.11, 0.16),
    "imagenet_robustness": ("acc1", 0.13, 0.24),
    "mscoco_captions": ("image_retrieval_recall@5", 0.08, 0.05),
    "flickr30k": ("image_retrieval_recall@5", 0.19, 0.10),
}
PREDICTED = {  # architecture, samples seen: published error on ImageNet
    ("ViT-g-14", 34e9): 0.209,
    ("ViT-H-14", 68e9): 0.203,
    ("ViT-g-14", 68e9): 0.193,
    ("ViT-G-14", 68e9): 0.181,
}
COLUMNS = ["data", "quantity", "ours", "low", "high", "published", "difference", "points", "source"]


def laws(root: str | Path) -> pd.DataFrame:
    """Return one row a published estimate, in ``COLUMNS``; its interval where the fit has one.

    Raises:
        FileNotFoundError: a table that ``root``, the folder of the published tables, lacks.
    """
    rows = pd.concat([_chinchilla(Path(root)), _openclip(Path(root))], ignore_index=True)
    return rows.assign(difference=rows["ours"] - rows["published"])[COLUMNS]


def frontier(compute: Floats, error: Floats, bins: int = 5) -> tuple[Floats, Floats]:
    """Return the middles of equal bins of log10 compute with a model, and the least error there."""
    log = np.log10(compute)
    edges = np.linspace(log.min(), log.max() + 0.1, bins + 1)  # 0.1 as theirs: the last is inside
    place = np.digitize(log, edges) - 1
    held = np.unique(place)
    least = np.array([error[place == k].min() for k in held])
    return 10 ** ((edges[held] + edges[held + 1]) / 2), least


def _chinchilla(root: Path) -> pd.DataFrame:
    points = pd.read_csv(root / "chinchilla_points.csv").sort_values("loss").iloc[:-5]
    size, flop, loss = (
        points[name].to_numpy(float) for name in ("Model Size", "Training FLOP", "loss")
    )
    fit = fit_joint(size, flop / 6 / size, loss)
    rows = [
        {"quantity": name, "ours": getattr(fit, name), "published": value}
        for name, value in EPOCH.items()
    ]
    source = "Besiroglu et al. 2024 (Epoch AI)"
    return pd.DataFrame(rows).assign(
        low=np.nan, high=np.nan, data="Chinchilla", points=len(points), source=source
    )


def _openclip(root: Path) -> pd.DataFrame:
    evaluated = pd.read_csv(root / "laion_zeroshot_results.csv")
    cost = pd.read_csv(root / "laion_arch_info.csv").set_index("model")["gmacs"]
    rows = []
    for dataset, (metric, *published) in EXPONENTS.items():
        of = evaluated[evaluated["downstream_dataset"] == dataset]
        by_openai = of["upstream_dataset"] == "CLIP-WIT"
        for who, rest, exponent in zip(
            ("OpenCLIP", "CLIP"), (of[~by_openai], of[by_openai]), published, strict=True
        ):
            compute, error = rest["gmacs_total"].to_numpy(float), 1 - rest[metric].to_numpy(float)
            fit = _power(*(frontier(compute, error) if who == "OpenCLIP" else (compute, error)))
            low, high = fit.exponent_interval()
            shared = {"data": who, "points": len(fit.data.n)}
            row = {"quantity": f"exponent, {dataset}", "ours": fit.exponent, "published": exponent}
            rows.append(shared | row | {"low": low, "high": high})
            if (dataset, who) != ("imagenet1k", "OpenCLIP"):
                continue
            for (model, seen), value in PREDICTED.items():
                at = cost[model] * seen
                low, high = (float(end) for end in fit.interval(at))
                name = f"error, {dataset}: {model}, {seen / 1e9:.0f}B seen"
                row = {"quantity": name, "ours": float(fit.predict(at)), "published": value}
                rows.append(shared | row | {"low": low, "high": high})
    return pd.DataFrame(rows).assign(source="Cherti et al. 2023, sections 4.1 and 4.2")


def _power(compute: Floats, error: Floats) -> ScalingFit:
    """Fit a power law with noise in proportion to the curve: 2%, or what the residuals show."""
    first = fit_scaling(compute, error, sigma=0.02 * error, form="power")
    return fit_scaling(compute, error, sigma=0.02 * first.predict(compute), form="power")


if __name__ == "__main__":
    laws(sys.argv[1]).round(5).to_csv(RECORDED / "public_laws.csv", index=False)
