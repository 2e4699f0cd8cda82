"""Does continuing an encoder harm it? Continued minus base over seeds, kept in ``book/recorded/no_harm.csv``.

    python tests/benchmarks/no_harm.py synthetic                         # from what is recorded of study-cpu
    cxrstudy run --preset mini --set curves.seed=[0,1,2] && python tests/benchmarks/no_harm.py mini
    python tests/benchmarks/no_harm.py real --root ../shared/data/nih_subset     # a few minutes, one core

Real: 1,000 x-rays of ChestX-ray14 at 64 px, cross-fitted over five folds of patients (an encoder that judges a fold has
seen none of it); all labels with at least 40 positives. The sample's labels are confounded with its selection, which
a difference between two encoders on the same patients does not mend: it says harm or none, not how good either is.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxrstudy import sources, study, text
from cxrstudy.data.sets import prepare_data
from cxrstudy.evaluate import protocol
from cxrstudy.evaluate.metrics import auroc, bootstrap, interval, knn_auroc
from cxrstudy.pretrain.loop import pretrain
from cxrstudy.results import environment
from cxrstudy.scaling import ladders

FOLDS = [f"fold{k}" for k in range(5)]
RECIPES = {  # paradigm: base, what differs from the defaults
    "unicl": ("book/recorded/bases/clip-hybrid", {"batch_size": 32, "lr": 5e-4}),
    "dinov2": (
        "book/recorded/bases/dino-hybrid",
        {"batch_size": 32, "lr": 1e-3},
    ),  # at 5e-4 it moves by 0.7%
}
STUDIES = {  # source, variant, how the book calls its x-rays
    "synthetic": ("recorded:study-cpu", "", "synthetic"),
    "mini": ("mini", "curves.seed=[0,1,2]", "synthetic (mini)"),
}
SHARED: dict[str, Any] = {"samples_seen": 1408, "warmup": 0.2, "wise_ft_alpha": 0.5}


def real(root: str, seeds: int, paradigms: list[str]) -> list[dict[str, Any]]:
    """Rows of the real sample."""
    out = "runs/no-harm/data/nih"
    asked = study.Data(
        card="nih_chestxray14",
        root=root,
        n_images=0,
        size=64,
        fractions=dict.fromkeys(FOLDS, 0.2),
        out=out,
    )
    prepared = prepare_data(asked)
    counts = (prepared.manifest.filter(like="label:") == 1).sum()
    labels = [name.removeprefix("label:") for name in counts.index[counts >= 40]]

    def judge(encoders: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        which = {"fold_encoders": encoders} if len(encoders) > 1 else {"encoder": encoders[0]}
        p = study.Classify(
            data=out, folds=FOLDS, labels=labels, tasks=["findings"], resamples=20, **which
        )  # type: ignore[arg-type]
        found = protocol.run(p, prepared)
        order = np.argsort(found.test["image_id"].to_numpy())
        return (
            found.truth[order],
            found.scores[order],
            found.test["patient_id"].to_numpy()[order],
        )

    rows = []
    for paradigm in paradigms:
        base, own = RECIPES[paradigm]
        truth, scores, patients = judge([base])
        before = bootstrap(auroc, truth, scores, groups=patients, resamples=2000)
        for n in (100, 250, 700):
            gains, draws, moved = [], [], []
            for seed in range(seeds):
                encoders = []
                for held in FOLDS:
                    run = f"runs/no-harm/pretrain/{paradigm}-{n}-{seed}-{held}"
                    p = study.Pretrain(
                        data=out, base=base, paradigm=paradigm, n_images=n, seed=seed, out=run,  # type: ignore[arg-type]
                        splits=[fold for fold in FOLDS if fold != held], **SHARED, **own,
                    )  # fmt: skip
                    moved.append(
                        pretrain(p, study.resolve(out), score=knn_auroc)["relative_weight_change"]
                    )
                    encoders.append(f"{run}/encoder")
                _, after, _ = judge(encoders)
                gains.append(np.nanmean(auroc(truth, after)) - np.nanmean(auroc(truth, scores)))
                drawn = bootstrap(auroc, truth, after, groups=patients, resamples=2000)
                draws.append(np.nanmean(drawn - before, axis=1))
            low, high = interval(np.mean(draws, axis=0))
            rung = {
                "images": "real (ChestX-ray14 sample)",
                "task": "findings",
                "paradigm": paradigm,
                "n_images": n,
            }
            ends = {"seeds": seeds, "gain": np.mean(gains), "low": float(low), "high": float(high)}
            rows.append(
                rung | ends | {"least": min(gains), "most": max(gains), "moved": min(moved)}
            )
            print(rows[-1], flush=True)
    return rows


def synthetic(source: str, variant: str, images: str) -> list[dict[str, Any]]:
    """Rows of a study on synthetic x-rays whose runs stand."""
    table, _ = sources.plan_table(source, variant)
    if table.empty:
        raise SystemExit(
            f"{source} {variant} has no results: {text.command(source)}, or see --help"
        )
    moved = table[(table["stage"] == "pretrain") & (table["metric"] == "relative_weight_change")]
    far = moved.groupby(["paradigm", "n_images"])["value"].min()
    found = ladders.gains(table, resamples=2000)
    found["moved"] = [far[row.paradigm, row.n_images] for row in found.itertuples()]
    return found.assign(images=images).to_dict("records")


def main() -> None:
    """Make the rows that are asked for and put them in place of those that were there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=[*STUDIES, "real"])
    parser.add_argument("--root", default="", help="folder of ChestX-ray14")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--paradigm",
        choices=list(RECIPES),
        action="append",
        help="of the real sample; default: all",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    root, wanted = str(Path(given.root).resolve()), given.paradigm or list(RECIPES)
    new = pd.DataFrame(
        synthetic(*STUDIES[given.which])
        if given.which in STUDIES
        else real(root, given.seeds, wanted)
    )
    new["hardware"], new["commit"] = environment()["hardware"], environment()["commit"]
    file = study.root() / "book" / "recorded" / "no_harm.csv"
    if file.is_file():
        old = pd.read_csv(file)
        again = old["images"].isin(new["images"]) & old["paradigm"].isin(new["paradigm"])
        new = pd.concat([old[~again], new])
    columns = [
        "images",
        "task",
        "paradigm",
        "n_images",
        "seeds",
        "gain",
        "low",
        "high",
        "least",
        "most",
        "moved",
    ]
    new[[*columns, "hardware", "commit"]].round(4).to_csv(file, index=False)
    print(file)


if __name__ == "__main__":
    main()
