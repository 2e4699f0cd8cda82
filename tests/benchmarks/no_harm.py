"""Measure whether continued pretraining harms an encoder: continued minus base model, over seeds.

    python tests/benchmarks/no_harm.py synthetic   # from the recorded study-cpu; half a minute
    cxrstudy run --preset mini --set curves.seed=[0,1,2] && python tests/benchmarks/no_harm.py mini
    python tests/benchmarks/no_harm.py real --root ../shared/data/nih_subset   # some minutes a core

Rows go to ``book/recorded/no_harm.csv``. Intervals are over resampled test patients alone.

Real: 1,000 x-rays of ChestX-ray14 at 64 px, cross-fitted over five folds of patients. No encoder
has seen an image of the fold that it is evaluated on. Labels are those with at least 40 positives.
They are confounded with how the sample was selected. A difference of two encoders on the same
patients does not correct that: it shows harm or none, not how good either encoder is.
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
from cxrstudy.evaluate.metrics import auroc, bootstrap, knn_auroc
from cxrstudy.pretrain.loop import pretrain
from cxrstudy.results import environment
from cxrstudy.scaling import contrasts
from cxrstudy.scaling.cells import Cell, Measured, base_of, read_cells

FOLDS = [f"fold{k}" for k in range(5)]
RECIPES = {  # paradigm: base model, what differs from the defaults
    "unicl": ("book/recorded/bases/clip-hybrid", {"batch_size": 32, "lr": 5e-4}),
    # At 5e-4 the weights change by 0.7%.
    "dinov2": ("book/recorded/bases/dino-hybrid", {"batch_size": 32, "lr": 1e-3}),
}
STUDIES = {  # source, variant, how the book calls its x-rays
    "synthetic": ("recorded:study-cpu", "", "synthetic"),
    "mini": ("mini", "curves.seed=[0,1,2]", "synthetic (mini)"),
}
SHARED: dict[str, Any] = {"samples_seen": 1408, "warmup": 0.2, "wise_ft_alpha": 0.5}
RESAMPLES = 2000
COLUMNS = ["images", "task", "paradigm", "n_images", "seeds", "gain", "low", "high"]
COLUMNS += ["least", "most", "relative_weight_change", "hardware", "commit"]


def gain(cell: Cell, cells: contrasts.Cells) -> dict[str, Any]:
    """Return the gain of a cell over its base model, and the least and the most of a seed."""
    found = contrasts.contrast({cell: 1.0, base_of(cell): -1.0}, cells, {})
    each = cells[cell].values - cells[base_of(cell)].values.mean()
    row = {"task": cell.task, "paradigm": cell.arm, "n_images": cell.n_images, "seeds": found.seeds}
    row |= {"gain": found.effect, "low": found.low, "high": found.high}
    return row | {"least": each.min(), "most": each.max()}


def real(root: str, seeds: int, paradigms: list[str]) -> list[dict[str, Any]]:
    """Return the rows of the real sample."""
    out = "runs/no-harm/data/nih"
    fractions = dict.fromkeys(FOLDS, 0.2)
    card = {"card": "nih_chestxray14", "root": root, "n_images": 0, "size": 64}
    prepared = prepare_data(study.Data(fractions=fractions, out=out, **card))  # type: ignore[arg-type]
    counts = (prepared.manifest.filter(like="label:") == 1).sum()
    labels = [name.removeprefix("label:") for name in counts.index[counts >= 40]]
    shared = {"data": out, "folds": FOLDS, "labels": labels, "tasks": ["findings"]}

    def evaluated(encoders: list[str]) -> Measured:
        """Macro AUROC of one seed: an encoder a fold, or one for all."""
        which = {"fold_encoders": encoders} if len(encoders) > 1 else {"encoder": encoders[0]}
        found = protocol.run(study.Classify(resamples=20, **shared, **which), prepared)  # type: ignore[arg-type]
        order = np.argsort(found.test["image_id"].to_numpy())
        truth, scores = found.truth[order], found.scores[order]
        patients = found.test["patient_id"].to_numpy()[order]
        draws = bootstrap(auroc, truth, scores, groups=patients, resamples=RESAMPLES)
        value = np.nanmean(auroc(truth, scores))
        return Measured(np.array([value]), np.nanmean(draws, axis=1)[None])

    rows = []
    for paradigm in paradigms:
        base, own = RECIPES[paradigm]
        cells: dict[Cell, Measured] = {}
        for n in (100, 250, 700):
            cell = Cell("findings", "auroc", out, paradigm, base, 1408.0, float(n))
            cells.setdefault(base_of(cell), evaluated([base]))
            seen, changes = [], []
            for seed in range(seeds):
                encoders = []
                for held in FOLDS:
                    run = f"runs/no-harm/pretrain/{paradigm}-{n}-{seed}-{held}"
                    splits = [fold for fold in FOLDS if fold != held]
                    own_run = {"paradigm": paradigm, "n_images": n, "seed": seed, "splits": splits}
                    p = study.Pretrain(data=out, base=base, out=run, **own_run, **SHARED, **own)  # type: ignore[arg-type]
                    trained = pretrain(p, study.resolve(out), score=knn_auroc)
                    changes.append(trained["relative_weight_change"])
                    encoders.append(f"{run}/encoder")
                seen.append(evaluated(encoders))
            values, draws = (
                np.concatenate([getattr(m, k) for m in seen]) for k in ("values", "draws")
            )
            cells[cell] = Measured(values, draws)
            row = {"images": "real (ChestX-ray14 sample)", "relative_weight_change": min(changes)}
            rows.append(row | gain(cell, cells))
            print(rows[-1], flush=True)
    return rows


def synthetic(source: str, variant: str, images: str) -> list[dict[str, Any]]:
    """Return the rows of a study of synthetic x-rays that has been run."""
    table, _ = sources.plan_table(source, variant)
    if table.empty:
        command = text.command(source)
        raise SystemExit(f"{source} {variant} has no results: {command}, or see --help")
    change = table[(table["stage"] == "pretrain") & (table["metric"] == "relative_weight_change")]
    smallest = change.groupby(["paradigm", "n_images"])["value"].min()
    wanted = table["task"].isin(["findings", "lines_tubes"]) & (table["metric"] == "auroc")
    cells = read_cells(table[wanted], resamples=RESAMPLES)
    rows = []
    for _, _, weights in contrasts.gains(cells):
        cell = next(iter(weights))
        if cell.metric == "auroc":
            row = {"images": images, "relative_weight_change": smallest[cell.arm, cell.n_images]}
            rows.append(row | gain(cell, cells))
    return rows


def main() -> None:
    """Make the rows that are asked for and put them in place of those that were there."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("which", choices=[*STUDIES, "real"])
    parser.add_argument("--root", default="", help="folder of ChestX-ray14")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--paradigm", choices=list(RECIPES), action="append",
        help="of the real sample; default: all",
    )  # fmt: skip
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.which in STUDIES:
        rows = synthetic(*STUDIES[given.which])
    else:
        root = str(Path(given.root).resolve())
        rows = real(root, given.seeds, given.paradigm or list(RECIPES))
    facts = environment()
    new = pd.DataFrame(rows).assign(hardware=facts["hardware"], commit=facts["commit"])
    file = study.root() / "book" / "recorded" / "no_harm.csv"
    if file.is_file():
        old = pd.read_csv(file)
        again = old["images"].isin(new["images"]) & old["paradigm"].isin(new["paradigm"])
        new = pd.concat([old[~again], new])
    new[COLUMNS].round(4).to_csv(file, index=False)
    print(file)


if __name__ == "__main__":
    main()
