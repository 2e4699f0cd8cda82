"""Commands on data sets; ``cli`` imports this module, so that they are among its own."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from cxrstudy import study
from cxrstudy.cli import data_root_option, main


@main.command()
@click.argument("name")
@click.argument("files", nargs=-1, type=click.Path(dir_okay=False))
@click.option("--n", default=200, show_default=True, type=click.IntRange(1), help="Reports, about.")
@click.option("--label", "labels", multiple=True, help="Only this label (repeatable).")
@click.option("--seed", default=0, show_default=True, help="Of the random order of reports.")
@click.option("--unblinded", is_flag=True, help="Show the mined label beside each question.")
@click.option("--score", is_flag=True, help="Score FILES: the marks of one reader, or of two.")
@data_root_option
def audit(
    name: str,
    files: tuple[str, ...],
    n: int,
    labels: tuple[str, ...],
    seed: int,
    unblinded: bool,
    score: bool,
    data_root: str,
) -> None:
    """Audit labels mined from reports of the card NAME: draw a sheet, or score its marks.

    The sheet is one HTML file for a browser, with a CSV file for a spreadsheet. With --score, FILES
    are CSV files that readers saved [default: those in the sheet's folder].
    """
    from cxrstudy import audit as audits
    from cxrstudy.data.tables import CardError

    ingested = study.root() / "ingested" / name
    try:
        if score:
            table = audits.score(name, files)
            columns = ["label", "reader", "read", *audits.METRICS]
            columns += ["kappa"] * ("kappa" in table)
            click.echo(table[columns].to_string(index=False, float_format="{:.3f}".format))
            click.echo(f"written: {audits.folder(table.attrs['card'])}/audit.json and audit.csv")
            return
        if files:
            raise study.StudyError(f"{files[0]}: files are read with --score only")
        root = data_root or (str(ingested) if ingested.is_dir() else "")
        out, sample, never = audits.write_sheet(
            name, root=root, n=n, labels=labels, seed=seed, blinded=not unblinded
        )
    except (CardError, OSError) as error:
        raise study.StudyError(str(error)) from None
    click.echo(
        f"{sample['item'].nunique()} reports, {len(sample)} marks to make for "
        f"{sample['label'].nunique()} labels: {out / 'sheet.html'} (or sheet.csv)"
    )
    if never:
        click.echo(f"mentioned in no report, so not in the sheet: {', '.join(never)}")
    click.echo(f"they hold reports: do not pass them on. Then: cxrstudy audit {name} --score FILE")


@main.command()
@click.option("--out", required=True, help="A new folder.")
@click.option(
    "--n", default=200, show_default=True, type=click.IntRange(1), help="How many x-rays."
)
@click.option(
    "--institution", default="study", show_default=True, help='"study", "public", "public-0", ...'
)
@click.option(
    "--size",
    default=512,
    show_default=True,
    type=click.IntRange(32, 1024),
    help="Height and width in px.",
)
@click.option(
    "--bits",
    default="16",
    show_default=True,
    type=click.Choice(["8", "12", "16"]),
    help="Stored a pixel.",
)
@click.option(
    "--start",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Index of the first x-ray.",
)
@click.option("--seed", default=0, show_default=True, help="Of the institution.")
@click.option("--as-pacs", is_flag=True, help="As an archive gives it, to try cxrstudy ingest on.")
@click.option("--plant", is_flag=True, help="With --as-pacs: plant identifiers, to search for.")
def export_synthetic(out: str, bits: str, as_pacs: bool, plant: bool, **values: Any) -> None:
    """Write synthetic x-rays as DICOM, with reports, tables and masks, as from a hospital."""
    from functools import partial

    from cxrstudy.data import export, pacs
    from cxrstudy.progress import track

    if plant and not as_pacs:
        raise study.StudyError("--plant goes with --as-pacs")
    bar = partial(track, what=f"{export.CHUNK} x-rays")
    write = partial(pacs.export_as_pacs, plant=plant) if as_pacs else export.export_synthetic
    try:
        folder = write(out, bits=int(bits), progress=bar, **values)
    except ValueError as error:
        raise study.StudyError(str(error)) from None
    read = f"read them with the card synthetic_dicom and root={folder}"
    if as_pacs:
        tables = " ".join(f"--table {path}" for path in sorted((folder / "tables").iterdir()))
        read = f"next: cxrstudy ingest {folder / 'archive'} --name NAME {tables}"
    click.echo(f"{values['n']} x-rays in {folder}; {read}")


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--name", required=True, help="Of the card, the preset and the ingest folder.")
@click.option(
    "--table",
    "tables",
    multiple=True,
    help="Table, or folder or glob of tables or of reports (repeatable).",
)
@click.option("--out", default="", help="The ingest folder.  [default: ingested/NAME in the clone]")
@click.option("--key", default="", help="Key file.  [default: ~/.config/cxrstudy/NAME.key]")
@click.option("--public-ids", default="", help="List of images that encoders were trained on.")
@click.option(
    "--against",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder of a data run or another ingest, to find its images here (repeatable).",
)
@click.option("--keep-burned-in", is_flag=True, help="Keep images with text in their pixels.")
@click.option(
    "--workers", default=os.cpu_count() or 1, type=click.IntRange(1), show_default="all cores"
)
def ingest(
    folders: tuple[str, ...],
    name: str,
    tables: tuple[str, ...],
    out: str,
    key: str,
    public_ids: str,
    against: tuple[str, ...],
    keep_burned_in: bool,
    workers: int,
) -> None:
    """Make a data card and a preset of an archive in FOLDERS and of tables beside it.

    Files are recognised by content, tables are joined by what their cells hold, and ids become
    keyed hashes. What is guessed is in the card with its evidence, what is dropped is counted. Run
    it again when the archive has grown, or when it was interrupted.
    """
    from cxrstudy.ingest import card, write
    from cxrstudy.progress import track

    place = write.ingest(
        folders,
        name,
        tables=tables,
        out=out,
        key=key,
        public_ids=public_ids,
        against=against,
        keep_burned_in=keep_burned_in,
        workers=workers,
        say=click.echo,
        progress=track,
    )
    click.echo(f"ingest folder: {place}; what was dropped and guessed: quality.json, dropped.csv")
    preset = ""
    try:
        preset = card.write_preset(name, place, click.echo).stem
    except study.StudyError as error:
        click.echo(f"cxrstudy: no preset was written: {error}", err=True)
    click.echo(f"read and correct the card:  data_cards/{name}.md")
    click.echo("see its data-quality page:  cxrstudy book")
    if json.loads((place / "quality.json").read_text(encoding="utf-8"))["mined"]:
        click.echo(f"check labels from reports:  cxrstudy audit {name} --n 200")
    if not preset:
        sys.exit(1)
    click.echo(f"run the study:              make study PRESET={preset}")


@main.command()
@click.argument("name")
@click.option("--out", default="", help="The file.  [default: NAME.zip]")
@click.option("--site", default="", help="Name of your site in an atlas.  [default: NAME]")
def share(name: str, out: str, site: str) -> None:
    """Pack the tables of the finished study NAME, without any row of one image or patient."""
    from cxrstudy import share as packs

    path = packs.pack(name, out, site)
    facts = packs.read_pack(path).manifest
    for key, table in facts["tables"].items():
        click.echo(f"  {key}.csv: {table['rows']:,} rows, {table['bytes']:,} bytes")
    click.echo(
        f"{path}: {facts['suppressed']:,} cells of fewer than {facts['fewest']} are blank. "
        "Read it before you send it; then, with the packs of others: cxrstudy atlas PACK PACK"
    )


@main.command()
@click.argument("packs", nargs=-1, required=True, type=click.Path(dir_okay=False))
def atlas(packs: tuple[str, ...]) -> None:
    """Join the PACKS of two or more sites for the book's page Atlas."""
    from cxrstudy import atlas as joined

    place = joined.write_atlas(packs)
    _, tables = joined.read_atlas()
    click.echo(f"{len(tables['pooled'])} contrasts pooled: {place}; see them: cxrstudy book")


@main.command()
@click.argument("name")
@click.option(
    "--croissant", is_flag=True, help="As Croissant JSON-LD, for catalogues of data sets."
)
@click.option("--out", default="", help="The file.  [default: printed]")
@data_root_option
def card(name: str, croissant: bool, out: str, data_root: str) -> None:
    """Print the data card NAME; with a data root, Croissant names the table's hash too."""
    from cxrstudy import croissant as exchange
    from cxrstudy.data.cardfile import read_card
    from cxrstudy.data.tables import CardError
    from cxrstudy.files import write_text

    try:
        found = read_card(name)
    except CardError as error:
        raise study.StudyError(str(error)) from None
    text = exchange.to_json(found, data_root) if croissant else ""
    if not croissant:
        path = Path(name) if name.endswith(".md") else study.root() / "data_cards" / f"{name}.md"
        text = path.read_text(encoding="utf-8")
    if not out:
        click.echo(text, nl=False)
        return
    write_text(Path(out).expanduser(), text)
    click.echo(f"written: {out}")
