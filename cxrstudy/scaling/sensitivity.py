"""Sensitivity analysis: how claims and gains of in-house images depend on one factor of a study.

One factor at a time differs from the reference setting: how often reports name devices, label
errors, the distance between scanners, and so on. Settings have one seed. They take the variance
between seeds from the larger studies, and ``variance_sources`` says so.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cxrstudy.scaling import claims, contrasts
from cxrstudy.scaling.cells import Cells, read_cells

SETTING = ["factor", "setting", "reference"]


def family_variances(many: Sequence[Cells]) -> dict[contrasts.Cell, tuple[float, float]]:
    """Return the variance between seeds of each family of curves, pooled over several studies."""
    total: dict[contrasts.Cell, tuple[float, float]] = {}
    for cells in many:
        for key, (variance, dof) in contrasts.seed_variances(cells).items():
            if key == key.family:
                squares, degrees = total.get(key, (0.0, 0.0))
                total[key] = (squares + variance * dof, degrees + dof)
    return {key: (squares / dof, dof) for key, (squares, dof) in total.items()}


def by_setting(
    tables: Mapping[str, pd.DataFrame],
    *,
    repeats: Sequence[pd.DataFrame] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the claims and the contrasts of every setting.

    Args:
        tables: tidy tables by "factor=value"; the first is the reference, and its runs may be given
            again under other factors.
        repeats: tidy tables of studies with several seeds, which give the variance between seeds.
        resamples: of the test patients; ``seed`` is theirs.

    Returns:
        (ledger, contrasts): as ``claims.ledger`` and ``contrasts.all_contrasts``, after the columns
        factor, setting (the value as written) and reference (whether it has the reference's runs).

    Raises:
        ValueError: a key is not factor=value.
    """
    wrong = [key for key in tables if not re.fullmatch(r"[^=]+=[^=]+", key)]
    if wrong:
        raise ValueError(f"tables: {wrong[0]!r} is not factor=value, such as 'mention=0.3'")
    runs = {key: frozenset(table["folder"]) for key, table in tables.items()}
    first = next(iter(tables), "")
    once = {own: tables[key] for key, own in runs.items()}  # the reference has several keys
    read = {own: read_cells(t, resamples=resamples, seed=seed) for own, t in once.items()}
    many = [read_cells(table, resamples=resamples, seed=seed) for table in repeats]
    pooled = family_variances([*read.values(), *many])
    found: dict[frozenset[str], tuple[pd.DataFrame, pd.DataFrame]] = {}
    ledgers: list[pd.DataFrame] = []
    differences: list[pd.DataFrame] = []
    for key, own in runs.items():
        if own not in found:
            known = pooled | contrasts.seed_variances(read[own])
            given: dict[str, Any] = {"cells": read[own], "seed_variance": known}
            table = tables[key]
            found[own] = claims.ledger(table, **given), contrasts.all_contrasts(table, **given)
        factor, value = key.split("=")
        named = {"factor": factor, "setting": value, "reference": own == runs[first]}
        for rows, out in zip(found[own], (ledgers, differences), strict=True):
            out.append(rows.assign(**named)[[*SETTING, *rows.columns]])
    none = (
        pd.DataFrame(columns=[*SETTING, *claims.COLUMNS]),
        pd.DataFrame(columns=[*SETTING, *contrasts.COLUMNS, *contrasts.ESTIMATED]),
    )
    return (
        pd.concat(ledgers, ignore_index=True) if ledgers else none[0],
        pd.concat(differences, ignore_index=True) if differences else none[1],
    )
