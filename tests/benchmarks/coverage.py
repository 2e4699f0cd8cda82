"""How often do the intervals of scaling laws hold? Curves of known laws, simulated; kept in ``book/recorded``.

    python tests/benchmarks/coverage.py --seed 31415 --draws 2000      # coverage.csv; about 13 minutes of one core
    python tests/benchmarks/coverage.py speed      # seconds of resample_ladders on a whole grid; needs 300 MB in /tmp
    python tests/benchmarks/coverage.py public --root ../shared/data/public_scaling    # public_laws.csv; a second

The seed is drawn after the code is frozen, so that nothing was tuned on it; it stands in every row. A setting is a law
(its error starts at 0.3), a ladder and a noise of 2%. Sigma is given, estimated from the residuals, or half of it is
given, as a part or as if it were all (what is known where patients can be resampled and seeds were not run). Where runs
were judged on "other patients", these move all runs alike by 1% of the error, and each by another 1%, and the truth is
that of the population. "one far off": one run's error is 20% too high.

Places are the smallest size, the geometric middle, the largest, and one step beyond: the largest times the ratio of the
last two; "all" is their mean, and the exponent stands beside them. ``coverage`` is the share of draws in which the 95%
interval held the truth, ``width`` the median of its width over that of an *oracle*, who knows the form and the noise:
linear theory at the true parameters. ``student`` is the same ratio for the exact interval of one who knows the form and
the shape of the noise but must estimate its level, the least that any interval without sigma can have in a linear
model. Draws that were refused (their errors do not fall beyond the noise) have no interval and are counted.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from cxrstudy.evaluate.metrics import auroc, interval
from cxrstudy.scaling import ladders
from cxrstudy.scaling.fit import ScalingFit, fit_scaling
from cxrstudy.scaling.resample import draw_runs, refit, resample_ladders

RECORDED = Path(__file__).resolve().parents[2] / "book" / "recorded"
SIZES = np.array([200, 600, 2000, 6000, 20000, 50000.0])
LADDERS = {
    "6 sizes, 3-2-2-2-2-3 seeds": SIZES.repeat([3, 2, 2, 2, 2, 3]),
    "5 sizes, 1 seed": np.array([200, 1000, 5000, 20000, 50000.0]),
}
FLOORS, TOP, NOISE = {"power": 0.0, "power_floor": 0.05}, 0.3, 0.02
LAWS = [
    (form, b)
    for form, exponents in (("power", (0.1, 0.3, 0.6)), ("power_floor", (0.2, 0.4, 0.8)))
    for b in exponents
]
PATIENTS, OWN = 0.01, 0.01  # of the error: what sampled patients do to all runs alike, and to each
DEFAULT = {
    "ladder": next(iter(LADDERS)),
    "noise": "proportional",
    "sigma": "given",
    "runs": "clean",
    "method": "profile",
}


def settings() -> Iterator[dict[str, Any]]:
    """Every setting: form, exponent and what differs from ``DEFAULT``."""
    five, middle = list(LADDERS)[1], [("power", 0.3), ("power_floor", 0.4)]
    for (form, b), ladder in itertools.product(LAWS, LADDERS):
        yield DEFAULT | {"form": form, "exponent": b, "ladder": ladder}
    for form, b in LAWS:
        yield DEFAULT | {"form": form, "exponent": b, "sigma": "estimated"}
    for form, b in middle:
        yield DEFAULT | {"form": form, "exponent": b, "sigma": "estimated", "noise": "constant"}
        yield DEFAULT | {"form": form, "exponent": b, "sigma": "estimated", "ladder": five}
        yield DEFAULT | {"form": form, "exponent": b, "sigma": "half, as a part", "ladder": five}
        yield DEFAULT | {"form": form, "exponent": b, "sigma": "half, as all", "ladder": five}
    for (form, b), runs, method in itertools.product(
        middle, ("clean", "one far off"), ("profile", "robust profile")
    ):
        if (runs, method) != ("clean", "profile"):
            yield DEFAULT | {"form": form, "exponent": b, "runs": runs, "method": method}
        if method == "robust profile":
            yield DEFAULT | {
                "form": form,
                "exponent": b,
                "sigma": "estimated",
                "runs": runs,
                "method": method,
            }
    for (form, b), ladder, method in itertools.product(middle, LADDERS, ("profile", "resampled")):
        yield DEFAULT | {
            "form": form,
            "exponent": b,
            "ladder": ladder,
            "runs": "other patients",
            "method": method,
        }


def curve(form: str, n: np.ndarray, b: float) -> np.ndarray:
    """The law that starts at ``TOP`` for the smallest size."""
    return FLOORS[form] + (TOP - FLOORS[form]) * (n / SIZES[0]) ** -b


def oracle(form: str, b: float, n: np.ndarray, sigma: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Deviations (X + 1,) of the fitted curve at ``at`` (X,) and of the exponent: linear theory at the truth."""

    def slopes(x: np.ndarray) -> np.ndarray:
        fall = (x / SIZES[0]) ** -b
        columns = [fall, (FLOORS[form] - TOP) * fall * np.log(x / SIZES[0]), np.ones_like(x)]
        return np.stack(columns[: 2 if form == "power" else 3], axis=1)

    inverse = np.linalg.inv(slopes(n).T @ (slopes(n) / sigma[:, None] ** 2))
    return np.sqrt(
        np.append(np.einsum("xi,ij,xj->x", slopes(at), inverse, slopes(at)), inverse[1, 1])
    )


def simulate(setting: dict[str, Any], draws: int, seed: int) -> list[dict[str, Any]]:
    """Rows of one setting, one a place; those of the same setting under another method meet the same draws."""
    form, b, n = setting["form"], setting["exponent"], LADDERS[setting["ladder"]]
    truth, sizes = curve(form, n, b), np.unique(n)
    at = np.array([n[0], np.sqrt(n[0] * n[-1]), n[-1], n[-1] * sizes[-1] / sizes[-2]])
    target, sigma = (
        curve(form, at, b),
        NOISE * (truth if setting["noise"] == "proportional" else truth.mean() + 0 * n),
    )
    far, other = setting["runs"] == "one far off", setting["runs"] == "other patients"
    told = {"given": 1.0, "estimated": 0.0}.get(setting["sigma"], 0.5)
    rng = np.random.default_rng([seed, *setting["form"].encode(), int(100 * b), len(n), far, other])
    inside, widths = [], []
    for _ in range(draws):
        error = truth + sigma * rng.normal(size=len(n))
        error[rng.integers(len(n))] *= 1.2 if far else 1.0
        shift = PATIENTS * rng.normal() if other else 0.0
        error = error * (1 + shift + (OWN * rng.normal(size=len(n)) if other else 0.0))
        again = np.random.default_rng(rng.integers(2**32))
        try:
            fit = fit_scaling(
                n,
                error,
                sigma=np.hypot(sigma, OWN * truth * other) * told if told else None,
                form=form,
                robust=setting["method"] == "robust profile",
                partial=setting["sigma"] == "half, as a part",
            )
        except ValueError:
            continue
        resampled = setting["method"] == "resampled"
        ends = (
            _resampled(fit, error, at, again)
            if resampled
            else (fit.interval(at), fit.exponent_interval())
        )
        low, high = (np.append(ends[0][k], ends[1][k]) for k in (0, 1))
        inside.append((low <= np.append(target, b)) & (np.append(target, b) <= high))
        widths.append(high - low)
    known = 2 * stats.norm.ppf(0.975) * oracle(form, b, n, np.hypot(sigma, OWN * truth * other), at)
    known = np.hypot(known, 2 * stats.norm.ppf(0.975) * PATIENTS * np.append(target, 0) * other)
    dof = len(n) - (2 if form == "power" else 3)
    student = float(
        stats.t.ppf(0.975, dof) / stats.norm.ppf(0.975) * np.sqrt(stats.chi2.median(dof) / dof)
    )
    student = 1.0 if setting["sigma"] == "given" else student
    held, wide = np.mean(inside, axis=0), np.median(widths, axis=0) / known
    places = ("smallest", "middle", "largest", "one step beyond", "exponent")
    rows = [
        {"place": p, "coverage": c, "width": w} for p, c, w in zip(places, held, wide, strict=True)
    ]
    rows.append({"place": "all", "coverage": held[:-1].mean(), "width": wide[:-1].mean()})
    return [
        setting | row | {"student": student, "draws": draws, "refused": draws - len(inside)}
        for row in rows
    ]


def _resampled(
    fit: ScalingFit,
    error: np.ndarray,
    at: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 300,
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The bootstrap's band and its interval of the exponent; its resampled patients move runs as the true ones did."""
    moved = (
        1
        + PATIENTS * rng.normal(size=(resamples, 1))
        + OWN * rng.normal(size=(resamples, len(error)))
    )
    drawn = draw_runs(fit.runs.n, error, error * moved, rng, form=fit.runs.form)
    many = refit(fit.runs, drawn)
    return interval(fit.runs.curve([v[:, None] for v in many], at)), interval(many[0])


def speed(folder: Path, images: int = 4000, labels: int = 15) -> None:
    """Seconds of one core for 8 ladders of 6 sizes and 3 seeds, 1,000 resamples: of the patients, then of the rest."""
    rng, rows = np.random.default_rng(0), []
    truth = {f"l{k:02}": rng.integers(0, 2, images) for k in range(labels)}
    tasks = {"findings": list(truth)[:8], "lines_tubes": list(truth)[8:]}
    for (i, paradigm), n, seed in itertools.product(enumerate(ladders.CONTINUED), SIZES, range(3)):
        run = f"{paradigm}-n{n:.0f}-s{seed}"
        scores = {
            k: (0.6 + 0.1 * i + 0.15 * np.log10(n)) * y + rng.normal(size=images)
            for k, y in truth.items()
        }
        kept = {"image_id": np.arange(images), "patient_id": np.arange(images) // 2}
        kept |= {f"truth:{k}": y for k, y in truth.items()} | {
            f"score:{k}": s for k, s in scores.items()
        }
        (folder / run).mkdir()
        pd.DataFrame(kept).to_parquet(folder / run / "scores.parquet")
        own = {
            "run": run,
            "folder": str(folder / run),
            "paradigm": paradigm,
            "n_images": n,
            "seed": seed,
        }
        for task, names in tasks.items():
            each = [float(auroc(truth[k], scores[k])[0]) for k in names]
            rows += [
                own | {"task": task, "label": k, "value": v}
                for k, v in zip(names, each, strict=True)
            ]
            rows.append(own | {"task": task, "label": "macro", "value": np.mean(each)})
    table = pd.DataFrame(rows).assign(
        stage="classify", metric="auroc", base="b", data="d", encoder="e", patients="p"
    )
    table = table.assign(
        samples_seen=1e5, low=np.nan, high=np.nan, trained_on=None, institution="i"
    )
    spent = [time.process_time()]
    os.environ["CXRSTUDY_RUNS"] = str(folder)  # where the bootstrap keeps what it has drawn
    for names in tasks.values():
        for path in table["folder"].unique():
            ladders.resampled(path, tuple(names), "auroc", 1000, 0)
    for form in FLOORS:
        spent.append(time.process_time())
        fits, _ = resample_ladders(table, form=form)
    spent.append(time.process_time())
    bootstrap, *rest = np.diff(spent)
    told = ", ".join(f"{form} {seconds:.2f} s" for form, seconds in zip(FLOORS, rest, strict=True))
    print(
        f"{len(fits)} ladders, {fits['runs'].sum()} runs: AUROC bootstrap {bootstrap:.1f} s; the rest: {told}"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="?", default="coverage", choices=["coverage", "speed", "public"]
    )
    parser.add_argument(
        "--seed", type=int, help="of the simulation; draw one after the code is frozen"
    )
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument(
        "--root", default=str(RECORDED.parents[2] / "shared" / "data" / "public_scaling")
    )
    parser.add_argument("--out", default="", help="another file than the one in book/recorded")
    asked = parser.parse_args()
    if asked.what == "public":
        from public_laws import laws  # beside this file

        laws(asked.root).round(5).to_csv(asked.out or RECORDED / "public_laws.csv", index=False)
        return
    if asked.what == "speed":
        with tempfile.TemporaryDirectory() as folder:
            speed(Path(folder))
        return
    if asked.seed is None:
        parser.error("--seed is missing: draw one, for instance $RANDOM")
    rows = []
    for setting in settings():
        rows += simulate(setting, asked.draws, asked.seed)
        print({k: v for k, v in rows[-1].items() if k != "place"}, flush=True)
    command = f"python tests/benchmarks/coverage.py --seed {asked.seed} --draws {asked.draws}"
    table = pd.DataFrame(rows).assign(seed=asked.seed, command=command).round(4)
    table.to_csv(asked.out or RECORDED / "coverage.csv", index=False)


if __name__ == "__main__":
    main()
