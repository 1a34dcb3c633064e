"""The notebooks for real: the whole method through papermill in its smallest form, with a kill in it."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
from conftest import SHRUNKEN

from srlib import config, files
from srlib.run import stages

pytestmark = pytest.mark.torch

# One iteration: data, sft, sample_1, curate_1, dpo_1, eval. Sampling goes in twelve batches.
SMALL = SHRUNKEN | {"iterations": 1, "arms": "base,sft,sre_1", "sample_batch_size": 4}


@pytest.fixture
def start(project, quiet_kernels):
    """`srlib run` in a process group of its own; none is left behind."""
    started = []

    def start(run_dir, preexec_fn=None, **parameters):
        command = [
            sys.executable,
            "-c",
            "from srlib.cli import app; app()",
            "run",
            "params/tiny.yaml",
            "--run-dir",
            run_dir,
        ]
        command += [part for name, value in (SMALL | parameters).items() for part in ("-p", f"{name}={value}")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        started.append(subprocess.Popen(command, cwd=project, preexec_fn=preexec_fn, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def finished(process):
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    return printed


def killed(process, reached):
    """Kill a run as soon as `reached` is true; its kernels follow."""
    deadline = time.monotonic() + 150
    while not reached():
        assert process.poll() is None, f"over before it was noticed: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def results(run):
    """All of results.json but the seconds."""
    rows = [row for row in files.read_json(run / "results.json") if row["metric"] != "seconds"]
    columns = ("value", "ci_low", "ci_high", "n", "iteration")
    return {(row["arm"], row["split"], row["metric"]): [row[name] for name in columns] for row in rows}


def test_the_whole_method_killed_resumed_and_cached(project, start, monkeypatch):
    run = project / "runs" / "t"
    samples = run / "judgments" / "1.partial" / "judgments.jsonl"
    killed(start("runs/t", diagnose="true"), lambda: lines(samples) >= 32)
    assert 32 <= lines(samples) < 48 * 4
    assert re.search(r"sft +cached\nsample_1 +runs: incomplete", finished(start("runs/t", diagnose="true")))
    found = results(run)
    for arm, iteration in {"base": 0, "sft": 0, "sre_1": 1}.items():
        for split, n in {"validation": 10, "test": 24, "ood": 10, "pairwise": 6}.items():
            value, low, high, *rest = found[arm, split, "accuracy"]
            assert 0 <= low <= value <= high <= 1
            assert rest == [n, iteration]
        assert {"pearson", "qwk", "mae", "tokens"} <= {
            metric for a, split, metric in found if (a, split) == (arm, "test")
        }
    for path in (run / "notebooks").iterdir():
        text = path.read_text()
        outputs = {output["output_type"] for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])}
        assert outputs & {"display_data", "execute_result"} and "error" not in outputs, path
        assert str(project) not in text, "a notebook that is shown around tells nothing of this machine"
    assert not [*run.rglob("*.partial"), *(run / ".checkpoints").glob("*")]
    report = (run / "report.html").read_text()
    assert [word in report for word in ("sre_1", "diagnose.ipynb", "<script", str(project))] == [
        True,
        True,
        False,
        False,
    ]
    weights = [(run / path / "model.safetensors").read_bytes() for path in ("judge", "judges/sre_1", "judges/sft")]
    assert weights[0] == weights[1] != weights[2]

    begin, before = time.monotonic(), {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}
    assert finished(start("runs/t", diagnose="true")).count(" cached") == 7
    assert time.monotonic() - begin < 20
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}
    monkeypatch.chdir(project)  # another beta makes another judge; what came before, and what never sees it, stays
    cfg = config.load("params/tiny.yaml", [f"{name}={value}" for name, value in (SMALL | {"beta": 0.9}).items()])
    reasons = [stages.reason(run / one.output, stages.parts(one, cfg, run)) for one in stages.of(cfg)]
    assert reasons == [None, None, None, None, "beta 0.1 -> 0.9", None]


@pytest.mark.slow
def test_killed_at_every_stage_a_run_ends_like_one_that_nobody_disturbed(project, start):
    def trains(stage):
        beat = run / ".progress" / f"{stage}.json"
        return beat.exists() and re.search(r'train.*"done": [1-9]', beat.read_text())

    run, whole = project / "runs" / "killed", start("runs/whole")
    killed(start("runs/killed"), lambda: trains("sft"))
    killed(start("runs/killed"), lambda: lines(run / "judgments" / "1.partial" / "judgments.jsonl") >= 32)
    killed(start("runs/killed"), lambda: trains("dpo_1"))
    killed(start("runs/killed"), lambda: any(lines(path) for path in (run / "eval.partial").rglob("*.jsonl")))
    finished(start("runs/killed"))
    finished(whole)
    assert len(results(run)) > 50
    assert results(run) == results(project / "runs" / "whole")


@pytest.mark.slow
def test_a_full_disk_stops_with_a_message_and_the_same_command_resumes(project, start):
    """No file may grow beyond 30 kB: the rows are longer. What a disk says differs, where it is said does not."""
    process = start("runs/full", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)))
    printed, _ = process.communicate(timeout=100)
    assert (process.returncode, "Traceback" in printed) == (1, False)
    assert "the same command then resumes" in printed
    killed(start("runs/full"), lambda: (project / "runs" / "full" / "data" / "manifest.json").exists())
