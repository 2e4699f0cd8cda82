"""The command line. Exit codes: 0 done, 1 a run or check failed, 2 the call or input is wrong."""

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import click
import yaml

from cxrstudy import grid, study
from cxrstudy.files import is_remote

if TYPE_CHECKING:
    from cxrstudy import cluster


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


def _absolute(folder: str) -> str:
    is_here = folder and not is_remote(folder)
    return os.path.abspath(os.path.expanduser(folder)) if is_here else folder


def _data_root(ctx: click.Context, preset: grid.Preset, data_root: str) -> str:
    """Return the folder of real data as an absolute path.

    It is refused if the preset reads no files, unless it comes from the environment, where it may
    be meant for another preset.
    """
    if not data_root or preset.needs_root:
        return _absolute(data_root)
    if ctx.get_parameter_source("data_root") == click.core.ParameterSource.ENVIRONMENT:
        click.echo(f"note: DATA_ROOT={data_root} is not used: this preset draws its images")
        return ""
    raise study.StudyError(
        f"--data-root {data_root}: this preset draws its images and reads no files; "
        "leave --data-root out, or name a preset of your own card (cxrstudy new --card yours)"
    )


def _check(presets: list[grid.Preset], data_root: str, *, quiet: bool) -> None:
    """Print warnings and notes on presets before they run; StudyError listing all errors."""
    from cxrstudy import preflight

    tables: preflight.Tables = {}
    problems = dict.fromkeys(
        p for each in presets for p in preflight.check(each, data_root, tables)
    )
    for problem in problems:
        if problem.level == "warning" or (problem.level == "note" and not quiet):
            click.echo(str(problem))
    errors = [str(problem) for problem in problems if problem.level == "error"]
    if errors:
        first = f"preset {presets[0].name} cannot run; nothing was run"
        raise study.StudyError("\n".join([first, *errors]))


def _book_after(code: int) -> int:
    """Build the book after runs that ended with ``code``; return that, or 1 if it fails."""
    from cxrstudy import locks

    _lighten()
    from cxrstudy import book as builder

    try:
        with locks.ending_signals():  # what builds it is then ended too
            built = builder.build()
    except KeyboardInterrupt:
        click.echo("stopped; the runs are kept, and cxrstudy book builds the book", err=True)
        return 1
    except study.StudyError as error:
        click.echo(f"cxrstudy: {error}", err=True)
        return 1
    return 1 if built else code


def _lighten() -> None:
    # jsonschema imports this package, which compiles grammars for a second that nothing here needs
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


class ErrorHandlingGroup(click.Group):
    """Prints our own errors in one line and exits with code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except study.StudyError as error:
            click.echo(f"cxrstudy: {error}", err=True)
            ctx.exit(2)
        except OSError as error:
            if error.errno not in UNWRITABLE or not error.filename:
                raise
            where = "or set CXRSTUDY_RUNS to a folder that you can write to; the same call resumes"
            what = f"{error.filename}: {error.strerror}: {UNWRITABLE[error.errno]}"
            click.echo(f"cxrstudy: {what}, {where}", err=True)
            ctx.exit(2)


UNWRITABLE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space on that disk")
UNWRITABLE |= {errno.EROFS: "let that disk be written to"}
UNWRITABLE |= dict.fromkeys((errno.EACCES, errno.EPERM), "ask its owner for permission")
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=ErrorHandlingGroup, context_settings=SETTINGS)
def main() -> None:
    """How chest-x-ray encoders improve with in-house data. For research only."""


data_root_option = click.option(
    "--data-root", default="", envvar="DATA_ROOT", help="Folder of real data [env: DATA_ROOT]."
)


@main.command()
@click.option("--preset", "-p", default="mini", show_default=True, help="One of notebooks/presets.")
@click.option(
    "--cores", "-c", default=os.cpu_count() or 1, type=click.IntRange(1), show_default="all"
)
@click.option(
    "--gpu-runs", type=click.IntRange(1), help="Runs that share the first GPU.  [default: 1]"
)
@click.option(
    "--profile",
    default="",
    metavar="NAME",
    help="Run on a cluster: one of notebooks/profiles, or the folder of a Snakemake profile.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would run and why; run nothing.")
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Run with a changed parameter, beside the first results (repeatable; VALUE is YAML).",
)
@data_root_option
@click.option("--only", type=click.Choice(["data"]), help="Run this stage only: prepare images.")
@click.option("--unrecorded", is_flag=True, help="Leave out runs that are in book/recorded.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option(
    "--book", "then_book", is_flag=True, help="Then build the book, even if some runs failed."
)
@click.pass_context
def run(
    ctx: click.Context,
    preset: str,
    cores: int,
    gpu_runs: int | None,
    profile: str,
    dry_run: bool,
    pairs: tuple[str, ...],
    data_root: str,
    only: str | None,
    unrecorded: bool,
    quiet: bool,
    then_book: bool,
) -> None:
    """Run a preset: execute the notebooks whose results are missing or changed.

    First the card, the data and the preset are checked, in seconds. All errors are listed, and
    then nothing is run. The preset's variants, if any, run after it; with --set, only the variant
    with these values runs.
    """
    from cxrstudy import cluster
    from cxrstudy import run as runner

    given = ctx.get_parameter_source("cores") != click.core.ParameterSource.DEFAULT
    if profile and (given or gpu_runs):
        raise study.StudyError(
            "--cores and --gpu-runs are of one machine. With --profile, a job asks for its own "
            "CPUs and GPUs, and `jobs` in the profile says how many are in the queue at a time"
        )
    elsewhere = cluster.read_profile(profile, submits=not dry_run) if profile else None
    described = grid.load_preset(preset)
    data_root = _data_root(ctx, described, data_root)
    settings = [_settings(pairs)] if pairs else [{}, *filter(None, described.variants.values())]
    each = [grid.override(described, values) for values in settings]
    try:
        _check(each, data_root, quiet=quiet and not dry_run)
    except study.StudyError:
        if dry_run and elsewhere:  # a cluster can be asked for before data and weights are there
            for one in each:
                click.echo(runner.asked_text(one, grid.expand(one, data_root), None, elsewhere))
        raise
    recorded: set[str] = set()
    if unrecorded:
        from cxrstudy.recorded import run_names

        recorded = run_names(preset)
    if dry_run:
        _show_plan(described, each, data_root, only, recorded, elsewhere)
        return
    codes = [
        runner.run_preset(
            one,
            cores=cores,
            data_root=data_root,
            quiet=quiet,
            recorded=recorded,
            gpu_runs=gpu_runs,
            only=only or "",
            profile=elsewhere,
        )
        for one in each
    ]
    sys.exit(_book_after(max(codes)) if then_book else max(codes))


def _show_plan(
    preset: grid.Preset,
    each: list[grid.Preset],
    data_root: str,
    only: str | None,
    recorded: set[str],
    profile: "cluster.Profile | None",
) -> None:
    """Print each run of a preset and its variants: recorded, to do and why, or up to date.

    With a profile, also what the runs to do would ask of a cluster.
    """
    from cxrstudy import run as runner

    gpu = f"{preset.gpu_hours:g} GPU-hours" if preset.gpu_hours else "no GPU"
    click.echo(
        f"{preset.name}: {preset.title}. About {preset.minutes:g} minutes on {preset.hardware}, "
        f"{gpu}, {preset.disk_gb:g} GB of disk, {preset.memory_gb:g} GB of memory; "
        f"licences: {preset.licences}."
    )
    for one in each:
        whole, waiting = runner.preview(one, data_root)
        planned = [item for item in whole if only in (None, item.stage)]
        wanted = {item.name for item in grid.without(planned, recorded)} if recorded else None
        if one.settings and len(each) > 1:
            click.echo(f"variant {runner.variant_name(one.settings)}:")
        todo = []
        for item in planned:
            word, why = "up to date", ""
            if wanted is not None and item.name not in wanted:
                word = "recorded"
            elif item.name in waiting:
                word, why = "would run", waiting[item.name]
                todo.append(item.name)
            click.echo(f"  {word:<11}{item.stage:<10}{item.name:<36}{why}")
        click.echo(f"{len(todo)} of {len(planned)} runs to do")
        if profile and todo:
            click.echo(runner.asked_text(one, whole, todo, profile))


@main.command()
@click.option(
    "--preset", "-p", required=True, help="A preset that has been run here, whole or in part."
)
@click.option("--figure", is_flag=True, help="Only draw its main figure again from the record.")
def record(preset: str, figure: bool) -> None:
    """Copy results of finished runs to book/recorded: tables, per-image scores, no weights."""
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
@click.option("--pdf", is_flag=True, help="Also print it to book.pdf. Needs Chromium.")
def book(out: str, pdf: bool) -> None:
    """Build the book from the records that there are, and print where it is."""
    _lighten()
    from cxrstudy import book as builder

    sys.exit(builder.build(out, pdf=pdf))


@main.command()
@click.option("--preset", "-p", default="", help="Only this preset.")
@click.option("--how", metavar="RUN", help="Print the commands that repeat one run alone.")
@click.option("--parameters", metavar="RUN", help="Print one run's parameters, for papermill -f.")
def runs(preset: str, how: str | None, parameters: str | None) -> None:
    """List runs: state, duration, headline metric."""
    if how or parameters:
        from cxrstudy import alone

        text = "\n".join(alone.commands(how, preset)) + "\n" if how else ""
        click.echo(text or alone.parameters(str(parameters), preset), nl=False)
        return
    from cxrstudy import run as runner
    from cxrstudy.plans import plans_by_path

    for path in [path for path, plan in plans_by_path(preset or "*").items() if plan is None]:
        remedy = f"delete it; cxrstudy run --preset {path.parent.name} writes it again"
        click.echo(f"warning: {path} cannot be read: {remedy}")
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
        name, stage = row.run.name, row.run.stage
        click.echo(f"{where:<12} {stage:<9} {name:<30} {row.state:<8} {seconds:>7}  {row.note}")
    state = {(row.preset, row.run.name): row.state for row in rows}  # variants share runs
    counts = {kind: 0 for kind in ("done", "failed", "running", "waiting")}
    for kind in state.values():
        counts[kind] += 1
    click.echo(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))


@main.command()
@click.option("--card", required=True, help="A card of data_cards, or the path of one.")
@data_root_option
@click.option("--name", default="", help="Name of the preset.  [default: the card's]")
@click.option("--force", is_flag=True, help="Replace a preset of that name.")
def new(card: str, data_root: str, name: str, force: bool) -> None:
    """Write a preset for your own x-rays, with sizes from the card's table; lines are explained."""
    from cxrstudy import new as writer
    from cxrstudy.presetdata import with_needs_root
    from cxrstudy.presets import read_preset

    text, sized, path = writer.draft(card, data_root, name, force=force)
    try:
        preset = with_needs_root(read_preset(text, path.stem))
        _check([preset], _absolute(data_root), quiet=False)
    except study.StudyError as error:
        raise study.StudyError(f"no preset was written, as it could not be run: {error}") from None
    path.write_text(text, encoding="utf-8")
    minutes = max(1, round(sized.minutes()))
    click.echo(f"written: {path} (about {minutes} minutes on this machine, an estimate)")
    where = f" --data-root {data_root}"
    click.echo(f"what it would run: cxrstudy run --preset {path.stem} -n{where}")
    click.echo(f"run it, then build the book: make study PRESET={path.stem} DATA_ROOT={data_root}")


@main.command()
@data_root_option
def doctor(data_root: str) -> None:
    """Check versions, GPU, disk, memory and data, and print what is missing for each preset."""
    from cxrstudy import doctor as checks

    sys.exit(checks.report(data_root))


from cxrstudy import cli_data  # noqa: E402, F401  (adds commands to cxrstudy.cli.main)

if __name__ == "__main__":
    from cxrstudy.cli import main as with_all

    with_all()
