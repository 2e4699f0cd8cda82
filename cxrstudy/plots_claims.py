"""Figures of the claims on trial: verdicts by marker and colour, effects in units of what is of interest."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter

from cxrstudy.memo import remembered
from cxrstudy.plots import COLOURS, Shown, show

LOOKS = {
    "supported": (COLOURS[2], "o"),
    "contradicted": (COLOURS[3], "X"),
    "inconclusive": ("#666666", "D"),
}
HOLLOW = "hollow: one seed, its interval holds patients alone"


@remembered
def forest(ledger: pd.DataFrame, *, title: str = "") -> Shown:
    """Every claim's effect with its 95% interval, a row a claim, over the claim's own smallest effect of interest.

    ``ledger`` is `claims.ledger`'s. Of no effect is 0, of interest what lies right of 1; the axis is linear between -1
    and 1 and logarithmic beyond. Hollow marks have an interval over patients alone (one seed); claims that could not be
    tried have a row and no mark.
    """
    rows = ledger.iloc[::-1].reset_index(drop=True)
    figure, axes = plt.subplots(figsize=(7.2, 0.8 + 0.42 * len(rows)))
    axes.set_xscale("symlog", linthresh=1.0)
    told = []
    for k, row in rows.iterrows():
        if row["verdict"] not in LOOKS:
            axes.text(
                0,
                k,
                "not testable",
                fontsize=7,
                style="italic",
                va="center",
                ha="center",
                color="#444",
            )
            continue
        colour, marker = LOOKS[row["verdict"]]
        effect, low, high = (row[name] / row["threshold"] for name in ("effect", "low", "high"))
        axes.plot([low, high], [k, k], color=colour, lw=2)
        axes.plot(
            effect, k, marker, color=colour, ms=7, mfc=colour if np.isfinite(row["p"]) else "white"
        )
        told.append(f"{row['id']} {row['effect']:+.4f}, {row['verdict']}")
    axes.set_yticks(
        range(len(rows)),
        ["\n".join(textwrap.wrap(text, 52)) for text in rows["claim"]],
        fontsize=7.5,
    )
    axes.set_ylim(-0.7, len(rows) - 0.3)
    for place, style in ((0, "-"), (1, ":")):
        axes.axvline(place, color="#333", lw=0.9, ls=style)
    reach = np.nan_to_num(
        ledger[["low", "high"]].abs().div(ledger["threshold"], axis=0).max(axis=None), nan=1.0
    )
    end = max(2.0, 1.3 * float(reach))
    axes.set_xlim(-end, end)
    tens = [10.0**k for k in range(int(np.log10(end)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([*(-t for t in tens[::-1]), 0.0, *tens]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    hollow = "\n" + HOLLOW if (ledger["effect"].notna() & ledger["p"].isna()).any() else ""
    axes.set(
        xlabel=f"against the claim < effect / smallest effect of interest > for it{hollow}",
        title=title,
    )
    _legend(figure, ledger["verdict"])
    axes.grid(axis="x", alpha=0.25)
    return show(
        figure,
        f"{title} Effects of {len(rows)} claims: {'; '.join(told[::-1]) or 'none could be tried'}.",
    )


@remembered
def settings(effects: pd.DataFrame, factor: str, *, title: str = "") -> Shown:
    """Every claim's effect with its 95% interval against one factor's values, a panel a claim.

    ``effects`` is `claims.effects`'s; claims tried under no setting are left out. Values that are numbers stand on a
    scale, others side by side; the reference's is ringed, the dotted line is the smallest effect of interest.
    ValueError: no claim was tried under any setting of the factor.
    """
    rows = effects[(effects["factor"] == factor) & effects["effect"].notna()]
    if rows.empty:
        raise ValueError(f"factor: no claim was tried under any setting of {factor!r}")
    names, scale = list(dict.fromkeys(rows["setting"])), rows["x"].notna().all()
    names = sorted(names, key=float) if scale else names
    places = {name: float(name) if scale else float(k) for k, name in enumerate(names)}
    ids = list(dict.fromkeys(rows["id"]))
    across = min(3, len(ids))
    shape = (-(-len(ids) // across), across)
    figure, panels = plt.subplots(
        *shape, figsize=(3.0 * across, 2.3 * shape[0]), squeeze=False, sharex=True
    )
    told = []
    for axes, name in zip(panels.flat, ids, strict=False):
        own = (
            rows[rows["id"] == name]
            .assign(place=lambda t: t["setting"].map(places))
            .sort_values("place")
        )
        if scale:
            axes.plot(own["place"], own["effect"], color="#999", lw=0.9, zorder=1)
        for row in own.itertuples():
            colour, marker = LOOKS[row.verdict]
            axes.plot([row.place, row.place], [row.low, row.high], color=colour, lw=1.6)
            axes.plot(
                row.place,
                row.effect,
                marker,
                color=colour,
                ms=6,
                mfc=colour if np.isfinite(row.p) else "white",
            )
            if row.reference:
                axes.plot(row.place, row.effect, "o", mfc="none", mec="#222", ms=11)
        axes.axhline(0, color="#333", lw=0.9)
        axes.axhline(own["threshold"].iloc[0], color="#333", lw=0.9, ls=":")
        axes.set_title("\n".join(textwrap.wrap(own["claim"].iloc[0], 40)), fontsize=7)
        axes.set_xticks([places[n] for n in names], names, fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
        axes.margins(x=0.12)
        told.append(
            f"{name}: "
            + ", ".join(f"{r.effect:+.4f} {r.verdict} at {r.setting}" for r in own.itertuples())
        )
    for axes in panels.flat[len(ids) :]:
        axes.axis("off")
    for axes in panels[:, 0]:
        axes.set_ylabel("effect", fontsize=8)
    figure.supxlabel(f"{factor} ({HOLLOW})" if rows["p"].isna().any() else factor, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    _legend(figure, rows["verdict"])
    return show(
        figure, f"{title} Effects of {len(ids)} claims against {factor}. {'; '.join(told)}."
    )


def _legend(figure: plt.Figure, verdicts: pd.Series) -> None:
    """The verdicts that occur, below a figure."""
    shown = [name for name in LOOKS if (verdicts == name).any()]
    handles = [
        plt.Line2D([], [], color=LOOKS[n][0], marker=LOOKS[n][1], ls="-", label=n) for n in shown
    ]
    if handles:
        figure.legend(
            handles=handles,
            fontsize=8,
            ncols=3,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
        )
