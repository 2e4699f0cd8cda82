"""Say what this machine has, and what each preset lacks."""

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cxrstudy import grid, preflight, study
from cxrstudy.preflight.steps import free_gb, memory_gb
from cxrstudy.results import hardware

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "pydicom",
    "pandas",
    "papermill",
    "snakemake",
    "jupyter-book",
    "jupyterlab",
    "nbval",
)
LONGEST = 160  # characters of a reason


def report(data_root: str = "") -> int:
    """Print what is here and what each preset lacks; 0 unless `mini` itself cannot run here.

    ``data_root``: the folder of real data, for presets that read files.
    """
    print(f"Python {platform.python_version()} in {sys.prefix}")
    missing = []
    for name in PACKAGES:
        try:
            print(f"  {name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
            print(f"  {name}: MISSING; run make, or pip install -r requirements.lock")
    has_gpu = False
    try:
        import torch

        from cxrstudy.pretrain.build import precision

        has_gpu = torch.cuda.is_available()
        gpu = torch.cuda.get_device_name() if has_gpu else "none; runs use the CPU"
        kept = precision("auto", torch.device("cuda" if has_gpu else "cpu"))
        fast = "yes" if kept == torch.bfloat16 else "no; runs use float32"
        print(f"GPU: {gpu}\nbfloat16 in hardware: {fast}")
    except Exception as error:
        missing.append("torch")
        print(f"torch cannot be imported: {error}")
    print(f"Hardware: {hardware()}; memory {memory_gb():.0f} GB; free disk {free_gb():.0f} GB")
    browser = next(
        (b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None
    )
    print(f"Browser for the book's own tests: {browser or 'none (those tests are skipped)'}")
    found = (
        f"{data_root} {'found' if Path(data_root).is_dir() else 'NOT FOUND'}"
        if data_root
        else "none given"
    )
    print(f"Data root: {found}")
    unfit, tables = set(), preflight.Tables()
    for name in grid.preset_names():
        lacking, said, root = list(missing), [], ""
        try:
            preset = grid.load_preset(name)
            if preset.gpu_hours and not has_gpu:
                lacking.append(f"a GPU (about {preset.gpu_hours:g} hours of one)")
            root = data_root if preflight.reads_files(preset) else ""
        except study.StudyError:
            pass  # ``check`` says why
        for problem in preflight.check(name, data_root=root, tables=tables):
            if problem.level == "error":
                lacking.append(str(problem).removeprefix("error: "))
            elif problem.level == "warning":
                said.append(str(problem))
        print(f"preset {name}: {'missing' if lacking else 'ready'}")
        for line in _in_lines([*lacking, *said], name, root):
            print(f"    {line}")
        unfit |= {name} if lacking else set()
    return 1 if "mini" in unfit else 0


def _in_lines(reasons: list[str], preset: str, root: str) -> list[str]:
    """A short line for each reason; of a preset whose weights are not here, which says much, one line in all."""
    where = f"cxrstudy run --preset {preset} -n{f' --data-root {root}' if root else ''}"
    each = [" ".join(reason.split()) for reason in reasons]
    short = [r if len(r) <= LONGEST else f"{r[: LONGEST - 4].rsplit(' ', 1)[0]} ..." for r in each]
    if len(each) > 1 and any("not on this machine" in reason for reason in each):
        return [f"{short[0]} (+{len(each) - 1} more: {where})"]
    return [
        line if line == reason else f"{line} (whole: {where})"
        for line, reason in zip(short, each, strict=True)
    ]
