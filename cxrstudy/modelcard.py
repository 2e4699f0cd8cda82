"""The model card of an encoder folder: data, compute, base and licence, and the line that loads it.

``python -m cxrstudy.modelcard RUN OUT`` copies a run's encoder to OUT in half precision, as the bases that ship are.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file

from cxrstudy import encoders
from cxrstudy.files import write_text
from cxrstudy.stored import read_tensors

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
- data its base has seen, which cannot test it: {contamination}

## Compute
{compute}

## Base and its licence
- base: {base}
- licence: {licence}
- checked: {checked}

## Intended use
Research on representations of chest x-rays. **Not for clinical use**: no diagnosis, triage or treatment may rest on it.
How its errors differ between institutions, devices and groups of patients is for its user to find out.

## Load
```python
model = timm.create_model("local-dir:{folder}", pretrained=True)
```
"""


def model_card(folder: str | Path) -> str:
    """Write README.md, the model card, into an encoder folder; returns it. timm loads the folder with the card's line.

    open_clip's ``local-dir:`` cannot: its text configuration has no key padding mask (TextTransformer's
    ``use_pad_mask``), and its timm tower takes no arguments of the architecture (one channel, small widths).
    """
    folder = Path(folder)
    facts = encoders.facts_of(folder)
    info, patients = facts["info"], encoders.listed_patients(folder)
    base = info.get("source") or info.get("base")

    def listed(*keys: str) -> str:
        return (
            "\n".join(f"- {key}: {info[key]}" for key in keys if info.get(key) is not None)
            or "- not recorded"
        )

    fields = facts | {
        "encoder": info.get("encoder", facts["architecture"]),
        "paradigm": info.get("paradigm", "not trained further"),
        "data": listed("institution", "kind", "data", "generator", "n_images", "unique_images"),
        "patients": "not recorded"
        if patients is None
        else f"{len(patients - {''})}, listed in patients.txt",
        "contamination": ", ".join(info.get("contamination", [])) or "none recorded",
        "compute": listed(
            "samples_seen", "epochs", "flops", "seconds_training", "precision", "processes", "seed"
        ),
        "base": base or "none, trained from random weights",
        "licence": info.get("licence")
        or ("see its model card" if base else "no base, no licence of one"),
        "checked": info.get("checked", "not recorded"),
        "folder": folder.name,
    }
    write_text(folder / "README.md", card := CARD.format(**fields))
    return card


def ship(run: str | Path, out: str | Path) -> Path:
    """Copy the encoder of a run's folder to ``out``, in half precision; FileNotFoundError if it has none."""
    folder, out = encoders.encoder_folder(Path(run)), Path(out)
    if folder is None:
        raise FileNotFoundError(
            f"{run} holds no encoder; name the folder of a finished pretrain run"
        )
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            tensors = read_tensors(file)
            save_file(
                {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()},
                out / file.name,
            )
            (out / file.name).chmod(0o644)
        elif file.name != "encoder.json":
            shutil.copyfile(file, out / file.name)
    shutil.copyfile(
        folder / "encoder.json", out / "encoder.json"
    )  # last: a folder that has it is whole
    model_card(out)
    return out


if __name__ == "__main__":
    print(ship(sys.argv[1], sys.argv[2]))
