"""Write the `parameters` cell of each notebook from the typed models: ``make templates``.

The models in ``cxrstudy.study`` are the only place where a default and its meaning are written.
"""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from cxrstudy import study
from cxrstudy.files import write_changed

WIDTH = 100
LAST = ("seed", "threads", "out")  # of every notebook's parameters


def parameters_cell(stage: str) -> str:
    """Return the code of a notebook's parameters cell: ``name: type = default  # description``."""
    fields = study.STAGES[stage].model_fields
    order = [name for name in fields if name not in LAST] + [n for n in LAST if n in fields]
    return "\n".join(["# Parameters", *(_line(name, fields[name]) for name in order)])


def _line(name: str, field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    described = field.description or ""
    if choices:
        described += f" ({', '.join(choices)})"
    assigned = f"{name}: {_type(field.annotation)} = {_code(field.default)}"
    if len(assigned) + len(described) + 4 <= WIDTH:
        return f"{assigned}  # {described}"
    if len(assigned) > WIDTH:
        items = "".join(f"    {_code(item)},\n" for item in field.default)
        assigned = f"{name}: {_type(field.annotation)} = [\n{items}]"
    return f"{_comment(described)}\n{assigned}"


def _comment(text: str) -> str:
    """Return a comment in as many lines as it needs."""
    lines = ["#"]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > WIDTH:
            lines.append("#")
        lines[-1] += f" {word}"
    return "\n".join(lines)


def _type(annotation: Any) -> str:
    """Return a type as papermill shows it: choices are text, dictionaries have no inner type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "str"
    if origin is list:
        return f"list[{_type(inner[0])}]"
    return "dict" if origin is dict else str(annotation.__name__)


def _code(value: Any) -> str:
    """Return a default as Python code in double quotes, as the formatter writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_code(k)}: {_code(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_code, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def with_parameters(notebook: str, stage: str) -> str:
    """Return a notebook (JSON text) with the parameters cell of its stage."""
    content = json.loads(notebook)
    tagged = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", [])]
    tagged[0]["source"] = parameters_cell(stage).splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the parameters cells of all notebooks in this repository."""
    for stage in study.STAGES:
        path: Path = study.root() / "notebooks" / f"{stage}.ipynb"
        write_changed(path, with_parameters(path.read_text(encoding="utf-8"), stage))


if __name__ == "__main__":
    main()
