"""Print what this machine has, and what is missing for each preset."""

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cxrstudy import grid, preflight, study
from cxrstudy.ingest import check
from cxrstudy.preflight.steps import free_gb, memory_gb
from cxrstudy.results import hardware

PACKAGES = (
    *("torch", "torchvision", "timm", "open_clip_torch", "pydicom", "pandas"),
    *("papermill", "snakemake", "jupyter-book", "jupyterlab", "nbval"),
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LONGEST = 160  # characters of a reason


def report(data_root: str = "") -> int:
    """Print what is here and what is missing for each preset; return 0 unless `mini` cannot run.

    Args:
        data_root: folder of real data, for presets that read files.
    """
    print(f"Python {platform.python_version()} in {sys.prefix}")
    missing = _packages()
    has_gpu = _gpu(missing)
    print(f"Hardware: {hardware()}; memory {memory_gb():.0f} GB; free disk {free_gb():.0f} GB")
    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    print(f"Browser for the book's own tests: {browser or 'none (those tests are skipped)'}")
    found = "none given"
    if data_root:
        found = f"{data_root} {'found' if Path(data_root).is_dir() else 'NOT FOUND'}"
    print(f"Data root: {found}")
    for place in sorted(path.parent for path in study.root().glob("ingested/*/ingest.json")):
        lacking = check.lacks(place)
        print(f"ingest {place.name}: {'see below' if lacking else 'ready'}")
        for line in lacking:
            print(f"    {line}")
    unfit, tables = set(), preflight.Tables()
    for name in grid.preset_names():
        lacking, warnings = list(missing), []
        root = ""
        try:
            preset = grid.load_preset(name)
            root = data_root if preset.needs_root else ""
            problems = preflight.check(preset, root, tables)
        except study.StudyError as error:
            problems = [preflight.Problem("error", "", str(error))]
        else:
            if preset.gpu_hours and not has_gpu:
                lacking.append(f"a GPU (about {preset.gpu_hours:g} hours of one)")
        lacking += [str(p).removeprefix("error: ") for p in problems if p.level == "error"]
        warnings = [str(p) for p in problems if p.level == "warning"]
        print(f"preset {name}: {'missing' if lacking else 'ready'}")
        for line in _in_lines([*lacking, *warnings], name, root):
            print(f"    {line}")
        unfit |= {name} if lacking else set()
    return 1 if "mini" in unfit else 0


def _packages() -> list[str]:
    """Print the versions of the main packages; return those that are missing."""
    missing = []
    for name in PACKAGES:
        try:
            print(f"  {name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
            print(f"  {name}: MISSING; run make, or pip install -r requirements.lock")
    return missing


def _gpu(missing: list[str]) -> bool:
    """Print the GPU and its precision; return whether there is one."""
    try:
        import torch

        from cxrstudy.pretrain.build import precision

        has_gpu = torch.cuda.is_available()
        gpu = torch.cuda.get_device_name() if has_gpu else "none; runs use the CPU"
        dtype = precision("auto", torch.device("cuda" if has_gpu else "cpu"))
        bfloat16 = "yes" if dtype == torch.bfloat16 else "no; runs use float32"
        print(f"GPU: {gpu}\nbfloat16 in hardware: {bfloat16}")
        return has_gpu
    except Exception as error:
        missing.append("torch")
        print(f"torch cannot be imported: {error}")
        return False


def _in_lines(reasons: list[str], preset: str, root: str) -> list[str]:
    """Return a short line for each reason; one line for all if weights are not on this machine."""
    where = f"cxrstudy run --preset {preset} -n{f' --data-root {root}' if root else ''}"
    each = [" ".join(reason.split()) for reason in reasons]
    short = [r if len(r) <= LONGEST else f"{r[: LONGEST - 4].rsplit(' ', 1)[0]} ..." for r in each]
    if len(each) > 1 and any("not on this machine" in reason for reason in each):
        return [f"{short[0]} (+{len(each) - 1} more: {where})"]
    return [
        line if line == reason else f"{line} (whole: {where})"
        for line, reason in zip(short, each, strict=True)
    ]
