"""The model card of an encoder folder: data, compute, base model, licence, and how to load it.

``python -m cxrstudy.modelcard RUN OUT`` copies a run's encoder to OUT in half precision, as the
base models in the repository are.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file

from cxrstudy import encoders
from cxrstudy.files import write_text
from cxrstudy.weights import read_tensors

COMPUTE = ("samples_seen", "epochs", "flops", "seconds_training", "precision", "processes", "seed")
CARD = """---
library_name: timm
license: other
tags: [chest-x-ray, image-feature-extraction]
---
# {encoder}: {paradigm}

{architecture} of timm, {input_size} px, grey level (mean {mean:.4f}, std {std:.4f}).

## Data
{data}
- patients: {patients}
- data sets in its base model's pretraining, which cannot test it: {contamination}

## Compute
{compute}

## Base model and its licence
- base model: {base}
- licence: {licence}
- checked: {checked}

## Intended use
Research on representations of chest x-rays. **Not for clinical use**: no diagnosis, triage or
treatment may rest on it. Its errors differ between institutions, devices and groups of patients;
test it on your own.

## Load
```python
model = timm.create_model("local-dir:{folder}", pretrained=True)
```
"""


def model_card(folder: str | Path) -> str:
    """Write the model card, README.md, into an encoder folder and return it.

    timm loads the folder by the line in the card. open_clip's ``local-dir:`` cannot: its text
    configuration has no key padding mask (TextTransformer's ``use_pad_mask``), and its timm tower
    takes no arguments of the architecture (one channel, small widths).
    """
    folder = Path(folder)
    facts, patients = encoders.facts_of(folder), encoders.listed_patients(folder)
    info = facts["info"]
    base = info.get("source") or info.get("base")

    def listed(*keys: str) -> str:
        lines = [f"- {key}: {info[key]}" for key in keys if info.get(key) is not None]
        return "\n".join(lines) or "- not recorded"

    listed_count = "not recorded"
    if patients is not None:
        listed_count = f"{len(patients - {''})}, listed in patients.txt"
    fields = facts | {
        "encoder": info.get("encoder", facts["architecture"]),
        "paradigm": info.get("paradigm", "not trained further"),
        "data": listed("institution", "kind", "data", "generator", "n_images", "unique_images"),
        "patients": listed_count,
        "contamination": ", ".join(info.get("contamination", [])) or "none recorded",
        "compute": listed(*COMPUTE),
        "base": base or "none, trained from random weights",
        "licence": info.get("licence") or ("see its model card" if base else "no base model"),
        "checked": info.get("checked", "not recorded"),
        "folder": folder.name,
    }
    write_text(folder / "README.md", card := CARD.format(**fields))
    return card


def ship(run: str | Path, out: str | Path) -> Path:
    """Copy a run's encoder to ``out`` in half precision; FileNotFoundError if it has none."""
    folder, out = encoders.encoder_folder(Path(run)), Path(out)
    if folder is None:
        raise FileNotFoundError(f"{run} has no encoder; name the folder of a finished pretrain run")
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            tensors = read_tensors(file)
            halves = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
            save_file(halves, out / file.name)
            (out / file.name).chmod(0o644)
        elif file.name != "encoder.json":
            shutil.copyfile(file, out / file.name)
    # Last: a folder that has encoder.json is complete.
    shutil.copyfile(folder / "encoder.json", out / "encoder.json")
    model_card(out)
    return out


if __name__ == "__main__":
    print(ship(sys.argv[1], sys.argv[2]))
