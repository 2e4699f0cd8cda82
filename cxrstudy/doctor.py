"""What this machine has and what is missing for each preset."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cxrstudy import grid, study
from cxrstudy.data import cards
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


def memory_gb() -> float:
    """Physical memory in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def report(data_root: str = "") -> int:
    """Print the findings; 0 unless `mini` itself cannot run here."""
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

        from cxrstudy.pretrain.loop import precision

        has_gpu = torch.cuda.is_available()
        gpu = torch.cuda.get_device_name() if has_gpu else "none; runs use the CPU"
        kept = precision("auto", torch.device("cuda" if has_gpu else "cpu"))
        fast = "yes" if kept == torch.bfloat16 else "no; runs use float32"
        print(f"GPU: {gpu}\nbfloat16 in hardware: {fast}")
    except Exception as error:
        missing.append("torch")
        print(f"torch cannot be imported: {error}")
    disk = shutil.disk_usage(study.root()).free / 1e9
    print(f"Hardware: {hardware()}; memory {memory_gb():.0f} GB; free disk {disk:.0f} GB")
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    print(f"Browser for the book's own tests: {browser or 'none (those tests are skipped)'}")
    found = f"{data_root} {'found' if Path(data_root).is_dir() else 'NOT FOUND'}" if data_root else "none given"
    print(f"Data root: {found}")
    unfit = set()
    for name in grid.preset_names():
        problems = list(missing)
        try:
            preset = grid.load_preset(name)
            if preset.disk_gb > disk:
                problems.append(f"{preset.disk_gb:g} GB of disk (free: {disk:.1f})")
            if preset.memory_gb > memory_gb():
                problems.append(f"{preset.memory_gb:g} GB of memory")
            if preset.gpu_hours and not has_gpu:
                problems.append(f"a GPU (about {preset.gpu_hours:g} hours of one)")
            grid.plan(name, data_root=data_root or ("/nowhere" if preset.needs_root else ""))
            for values in preset.data.values():
                if preset.needs_root and cards.read_card(values["card"]).table:
                    if not data_root:
                        problems.append(f"a folder with {values['card']}: DATA_ROOT=PATH")
                    else:
                        cards.load_manifest(values["card"], root=data_root)
        except (ValueError, OSError) as error:
            problems.append(str(error))
        print(f"preset {name}: {'ready' if not problems else 'missing ' + '; '.join(dict.fromkeys(problems))}")
        unfit |= {name} if problems else set()
    return 1 if "mini" in unfit else 0
