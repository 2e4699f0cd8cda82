"""Where a key stands in a YAML file and what is wrong with it, so that a message names the line and the remedy."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

MERGE = "tag:yaml.org,2002:merge"


def line_of(text: str, *keys: str | int, first: int = 1) -> int:
    """Return the line of the entry that ``keys`` lead to, or of the last of them that is written there.

    Args: ``text`` is YAML; ``keys`` are names of mappings and places in lists (from 0); ``first`` is the number of the
    text's first line in its file. Keys that come by a merge (``<<``) are found where they are written.
    """
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError:
        return first
    line = 0
    for key in keys:
        found = _entry(node, key)
        if found is None:
            break
        line, node = found
    return first + line


def _entry(node: Any, key: str | int) -> tuple[int, Any] | None:
    """The line (from 0) of an entry of a mapping or list, and its value."""
    if isinstance(node, yaml.SequenceNode):
        if isinstance(key, int) and key < len(node.value):
            return node.value[key].start_mark.line, node.value[key]
        return next(
            (found for each in node.value if (found := _entry(each, key))), None
        )  # <<: [one, other]
    if not isinstance(node, yaml.MappingNode):
        return None
    own = next(
        ((name.start_mark.line, value) for name, value in node.value if name.value == str(key)),
        None,
    )
    merged = [value for name, value in node.value if name.tag == MERGE]
    return own or next((found for each in merged if (found := _entry(each, key))), None)


def line_of_value(text: str, values: list[str], first: int = 1) -> int | None:
    """Return the line of the first name or value of a YAML text that is one of ``values``; None where there is none."""
    try:
        events = list(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.YAMLError:
        return None
    told: Any = (
        each for each in events if isinstance(each, yaml.ScalarEvent) and each.value in values
    )
    return next((first + each.start_mark.line for each in told), None)


# ---- what is wrong there -------------------------------------------------------------------------------------------
WANTED = {  # by pydantic's kind of fault
    "string_type": "expected text: put what YAML takes for a number, a date or yes and no in quotes",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected a list: a line `- ...` for each",
    "dict_type": "expected names and values: a line `name: value` for each",
    "model_type": "expected names and values: a line `name: value` for each",
    "model_attributes_type": "expected names and values: a line `name: value` for each",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
}


def near(name: str, names: Iterable[str], n: int = 3) -> str:
    """Return up to ``n`` of ``names`` that are spelled like ``name``, as a clause of a sentence; else nothing."""
    folded = {_folded(other): other for other in names}
    found = difflib.get_close_matches(_folded(name), folded, n, cutoff=0.6)
    return f"; near it: {', '.join(repr(folded[other]) for other in found)}" if found else ""


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold().replace("_", " ")


def faults(
    error: ValidationError, model: type[BaseModel], text: str, path: Any, first: int = 1
) -> str:
    """Return what does not hold in a YAML text read into ``model``: each fault with its line, field and remedy.

    Args: as ``line_of``; ``path`` is the file's name as messages write it.
    """
    found: dict[tuple[int, str], list[str]] = {}
    got: dict[tuple[int, str], str] = {}
    for item in error.errors():
        keys, owner = _own(item["loc"], model)
        missing = item["type"] == "missing"
        line = line_of(text, *(keys[:-1] if missing else keys), first=first) if keys else first
        where = ".".join(map(str, keys)) or "the whole"
        found.setdefault((line, where), []).append(_said(item, keys, owner))
        told = (
            ""
            if item["type"] in ("missing", "extra_forbidden")
            else f" (got {item['input']!r:.80})"
        )
        got.setdefault((line, where), told)
    each = [
        f"{f'{path}:' if not k else 'line '}{at[0]}: {at[1]}: {' or '.join(dict.fromkeys(said))}{got[at]}"
        for k, (at, said) in enumerate(sorted(found.items()))
    ]
    return "; ".join(each)


def _said(item: Any, keys: list[str | int], owner: type[BaseModel] | None) -> str:
    known = dict(owner.model_fields) if owner else {}
    if item["type"] == "extra_forbidden":
        return (
            f"unknown name {str(keys[-1])!r}{near(str(keys[-1]), known)}; known: {', '.join(known)}"
        )
    if item["type"] == "missing":
        what = known[str(keys[-1])].description if keys and str(keys[-1]) in known else None
        return f"Field required{f' ({what})' if what else ''}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error":
        message = f"expected {item['ctx']['expected']}"
    return WANTED.get(item["type"], message)


def _own(
    loc: tuple[str | int, ...], model: type[BaseModel]
) -> tuple[list[str | int], type[BaseModel] | None]:
    """The keys of a fault's place, without pydantic's names of types, and the model that owns the last of them."""
    keys: list[str | int] = []
    owner: type[BaseModel] | None = model
    kind: Any = model
    for key in loc:
        nested = _model(kind)
        if nested:
            owner, field = nested, nested.model_fields.get(str(key))
            kind = field.annotation if field else None
        elif _is_union(kind) and isinstance(key, str):
            break  # which of several kinds was tried
        else:
            owner, kind = None, next(reversed(get_args(kind)), None)
        keys.append(key)
    return keys, owner


def _model(kind: Any) -> type[BaseModel] | None:
    """The model that a field is, or may be."""
    each = get_args(kind) if type(None) in get_args(kind) else (kind,)
    return next((one for one in each if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _is_union(kind: Any) -> bool:
    return len(get_args(kind)) > 1 and not hasattr(kind, "__origin__")


def not_yaml(error: Exception, text: str, path: Any, first: int = 1) -> str:
    """Return why a text is no YAML, with the line in its file and the remedy; arguments as ``faults``."""
    if not isinstance(error, yaml.MarkedYAMLError) or not (
        error.problem_mark or error.context_mark
    ):
        return f"{path}: not YAML: {error}"
    begun = "flow" in (error.context or "") or "quoted" in (
        error.context or ""
    )  # what was opened and not closed
    mark = (
        error.context_mark
        if begun and error.context_mark
        else error.problem_mark or error.context_mark
    )
    assert mark
    lines = text.splitlines()
    line = lines[mark.line].strip() if mark.line < len(lines) else ""
    said = f"{path}:{first + mark.line}: not YAML: {error.problem or error.context}"
    if line:
        said += f" in `{line[:80]}`"
    if "given twice" in (error.problem or ""):
        return f"{said}: keep one of them"
    if "\t" in line or "'\\t'" in (error.problem or ""):
        return f"{said}: indent by blanks, not by tabs"
    if "mapping start" in (error.problem or ""):
        return f"{said}: indent it as its neighbours"
    name, colon, value = line.partition(": ")
    if colon and value and not begun and '"' not in name:
        quoted = value.strip().strip("'\"")[:60]
        return f'{said}: put the value in double quotes, `{name}: "{quoted}"`; or indent it as its neighbours'
    return f"{said}: close what is opened (quotes, brackets), or put the value in double quotes"
