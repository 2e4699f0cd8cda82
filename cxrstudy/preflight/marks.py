"""Where a key stands in a YAML file, so that a message can name the line."""

from typing import Any

import yaml

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
        return next((found for each in node.value if (found := _entry(each, key))), None)  # <<: [one, other]
    if not isinstance(node, yaml.MappingNode):
        return None
    own = next(((name.start_mark.line, value) for name, value in node.value if name.value == str(key)), None)
    merged = [value for name, value in node.value if name.tag == MERGE]
    return own or next((found for each in merged if (found := _entry(each, key))), None)


def line_of_value(text: str, values: list[str], first: int = 1) -> int | None:
    """Return the line of the first name or value of a YAML text that is one of ``values``; None where there is none."""
    try:
        events = list(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.YAMLError:
        return None
    told: Any = (each for each in events if isinstance(each, yaml.ScalarEvent) and each.value in values)
    return next((first + each.start_mark.line for each in told), None)
