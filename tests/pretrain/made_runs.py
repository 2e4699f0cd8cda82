"""Short pretraining runs for the tests: parameters, runs, kills."""

from cxrstudy import study
from cxrstudy.pretrain.loop import pretrain

DINO = {
    "paradigm": "dinov2",
    "encoder": "hybrid_mini",
    "n_images": 32,
    "samples_seen": 64,
    "dino": {"prototypes": 32},
}


def parameters(data, out, **changes):
    own = {"n_images": 64, "samples_seen": 96, "batch_size": 16, "precision": "fp32"}
    own |= {"checkpoint_seconds": 1000.0, "data": str(data), "out": str(out)}
    return study.validated("pretrain", own | changes)


def go(data, out, progress=iter, **changes):
    return pretrain(parameters(data, out, **changes), data, progress=progress)


def weights(out):
    return [(out / "encoder" / f"{name}.safetensors").read_bytes() for name in ("model", "text")]


class Killed(Exception):
    pass


def killed_after(k):
    def progress(steps):
        for step in steps:
            if step == k:
                raise Killed
            yield step

    return progress


def start_of(found):
    def progress(steps):
        found.append(steps.start)
        yield from steps

    return progress
