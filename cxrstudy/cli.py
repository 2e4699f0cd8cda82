"""The command line: a thin door. Exit codes: 0 done, 1 a run or check failed, 2 the call or its input is wrong."""

import os
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from cxrstudy import grid, study


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise study.StudyError(
                f"--set {pair!r}: write it as NAME=VALUE, e.g. --set samples_seen=48000"
            )
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise study.StudyError(f"--set {pair!r}: the value is not YAML: {error}") from None
    return settings


def _folder(ctx: click.Context, described: grid.Preset, data_root: str) -> str:
    """The folder of real data as an absolute path; one that no data set of the preset would read is refused, unless it
    comes from the environment, where it may be meant for another preset."""
    from cxrstudy import preflight

    if data_root and not preflight.reads_files(described):
        if ctx.get_parameter_source("data_root") == click.core.ParameterSource.ENVIRONMENT:
            click.echo(f"note: DATA_ROOT={data_root} is not used: this preset draws its images")
            return ""
        raise study.StudyError(
            f"--data-root {data_root}: this preset draws its images and reads no files; "
            "leave --data-root out, or name a preset of your own card (cxrstudy new --card yours)"
        )
    return os.path.abspath(os.path.expanduser(data_root)) if data_root else ""


def _check(preset: str, each: list[dict[str, Any]], data_root: str, *, quiet: bool) -> None:
    """Print what is worth knowing before a preset runs; StudyError, which lists them all, where it cannot run."""
    from cxrstudy import preflight

    tables: preflight.Tables = {}
    problems = dict.fromkeys(
        p for settings in each for p in preflight.check(preset, settings, data_root, tables)
    )
    for problem in problems:
        if problem.level == "warning" or (problem.level == "note" and not quiet):
            click.echo(str(problem))
    errors = [str(problem) for problem in problems if problem.level == "error"]
    if errors:
        raise study.StudyError(f"preset {preset} cannot run; nothing was run\n" + "\n".join(errors))


def _book_after(code: int) -> int:
    """Build the book after runs that ended with ``code``; returns that, or 1 where there is no book."""
    from cxrstudy import locks

    _lighten()
    from cxrstudy import book as builder

    try:
        with locks.ending_signals():  # what builds it is then ended too
            built = builder.build()
    except KeyboardInterrupt:
        click.echo("stopped; the runs stand, and cxrstudy book builds the book", err=True)
        return 1
    except study.StudyError as error:
        click.echo(f"cxrstudy: {error}", err=True)
        return 1
    return 1 if built else code


def _lighten() -> None:
    # jsonschema tries to import this package, which compiles grammars that nothing here needs for over a second
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


class Door(click.Group):
    """Turns our own errors into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except study.StudyError as error:
            click.echo(f"cxrstudy: {error}", err=True)
            ctx.exit(2)


@click.group(
    cls=Door, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
def main() -> None:
    """How chest-x-ray encoders improve with in-house data: run the study, read the book. Research only."""


@main.command()
@click.option(
    "--preset", "-p", default="mini", show_default=True, help="A preset of notebooks/presets."
)
@click.option(
    "--cores", "-c", default=os.cpu_count() or 1, type=click.IntRange(1), show_default="all"
)
@click.option(
    "--gpu-runs", type=click.IntRange(1), help="Runs that share the first GPU.  [default: 1]"
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would run and why; run nothing.")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Rerun the grid with a changed parameter, beside the first results (repeatable; VALUE is YAML).",
)
@click.option(
    "--data-root", default="", envvar="DATA_ROOT", help="Folder of real data [env: DATA_ROOT]."
)
@click.option(
    "--only", type=click.Choice(["data"]), help="Run this stage alone: data prepares the images."
)
@click.option(
    "--unrecorded", is_flag=True, help="Leave out what book/recorded holds of this preset already."
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option(
    "--book",
    "then_book",
    is_flag=True,
    help="Build the book afterwards, also where some runs failed.",
)
@click.pass_context
def run(
    ctx: click.Context,
    preset: str,
    cores: int,
    gpu_runs: int | None,
    dry_run: bool,
    pairs: tuple[str, ...],
    data_root: str,
    only: str | None,
    unrecorded: bool,
    quiet: bool,
    then_book: bool,
) -> None:
    """Run a preset through Snakemake and Papermill; only what is missing or changed is executed.

    First the card, the data and the grid are checked, in seconds; errors are all listed, and nothing is run.

    A preset's variants, where it has any, follow one after the other; with --set, that one variant alone is run.
    """
    from cxrstudy import run as runner

    described = grid.load_preset(preset)
    data_root = _folder(ctx, described, data_root)
    each = (
        [_settings(pairs)]
        if pairs
        else [{}, *(settings for settings in described.variants.values() if settings)]
    )
    _check(preset, each, data_root, quiet=quiet and not dry_run)
    stand: set[str] = set()
    if unrecorded:
        from cxrstudy import recorded

        stand = recorded.run_names(preset)
    if not dry_run:
        codes = [
            runner.run_preset(
                preset,
                cores=cores,
                settings=settings,
                data_root=data_root,
                quiet=quiet,
                stand=stand,
                gpu_runs=gpu_runs,
                only=only or "",
            )
            for settings in each
        ]
        sys.exit(_book_after(max(codes)) if then_book else max(codes))
    click.echo(
        f"{preset}: {described.title}. About {described.minutes:g} minutes on {described.hardware}, "
        f"{f'{described.gpu_hours:g} GPU-hours' if described.gpu_hours else 'no GPU'}, "
        f"{described.disk_gb:g} GB of disk, {described.memory_gb:g} GB of memory; licences: {described.licences}."
    )
    for settings in each:
        planned, waiting = runner.preview(preset, settings, data_root)
        planned = [item for item in planned if only in (None, item.stage)]
        kept = (
            {r.name for r in planned} - {r.name for r in grid.without(planned, stand)}
            if stand
            else set()
        )
        todo = [item for item in planned if item.name in waiting and item.name not in kept]
        if settings and len(each) > 1:
            click.echo(f"variant {runner.variant_name(settings)}:")
        for item in planned:
            word = (
                "recorded"
                if item.name in kept
                else "would run"
                if item.name in waiting
                else "stands"
            )
            why = waiting.get(item.name, "") if word == "would run" else ""
            click.echo(f"  {word:<10}{item.stage:<10}{item.name:<36}{why}")
        click.echo(f"{len(todo)} of {len(planned)} runs to do")


@main.command()
@click.option(
    "--preset", "-p", required=True, help="A preset that has been run here, whole or in part."
)
@click.option(
    "--figure",
    is_flag=True,
    help="Draw its main figure anew from what is recorded, and record nothing.",
)
def record(preset: str, figure: bool) -> None:
    """Keep the results of a preset's finished runs in book/recorded: tables and per-image scores, no weights."""
    if figure:
        from cxrstudy import explorer

        click.echo(explorer.draw(preset))
        return
    from cxrstudy import recorded, sources
    from cxrstudy import run as runner

    plans = [plan for plan in runner.read_plans() if plan["preset"] == preset]
    if not plans:
        raise study.StudyError(
            f"nothing of preset {preset!r} has been run here: cxrstudy run --preset {preset}"
        )
    for plan in plans:
        new, kept = recorded.keep(preset, plan["variant"])
        click.echo(f"{preset} {plan['variant']}: {new} runs recorded, {kept} kept in all")
    for folder in sources.analyse(preset):
        click.echo(f"analysis: {folder}")
    taken = recorded.size(preset)
    click.echo(
        f"book/recorded/{preset}: {taken / 1e6:.1f} MB, of all recorded presets' "
        f"{sum(map(recorded.size, recorded.presets())) / 1e6:.1f} MB"
    )
    if taken > recorded.LIMIT:
        click.echo(
            f"cxrstudy: that is more than {recorded.LIMIT / 1e6:g} MB, too much for a clone",
            err=True,
        )
        sys.exit(1)


@main.command()
@click.option("--out", default="", help="Folder of the built book [default: _build in the clone].")
@click.option(
    "--pdf",
    is_flag=True,
    help="Print its chapters to one PDF too: book.pdf beside it. Needs Chromium.",
)
def book(out: str, pdf: bool) -> None:
    """Build the book from the records that stand, and say where it lies."""
    _lighten()
    from cxrstudy import book as builder

    sys.exit(builder.build(out, pdf=pdf))


@main.command()
@click.option("--preset", "-p", default="", help="Only this preset.")
def runs(preset: str) -> None:
    """List runs: state, duration, headline metric."""
    from cxrstudy import run as runner
    from cxrstudy.plans import plans_by_path

    for path in [path for path, plan in plans_by_path(preset or "*").items() if plan is None]:
        said = f"delete it; cxrstudy run --preset {path.parent.name} writes it anew"
        click.echo(f"warning: {path} cannot be read: {said}")
    try:
        rows = [row for row in runner.overview() if preset in ("", row.preset)]
    except ValueError as error:  # a record that is none
        raise study.StudyError(str(error)) from None
    if not rows:
        click.echo("no runs yet; start with: cxrstudy run --preset mini")
        return
    for row in rows:
        where = f"{row.preset}{' ' + row.variant if row.variant else ''}"
        seconds = f"{row.seconds:.0f} s" if row.state == "done" else ""
        click.echo(
            f"{where:<12} {row.run.stage:<9} {row.run.name:<30} {row.state:<8} {seconds:>7}  {row.note}"
        )
    states = list(
        {(row.preset, row.run.name): row.state for row in rows}.values()
    )  # variants share runs
    counts = {kind: states.count(kind) for kind in ("done", "failed", "running", "waiting")}
    click.echo(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))


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
def export_synthetic(
    out: str, n: int, institution: str, size: int, bits: str, start: int, seed: int
) -> None:
    """Write synthetic x-rays as DICOM, with reports, tables and masks, as a hospital would hand them over."""
    from functools import partial

    from cxrstudy.data import export
    from cxrstudy.progress import track

    bar = partial(track, what=f"{export.CHUNK} x-rays")
    try:
        folder = export.export_synthetic(
            out,
            n=n,
            institution=institution,
            size=size,
            bits=int(bits),
            start=start,
            seed=seed,
            progress=bar,
        )
    except ValueError as error:
        raise study.StudyError(str(error)) from None
    click.echo(f"{n} x-rays in {folder}; read them with the card synthetic_dicom and root={folder}")


@main.command()
@click.option("--card", required=True, help="A card of data_cards, or the path of one.")
@click.option(
    "--data-root", default="", envvar="DATA_ROOT", help="Folder of its files [env: DATA_ROOT]."
)
@click.option("--name", default="", help="Name of the preset.  [default: the card's]")
@click.option("--force", is_flag=True, help="Write over a preset of that name.")
def new(card: str, data_root: str, name: str, force: bool) -> None:
    """Write a preset for own x-rays, sized to what the card's table holds, with every line explained."""
    from cxrstudy import new as writer

    former = study.root() / "notebooks" / "presets" / f"{name or Path(card).stem}.yml"
    before = former.read_bytes() if former.is_file() else None
    path, sized = writer.write(card, data_root, name, force=force)
    where = f" --data-root {data_root}"
    try:
        _check(path.stem, [{}], os.path.abspath(os.path.expanduser(data_root)), quiet=False)
    except study.StudyError as error:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
        raise study.StudyError(f"no preset was written, as it could not be run: {error}") from None
    click.echo(
        f"written: {path} (about {max(1, round(sized.minutes()))} minutes on this machine, an estimate)"
    )
    click.echo(f"what it would run: cxrstudy run --preset {path.stem} -n{where}")
    click.echo(f"run it, then build the book: make study PRESET={path.stem} DATA_ROOT={data_root}")


@main.command()
@click.option(
    "--data-root", default="", envvar="DATA_ROOT", help="Folder of real data [env: DATA_ROOT]."
)
def doctor(data_root: str) -> None:
    """Check versions, GPU, disk, memory and data, and say what is missing for each preset."""
    from cxrstudy import doctor as checks

    sys.exit(checks.report(data_root))


if __name__ == "__main__":
    main()
