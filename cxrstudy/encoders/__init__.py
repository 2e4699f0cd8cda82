"""Image and text encoders: built by timm and open_clip, saved as folders, loaded frozen.

An encoder folder holds ``model.safetensors`` and ``config.json`` (``timm.create_model(
'local-dir:FOLDER')`` reads both), ``encoder.json`` (provenance: paradigm, base model, subset,
compute) and, after ``clip`` or ``unicl``, ``text.safetensors`` and ``tokenizer.json``.
"""

from cxrstudy.encoders.image import (
    SMALL,
    Encoder,
    ImageEncoder,
    Pixels,
    build_encoder,
    drop_paths,
    keep_memory,
)
from cxrstudy.encoders.load import (
    HEADS,
    LoadedCheckpoint,
    encoder_folder,
    facts_of,
    listed_patients,
    load_encoder,
    load_pretrained,
    load_text,
    open_base,
    save_encoder,
)
from cxrstudy.encoders.openclip import OpenClip
from cxrstudy.encoders.text import ClipTextTower, TextShape, TextTower, build_text, train_tokenizer
from cxrstudy.weights import MissingWeights

__all__ = [
    "HEADS",
    "SMALL",
    "ClipTextTower",
    "Encoder",
    "ImageEncoder",
    "LoadedCheckpoint",
    "MissingWeights",
    "OpenClip",
    "Pixels",
    "TextShape",
    "TextTower",
    "build_encoder",
    "build_text",
    "drop_paths",
    "encoder_folder",
    "facts_of",
    "keep_memory",
    "listed_patients",
    "load_encoder",
    "load_pretrained",
    "load_text",
    "open_base",
    "save_encoder",
    "train_tokenizer",
]
