"""The data page: prepared data sets of this machine, and data sets of recorded studies."""

import json
from typing import Any

import pandas as pd

from cxrstudy import grid, recorded
from cxrstudy.data.vocabulary import phrase
from cxrstudy.recorded import RECORDED
from cxrstudy.run import run_table
from cxrstudy.shown import Shown, inert, nothing, without_html, words

VERIFIED = {
    "real": "verified on the real files",
    "layout": "written for the layout as documented; the real files have not been seen",
}


def prepared_sets(presets: list[str]) -> list[tuple[str, Any, Any]]:
    """Return (name, prepared data, card) of finished data runs here, each data set once."""
    from cxrstudy.data.cards import read_card
    from cxrstudy.data.images import open_prepared

    found: dict[tuple[str, int], tuple[str, Any, Any]] = {}
    for preset in presets:
        for row in run_table(preset):
            if row["stage"] == "data" and row["record"]:
                prepared = open_prepared(row["notebook"].parent)
                key = (prepared.info["institution"], prepared.info["size"])
                card = read_card(prepared.info["card"])
                found.setdefault(key, (grid.slug(row["name"]), prepared, card))
    return list(found.values())


def describe(name: str, prepared: Any, card: Any) -> str:
    """Return a heading and a paragraph on one prepared data set: size, what was left out, terms."""
    from cxrstudy.data import odd

    manifest, info = prepared.manifest, prepared.info
    counted = (
        ("rows of the table are left out", info.get("left_out") or {}),
        ("images could not be read and are left out", info.get("set_aside") or {}),
        ("images are odd and kept", info.get("odd") or {}),
    )
    lost = [
        f"{sum(parts.values()):,} {said} ({', '.join(f'{why} {n:,}' for why, n in parts.items())})"
        for said, parts in counted
        if sum(parts.values())
    ]
    warned = [f"**Warning: {inert(sentence)}**" for sentence in odd.losses(info, len(manifest))]
    kind = "Synthetic" if info["kind"] == "synthetic" else "Real"
    size = (
        f"{len(manifest):,} images of {manifest['patient_id'].nunique():,} patients at "
        f"{info['size']} px{'; ' * bool(lost)}{inert('; '.join(lost))}."
    )
    warned += [f"Of its tables: {inert('; '.join(info['notes']))}."] if info.get("notes") else []
    warned += [f"The card is {VERIFIED[card.verified]}."] if card.verified else []
    terms = without_html(f"Licence: {card.licence}. Cite: {card.citation}.")
    heading = f"## {inert(card.title)}{'' if card.title.endswith('?') else ':'} {name}"
    return f"{heading}\n\n" + " ".join([f"**{kind} x-rays.** {size}", *warned, terms])


def prevalence_table(prepared: Any) -> Shown:
    """Return the share of images with each label, of those where it is known, by split."""
    from cxrstudy.data.manifest import label_names

    manifest = prepared.manifest
    names = label_names(manifest)
    if not names:
        return nothing("", "This data set records no labels.")
    labels = manifest[[f"label:{name}" for name in names]]
    labels = labels.set_axis([phrase(name) for name in names], axis=1)
    parts = labels.groupby(manifest["split"])
    shares = parts.mean().T.map(lambda s: "unknown in all" if pd.isna(s) else f"{s:.3f}")
    sizes, unknown = parts.size(), labels.isna()
    shares.columns = pd.Index([f"{split} (n = {sizes[split]:,})" for split in shares.columns])
    counts = zip(unknown.mean(), unknown.sum(), strict=True)
    shares["unknown"] = [f"{share:.1%} ({count:,})" for share, count in counts]
    caption = (
        "Share of images on which each label is present, of those where it is known, in each split "
        f"of the {len(manifest):,} images. Unknown is not absent: the last column counts it."
    )
    return words(shares.rename_axis("label"), "The prevalence of each label.", caption)


def recorded_sets(sources: list[str]) -> pd.DataFrame:
    """Return the data runs of recorded studies: images, patients, splits, unreadable files."""
    rows = []
    for source in (name for name in sources if name.startswith(RECORDED)):
        name = source.removeprefix(RECORDED)
        runs = pd.read_csv(recorded.place(name) / "runs.csv", keep_default_na=False)
        for run in runs[(runs["stage"] == "data") & (runs["variant"] == "")].itertuples():
            info, asked = json.loads(run.info), json.loads(run.parameters)
            splits = ", ".join(f"{part} {share:.0%}" for part, share in asked["fractions"].items())
            row = {"data set": f"{name}: {grid.slug(run.run)}", "kind": info["kind"]}
            row |= {"institution": info["institution"], "images": f"{info['images']:,}"}
            row |= {"patients": f"{info['patients']:,}", "px": f"{info['size']}"}
            row |= {"splits by patient": splits, "unreadable": f"{info['quarantined']:,}"}
            rows.append(row)
    return pd.DataFrame(rows).set_index("data set") if rows else pd.DataFrame()


def recorded_prevalence(sources: list[str], kind: str) -> pd.DataFrame:
    """Return the prevalence of labels (rows) in recorded data sets of a kind (columns)."""
    columns = {}
    for source in (name for name in sources if name.startswith(RECORDED)):
        table = recorded.load(source.removeprefix(RECORDED))
        rows = table[(table["stage"] == "data") & (table["metric"] == "prevalence")]
        rows = rows[rows["kind"] == kind]
        for run, own in rows.groupby("run", sort=False):
            name = f"{source.removeprefix(RECORDED)}: {grid.slug(run)}"
            columns[name] = own.drop_duplicates("label").set_index("label")["value"]
    if not columns:
        return pd.DataFrame()
    wide = pd.DataFrame(columns).map(lambda v: "" if pd.isna(v) else f"{v:.3f}")
    return wide.rename(index=phrase).rename_axis("label")


def in_words(preset: str) -> str:
    """Return how many images a preset's data runs could read, from this machine's records."""
    said = []
    for row in run_table(preset.removeprefix(RECORDED)) if not preset.startswith(RECORDED) else []:
        if row["stage"] != "data" or not row["record"]:
            continue
        info = row["record"]["info"]
        unread, left = info.get("quarantined", 0), sum((info.get("left_out") or {}).values())
        parts = {
            f"{unread:,} could not be read": unread,
            f"rows of the table left out: {left:,}": left,
        }
        lost = "; ".join(text for text, count in parts.items() if count)
        patients = f" of {info['patients']:,} patients" if "patients" in info else ""
        said.append(
            f"As prepared, `{grid.slug(row['name'])}` holds **{info['images']:,} images**{patients}"
            f"{f' ({lost})' if lost else ''}."
        )
    return " ".join(said)
