"""A hospital that has reports and no labels: its card mines them."""

import numpy as np
import pandas as pd
from PIL import Image

REPORTS = [
    "Mild cardiomegaly. No pleural effusion.",
    "Possible small pleural effusion. Right PICC in place.",
    "Kein Pneumothorax. Kein Erguss. Herz nicht vergrößert.",
    "",
    "The lungs are clear.",
    "Tracheostomy tube in place. No pneumothorax.",
]


def hospital(
    folder, reports=REPORTS, labels="encoding: reports", table="report: text", pixels=False
):
    """A card with mined labels, its table and an image a row; two images of the first study.

    Images are empty files without ``pixels``.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = [{"file": f"x{k}", "pid": f"p{k}", "text": text} for k, text in enumerate(reports)]
    rows.insert(1, rows[0] | {"file": "again"})
    frame = pd.DataFrame(rows)
    frame.to_csv(folder / "rows.csv", index=False)
    for k, name in enumerate(frame["file"]):
        path = folder / "images" / f"{name}.png"
        path.touch()
        if pixels:
            grey = np.random.default_rng(k).integers(0, 256, (40, 40), dtype=np.uint8)
            Image.fromarray(grey).save(path)
    card = folder / "hospital.md"
    card.write_text(
        "---\nname: hospital\ntitle: A hospital\nkind: real\nlicence: own\naccess: ask\n"
        "citation: none\ntable:\n  path: rows.csv\n  image_id: file\n  patient_id: pid\n"
        f"  study_id: [pid]\n  {table}\nimages: [images/*.png]\nlabels:\n  "
        + labels.replace("\n", "\n  ")
        + "\n---\n"
    )
    return card
