"""A run that is killed at any moment and started again ends like one that nobody disturbed."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SHRUNKEN

from srlib import files as store

pytestmark = pytest.mark.torch

# One iteration, two arms: data, sft, sample_1, curate_1, dpo_1, eval. Sampling goes in twelve batches.
PROFILE = SHRUNKEN | {"iterations": 1, "arms": "sft,sre_1", "sample_batch_size": 4, "audit_items": 0}


@pytest.fixture
def srlib(project, quiet_kernels):
    """`srlib run` in a process group of its own, as a terminal starts it; none is left behind."""
    started = []

    def start(run_dir: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-c", "from srlib.cli import app; app()", "run", "params/tiny.yaml"]
        command += [part for name, value in PROFILE.items() for part in ("-p", f"{name}={value}")]
        started.append(
            subprocess.Popen(
                [*command, "--run-dir", run_dir], cwd=project, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True, **options,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if not process.stdout.closed:
            process.communicate()
    until(lambda: not of_project(project), 30)


def of_project(project: Path) -> list[int]:
    """Processes at work in a directory: the kernels of a killed run and whatever they started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(path / "cwd")) == project and (path / "stat").read_text().split(") ")[-1][0] != "Z":
                found.append(int(path.name))
        except OSError:
            continue
    return found


def until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def beat(run: Path, stage: str, word: str, done: int) -> bool:
    """Whether the stage has done so many steps of what its heartbeat calls `word`."""
    try:
        now = json.loads((run / ".progress" / f"{stage}.json").read_bytes())
    except (OSError, ValueError):
        return False
    return word in now["desc"] and now["done"] >= done


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


MOMENTS = {
    "sft": lambda run: beat(run, "sft", "train", 1),
    "sample_1": lambda run: lines(run / "judgments" / "1.partial" / "judgments.jsonl") >= 32,
    "dpo_1": lambda run: beat(run, "dpo_1", "train", 1),
    "eval": lambda run: any(lines(path) for path in (run / "eval.partial").glob("*/*.jsonl")),
}


def values(run: Path) -> dict[tuple, tuple]:
    """All of results.json but the seconds."""
    rows = store.read_json(run / "results.json")
    return {
        (r["arm"], r["split"], r["metric"]): tuple(r[name] for name in ("value", "ci_low", "ci_high", "n", "protocol"))
        for r in rows
        if r["metric"] != "seconds"
    }


def test_killed_at_several_moments_and_resumed(project, srlib):
    whole, run = project / "runs" / "whole", project / "runs" / "killed"
    undisturbed = srlib("runs/whole")
    kept = 0
    for stage, reached in MOMENTS.items():
        process = srlib("runs/killed")
        until(lambda reached=reached, process=process: reached(run) or process.poll() is not None, 150)
        assert process.poll() is None, f"{stage} is over before it was noticed: {process.communicate()[0]}"
        if stage == "sample_1":
            second = srlib("runs/killed")
            printed, _ = second.communicate(timeout=60)
            assert second.returncode == 2
            assert f"process {process.pid} is running there" in printed
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (run / "results.json").exists()
        if stage == "sample_1":
            kept = lines(run / "judgments" / "1.partial" / "judgments.jsonl")
    assert 32 <= kept < 48 * 4

    last = srlib("runs/killed")
    printed, _ = last.communicate(timeout=150)
    assert last.returncode == 0, printed
    assert "incomplete" in printed
    printed, _ = undisturbed.communicate(timeout=150)
    assert undisturbed.returncode == 0, printed
    assert len(values(whole)) > 50
    assert values(run) == values(whole)
    assert not list(run.rglob("*.partial"))


def test_a_run_directory_that_cannot_be_written(srlib):
    process = srlib("params/tiny.yaml/here")  # beneath a file; root may write into any directory
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "tiny.yaml/here: cannot be written (Not a directory)" in printed
    assert "choose another run directory" in printed
    assert "Traceback" not in printed


def test_a_full_disk_stops_with_a_message_and_the_same_command_resumes(project, srlib):
    """No file may grow beyond 30 kB: the rows are longer. What a disk says differs, where it is said does not."""
    limit = 30_000

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = srlib("runs/full", preexec_fn=small_files)
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert os.strerror(errno.EFBIG) in printed
    assert "the same command then resumes" in printed
    assert "Traceback" not in printed
    assert not (project / "runs" / "full" / "data").exists()

    resumed = srlib("runs/full")
    until(lambda: (project / "runs" / "full" / "data" / "manifest.json").exists() or resumed.poll() is not None, 100)
    assert resumed.poll() is None, resumed.communicate()[0]
