"""Nothing that a user or a data set brings is unpickled: a pickle runs what its author wrote."""

import ast
import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from cxrstudy.data.images import open_prepared
from cxrstudy.evaluate.embeddings import read_embeddings
from cxrstudy.pretrain import checkpoint
from cxrstudy.weights import TornFile, read, read_torch

UNSAFE = re.compile(
    r"\b(?:import|from) +(?:pickle|cPickle|_pickle|cloudpickle|dill|shelve|marshal|jsonpickle)\b"
    r"|\bpickle\.(?:load|loads|Unpickler)\b|read_pickle|joblib\.load|from joblib import .*\bload\b"
    r"|allow_pickle *= *True|weights_only *= *False|yaml\.(?:unsafe_load|full_load)"
    r"|yaml\.(?:UnsafeLoader|FullLoader|Loader)\b"
)
FILES = [*(ROOT / "cxrstudy").rglob("*.py"), *(ROOT / "book").glob("*.ipynb")]
FILES += [*(ROOT / "book" / "_ext").glob("*.py"), *(ROOT / "notebooks").rglob("*.ipynb")]
FILES += [*(ROOT / "notebooks").rglob("*.py"), *(ROOT / "notebooks").rglob("Snakefile")]


def code(path: Path) -> str:
    """The code of a module, or of a notebook's cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_no_loader_of_pickles_is_named():
    assert len(FILES) > 150
    found = [f"{path}: {m[0]}" for path in FILES for m in UNSAFE.finditer(code(path))]
    assert found == []


def test_torch_loads_weights_only_and_yaml_is_safe():
    calls = 0
    for path in FILES:
        if path.suffix != ".py":
            assert not re.search(r"torch\.load|yaml\.load", code(path)), path
            continue
        for node in ast.walk(ast.parse(code(path))):
            if not isinstance(node, ast.Call):
                continue
            said = ast.unparse(node)
            if said.startswith("torch.load("):
                assert "weights_only=True" in said, f"{path}:{node.lineno}"
                calls += 1
            if said.startswith("yaml.load("):
                assert re.search(r"SafeLoader|_Loader", said), f"{path}:{node.lineno}"
                calls += 1
    assert calls >= 3


class Payload:
    """What runs when it is unpickled: it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that a payload makes; that it does is shown first."""
    file = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(file)))
    assert file.exists()
    file.unlink()
    return file


@pytest.mark.parametrize("reader", [read, read_torch])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_weights(tmp_path: Path, mark: Path, reader, suffix: str):
    path = tmp_path / f"weights{suffix}"
    for content in ({"state_dict": Payload(mark)}, Payload(mark)):
        torch.save(content, path)
        with pytest.raises(TornFile, match="weights"):
            reader(path)
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(TornFile):
            reader(path)
    assert not mark.exists()


def test_a_checkpoint(tmp_path: Path, mark: Path):
    model = torch.nn.Linear(2, 2)
    torch.save({"key": Payload(mark)}, tmp_path / checkpoint.STATE)
    with pytest.warns(UserWarning, match="starts from its beginning"):
        checkpoint.load(tmp_path, "key", model, torch.optim.SGD(model.parameters()))
    assert not mark.exists()


def test_arrays(tmp_path: Path, mark: Path):
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as packed:
        for name in ("image_id.npy", "vectors.npy"):
            packed.writestr(name, objects.getvalue())
    with pytest.raises(ValueError, match=r"e\.npz"):
        read_embeddings(tmp_path / "e.npz")
    (tmp_path / "images.npy").write_bytes(objects.getvalue())
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(ValueError, match=r"memory-mapped|allow_pickle"):
        open_prepared(tmp_path)
    for name in ("e.pkl", "e.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(mark)))
        with pytest.raises(ValueError, match="no table of embeddings"):
            read_embeddings(tmp_path / name)
    assert not mark.exists()
