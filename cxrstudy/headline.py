"""One line on a finished run: its seconds and its main numbers."""

from typing import Any

HEADLINES = {  # (task, label, metric) of a record: its name in a line of output
    ("findings", "macro", "auroc"): "findings AUROC",
    ("lines_tubes", "macro", "auroc"): "lines_tubes AUROC",
    ("segmentation", "macro", "dice"): "Dice",
    ("segmentation", "macro", "cl_dice"): "clDice",
    ("reports", "findings", "f1_micro"): "findings F1",
    ("reports", "lines_tubes", "f1_micro"): "lines_tubes F1",
}


def headline_of(record: dict[str, Any]) -> str:
    """Return a record's seconds and main numbers in one line."""
    info, metrics = record["info"], record["metrics"]
    known = [metric for metric in metrics if metric["value"] is not None]
    words = [text for metric in known if (text := _headline_metric(metric))]
    if not words:  # data without labels: reports are retrieved by their images
        of_images = [m for m in known if (m["label"], m["metric"]) == ("image_to_text", "recall@5")]
        words = [f"reports retrieved R@5 {metric['value']:.3f}" for metric in of_images]
    if why := info.get("hardly_trained"):
        words.append(f"WARNING hardly trained: {why}")
    if record["stage"] == "data":
        words += _content(info)
    elif record["stage"] == "classify" and not known:
        reasons = "; ".join(dict.fromkeys((info.get("not_evaluated") or {}).values()))
        words.append(f"nothing evaluated{f': {reasons}' if reasons else ''}")
    return ", ".join([f"{info['seconds']:.0f} s", *words])


def _headline_metric(metric: dict[str, Any]) -> str:
    name = HEADLINES.get((metric["task"], metric["label"], metric["metric"]), "")
    if not name and metric["metric"] in ("loss", "exponent"):
        name = f"{metric['task']} {metric['label']} {metric['metric']}"
    return name and f"{name} {metric['value']:.3f}"


def _content(info: dict[str, Any]) -> list[str]:
    """Return what a data run contains, and what was left out of it and why."""
    from cxrstudy.data import odd  # reads images: `cxrstudy runs` of other stages does without

    words = [f"{info['images']} images"]
    if "left_out" not in info:  # a record from before that was counted
        return words
    gone, unread = sum(info["left_out"].values()), int(info.get("quarantined", 0))
    if info.get("kind") == "synthetic" and not gone + unread:
        return words
    words += [_counted(info["left_out"], "left out"), f"{unread} could not be read"]
    if sum(info.get("odd", {}).values()):
        words.append(_counted(info["odd"], "odd"))
    if odd.losses(info, info["images"]):
        words.append(f"WARNING more than {odd.MANY:.0%} left out")
    return words


def _counted(parts: dict[str, int], what: str) -> str:
    """Return a total with its parts, largest first."""
    each = sorted(((name, n) for name, n in parts.items() if n), key=lambda item: -item[1])
    named = ", ".join(f"{name} {n}" for name, n in each)
    return f"{sum(parts.values())} {what}" + (f" ({named})" if named else "")
