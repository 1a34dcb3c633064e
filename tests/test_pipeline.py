"""The pipeline for real, on throw-away notebooks: each test runs kernels through papermill."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from throwaway import PATIENCE, WORK, make_project, srlib_run, stop, write_notebook

from srlib import config, files
from srlib.run import RunError, pipeline, stages
from srlib.schema import SrlibError

SHORT = "arms=base,sft"  # data, sft, eval: three kernels


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda **work: make_project(tmp_path, **work)


def go(root, *overrides, **options):
    """Run the pipeline; returns [(stage, status, reason), ...] and what was printed."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    [jobs] = pipeline.run_all({root / "runs" / "t": config.load(None, overrides)}, console=console, **options)
    return [(job.stage.name, job.status, job.reason) for job in jobs], console.file.getvalue()


def test_run_cached_changed(project):
    """The life of a run: everything, nothing, what depends on a change."""
    root, small = project(), (SHORT, "micro_batch_size=8")
    assert go(root, *small)[0] == [("data", "done", "new"), ("sft", "done", "new"), ("eval", "done", "new")]
    run = root / "runs" / "t"
    assert (run / "judge" / "out.txt").read_text() == "sft"
    assert (root / "runs" / "last").resolve() == run
    facts = files.read_json(run / "data" / "manifest.json")["facts"]
    assert facts == {"threads": os.environ.get("OMP_NUM_THREADS", "1"), "micro_batch_size": 8}
    executed = (run / "notebooks" / "sft.ipynb").read_text()
    assert str(root) not in json.dumps(json.loads(executed)["metadata"])
    [injected] = [cell for cell in json.loads(executed)["cells"] if "injected-parameters" in cell["metadata"]["tags"]]
    names = [line.partition(" = ")[0] for line in injected["source"] if " = " in line]
    assert names == config.declared_in("02_sft", root)  # in order: two runs have equal notebooks

    code = "from pathlib import Path; from srlib import config; from srlib.run import pipeline"
    code += f"; pipeline.run_all({{Path('runs/t'): config.load(None, {list(small)})}})"
    code += "; import sys; print([m for m in ('torch', 'papermill', 'nbconvert') if m in sys.modules])"
    begin = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    assert printed.split() == ["data", "cached", "sft", "cached", "eval", "cached", "[]"]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begin < 6, "seconds of the processor"

    changed, printed = go(root, *small, "sft_steps=3")
    eval_ = ("eval", "done", "input judges/sft changed")
    assert changed == [("data", "cached", None), ("sft", "done", "sft_steps 360 -> 3"), eval_]
    assert "runs: sft_steps 360 -> 3" in printed
    assert (run / "log.txt").read_text().split() == ["data", "sft", "eval", "sft", "eval"]


def test_two_stages_side_by_side_and_one_fails(project, monkeypatch):
    """Two arms wait for each other; then a cell of one fails, the other ends in peace, and nothing new starts."""
    work = """\
import time
from srlib import files
(stage.run / f"here_{arm}").touch()
with files.progress(total=1200, desc="waits"):
    begin = time.monotonic()
    while len(list(stage.run.glob("here_*"))) < 2:
        assert time.monotonic() < begin + 60, "alone"
        time.sleep(0.05)
    time.sleep(1)
if arm == "sft":
    raise ValueError("lost \\x1b[31m at [red]sea")
failed = stage.run / "notebooks" / "sft.ipynb"
while arm == "sft_score_only" and '"output_type": "error"' not in failed.read_text():
    assert time.monotonic() < begin + 60, "the other arm did not fail"
    time.sleep(0.05)
time.sleep(4)
"""
    monkeypatch.setattr(pipeline, "PLAIN_EVERY", 0.0)
    root = project(n02_sft=work)
    reports, printed = go(root, "arms=sft,sft_score_only,sft_careful_only", workers=2)
    assert [status for _, status, _ in reports] == ["done", "failed", "done", "left", "left"]
    notebook = root / "runs" / "t" / "notebooks" / "sft.ipynb"
    assert (root / "runs" / "last").resolve() == root / "runs" / "t"
    for word in ("sft (notebook 02_sft) failed in cell 4: ValueError", "at [red]sea", str(notebook), "waits 0/1200"):
        assert word in printed
    assert "\x1b" not in printed
    assert not (root / "runs" / "t" / "judge").exists()


def test_a_stage_alone_is_forced_dies_and_does_not_finish(project, monkeypatch):
    of = stages.of
    monkeypatch.setattr(stages, "of", lambda cfg: of(cfg)[:1])
    monkeypatch.setattr(pipeline, "take_home", lambda run, cfg: None)
    root = project()
    for force, expected in ((False, ("done", "new")), (False, ("cached", None)), (True, ("done", "forced"))):
        assert go(root, force=force)[0] == [("data", *expected)]
    assert (root / "runs" / "t" / "log.txt").read_text().split() == ["data", "data"]
    for work, word in (
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
            "(Kernel died). Free memory (--workers 1) or space;",
        ),
        ("raise MemoryError('no room')\n", "MemoryError: no room. Free memory (--workers 1) or space;"),
        (
            "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n",
            "failed with status -9",
        ),
        ("stage.finish = lambda **facts: None\n", "does it call stage.finish()?"),
    ):
        (root / "runs" / "last").unlink(missing_ok=True)
        reports, printed = go(project(n01_data=work))
        assert not (root / "runs" / "last").is_symlink(), "before its first stage is done, a run is not the last"
        assert reports == [("data", "failed", "code of 01_data changed")]
        assert word in printed

    def interrupted(job):
        jobs.append(job)
        raise KeyboardInterrupt

    jobs = []
    monkeypatch.setattr(pipeline.Job, "watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(root)
    assert jobs[0].process.wait(10) == -signal.SIGKILL


SLOW = """\
import os, time
(stage.run / "pid").write_text(str(os.getpid()))
rows = stage.path / "rows"
for i in range(len(rows.read_text()) if rows.exists() else 0, 6):
    while i == 3 and not (stage.run / "go").exists():
        time.sleep(0.02)
    with rows.open("a") as file:
        file.write(str(i))
"""


def alive(stat):
    """Whether a process, by its /proc/.../stat, has not ended; it may be gone between two looks."""
    try:
        return ") Z" not in stat.read_text()
    except OSError:
        return False


def test_a_stopped_and_a_killed_run_resume_inside_the_stage(project):
    root = project(n02_sft=SLOW)
    run = root / "runs" / "t"
    rows, pid = run / "judges" / "sft.partial" / "rows", run / "pid"
    for how, status, word in ((signal.SIGINT, 130, "same command resumes"), (signal.SIGKILL, -9, "incomplete")):
        first = srlib_run(root, "runs/t", arms="base,sft")
        printed = stop(first, lambda: pid.exists() and rows.exists() and rows.read_text() == "012", how)
        assert (first.returncode, word in printed) == (status, True), printed
        kernel, end = Path(f"/proc/{pid.read_text()}/stat"), time.monotonic() + 10
        while alive(kernel):
            assert time.monotonic() < end, "the kernel outlives its pipeline"
            time.sleep(0.02)
        pid.unlink()
    (run / "go").touch()
    with files.lock(run), pytest.raises(SrlibError, match="running there"):
        go(root, "arms=base,sft")
    last = srlib_run(root, "runs/t", arms="base,sft")
    printed, _ = last.communicate(timeout=PATIENCE)
    assert last.returncode == 0, printed
    assert (run / "judges" / "sft" / "rows").read_text() == "012345"
    assert (run / "log.txt").read_text().split() == ["data", "eval"]


def test_what_cannot_start_is_refused_before_anything_runs(project):
    root = project()
    with pytest.raises(RunError, match="sft_batch_size is 16, which 3 GPUs cannot share"):
        go(root, "gpus=3")
    with pytest.raises(RunError, match="unsloth trains on one GPU"):
        go(root, "gpus=2", "backend=unsloth")
    with pytest.raises(RunError, match="keep is best, and arms hold neither"):
        go(root, "arms=sft_score_only,sre_1_self_consistency", "keep=best")
    with pytest.raises(RunError, match="gpus is 8, and 4 are on one node"):
        pipeline.check_gpus(config.load(None, ["gpus=8"]), SimpleNamespace(most={"GPU": 4}))
    with pytest.raises(RunError, match="'dpo'"):
        go(root, "arms=dpo")
    with pytest.raises(SrlibError, match="strategy majority: "):
        go(root, SHORT, "strategy=majority")
    with pytest.raises(SrlibError, match="pair_mix verdicts:1 is not KIND:WEIGHT"):
        go(root, SHORT, "pair_mix=verdicts:1")
    mine = root / "runs" / "essays"
    for name in ("data", "judge"):
        files.write_text(mine / name / "graded.csv", "mine")
        with pytest.raises(RunError, match=f"{name}: exists, and no stage has made it; set another run_dir"):
            pipeline.run_all({mine: config.load(None, [SHORT])})
        assert (mine / name / "graded.csv").read_text() == "mine"
        shutil.rmtree(mine / name)
    for text in ('{"name": "my app"}', "[1]"):  # of an app, not of a stage
        files.write_text(mine / "data" / "manifest.json", text)
        with pytest.raises(RunError, match="data: exists, and no stage has made it"):
            pipeline.run_all({mine: config.load(None, [SHORT])})
    shutil.rmtree(mine / "data")
    files.write_text(mine / "params.yaml", "# my own\nbeta: 0.3\n")
    with pytest.raises(RunError, match=r"params\.yaml: exists, and no run has made it; set another run_dir"):
        pipeline.run_all({mine: config.load(mine / "params.yaml", [SHORT])})
    assert (mine / "params.yaml").read_text() == "# my own\nbeta: 0.3\n"
    (mine / "notebooks").mkdir()  # somebody's, too
    with pytest.raises(RunError, match=r"params\.yaml: exists, and no run has made it"):
        pipeline.run_all({mine: config.load(mine / "params.yaml", [SHORT])})
    (root / "file").touch()
    with pytest.raises(files.StoreError, match="cannot be written"):
        pipeline.run_all({root / "file" / "r": config.load()})
    (root / "notebooks" / "06_eval.ipynb").unlink()
    with pytest.raises(config.ParamError, match=r"06_eval\.ipynb: cannot be read"):
        go(root, SHORT)
    assert not (root / "runs" / "t").exists()


TOGETHER = """\
import torch.distributed as dist
dist.init_process_group("gloo")
ranks = [None, None]
dist.all_gather_object(ranks, dist.get_rank())
stage.first_only()
dist.destroy_process_group()
(stage.path / "out.txt").write_text(f"{ranks} {stage._first}")
"""


SHARED = """\
from srlib import config, files
from srlib.schema import SrlibError
with open(stage.run / "log.txt", "a") as log:
    log.write(f"eval-{config.together()} ")
files.meet(stage.run / "met", *config.together())
stage.first_only()
(stage.path / "out.txt").write_text((stage.run / "log.txt").read_text())
"""


@pytest.mark.slow
def test_processes_train_together_and_the_first_one_saves(project):
    root = project(n02_sft=TOGETHER, n06_eval=SHARED)
    jobs, printed = go(root, SHORT, "gpus=2")
    assert [status for _, status, _ in jobs] == ["done", "done", "done"], printed
    assert (root / "runs" / "t" / "judges" / "sft" / "out.txt").read_text() == "[0, 1] True"
    seen = (root / "runs" / "t" / "eval" / "out.txt").read_text()
    assert {"eval-(0,", "eval-(1,"} <= {*seen.split()}, "the first one waits for the other"
    assert not [path for path in (root / "runs" / "t").iterdir() if "-of-" in path.name]
    make_project(root, n02_sft='import os\nos.environ["RANK"] == "1" and 1 / 0\nimport time\ntime.sleep(60)')
    jobs, printed = go(root, SHORT, "gpus=2")
    assert "failed in cell 4: ZeroDivisionError" in printed, "what another than the first says is heard"


NO_FORK = """\
import multiprocessing, os
del os.fork, os.forkpty, os.sched_getaffinity
multiprocessing.set_start_method("spawn")
"""


def test_a_run_needs_no_fork_and_no_unix_socket(project, tmp_path, monkeypatch):
    """As on Windows: os.fork is gone in every process; the path of a Unix socket would be too long, so kernels get TCP ports."""
    (site := tmp_path / "site").mkdir()
    (site / "sitecustomize.py").write_text(NO_FORK)
    monkeypatch.setenv("PYTHONPATH", str(site))
    (temporary := tmp_path / ("t" * 90)).mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    seen = "import os, ipykernel.kernelapp as k\nassert not hasattr(os, 'fork')\n"
    root = project(n02_sft=seen + "assert k.IPKernelApp.instance().transport == 'tcp'\n" + WORK)
    process = srlib_run(root, "runs/t", arms="base,sft")
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    assert (root / "runs" / "t" / "judge" / "out.txt").read_text() == "sft"


WORKER = "import time; from srlib.hardware import machine; machine.end_with_parent(); print('up', flush=True); time.sleep(60)"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_worker_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WORKER], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"up\n"
    parent.kill()
    started = time.monotonic()
    assert parent.stdout.read() == b"", "the pipe closes when the worker is gone"
    assert time.monotonic() - started < 10
    parent.wait()


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "0 -"),
        ({"CUDA_VISIBLE_DEVICES": "3,5"}, "3 -"),
        ({"CUDA_VISIBLE_DEVICES": "3,5", "RANK": "1", "LOCAL_RANK": "1"}, "5 0"),
        ({"CUDA_VISIBLE_DEVICES": "", "RANK": "1", "LOCAL_RANK": "1"}, " 1"),
    ],
)
def test_a_process_sees_one_gpu_and_its_number_is_0(tmp_path, given, seen):
    """transformers would train on all that it sees, and looks for the GPU of the number LOCAL_RANK."""
    told = 'import os\nprint(os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("LOCAL_RANK", "-"), file=open("seen", "w"))'
    write_notebook(tmp_path / "a.ipynb", {"work": told})
    command = [sys.executable, "-P", pipeline.EXECUTE, "a.ipynb", "out.ipynb", "{}"]
    inherited = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "RANK", "LOCAL_RANK")}
    with subprocess.Popen(command, cwd=tmp_path, env=inherited | given, stdin=subprocess.PIPE) as process:
        assert process.wait(120) == 0
    assert (tmp_path / "seen").read_text() == f"{seen}\n"
