"""Write the data, the figure and the table of the page "Explore the results".

``book/assets/explore.js`` fills a Plotly figure and an itables table from the data. A source is the
runs of one plan, recorded or of this machine. No curve joins two sources.
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import itables.javascript
import pandas as pd
import plotly.graph_objects as go

from cxrstudy import figures, recorded, results, run, sources, study, text
from cxrstudy.data.vocabulary import PHRASES
from cxrstudy.files import replacing, write_changed, write_text
from cxrstudy.shown import STYLE, TASKS, Shown, human

FIGURE = "scaling.svg"
SCRIPT, TABLES, *_files = sources.EXPLORED
FILES = dict(zip(("CSV", "Parquet"), _files, strict=True))
RUN, KEY = ["source", "variant", "run"], ["task", "label", "metric"]
NUMBERS = ["value", "low", "high", "n", "n_patients", "positives"]
SUBJECT = ["n_images", "samples_seen", "seed", "paradigm", "source"]
COLUMNS = ["run", *KEY, *NUMBERS, *SUBJECT]  # of the table
HEADINGS = {"n": "test images", "n_patients": "patients", "n_images": "subset size"}
OF_A_RUN = ["role", "curve", "base", "page", "command"]
CHOICES = ["source", *KEY, "paradigm", "points"]
FIRST = ["findings", "lines_tubes", "macro", "auroc", "dice", "f1_micro"]  # in every list of names
WORDS = PHRASES | {"lines_tubes": "lines and tubes", "auroc": "AUROC", "auprc": "AUPRC"}
SAME = {"base": "from", "samples_seen": "seen:", "data": "on", "encoder": "of"}  # along one curve
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"}
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def gather(names: list[str]) -> pd.DataFrame:
    """Return every row of every run of the sources ``names`` and of their variants.

    Args:
        names: ``recorded:NAME``, or presets that were run on this machine.

    Returns:
        The tidy table without ``folder``, after the columns source and variant.
    """
    tables = [
        sources.plan_table(name, variant)[0].assign(source=name, variant=variant)
        for name in names
        for variant in ("", *sources.variants(name))
    ]
    empty = results.load_records([]).assign(source="", variant="")
    table = pd.concat([table for table in tables if len(table)] or [empty], ignore_index=True)
    columns = dict.fromkeys([*RUN[:2], *table, *empty])
    return table.reindex(columns=[name for name in columns if name != "folder"])


def write(folder: Path, names: list[str]) -> list[Path]:
    """Write the table of the sources ``names`` into ``folder``: `FILES`, `SCRIPT` and `TABLES`.

    `TABLES` is the script of the installed itables. Files that do not change keep their time
    stamps. Returns their paths.
    """
    table = gather(names)
    data = json.dumps(page_data(table), separators=(",", ":"), allow_nan=False)
    write_changed(folder / SCRIPT, f"window.exploreData={data};\n")
    bundle = itables.javascript.generate_init_offline_itables_html(itables.options.dt_bundle)
    write_changed(folder / TABLES, bundle.partition("<script>")[2].partition("</script>")[0])
    csv, parquet = (folder / name for name in FILES.values())
    write_changed(csv, table.to_csv(index=False))
    if not parquet.is_file() or parquet.stat().st_mtime < csv.stat().st_mtime:
        with replacing(parquet) as scratch:
            table.to_parquet(scratch, index=False, compression="zstd")
    return [folder / SCRIPT, folder / TABLES, csv, parquet]


def page_data(table: pd.DataFrame) -> dict[str, Any]:
    """Return what the page reads of a table of `gather`, values with four significant digits.

    ``rows`` are [run, key, *`NUMBERS`]. The first two are indices into ``runs`` and ``keys``
    (task, label and metric in words).
    """
    runs = _runs(table)
    places = runs["place"].tolist()
    keys = sorted(set(table[KEY].itertuples(index=False, name=None)), key=_rank)
    index = {key: k for k, key in enumerate(keys)}
    rows = zip(
        table.groupby(RUN, sort=False).ngroup(),
        (index[key] for key in table[KEY].itertuples(index=False, name=None)),
        *(map(_plain, table[name]) for name in NUMBERS),
        strict=True,
    )
    styles = {name: (c, SYMBOLS[mark], DASHES[line]) for name, (c, mark, line) in STYLE.items()}
    return {
        "runs": [
            {name: _plain(value) for name, value in row.items()}
            for row in runs[["run", *SUBJECT, *OF_A_RUN]].to_dict("records")
        ],
        "keys": [dict(zip(KEY, map(_words, key), strict=True)) for key in keys],
        "rows": sorted(rows, key=lambda row: (places[row[0]], row[1], row[0])),
        "captions": {name: _caption(own) for name, own in runs.groupby("source", sort=False)},
        "styles": styles,
    }


def figure_html(names: list[str]) -> str:
    """Return the figure and its drop-downs, empty until the script of the page fills them.

    Where scripts are off, the first main figure of the sources ``names`` is shown.
    """
    axis = {"zeroline": False, "automargin": True}
    layout = {
        "template": "none", "height": 430, "margin": {"l": 60, "r": 10, "t": 10, "b": 50},
        "hovermode": "closest", "dragmode": False, "legend": {"orientation": "h", "y": -0.22},
        "font": {"family": "inherit", "size": 13}, "hoverlabel": {"bgcolor": "#ffffff"},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "yaxis": axis,
        "xaxis": axis | {"type": "log", "tickformat": "~s", "title": "in-house images (log scale)"},
    }  # fmt: skip
    plot = go.Figure(layout=layout).to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id="explore-plot",
        config={"displayModeBar": False, "responsive": True},
    )
    fields = "".join(
        f'<p><label for="explore-{name}">{name.capitalize()}</label>'
        f'<select id="explore-{name}"></select></p>'
        for name in CHOICES
    )
    still = next((figure.markup for figure in map(main_figure, names) if figure), "")
    return (
        '<link rel="stylesheet" href="_static/explore.css">'
        '<script src="_static/plotly.min.js"></script>'
        "<noscript><style>#explore-figure, #explore-rows_fallback { display: none; }</style>"
        f"<p>Choosing what is shown needs JavaScript. This figure does not.</p>{still}</noscript>"
        f'<div id="explore-figure" class="explorer"><form class="explore-form">{fields}</form>'
        f'<figure><p id="explore-heading"></p>{plot}<div id="explore-reading">'
        '<label for="explore-run">Run</label><select id="explore-run"></select>'
        '<p id="explore-detail" role="status"></p><a id="explore-open"></a></div>'
        '<figcaption id="explore-caption"></figcaption></figure></div>'
    )


def table_html() -> str:
    """Return the table, empty until the script of the page fills it, and links to `FILES`."""
    headings = [HEADINGS.get(name, name.replace("_", " ")) for name in COLUMNS]
    clear = "function (_, table) { window.exploreClear(table); }"
    rows: dict[str, Any] = {  # an option of DataTables that itables passes on, and does not know
        "ajax": itables.JavascriptFunction("function (_, done) { window.exploreRows(done); }"),
        "warn_on_undocumented_option": False,
    }
    table = itables.to_html_datatable(
        pd.DataFrame(columns=headings),
        connected=False,
        display_logo_when_loading=False,
        table_id="explore-rows",
        columnDefs=[_column(k, name) for k, name in enumerate(COLUMNS)],
        layout={"topStart": "buttons", "topEnd": "search", "bottomStart": "info"},
        buttons=[
            {
                "extend": "csvHtml5",
                "text": "CSV of the matching rows",
                "title": "results-shown",
                "exportOptions": {"orthogonal": "export"},  # numbers, not their texts
            },
            {"text": "Clear the filters", "action": itables.JavascriptFunction(clear)},
        ],
        language={
            "search": "Find",
            "info": "_START_ to _END_ of _TOTAL_ rows",
            "infoEmpty": "0 rows",
            "infoFiltered": "(filtered from _MAX_)",
        },
        pageLength=25,
        text_in_header_can_be_selected=False,  # a click on a heading sorts
        autoWidth=False,  # else every cell is measured
        **rows,
    )
    table = table.replace(': "<table', ': "\\u003ctable')  # in a script: not a table of the page
    links = " or ".join(
        f'<a href="_static/{name}" download>as {kind}</a>' for kind, name in FILES.items()
    )
    return (
        '<div id="explore-table" class="explorer"><noscript><p>Sorting and filtering need '
        f"JavaScript. The files below do not.</p></noscript>{table}</div><p>The whole table, with "
        f"all digits and the hardware and code of every row: download it {links}.</p>"
        f'<script src="_static/{SCRIPT}"></script><script src="_static/{TABLES}"></script>'
        '<script src="_static/explore.js"></script>'
    )


def main_figure(source: str) -> Shown | None:
    """Return macro AUROC by subset size with its laws; None where it has not been analysed."""
    tables = sources.analysis(source)
    if not tables:
        return None
    panels = {title: (task, "auroc") for task, title in TASKS.items()}
    title = text.title_of(source, sources.plan_table(source)[0])
    return figures.curves(tables, panels, text.names(source), title=title)


def draw(preset: str) -> Path:
    """Draw the main figure of a preset's recorded runs beside them: the same bytes each time.

    Raises:
        StudyError: no scaling curve of that preset is recorded.
    """
    figure = main_figure(f"{recorded.RECORDED}{preset}")
    if figure is None:
        raise study.StudyError(
            f"no scaling curve of preset {preset!r} is recorded: cxrstudy record --preset {preset}"
        )
    path = recorded.place(preset) / FIGURE
    write_text(path, f"{figure.image.decode()}<!-- {drawn_from(preset)} -->\n")
    return path


def drawn_from(preset: str) -> str:
    """Return what a recorded figure says of the table that it was drawn from."""
    content = (recorded.place(preset) / sources.ANALYSIS / "values.parquet").read_bytes()
    return f"drawn from values.parquet {hashlib.blake2b(content, digest_size=16).hexdigest()}"


# ---- parts --------------------------------------------------------------------------------------
def _column(k: int, name: str) -> dict[str, Any]:
    """Return how the table shows, sorts and filters one field of a row."""
    code = f"function (...cell) {{ return window.exploreCell({name!r}, ...cell); }}"
    column = {"targets": k, "data": name, "render": itables.JavascriptFunction(code)}
    if name in NUMBERS or name in ("n_images", "samples_seen"):
        column |= {"type": "measured", "className": "dt-right"}
        return column | {"columnControl": [["searchNumber"]]}
    return column | {"columnControl": [["searchText" if name == "run" else "searchList"]]}


def _runs(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a run, in the table's order, with `SUBJECT` and `OF_A_RUN`.

    ``role`` is "continued", "base" or empty. ``curve`` is the name of the curve that the run is on,
    ``page`` the page of its executed notebook, ``command`` what reruns it.
    """
    runs = table.drop_duplicates(RUN).reset_index(drop=True)
    evaluated = runs["stage"].isin(recorded.SCORES)
    paradigm = runs["paradigm"].fillna("control").astype(str)
    in_house = runs["trained_on"].isna() | (runs["trained_on"] == runs["institution"])
    started = runs["base"].fillna("") != ""
    base = evaluated & (paradigm != "control") & ~started
    continued = evaluated & paradigm.isin(STYLE) & started & in_house
    curve = paradigm.where(continued, paradigm + " base model").where(base | continued, "")
    for name, word in SAME.items():  # runs that differ in more than size and seed share no curve
        several = runs.groupby([*RUN[:2], "stage", curve])[name].transform("nunique") > 1
        value = runs[name].map(human if name == "samples_seen" else str).astype(str)
        curve = curve.mask(several & (curve != ""), curve + f", {word} " + value)
    role = curve.mask(base, "base").mask(continued, "continued")
    here, made = set(), {}  # runs with an executed notebook; how recorded runs were made
    for source in runs["source"].unique():
        name = source.removeprefix(recorded.RECORDED)
        if name == source:
            here |= {(source, row["name"]) for row in run.run_table(source)}
        else:
            made[source] = recorded.commands(name)
    pages, commands, titles = [], [], []
    for row in runs.itertuples():
        page = f"{run.run_page(row.source, row.stage, row.run)}.html"
        pages.append(page if (row.source, row.run) in here else "")
        command = made.get(row.source, {}).get(row.run)
        commands.append(command or f"cxrstudy run --preset {row.preset}")
        variant = row.variant.replace('"', "")
        titles.append(", ".join(filter(None, [recorded.name_of(row.source), variant])))
    base_name = runs["base"].where(continued, runs["run"].str.removeprefix("base-")).astype(str)
    return runs.assign(
        role=role,
        curve=curve,
        base=base_name.str.replace(r"-[0-9a-f]{6}$", "", regex=True),  # without its digest
        page=pages,
        command=commands,
        place=runs.groupby(RUN[:2], sort=False).ngroup(),
        recorded_as=runs["source"],
        source=titles,
    )


def _caption(runs: pd.DataFrame) -> str:
    """Return where, on what and with which seeds the runs of one source were made."""
    first, kinds = runs.iloc[0], sorted(runs["kind"].dropna().unique())
    seeds = sorted({int(seed) for seed in runs.loc[runs["role"] == "continued", "seed"].dropna()})
    kept = first["recorded_as"].startswith(recorded.RECORDED)
    nothing = ": these numbers say nothing about patients."
    return (
        f"{'Recorded with this book, not on your machine' if kept else 'Run on this machine'}: "
        f"preset {first['recorded_as'].removeprefix(recorded.RECORDED)}"
        f"{f' ({first.variant})' if first['variant'] else ''}, on "
        f"{', '.join(runs['hardware'].unique())}; code at {', '.join(runs['commit'].unique())}; "
        f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds)) or 'none'}. "
        f"{' and '.join(kinds).capitalize() or 'Unknown'} x-rays"
        f"{nothing if kinds == ['synthetic'] else '; not for clinical use.'}"
    )


def _words(name: str) -> str:
    """Return a task, label or metric in words: ``findings@public-7fe490`` -> findings at public."""
    own, _, institution = name.partition("@")
    words = WORDS.get(own, own.replace("_", " "))
    return f"{words} at {institution.rpartition('-')[0] or institution}" if institution else words


def _rank(key: tuple[str, str, str]) -> list[tuple[int, str]]:
    """Return the order of a key: what is in `FIRST`, then by name."""
    return [(FIRST.index(name) if name in FIRST else len(FIRST), name) for name in key]


def _plain(value: Any) -> Any:
    """Return a value for JSON: None where it is missing, four significant digits of a fraction."""
    if not isinstance(value, float):
        return None if value is None or value is pd.NA else value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.4g}")


if __name__ == "__main__":  # python -m cxrstudy.explorer FOLDER SOURCE ...: a rule of the book
    write(Path(sys.argv[1]), sys.argv[2:])
