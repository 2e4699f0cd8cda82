"""Names of findings and devices, in the order of every label array, and their phrases."""

FINDINGS = (
    "cardiomegaly",
    "pleural_effusion",
    "pneumothorax",
    "consolidation",
    "atelectasis",
    "edema",
    "nodule_mass",
    "fracture",
)
DEVICES = (
    "endotracheal_tube",
    "central_venous_catheter",
    "picc",
    "swan_ganz_catheter",
    "nasogastric_tube",
    "chest_tube",
    "pacemaker",
)
LABELS = FINDINGS + DEVICES  # the order of every (N, L) array
# Read in reports, in no array
OTHER_DEVICES = ("tracheostomy_tube", "gastrostomy_tube", "other_catheter")
VIEWS = ("PA", "AP", "LATERAL")

PHRASES = {
    "nodule_mass": "nodule or mass",
    "edema": "pulmonary edema",
    "picc": "PICC line",
    "swan_ganz_catheter": "Swan-Ganz catheter",
}


def phrase(name: str) -> str:
    """Return a label's name in words: ``pleural effusion`` for ``pleural_effusion``."""
    return PHRASES.get(name, name.replace("_", " "))
