"""The claims on trial: every entry of ``hypotheses.CLAIMS`` tried on run records, and where its verdict turns.

How a claim is weighed, and what the verdicts mean, is said in ``hypotheses``.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxrstudy.evaluate.compare import holm
from cxrstudy.evaluate.metrics import interval
from cxrstudy.memo import remembered
from cxrstudy.scaling.evidence import (
    Spread,
    find_cells,
    find_labels,
    find_options,
    find_rungs,
    in_words,
    measure,
    scope,
    seed_spread,
    used_rows,
)
from cxrstudy.scaling.hypotheses import BASE, CLAIMS, Claim, NotTestable, weigh

VERDICTS = ("supported", "contradicted", "inconclusive", "not testable")
_COLUMNS = [
    "id",
    "claim",
    "source",
    "scope",
    "contrast",
    "effect",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "why",
]
_EFFECTS = [
    "id",
    "claim",
    "factor",
    "setting",
    "x",
    "effect",
    "low",
    "high",
    "p",
    "verdict",
    "why",
    "threshold",
]
_EFFECTS += ["reference", "key", "is_key", "draws"]
_FLIPS = [
    "id",
    "claim",
    "factor",
    "setting",
    "effect",
    "low",
    "high",
    "verdict",
    "reference",
    "reference_verdict",
]
_FLIPS += ["differs", "reverses", "towards", "turns", "turns_low", "turns_high"]


@remembered
def ledger(
    table: pd.DataFrame,
    resamples: int = 1000,
    seed: int = 0,
    *,
    claims: Sequence[Claim] = CLAIMS,
    repeats: Sequence[pd.DataFrame] = (),
) -> pd.DataFrame:
    """Every claim tried on the tidy table of one grid of runs: a row a claim.

    Columns: id, claim, source, scope, contrast (in words), effect, low, high (95%, in the metric's units), p
    (two-sided), p_holm (corrected over the ledger; Holm 1979), verdict, why (or what is missing), runs, threshold.
    ``repeats``: tidy tables of other grids, whose seeds tell the spread where this one's cannot. Where a paradigm has
    several ladders (base, data, encoder, samples seen), that with the most rungs is tried.
    """
    spread = seed_spread(map(find_rungs, repeats))
    rows = pd.DataFrame(
        _trials(table, resamples, seed, claims, spread), columns=[*_COLUMNS, "runs", "threshold"]
    )
    return rows.assign(p_holm=holm(rows["p"].to_numpy(float)))


def effects(
    tables: Mapping[str, pd.DataFrame],
    resamples: int = 1000,
    seed: int = 0,
    *,
    reference: str = "",
    claims: Sequence[Claim] = CLAIMS,
    repeats: Sequence[pd.DataFrame] = (),
) -> pd.DataFrame:
    """The effect of every claim under every setting of an ablation: a row a (claim, setting).

    ``tables``: tidy tables by "factor=value"; a table may stand under several factors, as the reference does.
    ``reference``: its key, by default the first. Where a table's own seeds cannot tell the spread, those of all tables
    and of ``repeats``, other grids, do together.
    Columns: id, claim, factor, setting (the value as written), x (as a number, else NaN), effect, low, high, p,
    verdict, why, threshold, reference (whether the setting holds the reference's runs), and what `flips` needs: key,
    is_key, draws. ValueError: a key of another form, or a ``reference`` that is no key.
    """
    wrong = [key for key in tables if not re.fullmatch(r"[^=]+=[^=]+", key)]
    if wrong:
        raise ValueError(f"tables: {wrong[0]!r} is no factor=value, such as 'mention=0.3'")
    reference = reference or next(iter(tables), "")
    if tables and reference not in tables:
        raise ValueError(f"reference: {reference!r} is not among the tables: {', '.join(tables)}")
    folders = {key: frozenset(table["folder"]) for key, table in tables.items()}
    spread = seed_spread(
        map(
            find_rungs, [*{folders[key]: table for key, table in tables.items()}.values(), *repeats]
        )
    )
    rows, tried = [], {}
    for key, table in tables.items():
        factor, value = key.split("=")
        number = pd.to_numeric(value, errors="coerce")
        own = {
            "factor": factor,
            "setting": value,
            "x": float(number),
            "key": key,
            "is_key": key == reference,
        }
        own |= {
            "reference": key == reference
            or (bool(folders[key]) and folders[key] == folders[reference])
        }
        if folders[key] not in tried:  # the reference stands under every factor
            tried[folders[key]] = _trials(table, resamples, seed, claims, spread)
        rows += [row | own for row in tried[folders[key]]]
    return pd.DataFrame(rows, columns=_EFFECTS)


def flips(effects: pd.DataFrame) -> pd.DataFrame:
    """What would have to be true for a verdict to differ: a row a (claim, setting other than the reference).

    Of `effects`. ``differs``: both were tried and the verdict is not the reference's. ``reverses``: the effects have
    opposite signs, and neither interval holds 0. Where a factor's values are
    numbers and the effect has another sign at the next value ``towards`` the reference (or, in a factor without it,
    towards the least value): ``turns``, where a straight line between the two effects meets 0, with ``turns_low`` and
    ``turns_high``, 95% over paired resamples, cut at the two values.
    """
    rows, out = effects.to_dict("records"), []
    for row in (row for row in rows if not row["reference"]):
        same = [
            other for other in rows if (other["id"], other["factor"]) == (row["id"], row["factor"])
        ]
        basis = next(other for other in rows if other["id"] == row["id"] and other["is_key"])
        fact = {"reference": basis["key"], "reference_verdict": basis["verdict"]}
        both = {row["verdict"], basis["verdict"]}
        fact |= {"differs": len(both) > 1 and "not testable" not in both}
        fact |= {"reverses": bool(row["low"] > 0 > basis["high"] or row["high"] < 0 < basis["low"])}
        near = _towards(row, same)
        out.append(row | fact | (_turn(row, near) if near is not None else {}))
    return pd.DataFrame(out, columns=_FLIPS)


def _towards(row: dict[str, Any], same: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of a factor's next value on the way to the reference, or to the least value where it has none."""
    numbered = sorted(
        (other for other in same if np.isfinite(other["x"])), key=lambda other: other["x"]
    )
    if not np.isfinite(row["x"]):
        return None
    goal = next((other["x"] for other in numbered if other["reference"]), numbered[0]["x"])
    between = [
        o
        for o in numbered
        if min(goal, row["x"]) <= o["x"] <= max(goal, row["x"]) and o["x"] != row["x"]
    ]
    return min(between, key=lambda other: abs(other["x"] - row["x"]), default=None)


def _turn(row: dict[str, Any], near: dict[str, Any]) -> dict[str, Any]:
    """Where the line from one effect to the other meets 0, if it does, with its interval."""
    found = {"towards": near["setting"]}
    if not row["effect"] * near["effect"] < 0:
        return found
    ends = sorted((row["x"], near["x"]))

    def meets(a: Any, b: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.clip(row["x"] + (near["x"] - row["x"]) * a / (a - b), *ends)

    longest = max(len(row["draws"]), len(near["draws"]))
    drawn = meets(
        *(np.repeat(side["draws"], longest // len(side["draws"])) for side in (row, near))
    )
    low, high = interval(drawn)
    turns = float(meets(row["effect"], near["effect"]))
    return found | {"turns": turns, "turns_low": float(low), "turns_high": float(high)}


# ---- a claim and the records ---------------------------------------------------------------------------------------
@remembered
def _trials(
    table: pd.DataFrame, resamples: int, seed: int, claims: Sequence[Claim], repeated: Spread
) -> list[dict[str, Any]]:
    """The ledger's rows but for p_holm, with ``draws`` of the effect (NaN where a claim could not be tried)."""
    rungs = find_rungs(table)
    cells, unclear = find_cells(rungs)
    judged = find_labels(table)
    spread = repeated | seed_spread([rungs])
    rows = []
    for claim in claims:
        row: dict[str, Any] = {"id": claim.id, "claim": claim.text, "source": claim.source}
        row |= {
            "threshold": claim.threshold,
            "scope": "",
            "contrast": in_words(claim),
            "runs": [],
            "draws": np.full(1, np.nan),
        }
        row |= dict.fromkeys(("effect", "low", "high", "p"), np.nan)
        try:
            options, words, left = find_options(claim, cells, unclear)
            used = used_rows(options, cells)
            tried = list(used.itertuples())
            measured = {
                cell: measure(cell, tried, judged, resamples, seed)
                for option in options
                for cell in option
            }
            own = zlib.crc32(
                repr((claim.id, sorted(used["run"]))).encode()
            )  # settings draw their seeds apart
            row |= weigh(claim, options, measured, spread, np.random.default_rng([seed, own]))
            which = {
                "any": f"the greatest of {len(words)}: ",
                "every": f"the least of {len(words)}: ",
            }
            row |= {
                "contrast": which.get(claim.each, "") + words[row["decides"]],
                "scope": scope(used),
            }
            row |= {"runs": sorted(used["run"].unique())}
            row["why"] += _before(claim, cells, used)
            row["why"] += "".join(f"; left out, missing: {reason}" for reason in left)
        except NotTestable as reason:
            row |= {"verdict": "not testable", "why": f"missing: {reason}"}
        rows.append(row)
    return rows


def _before(claim: Claim, cells: pd.DataFrame, used: pd.DataFrame) -> str:
    """Of a lead with the most images: by how much the bases differ as they came, where they are not the same. Of a
    change: how far each side was from its base at both ends, since a change may be the recovery of what few images
    cost."""
    if claim.contrast not in ("largest", "growth") or len(claim.measures) > 1:
        return ""
    task, metric = claim.measures[0]
    bases = cells[
        (cells["task"] == task) & (cells["metric"] == metric) & (cells["n_images"] == BASE)
    ]
    sides = [bases[bases["paradigm"].isin(family)] for family in (claim.one, claim.other)]
    if any(side.empty for side in sides) or bases["run"].nunique() < 2:
        return ""
    one, other = (side.groupby("paradigm")["value"].mean().mean() for side in sides)
    if claim.contrast == "growth":
        means = used.groupby(["n_images", "paradigm"])["value"].mean()
        told = [
            "/".join(
                f"{means[n].reindex(family).mean() - base:+.4f}"
                for n in sorted(set(used["n_images"]))
            )
            for family, base in ((list(claim.one), one), (list(claim.other), other))
        ]
        return f"; over the bases, with the fewest/the most images: {told[0]} against {told[1]}"
    return (
        f"; of the bases as they came the difference is {one - other:+.4f}" if one != other else ""
    )


# ---- sentences -----------------------------------------------------------------------------------------------------
def common_scope(rows: pd.DataFrame) -> str:
    """What the scopes of all of a ledger's claims have in common."""
    first, *others = (scope.split("; ") for scope in rows["scope"])
    return "; ".join(part for part in first if all(part in other for other in others))


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """A ledger for readers: a row a claim, numbers as text, of its scope what `common_scope` has not said."""
    said = common_scope(rows).split("; ")
    rest = [
        "; ".join(part for part in scope.split("; ") if part not in said) for scope in rows["scope"]
    ]
    shown = rows.assign(claim=rows["claim"] + " (" + rows["id"] + ")", scope=rest).set_index(
        "claim"
    )
    shown = shown[["verdict", "why", "p", "p_holm", "contrast", "source", "scope"]]
    shown.insert(1, "effect [95%]", _ends(rows))
    for column in ("p", "p_holm"):
        shown[column] = [f"{p:.2g}" if np.isfinite(p) else "" for p in shown[column]]
    return shown.rename(columns={"p_holm": "p, Holm"})


def readable_effects(rows: pd.DataFrame) -> pd.DataFrame:
    """`effects` for readers: a row a claim, a column a setting, numbers as text."""
    text = [
        f"{ends} {row.verdict}".strip()
        for ends, row in zip(_ends(rows), rows.itertuples(), strict=True)
    ]
    where = rows["factor"] + "=" + rows["setting"]
    wide = rows.assign(text=text, where=where).pivot(index="claim", columns="where", values="text")
    return wide.loc[rows["claim"].unique(), where.unique()].rename_axis(columns=None)


def beside(ledgers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Ledgers of several studies for readers: a row a claim, a column a study, its verdict and effect as text."""
    columns = {
        name: pd.Series(
            [_verdict(*row) for row in zip(rows.itertuples(), _ends(rows), strict=True)],
            rows["claim"],
        )
        for name, rows in ledgers.items()
    }
    return pd.DataFrame(columns).fillna("").rename_axis("claim")


def _verdict(row: Any, ends: str) -> str:
    chance = row.verdict in ("supported", "contradicted") and row.p_holm >= 0.05
    return f"{row.verdict} {ends}".strip() + " (not after Holm's correction)" * chance


def opposed(ledgers: Mapping[str, pd.DataFrame]) -> list[str]:
    """Sentences on the claims that one study supports and another shows to be the other way round."""
    joined = pd.concat(
        [rows.assign(study=name, text=_ends(rows)) for name, rows in ledgers.items()]
    )
    said = []
    for claim, rows in joined.groupby("claim", sort=False):
        yes = rows[rows["verdict"] == "supported"]
        no = rows[(rows["verdict"] == "contradicted") & (rows["high"] < 0)]
        if len(yes) and len(no):
            told = (
                ", ".join(f"{row.study} ({row.text})" for row in side.itertuples())
                for side in (yes, no)
            )
            said.append("{}: supported by {}; the other way round in {}.".format(claim, *told))
    return said


def _ends(rows: pd.DataFrame) -> list[str]:
    ends = rows[["effect", "low", "high"]].to_numpy(np.float64)
    return [
        ""
        if not np.isfinite(e)
        else f"{e:+.4f} [{low:+.4f}, {high:+.4f}]"
        if np.isfinite(low)
        else f"{e:+.4f}"
        for e, low, high in ends
    ]


def summary(rows: pd.DataFrame) -> str:
    """How many claims of a ledger got which verdict, and which tested ones differ from 0 after Holm's correction."""
    counts = rows["verdict"].value_counts()
    told = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if name in counts)
    tested = rows[rows["p_holm"].notna()]
    left = ", ".join(f"`{name}`" for name in tested.loc[tested["p_holm"] < 0.05, "id"]) or "none"
    return f"{len(rows)} claims: {told}. {len(tested)} have a p; after Holm's correction these differ from 0: {left}."


def untouched(rows: pd.DataFrame) -> list[str]:
    """Ids of claims, of a factor's `effects`, whose effect and interval are the same under every setting: of encoders
    that the factor does not reach, such as bases as they came."""
    tried = (
        rows[rows["effect"].notna()].groupby("id", sort=False)[["effect", "low", "high"]].nunique()
    )
    return list(tried.index[(tried == 1).all(axis=1)])


def flip_sentences(rows: pd.DataFrame) -> list[str]:
    """Of `flips`: which verdicts differ from the reference's, and where an effect changes its sign, unless its interval
    reaches from one setting to the other."""
    said = []
    for row in rows.itertuples():
        placed = np.isfinite(row.turns) and not _anywhere(row)
        if not (row.differs or placed or row.reverses):
            continue
        text = f"`{row.id}`: {row.reference_verdict} under the reference, {row.verdict} at {row.factor}={row.setting}"
        if placed:
            text += f"; the effect changes sign between {row.towards} and {row.setting}, at {row.turns:.3g} "
            text += f"[{row.turns_low:.3g}, {row.turns_high:.3g}]"
        elif row.reverses:
            text += "; the effect has the other sign, both intervals without 0"
        said.append(f"{text}.")
    return said


def _anywhere(row: Any) -> bool:
    """Whether the interval of a change of sign reaches from one setting to the other."""
    low, high = sorted((float(row.setting), float(row.towards)))
    return bool(row.turns_low <= low and row.turns_high >= high)
