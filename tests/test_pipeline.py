"""The pipeline for real, on throw-away notebooks: each test runs kernels through papermill."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from throwaway import log, make_project

from srlib import config, files
from srlib.run import RunError, pipeline, stages

SHORT = "arms=base,sft"  # data, sft, eval: three kernels


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda **work: make_project(tmp_path, **work)


def go(root, *overrides, **options):
    """Run the pipeline; returns {stage: (status, reason)} and what was printed."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    jobs = pipeline.run(config.load(None, overrides), root / "runs" / "t", console=console, **options)
    return {job.stage.name: (job.status, job.reason) for job in jobs}, console.file.getvalue()


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def alive(pid):
    """A process that is there and no zombie: whoever adopts an orphan may be slow to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_run_cached_changed(project):
    """The life of a run: everything, nothing, what depends on a change."""
    root, new = project(), ("done", "new")
    first, printed = go(root, SHORT, "micro_batch_size=8")
    run = root / "runs" / "t"
    assert first == {"data": new, "sft": new, "eval": new}
    assert [line.split()[0] for line in printed.splitlines() if "done in" in line] == list(first)
    assert (run / "judge" / "out.txt").read_text() == "sft"
    assert (root / "runs" / "last").resolve() == run
    recorded = config.load(run / "params.yaml")
    assert (recorded.arms, recorded.micro_batch_size) == (["base", "sft"], 8)
    facts = files.read_json(run / "data" / "manifest.json")["facts"]
    assert facts == {"threads": os.environ.get("OMP_NUM_THREADS", "1"), "micro_batch_size": 8}
    executed = json.loads((run / "notebooks" / "sft.ipynb").read_text())
    assert str(root) not in json.dumps(executed["metadata"])
    assert "sft: runs (new)" in json.dumps(executed)

    begin = time.monotonic()
    code = f"from srlib import config, run; import sys; run.run(config.load(None, {[SHORT, 'micro_batch_size=8']}), 'runs/t')"
    code += "; print([m for m in ('torch', 'papermill', 'nbconvert') if m in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    assert printed.split() == ["data", "cached", "sft", "cached", "eval", "cached", "[]"]
    assert time.monotonic() - begin < 3

    changed, printed = go(root, SHORT, "micro_batch_size=8", "sft_steps=3")
    sft = ("done", "sft_steps 120 -> 3")
    assert changed == {"data": ("cached", None), "sft": sft, "eval": ("done", "input judges/sft changed")}
    assert "runs: sft_steps 120 -> 3" in printed
    assert log(run) == ["data", "sft", "eval", "sft", "eval"]


def test_two_stages_side_by_side_and_one_fails(project):
    """Two arms wait for each other; then a cell of one fails, the other ends in peace, and nothing new starts."""
    work = """\
import time
from srlib import files
(stage.run / f"here_{arm}").touch()
other = stage.run / ("here_sft" if arm == "sft_score_only" else "here_sft_score_only")
for _ in files.progress(range(1200), desc="waits"):
    if other.exists():
        break
    time.sleep(0.05)
else:
    raise RuntimeError("alone")
if arm == "sft":
    raise ValueError("lost \\x1b[31m at [red]sea")
time.sleep(1)
"""
    root = project(n02_sft=work)
    pipeline.PLAIN_EVERY, before = 0.0, pipeline.PLAIN_EVERY
    try:
        reports, printed = go(root, "arms=sft,sft_score_only", workers=2)
    finally:
        pipeline.PLAIN_EVERY = before
    statuses = {name: status for name, (status, _) in reports.items()}
    assert statuses == {"data": "done", "sft": "failed", "sft_score_only": "done", "eval": "left"}
    notebook = root / "runs" / "t" / "notebooks" / "sft.ipynb"
    for word in ("sft (notebook 02_sft) failed in cell 4: ValueError", "at [red]sea", str(notebook), "waits 0/1200"):
        assert word in printed
    assert "\x1b" not in printed
    assert "lost" in notebook.read_text()
    assert not (root / "runs" / "t" / "judge").exists()


def test_a_dead_kernel_and_a_notebook_that_does_not_finish(project):
    reports, printed = go(project(n01_data="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"), SHORT)
    assert reports["data"][0] == "failed"
    assert "(Kernel died)" in printed
    reports, printed = go(project(n01_data="stage.finish = lambda **facts: None\n"), SHORT)
    assert reports == {"data": ("failed", "new"), "sft": ("left", None), "eval": ("left", None)}
    assert "does it call stage.finish()?" in printed


def test_forced_stages_run_again(project, monkeypatch):
    root, every = project(), stages.of
    monkeypatch.setattr(stages, "of", lambda cfg: every(cfg)[:1])
    monkeypatch.setattr(pipeline, "take_home", lambda run, cfg: None)
    for force, expected in ((False, ("done", "new")), (False, ("cached", None)), (True, ("done", "forced"))):
        assert go(root, force=force)[0] == {"data": expected}
    assert log(root / "runs" / "t") == ["data", "data"]


SLOW = """\
import os, time
from srlib import files
from srlib.schema import Judgment
path = stage.path / "rows.jsonl"
had = len(files.read_rows(path, Judgment, drop_torn_tail=True)) if path.exists() else 0
(stage.run / "pid").write_text(str(os.getpid()))
for i in range(had, 6):
    while i == 3 and not (stage.run / "go").exists():
        time.sleep(0.02)
    files.append_rows(path, [Judgment(example_id="e", index=i, text="t", score=1.0)])
(stage.path / "had").write_text(str(had))
"""


def test_a_stopped_and_a_killed_run_resume_inside_the_stage(project):
    root = project(n02_sft=SLOW)
    run, processes = root / "runs" / "t", []

    def start():
        command = [sys.executable, "-c", "from srlib.cli import app; app()", "run", "params/tiny.yaml", "-p", SHORT]
        as_in_a_terminal = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - ignored in background jobs
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command += ["--run-dir", "runs/t", "--anyway"]
        processes.append(subprocess.Popen(command, cwd=root, preexec_fn=as_in_a_terminal, **pipes))
        return processes[-1]

    try:
        rows = run / "judges" / "sft.partial" / "rows.jsonl"
        for stop in (signal.SIGINT, signal.SIGKILL):
            (run / "pid").unlink(missing_ok=True)
            process = start()
            until(lambda: (run / "pid").exists() and rows.exists() and rows.read_bytes().count(b"\n") == 3)
            kernel = int((run / "pid").read_text())
            if stop == signal.SIGINT:
                second = start()
                assert f"process {process.pid} is running there" in second.communicate(timeout=60)[0]
                assert second.returncode == 2
            process.send_signal(stop)
            printed, _ = process.communicate(timeout=60)
            if stop == signal.SIGINT:
                assert process.returncode == 130
                assert "the same command resumes" in printed
            until(lambda kernel=kernel: not alive(kernel), 10)
        (run / "go").touch()
        printed, _ = start().communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
    assert processes[-1].returncode == 0, printed
    assert "sft               runs: incomplete" in printed
    made = (run / "judges" / "sft" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in made] == list(range(6))
    assert (run / "judges" / "sft" / "had").read_text() == "3"
    assert log(run) == ["data", "eval"]


def test_what_cannot_start_is_refused_before_anything_runs(project, tmp_path):
    root = project()
    with pytest.raises(RunError, match="'dpo'"):
        go(root, "arms=dpo")
    (root / "file").touch()
    with pytest.raises(files.StoreError, match="cannot be written"):
        pipeline.run(config.load(), root / "file" / "r")
    (root / "notebooks" / "06_eval.ipynb").unlink()
    with pytest.raises(config.ParamError, match=r"06_eval\.ipynb: cannot be read"):
        go(root, SHORT)
    assert not (root / "runs" / "t").exists()
