"""Find the line of a key in a YAML file, and say what is wrong there and how to mend it."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

MERGE = "tag:yaml.org,2002:merge"
LARGEST, DEEPEST = 200_000, 60  # values and levels of a YAML text: cards and presets have few
RENAMED = {  # names in presets and parameters of earlier versions, with today's
    "base_share": "wise_ft_alpha (= 1 - base_share)",
    "clip": "grad_clip_norm",
    "collapse": "max_score_drop",
    "controls": "baselines",
    "ladders": "curves",
    "piece": "priority",
    "rungs": "sizes",
    "shipped": "checkpoint",
}


def refuse_bomb(text: str, loader: Any) -> None:
    """Refuse YAML that its aliases make very large, or that is nested very deeply, unbuilt.

    Args:
        loader: as the text is read by: what one of PyYAML's finds wrong, another may not.

    Raises:
        yaml.YAMLError: it is; or the text is not YAML.
    """
    sizes: dict[str, int] = {}  # by anchor; the values below it, aliases in full
    within: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            within.append((event.anchor, 1))
            if len(within) > DEEPEST:
                raise yaml.YAMLError(f"more than {DEEPEST} levels, one in the other")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = within.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):  # one that is not known yet is in itself
            anchor, size = None, sizes.get(event.anchor or "", LARGEST)
        else:
            continue
        if anchor:
            sizes[anchor] = size
        within[-1] = within[-1][0], within[-1][1] + size
        if within[-1][1] > LARGEST:
            raise yaml.YAMLError(f"aliases make more than {LARGEST:,} values of it")


def line_of(text: str, *keys: str | int, first: int = 1) -> int:
    """Return the line of an entry of a YAML text, or of the last of its ``keys`` that is there.

    Keys that come by a merge (``<<``) are found where they are written.

    Args:
        keys: names in mappings and positions in lists (from 0), from the outside in.
        first: number of the text's first line in its file.
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
    """Return line (from 0) and value of an entry of a mapping or list."""
    if isinstance(node, yaml.SequenceNode):
        if isinstance(key, int) and key < len(node.value):
            return node.value[key].start_mark.line, node.value[key]
        return _first_entry(node.value, key)  # <<: [one, other]
    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in node.value:
        if name.value == str(key):
            return name.start_mark.line, value
    return _first_entry([value for name, value in node.value if name.tag == MERGE], key)


def _first_entry(nodes: list[Any], key: str | int) -> tuple[int, Any] | None:
    return next((found for each in nodes if (found := _entry(each, key))), None)


def line_of_value(text: str, values: list[str], first: int = 1) -> int | None:
    """Return the line of the first name or value of a YAML text that is one of ``values``."""
    try:
        events = list(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.YAMLError:
        return None
    scalars: Any = [event for event in events if isinstance(event, yaml.ScalarEvent)]
    return next((first + e.start_mark.line for e in scalars if e.value in values), None)


# ---- what is wrong there ----------------------------------------------------------------------
WANTED = {  # by pydantic's kind of fault
    "string_type": "expected text: put numbers, dates, yes and no in quotes",
    "list_type": "expected a list: a line `- ...` for each",
}
WANTED |= dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false")
WANTED |= dict.fromkeys(("float_type", "float_parsing"), "expected a number")
WANTED |= dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number")
WANTED |= dict.fromkeys(
    ("dict_type", "model_type", "model_attributes_type"),
    "expected names and values: a line `name: value` for each",
)


def near(name: str, names: Iterable[str], n: int = 3) -> str:
    """Return a clause with the name that replaced ``name``, or up to ``n`` similar ``names``.

    The clause is empty if there is none.
    """
    if name in RENAMED:
        return f"; it is now called {RENAMED[name]}"
    folded = {_folded(other): other for other in names}
    found = difflib.get_close_matches(_folded(name), folded, n, cutoff=0.6)
    return f"; near it: {', '.join(repr(folded[other]) for other in found)}" if found else ""


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold().replace("_", " ")


def faults(
    error: ValidationError, model: type[BaseModel], text: str, path: Any, first: int = 1
) -> str:
    """Return what is wrong in a YAML text read into ``model``: line, field, remedy of each fault.

    Args:
        path: the file's name in the message; other arguments as for ``line_of``.
    """
    found: dict[tuple[int, str], list[str]] = {}
    got: dict[tuple[int, str], str] = {}
    for item in error.errors():
        keys, owner = _own(item["loc"], model)
        missing = item["type"] == "missing"
        line = line_of(text, *(keys[:-1] if missing else keys), first=first) if keys else first
        at = line, ".".join(map(str, keys)) or "the whole"
        found.setdefault(at, []).append(_message(item, keys, owner))
        shown = item["type"] not in ("missing", "extra_forbidden")
        got.setdefault(at, f" (got {item['input']!r:.80})" if shown else "")
    each = [
        f"{f'{path}:' if not k else 'line '}{at[0]}: {at[1]}: "
        f"{' or '.join(dict.fromkeys(messages))}{got[at]}"
        for k, (at, messages) in enumerate(sorted(found.items()))
    ]
    return "; ".join(each)


def _message(item: Any, keys: list[str | int], owner: type[BaseModel] | None) -> str:
    known = dict(owner.model_fields) if owner else {}
    name = str(keys[-1]) if keys else ""
    if item["type"] == "extra_forbidden":
        return f"unknown name {name!r}{near(name, known)}; known: {', '.join(known)}"
    if item["type"] == "missing":
        what = known[name].description if name in known else None
        return f"Field required{f' ({what})' if what else ''}"
    if item["type"] == "literal_error":
        return f"expected {item['ctx']['expected']}"
    return WANTED.get(item["type"], item["msg"].removeprefix("Value error, "))


def _own(
    loc: tuple[str | int, ...], model: type[BaseModel]
) -> tuple[list[str | int], type[BaseModel] | None]:
    """Return the keys of a fault, without pydantic's names of types, and the last one's model."""
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
    """Return the model that a field is, or may be."""
    each = get_args(kind) if type(None) in get_args(kind) else (kind,)
    return next((one for one in each if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _is_union(kind: Any) -> bool:
    return len(get_args(kind)) > 1 and not hasattr(kind, "__origin__")


def not_yaml(error: Exception, text: str, path: Any, first: int = 1) -> str:
    """Return why a text is not YAML, with the line and the remedy; arguments as ``faults``."""
    if not isinstance(error, yaml.MarkedYAMLError) or not (
        error.problem_mark or error.context_mark
    ):
        return f"{path}: not YAML: {error}"
    problem, context = error.problem or "", error.context or ""
    is_open = "flow" in context or "quoted" in context  # what was opened and not closed
    mark = error.problem_mark or error.context_mark
    if is_open and error.context_mark:
        mark = error.context_mark
    assert mark
    lines = text.splitlines()
    line = lines[mark.line].strip() if mark.line < len(lines) else ""
    said = f"{path}:{first + mark.line}: not YAML: {problem or context}"
    said += f" in `{line[:80]}`" if line else ""
    return f"{said}: {_yaml_remedy(problem, line, is_open)}"


def _yaml_remedy(problem: str, line: str, is_open: bool) -> str:
    if "given twice" in problem:
        return "keep one of them"
    if "\t" in line or "'\\t'" in problem:
        return "indent by blanks, not by tabs"
    if "mapping start" in problem:
        return "indent it as its neighbours"
    name, colon, value = line.partition(": ")
    if colon and value and not is_open and '"' not in name:
        quoted = value.strip().strip("'\"")[:60]
        return (
            f'put the value in double quotes, `{name}: "{quoted}"`; or indent it as its neighbours'
        )
    return "close what is opened (quotes, brackets), or put the value in double quotes"
