"""Measure the coverage of the intervals of scaling laws on simulated curves of known laws.

    python tests/benchmarks/coverage.py --seed 31415 --draws 2000   # about 10 minutes of one core

Rows go to ``book/recorded/coverage.csv``. Draw the seed after the code is frozen, so that nothing
was tuned on it. A setting is a law whose error starts at 0.3, subset sizes with their seeds, and
noise of 2%.

- ``sigma``: given; estimated from the residuals; or half of it given, as a part or as if it were
  all. A part is known where patients can be resampled and only one seed was run.
- ``runs``: "one far off": one run's error is 20% too high. "other patients": the sampled test
  patients move all runs alike by 1% of the error, and each by another 1%, and the truth is that of
  the population.
- ``place``: the smallest size, the geometric middle, the largest, and one step beyond (the largest
  times the ratio of the last two). "all" is their mean. "exponent" is the law's.
- ``coverage``: the share of draws in which the 95% interval contains the truth.
- ``width``: the interval's median width over that of an *oracle*, which knows the form and the
  noise: linear theory at the true parameters.
- ``student``: the same ratio for the exact interval where the form and the shape of the noise are
  known and its level is estimated: the narrowest that is possible without sigma in a linear model.
- ``refused``: draws without a fit, since their errors do not fall beyond the noise.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from cxrstudy.scaling.fit import fit_scaling

RECORDED = Path(__file__).resolve().parents[2] / "book" / "recorded"
FIRST = 200.0  # the smallest size
SIZES = {
    "6 sizes, 3-2-2-2-2-3 seeds": np.repeat(
        [FIRST, 600, 2000, 6000, 20000, 50000], [3, 2, 2, 2, 2, 3]
    ),
    "5 sizes, 1 seed": np.array([FIRST, 1000, 5000, 20000, 50000]),
}
FLOORS, TOP, NOISE = {"power": 0.0, "power_floor": 0.05}, 0.3, 0.02
LAWS = [("power", b) for b in (0.1, 0.3, 0.6)] + [("power_floor", b) for b in (0.2, 0.4, 0.8)]
MIDDLE = [("power", 0.3), ("power_floor", 0.4)]
SHARED, OWN = 0.01, 0.01  # of the error: how sampled patients move all runs alike, and each
PLACES = ("smallest", "middle", "largest", "one step beyond", "exponent")
DEFAULT = {
    "sizes": next(iter(SIZES)),
    "noise": "proportional",
    "sigma": "given",
    "runs": "clean",
    "method": "profile",
}


def settings() -> Iterator[dict[str, Any]]:
    """Yield every setting: form, exponent and what differs from ``DEFAULT``."""
    five = list(SIZES)[1]
    changes = [
        {"sigma": "estimated", "noise": "constant"},
        {"sigma": "estimated", "sizes": five},
        {"sigma": "half, as a part", "sizes": five},
        {"sigma": "half, as all", "sizes": five},
    ]
    for runs in ("clean", "one far off"):
        changes += [{"runs": runs, "method": "robust profile"}]
        changes += [{"runs": runs, "method": "robust profile", "sigma": "estimated"}]
    changes += [{"runs": "one far off"}]
    changes += [{"runs": "other patients", "sizes": sizes} for sizes in SIZES]
    for (form, b), sizes in itertools.product(LAWS, SIZES):
        yield DEFAULT | {"form": form, "exponent": b, "sizes": sizes}
    for form, b in LAWS:
        yield DEFAULT | {"form": form, "exponent": b, "sigma": "estimated"}
    for (form, b), change in itertools.product(MIDDLE, changes):
        yield DEFAULT | {"form": form, "exponent": b} | change


def curve(form: str, n: np.ndarray, b: float) -> np.ndarray:
    """Return the law that starts at ``TOP`` for the smallest size."""
    return FLOORS[form] + (TOP - FLOORS[form]) * (n / FIRST) ** -b


def oracle(form: str, b: float, n: np.ndarray, sigma: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return standard deviations (X + 1,) of the curve at ``at`` (X,) and of the exponent.

    They are those of linear theory at the true parameters.
    """

    def slopes(x: np.ndarray) -> np.ndarray:
        fall = (x / FIRST) ** -b
        columns = [fall, (FLOORS[form] - TOP) * fall * np.log(x / FIRST), np.ones_like(x)]
        return np.stack(columns[: 2 if form == "power" else 3], axis=1)

    inverse = np.linalg.inv(slopes(n).T @ (slopes(n) / sigma[:, None] ** 2))
    variances = np.einsum("xi,ij,xj->x", slopes(at), inverse, slopes(at))
    return np.sqrt(np.append(variances, inverse[1, 1]))


def simulate(setting: dict[str, Any], draws: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of one setting, one a place; methods are tried on the same draws."""
    form, b, n = setting["form"], setting["exponent"], SIZES[setting["sizes"]]
    far, other = setting["runs"] == "one far off", setting["runs"] == "other patients"
    truth, sizes = curve(form, n, b), np.unique(n)
    at = np.array([n[0], np.sqrt(n[0] * n[-1]), n[-1], n[-1] * sizes[-1] / sizes[-2]])
    target = np.append(curve(form, at, b), b)
    sigma = NOISE * (truth if setting["noise"] == "proportional" else truth.mean() + 0 * n)
    whole = np.hypot(sigma, OWN * truth * other)
    share = {"given": 1.0, "estimated": 0.0}.get(setting["sigma"], 0.5)
    options = {
        "form": form,
        "sigma": whole * share if share else None,
        "robust": setting["method"] == "robust profile",
        "partial": setting["sigma"] == "half, as a part",
    }
    rng = np.random.default_rng([seed, *form.encode(), int(100 * b), len(n), far, other])
    inside, widths = [], []
    for _ in range(draws):
        error = truth + sigma * rng.normal(size=len(n))
        error[rng.integers(len(n))] *= 1.2 if far else 1.0
        shift = SHARED * rng.normal() if other else 0.0
        error = error * (1 + shift + (OWN * rng.normal(size=len(n)) if other else 0.0))
        rng.integers(2**32)  # not used: the recorded rows were drawn with it in this place
        try:
            fit = fit_scaling(n, error, **options)
        except ValueError:
            continue
        ends = zip(fit.interval(at), fit.exponent_interval(), strict=True)
        low, high = (np.append(*pair) for pair in ends)
        inside.append((low <= target) & (target <= high))
        widths.append(high - low)
    z = stats.norm.ppf(0.975)
    moved = SHARED * np.append(target[:-1], 0) * other
    known = 2 * z * np.hypot(oracle(form, b, n, whole, at), moved)
    covered, wide = np.mean(inside, axis=0), np.median(widths, axis=0) / known
    rows = [
        {"place": p, "coverage": c, "width": w}
        for p, c, w in zip(PLACES, covered, wide, strict=True)
    ]
    rows.append({"place": "all", "coverage": covered[:-1].mean(), "width": wide[:-1].mean()})
    dof = len(n) - (2 if form == "power" else 3)
    ratio = float(stats.t.ppf(0.975, dof) / z * np.sqrt(stats.chi2.median(dof) / dof))
    student = 1.0 if setting["sigma"] == "given" else ratio
    counts = {"student": student, "draws": draws, "refused": draws - len(inside)}
    return [setting | row | counts for row in rows]


def main() -> None:
    """Simulate every setting and write ``coverage.csv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="draw it after the code is frozen")
    parser.add_argument("--draws", type=int, default=2000, help="simulated curves a setting")
    parser.add_argument("--out", default="", help="another file than the one in book/recorded")
    given = parser.parse_args()
    rows = []
    for setting in settings():
        rows += simulate(setting, given.draws, given.seed)
        print({k: v for k, v in rows[-1].items() if k != "place"}, flush=True)
    command = f"python tests/benchmarks/coverage.py --seed {given.seed} --draws {given.draws}"
    table = pd.DataFrame(rows).assign(seed=given.seed, command=command).round(4)
    table.to_csv(given.out or RECORDED / "coverage.csv", index=False)


if __name__ == "__main__":
    main()
