"""The atlas: packs of several institutions side by side, and each contrast pooled over them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cxrstudy import study
from cxrstudy.files import write_text
from cxrstudy.scaling import verdicts
from cxrstudy.scaling.pooled import pool, standard_error
from cxrstudy.share import Pack, read_pack
from cxrstudy.tables import TITLES, interval

KEYS = ["kind", "task", "metric", "start", "one", "other", "size"]
LARGEST = "each site's largest"
TABLES = ("contrasts", "values", "pooled")


def folder() -> Path:
    """Return the folder of the atlas's tables in the clone, which need not exist."""
    return study.root() / "atlas"


def write_atlas(paths: Sequence[str | Path]) -> Path:
    """Write the tables of the atlas page from two or more packs, and return their folder.

    Raises:
        StudyError: a pack cannot be read, there are fewer than two, or two are of one study.
    """
    packs = [read_pack(path) for path in paths]
    if len(packs) < 2:
        raise study.StudyError("an atlas needs packs of two sites at least: cxrstudy share NAME")
    sites = [pack.manifest["site"] for pack in packs]
    hashes = [pack.manifest["tables"].get("contrasts", {}).get("sha256") for pack in packs]
    for k, site in enumerate(sites):
        if site in sites[:k]:
            raise study.StudyError(
                f"two packs are called {site!r}: cxrstudy share NAME --site TEXT"
            )
        if hashes[k] in hashes[:k]:
            other = sites[hashes.index(hashes[k])]
            raise study.StudyError(f"{site!r} and {other!r} are one study: it would count twice")
    found = {name: _joined(packs, name) for name in TABLES[:2]}
    found["pooled"] = pool_contrasts(found["contrasts"])
    for name, rows in found.items():
        write_text(folder() / f"{name}.csv", rows.to_csv(index=False))
    facts = [{k: v for k, v in pack.manifest.items() if k != "tables"} for pack in packs]
    write_text(folder() / "sites.json", json.dumps(facts, indent=1))
    return folder()


def read_atlas() -> tuple[list[dict[str, Any]], dict[str, pd.DataFrame]]:
    """Return the sites and the tables of the atlas; none if it was not made."""
    path = folder() / "sites.json"
    if not path.is_file():
        return [], {}
    tables = {name: pd.read_csv(folder() / f"{name}.csv") for name in TABLES}
    sites: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return sites, tables


def pool_contrasts(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return every contrast that two or more sites have, pooled over them.

    Contrasts are one where kind, task, metric, base model, paradigms and subset size are. Sites
    have other sizes: the gains with each site's largest subset are pooled too.

    Args:
        contrasts: those of all packs, with a column ``site``.

    Returns:
        ``KEYS``, effect, low, high, tau, sites, the range over sites, and how many sites have
        patients alone in their intervals.
    """
    rows = contrasts[contrasts[["effect", "low", "high"]].notna().all(axis=1)]
    rows = rows.assign(size=rows["n_images"].map("{:g}".format).where(rows["n_images"].notna(), ""))
    gains = rows[rows["kind"] == verdicts.GAIN]
    most = gains.groupby(["site", *KEYS[:-1]], dropna=False)["n_images"].transform("max")
    rows = pd.concat([rows, gains[gains["n_images"] == most].assign(size=LARGEST)])
    found = []
    for key, own in rows.groupby(KEYS, sort=False, dropna=False):
        own = own[own["high"] > own["low"]]
        if own["site"].nunique() < 2 or own["site"].duplicated().any():
            continue  # one site measured it, or on two test sets, of which none comes first
        error = standard_error(own["low"], own["high"])
        mean = pool(own["effect"], error**2)
        row = dict(zip(KEYS, key, strict=True)) | vars(mean)
        row |= {"least": own["effect"].min(), "most": own["effect"].max()}
        patients = own["variance_sources"] == verdicts.PATIENTS
        found.append(row | {"patients_only": int(patients.sum())})
    columns = ["effect", "low", "high", "tau", "sites", "least", "most", "patients_only"]
    return pd.DataFrame(found, columns=[*KEYS, *columns])


def _joined(packs: Sequence[Pack], name: str) -> pd.DataFrame:
    parts = [pack.tables[name].assign(site=pack.manifest["site"]) for pack in packs]
    return pd.concat(parts, ignore_index=True)


# ---- words of the page ---------------------------------------------------------------------------
def introduction(sites: Sequence[dict[str, Any]]) -> str:
    """Return which sites there are, and how much so few can say."""
    named = "; ".join(f"{site['site']} ({' and '.join(site['kind'])} x-rays)" for site in sites)
    few = ""
    if len(sites) < 5:
        few = (
            f" **{len(sites)} sites are few.** Their differences can hardly be estimated, and the "
            "intervals of the means are wide for that reason."
        )
    return f"{len(sites)} sites: {named}.{few}"


def summary(pooled: pd.DataFrame) -> pd.DataFrame:
    """Return the pooled contrasts of macro AUROC and Dice as a table of words."""
    rows = pooled[pooled["metric"].isin(["auroc", "dice"])]
    rows = rows[(rows["kind"] != verdicts.GAIN) | (rows["size"] == LARGEST)]
    shown = {
        "contrast": [f"{row.kind}: {row.one} - {row.other}" for row in rows.itertuples()],
        "task": [TITLES.get(task, task) for task in rows["task"]],
        "metric": rows["metric"],
        "images": rows["size"],
        "sites": [f"{r.sites}: {r.least:+.3f} to {r.most:+.3f}" for r in rows.itertuples()],
        "mean [95%]": [interval(r.effect, r.low, r.high, sign=True) for r in rows.itertuples()],
        "between sites (SD)": rows["tau"].map("{:.3f}".format),
    }
    return pd.DataFrame(shown).set_index("contrast")
