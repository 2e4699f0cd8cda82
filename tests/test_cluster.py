"""Runs as jobs of a cluster: what they ask, and a real Slurm of one node on this machine."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT, Walk, clone

from cxrstudy import asks, cluster, grid, states, study
from cxrstudy.preflight.estimates import READ_DICOM

SCRIPT = ROOT / "tests" / "cluster" / "slurm.sh"
PLUGIN = importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None
DAEMONS = all(map(shutil.which, ("/usr/sbin/munged", "/usr/sbin/slurmctld", "/usr/sbin/slurmd")))
WHY = (
    "the extra `cluster` is not installed" * (not PLUGIN)
    or "no slurm-wlm and munge" * (not DAEMONS)
    or "the daemons need root" * (os.getuid() != 0)
    or "this machine has a cluster" * Path("/etc/slurm/slurm.conf").exists()
)
needs_plugin = pytest.mark.skipif(not PLUGIN, reason="the extra `cluster` is not installed")

WAIT = """
import json, os, pathlib, time
place = pathlib.Path(os.environ["CXRSTUDY_RUNS"])
folder = place.joinpath(*pathlib.Path(out).parts[1:])
with (place / "begun").open("a") as file:
    file.write(f"{os.getpid()} {folder.name} {os.environ['SLURM_JOB_ID']}\\n")
if seed == 1 and (place / "fail").exists():
    raise ValueError("made to fail")
while not (place / "go").exists():
    time.sleep(0.05)
record = {"schema": 1, "run": folder.name, "stage": "data", "preset": "waits"}
record |= {"subject": {}, "metrics": []}
record |= {"info": {"seconds": 1.0, "images": 5}, "environment": {}}
(folder / "record.json").write_text(json.dumps(record))
"""
WAITS = {
    "title": "Two runs that wait",
    "minutes": 1,
    "hardware": "any",
    "data": {"one": {"seed": 1, "size": 32}, "two": {"seed": 2, "size": 32}},
}
HOLD = """
import pathlib, time
from cxrstudy.pretrain import loop
save = loop.save_checkpoint
def save_and_hold(run, step):
    save(run, step)
    flag = pathlib.Path({flag!r})
    if flag.exists():
        flag.unlink()
        time.sleep(600)
loop.save_checkpoint = save_and_hold
"""


# ---- what runs ask -----------------------------------------------------------------------------
def test_a_run_asks_for_a_gpu_a_process_and_shares_of_the_presets_memory_and_time() -> None:
    preset = grid.load_preset("paper")
    runs = grid.expand(preset, "/nowhere")
    asked = asks.asks(preset, runs)
    each = {stage: [asked[r.name] for r in runs if r.stage == stage] for stage in study.STAGES}
    assert {a["gpu"] for a in each["pretrain"]} == {8}
    assert {a["gpu"] for a in each["classify"]} == {1}
    assert {a["gpu"] for a in each["data"] + each["analyse"]} == {0}
    assert {a["mem_mb"] for a in each["pretrain"]} == {512_000}
    assert {a["mem_mb"] for a in each["classify"]} == {64_000}
    expected = sum((a["runtime"] - asks.START) / asks.MARGIN for a in each["pretrain"])
    assert expected == pytest.approx(preset.minutes, rel=0.02)
    minutes = 3_500_000 / 0.7 / READ_DICOM[0] / 16 / 60
    assert each["data"][0]["runtime"] == pytest.approx(2 * minutes + 10, rel=0.01)
    assert [each[stage][0]["cpus_per_task"] for stage in ("data", "pretrain")] == [16, 64]


def test_without_gpu_hours_no_run_asks_for_a_gpu() -> None:
    preset = grid.load_preset("smoke")
    assert {a["gpu"] for a in asks.asks(preset, grid.expand(preset)).values()} == {0}


def test_a_profile_that_is_none_is_refused_with_the_names_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(study.StudyError, match="there are slurm"):
        cluster.read_profile("slrum")
    (tmp_path / "config.yaml").write_text("executor: kubernetes\n")
    with pytest.raises(study.StudyError, match="pip install snakemake-executor-plugin-kubernetes"):
        cluster.read_profile(str(tmp_path))
    (tmp_path / "config.yaml").write_text("executor: [\n")
    with pytest.raises(study.StudyError, match=r"config\.yaml: not YAML"):
        cluster.read_profile(str(tmp_path))


def test_cores_of_this_machine_are_refused_beside_a_profile(walk: Walk) -> None:
    done = walk.call("run", "--preset", "smoke", "--profile", "slurm", "--cores", "2")
    assert done.returncode == 2
    assert "--cores and --gpu-runs are of one machine" in done.stderr


@needs_plugin
def test_a_dry_run_shows_what_is_asked_after_the_profiles_changes(walk: Walk) -> None:
    folder = walk.root / "notebooks" / "profiles" / "own"
    folder.mkdir()
    text = (folder.parent / "slurm" / "config.yaml").read_text()
    own = {
        "set-resources": {"run": {"runtime": 90, "gpu": "int(wildcards.stage == 'pretrain')"}},
        "default-resources": {"slurm_partition": "'gpu' if threads > 0 else 'none'"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(text) | own))
    done = walk.call("run", "--preset", "smoke", "--profile", "own", "-n")
    assert done.returncode == 0, done.stderr
    assert re.search(r"data +2 +0 +1 +3 GB +1\.5 h  gpu$", done.stdout, re.M)
    assert re.search(r"pretrain +5 +1 +1 +3 GB +1\.5 h  gpu$", done.stdout, re.M)
    assert "at most 8 GPU-hours" in done.stdout
    assert not list(walk.runs.glob("smoke/*"))  # it leaves nothing


ERROR = """
[Tue Dec  1 03:04:09 2026]
Error in rule run:
    message: {message}
    jobid: {job}
    output: data/{run}/record.json
    log: data/{run}/notebook.ipynb, /x/3.log (check log file(s) for error details)
    shell:
        run
        (command exited with non-zero exit code)
    external_jobid: 3
"""
TIMEOUT = (
    "SLURM-job '3' failed, SLURM status is: 'TIMEOUT'. Detailed failure reason unavailable (status "
    "command is not 'sacct').For further error details see the cluster/cloud log."
)
REFUSED = (
    "SLURM sbatch failed. The error message was 'sbatch: error: invalid partition: x\n"
    "sbatch: error: Batch job submission failed'.\n    sbatch call:\n        sbatch --parsable"
)


def test_of_snakemakes_log_it_is_read_how_jobs_ended_and_which_are_started_again() -> None:
    text = ERROR.format(message=TIMEOUT, job=0, run="one-1") + "Trying to restart job 0.\n"
    text += ERROR.format(message=REFUSED, job=1, run="two-2")
    text += ERROR.format(message="None", job=2, run="three-3")
    found = states.read_log(text)
    timeout = "SLURM-job '3' failed, SLURM status is: 'TIMEOUT'. (log: /x/3.log)"
    assert found["one-1"] == states.Ended(timeout, True)
    assert "invalid partition: x sbatch: error: Batch job" in found["two-2"].why
    assert "--parsable" not in found["two-2"].why
    assert found["three-3"] == states.Ended("", False)
    again = text + ERROR.format(message=TIMEOUT, job=0, run="one-1")
    assert not states.read_log(again)["one-1"].again


# ---- on a real Slurm ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of this machine, and no daemon afterwards."""
    if WHY:
        pytest.skip(WHY)
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run(["sh", str(SCRIPT), "up", str(folder)], check=True, timeout=120)
        yield
    finally:
        subprocess.run(["sh", str(SCRIPT), "down", str(folder)], check=True, timeout=120)
    names = subprocess.run(["ps", "-e", "-o", "comm="], capture_output=True, text=True).stdout
    assert not {"munged", "slurmctld", "slurmd"} & set(names.split())


@pytest.fixture
def on_cluster(slurm: None, tmp_path: Path) -> Walk:
    """A clone with the profile `fast`: as `slurm`, but it looks at the queue every few seconds."""
    walk = clone(tmp_path)
    folder = walk.root / "notebooks" / "profiles"
    profile = yaml.safe_load((folder / "slurm" / "config.yaml").read_text())
    profile |= {"slurm-init-seconds-before-status-checks": 2, "latency-wait": 10}
    (folder / "fast").mkdir()
    (folder / "fast" / "config.yaml").write_text(yaml.safe_dump(profile))
    walk.runs.mkdir()
    return walk


@pytest.fixture
def waits(on_cluster: Walk) -> Walk:
    """Its data runs only wait for the file ``runs/go``."""
    path = on_cluster.root / "notebooks" / "data.ipynb"
    notebook = nbformat.read(path, 4)
    first = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    notebook.cells = [first, nbformat.v4.new_code_cell(WAIT)]
    nbformat.write(notebook, path)
    preset = on_cluster.root / "notebooks" / "presets" / "waits.yml"
    preset.write_text(yaml.safe_dump(WAITS))
    return on_cluster


def start(walk: Walk, preset: str = "waits") -> subprocess.Popen[str]:
    env = os.environ | {"CXRSTUDY_ROOT": str(walk.root), "CXRSTUDY_RUNS": str(walk.runs)}
    words = ["run", "--preset", preset, "--profile", "fast", "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-m", "cxrstudy.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        cwd=walk.root,
    )


def begun(walk: Walk) -> list[str]:
    path = walk.runs / "begun"
    return path.read_text().splitlines() if path.is_file() else []


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def queue(walk: Walk, preset: str = "waits") -> list[cluster.Job]:
    return cluster.jobs(walk.runs.resolve() / preset / ".lock")


@pytest.mark.slow
def test_ended_by_a_signal_it_cancels_its_jobs_and_the_same_call_resumes(waits: Walk) -> None:
    process = start(waits)
    until(lambda: len(begun(waits)) == 2)
    assert {job.state for job in queue(waits)} == {"RUNNING"}
    assert "2 running" in waits.call("runs").stdout
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "the same call resumes" in said.splitlines()[-1]
    assert not queue(waits)
    (waits.runs / "go").touch()
    done = waits.call("run", "--preset", "waits", "--profile", "fast")
    assert "waits: done, 2 runs" in done.stdout, done.stdout
    assert len(begun(waits)) == 4


@pytest.mark.slow
def test_killed_outright_its_jobs_are_found_and_no_run_is_executed_twice(waits: Walk) -> None:
    process = start(waits)
    until(lambda: len(begun(waits)) == 2)
    lock = waits.runs.resolve() / "waits" / ".lock"
    process.kill()
    process.wait()
    ids = subprocess.run(["pgrep", "-f", f"{lock.parent} --config"], capture_output=True, text=True)
    for pid in ids.stdout.split():  # Snakemake, which has submitted them
        os.kill(int(pid), signal.SIGKILL)
    jobs = [job.id for job in queue(waits)]
    assert len(jobs) == 2
    assert "2 running" in waits.call("runs").stdout
    again = waits.call("run", "--preset", "waits", "--profile", "fast")
    assert again.returncode == 2
    assert "being run already" in again.stderr
    subprocess.run(["scancel", *jobs], check=True)
    until(lambda: not queue(waits))
    (waits.runs / "go").touch()
    done = waits.call("run", "--preset", "waits", "--profile", "fast")
    assert "waits: done, 2 runs" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_drained_node_is_told_of_and_after_it_the_runs_are_executed(waits: Walk) -> None:
    node = subprocess.run(["hostname", "-s"], capture_output=True, text=True).stdout.strip()
    update = ["scontrol", "update", f"nodename={node}"]
    subprocess.run([*update, "state=drain", "reason=tests"], check=True)
    try:
        process = start(waits)
        assert process.stdout
        until(lambda: len(queue(waits)) == 2)
        line = next(line for line in process.stdout if "jobs wait" in line)
        assert re.search(r"jobs wait: .*(ReqNodeNotAvail|DRAINED|Nodes required)", line), line
        assert not begun(waits)
    finally:
        subprocess.run([*update, "state=resume"], check=True)
    (waits.runs / "go").touch()
    rest, _ = process.communicate(timeout=400)
    assert "waits: done, 2 runs" in rest
    assert process.returncode == 0


@pytest.mark.slow
def test_a_run_that_fails_by_itself_is_executed_once_and_told_as_on_one_machine(
    waits: Walk,
) -> None:
    (waits.runs / "fail").touch()
    (waits.runs / "go").touch()
    process = start(waits)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 1
    assert re.search(r"failed: data one-\w+: ValueError: made to fail", said)
    assert "waits: 1 of 2 runs have no result" in said
    assert len(begun(waits)) == 2
    assert "1 done, 1 failed" in waits.call("runs").stdout


@pytest.mark.slow
def test_a_job_killed_by_its_limit_goes_on_from_its_checkpoint_to_the_records(
    on_cluster: Walk,
) -> None:
    presets = on_cluster.root / "notebooks" / "presets"
    tiny = yaml.safe_load((presets / "smoke.yml").read_text())
    tiny |= {"data": {"study": tiny["data"]["study"] | {"n_images": 400}}, "base": {}}
    curve = {"data": "study", "encoder": "cnn_mini", "paradigm": "clip", "n_images": 64}
    curve |= {"samples_seen": 256, "batch_size": 32, "checkpoint_steps": 2}
    tiny |= {"curves": [curve], "baselines": [], "segment": None, "report": None}
    (presets / "tiny.yml").write_text(yaml.safe_dump(tiny))
    path, flag = on_cluster.root / "notebooks" / "pretrain.ipynb", on_cluster.root / "hold"
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(1, nbformat.v4.new_code_cell(HOLD.format(flag=str(flag))))
    nbformat.write(notebook, path)
    flag.touch()
    process = start(on_cluster, "tiny")
    until(lambda: not flag.exists(), 400)  # it has a checkpoint, and waits
    (job,) = queue(on_cluster, "tiny")
    subprocess.run(["scontrol", "update", f"jobid={job.id}", "timelimit=1"], check=True)
    said, _ = process.communicate(timeout=590)
    assert process.returncode == 0, said
    assert re.search(r"again: pretrain clip-n64-s0-\w+: .*'TIMEOUT'", said)
    assert "tiny: done, 4 runs" in said
    record = json.loads(next(on_cluster.runs.glob("tiny/pretrain/*/record.json")).read_text())
    assert record["info"]["resumed_from"] == 2
    assert "4 done" in on_cluster.call("runs").stdout
    assert "nothing to do" in on_cluster.call("run", "--preset", "tiny").stdout
