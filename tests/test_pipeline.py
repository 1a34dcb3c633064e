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

from srlib import config as params
from srlib import files as store
from srlib.run import pipeline
from srlib.run import stage as runs

SHORT = ["arms=base,sft"]  # data, sft, eval: three kernels


def go(root, *overrides, **options):
    """Run the pipeline; returns {stage: (status, reason)} and what was printed."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    values = params.load(None, overrides, root / "notebooks")
    reports = pipeline.run(values, root / "runs" / "t", root=root, console=console, **options)
    return {r.stage: (r.status, r.reason) for r in reports}, console.file.getvalue()


@pytest.fixture
def start():
    """`srlib run` in a process of its own; none is left behind when a test fails (its kernels follow it)."""
    processes = []

    def start(root):
        code = "from srlib.cli import app; app()"
        command = [sys.executable, "-c", code, "run", "params/tiny.yaml", "-p", SHORT[0], "--run-dir", "runs/t"]
        processes.append(
            subprocess.Popen(
                command,
                cwd=root,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job has it ignored
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


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


def test_run_cached_changed_forced(tmp_path):
    """The life of a run: everything, nothing, what depends on a change, everything again."""
    root = make_project(tmp_path)
    names = ["data", "sft", "sample_1", "curate_1", "dpo_1", "eval"]
    outputs = ["data", "judges/sft", "judgments/1", "pairs/1", "judges/sre_1", "eval"]
    arms = "arms=base,sft,sre_1"
    first, printed = go(root, arms)
    run = root / "runs" / "t"
    assert first == dict.fromkeys(names, ("done", "new"))
    assert [line.split()[0] for line in printed.splitlines() if "done in" in line] == names
    assert sorted(p.stem for p in (run / "notebooks").glob("*.ipynb")) == sorted(names)
    assert sorted(p.stem for p in (run / "notebooks").glob("*.html")) == sorted(names)
    assert (run / "judge" / "out.txt").read_text() == "dpo_1"
    assert (root / "runs" / "last").resolve() == run
    assert params.load(run / "params.yaml", (), root / "notebooks")["arms"] == ["base", "sft", "sre_1"]
    threads = store.read_json(run / "data" / "manifest.json")["facts"]["threads"]
    assert threads == os.environ.get("OMP_NUM_THREADS", str(pipeline.cores() // pipeline.default_workers()))
    nice = {name: store.read_json(run / name / "manifest.json")["facts"]["nice"] - os.nice(0) for name in outputs}
    back = pipeline.BESIDE if pipeline.default_workers() > 1 else 0  # for the last DPO the evaluation alone waits
    assert nice == dict.fromkeys(outputs, 0) | {"judges/sre_1": back}
    executed = (run / "notebooks" / "dpo_1.ipynb").read_text()
    assert str(root) not in json.dumps(json.loads(executed)["metadata"])
    assert "dpo_1: runs (new)" in executed

    again, printed = go(root, arms)
    assert again == dict.fromkeys(names, ("cached", ""))
    assert printed.split() == [word for name in names for word in (name, "cached")]

    changed, printed = go(root, arms, "margin=1.5")
    assert changed == {
        **dict.fromkeys(names[:3], ("cached", "")),
        "curate_1": ("done", "margin 2.0 -> 1.5"),
        "dpo_1": ("done", "input pairs/1 changed"),
        "eval": ("done", "input judges/sre_1 changed"),
    }
    assert "margin 2.0 -> 1.5" in printed
    assert log(run) == [*names, "curate_1", "dpo_1", "eval"]

    forced, _ = go(root, arms, "margin=1.5", force=True, workers=2)
    assert {status for status, _ in forced.values()} == {"done"}
    assert sorted(log(run)[9:]) == sorted(names)


def test_force_leaves_a_stage_alone_in_which_somebody_works(tmp_path):
    """A notebook that is open in JupyterLab, say."""
    root = make_project(tmp_path)
    go(root, "arms=base,sft")
    run = root / "runs" / "t"
    code = "import sys; from pathlib import Path; from srlib import store; store.acquire(Path(sys.argv[1])); print(1, flush=True); input()"
    held = [sys.executable, "-c", code, str(run / ".locks" / "sft")]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(runs.RunError, match=rf"stage sft of t is open in process {other.pid}"):
            go(root, "arms=base,sft", force=True)
        assert (run / "data" / "manifest.json").exists(), "nothing was forgotten"
        assert (run / "judges" / "sft" / "manifest.json").exists()
        other.stdin.close()


def test_a_cached_run_is_quick_and_light(tmp_path):
    root = make_project(tmp_path)
    go(root, *SHORT)
    code = (
        "import sys; from srlib import params, pipeline; from pathlib import Path\n"
        f"reports = pipeline.run(params.load(None, {SHORT}), Path('runs/t'))\n"
        "print({r.status for r in reports}, [m for m in ('torch', 'papermill', 'nbclient') if m in sys.modules])"
    )
    begin = time.monotonic()
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    assert printed.splitlines()[-1] == "{'cached'} []"
    assert time.monotonic() - begin < 5


def test_stages_run_side_by_side(tmp_path):
    """Each of two arms waits until the other one is there, too."""
    meet = """\
import time
(stage.run / f"here_{arm}").touch()
other = stage.run / ("here_sft" if arm == "sft_score_only" else "here_sft_score_only")
deadline = time.monotonic() + 60
while not other.exists():
    assert time.monotonic() < deadline, "alone"
    time.sleep(0.05)
import os
"""
    root = make_project(tmp_path, n02_sft=meet)
    reports, _ = go(root, "arms=sft,sft_score_only", workers=2)
    assert {status for status, _ in reports.values()} == {"done"}


def test_a_failing_cell_is_named_and_what_runs_beside_it_ends(tmp_path):
    work = """\
import os, time
if arm == "sft":
    raise ValueError("lost \\x1b[31m at [red]sea")
until = time.monotonic() + 4
while time.monotonic() < until:
    time.sleep(0.1)
"""
    root = make_project(tmp_path, n02_sft=work)
    reports, printed = go(root, "arms=sft,sft_score_only", workers=2)
    assert {name: status for name, (status, _) in reports.items()} == {
        "data": "done",
        "sft": "failed",
        "sft_score_only": "done",
        "eval": "left",
    }
    output = root / "runs" / "t" / "notebooks" / "sft.ipynb"
    for word in ("sft (notebook 02_sft) failed in cell 4: ValueError", "at [red]sea", str(output)):
        assert word in printed
    assert "\x1b" not in printed
    assert not (root / "runs" / "t" / "judge").exists()
    assert "lost" in output.read_text()
    make_project(tmp_path)
    reports, _ = go(root, "arms=sft,sft_score_only")
    assert reports["sft"] == ("done", "new")
    assert reports["sft_score_only"] == ("done", "code of 02_sft changed")
    assert reports["eval"][0] == "done"


def test_a_dead_kernel_and_a_notebook_that_does_not_finish(tmp_path):
    root = make_project(tmp_path, n01_data="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    reports, printed = go(root, *SHORT)
    assert reports["data"][0] == "failed"
    assert "its kernel died" in printed
    make_project(tmp_path, n01_data="stage.finish = lambda **facts: None\nimport os\n")
    reports, printed = go(root, *SHORT)
    assert reports["data"][0] == "failed"
    assert "does it call stage.finish()?" in printed
    assert reports["sft"] == ("left", "")


def test_code_edited_meanwhile_is_for_the_next_run(tmp_path):
    edit = """\
from pathlib import Path
if arm == "sft":
    path = Path("notebooks/02_sft.ipynb")
    path.write_text(path.read_text().replace("import os", "import os, sys"))
import os
"""
    root = make_project(tmp_path, n02_sft=edit)
    reports, printed = go(root, *SHORT)
    assert {status for status, _ in reports.values()} == {"done"}, printed
    reports, _ = go(root, *SHORT)
    assert reports["sft"] == ("done", "code of 02_sft changed")
    assert reports["eval"] == ("done", "input judges/sft changed")
    make_project(tmp_path, n02_sft="stage.finish = lambda **facts: None\nimport os\n")
    reports, printed = go(root, *SHORT)
    assert reports["sft"][0] == "failed"
    assert "ended without judges/sft" in printed  # the one of the run before does not count


SLOW = """\
import os, time
from srlib.schema import Judgment
path = stage.path / "rows.jsonl"
have = len(store.read_rows(path, Judgment, drop_torn_tail=True)) if path.exists() else 0
(stage.run / "pid").write_text(str(os.getpid()))
from srlib.files import progress
with progress(total=6, desc="rows") as bar:
    bar.update(have)
    for i in range(have, 6):
        while i == 3 and not (stage.run / "go").exists():
            time.sleep(0.02)
        store.append_rows(path, [Judgment(example_id="e", index=i, text="t", score=1.0)])
        bar.update()
have_before = have
"""


def slow_project(tmp_path):
    root = make_project(tmp_path, n02_sft="from srlib import store\n" + SLOW)
    path = root / "notebooks" / "02_sft.ipynb"
    path.write_text(path.read_text().replace("stage.finish(", "stage.finish(had=have_before, "))
    return root, root / "runs" / "t" / "judges" / "sft.partial" / "rows.jsonl"


def has_three(rows):
    return rows.exists() and rows.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_resumes_inside_the_stage(tmp_path, start, stop):
    root, rows = slow_project(tmp_path)
    run = root / "runs" / "t"
    process = start(root)
    until(lambda: has_three(rows))
    kernel = int((run / "pid").read_text())

    second = start(root)
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"process {process.pid} is running there" in printed

    process.send_signal(stop)
    printed, _ = process.communicate(timeout=60)
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command resumes" in printed
        assert not alive(kernel)
    assert "IPKernelApp" not in printed
    until(lambda: not alive(kernel), 10)  # an orphan notices within a second; until then it holds its stage
    (run / "go").touch()
    resumed = start(root)
    printed, _ = resumed.communicate(timeout=120)
    assert "incomplete" in printed
    made = store.read_json(run / "judges" / "sft" / "manifest.json")
    indices = [json.loads(line)["index"] for line in (run / "judges" / "sft" / "rows.jsonl").open()]
    assert indices == list(range(6))
    assert made["facts"]["had"] == 3
    assert log(run) == ["data", "eval"]
    assert resumed.returncode == 0, printed


def test_heartbeats_become_lines_in_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "PLAIN_EVERY", 0.0)
    work = "import os, time\nfrom srlib.files import progress\n"
    work += "for _ in progress(range(4), desc='rows'):\n    time.sleep(0.6)\n"
    root = make_project(tmp_path, n01_data=work)
    reports, printed = go(root, *SHORT)
    assert reports["data"][0] == "done"
    assert [line for line in printed.splitlines() if line.startswith("data ") and "rows 2/4" in line]


def test_what_cannot_start_is_refused_before_anything_runs(tmp_path):
    root = make_project(tmp_path)
    with pytest.raises(pipeline.stages.RunError, match="arm 'dpo' is unknown"):
        go(root, "arms=dpo")
    (root / "notebooks" / "06_eval.ipynb").unlink()
    with pytest.raises(params.ParamError, match=r"06_eval\.ipynb: cannot be read"):
        pipeline.run(
            {"iterations": 1, "arms": ["sft"], "seed": 0, "data": "", "model": "", "lr": 0.1}, root / "r", root=root
        )
    (root / "file").touch()
    make_project(tmp_path)
    with pytest.raises(store.StoreError, match="cannot be written"):
        pipeline.run(params.load(None, SHORT, root / "notebooks"), root / "file" / "r", root=root)
    assert not (root / "r").exists()


@pytest.mark.parametrize(
    ("gpu", "hidden", "n", "expected"), [(0, None, 2, 2), (0, None, 1, 1), (1, None, 8, 1), (1, "", 8, 2)]
)
def test_default_workers(monkeypatch, gpu, hidden, n, expected):
    monkeypatch.setattr(os.path, "exists", lambda path: bool(gpu) and path == "/dev/nvidia0")
    monkeypatch.setattr(pipeline.shutil, "which", lambda name: None)
    monkeypatch.setattr(pipeline, "cores", lambda: n)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert pipeline.default_workers() == expected


def test_a_page_that_cannot_be_rendered_is_said_and_costs_no_stage(tmp_path, monkeypatch):
    def fails(notebook):
        raise OSError("no space left")

    monkeypatch.setattr("srlib.page.rendered", fails)
    reports, printed = go(make_project(tmp_path), "arms=base,sft")
    assert {status for status, _ in reports.values()} == {"done"}
    said = "its page could not be rendered: OSError: no space left"
    assert sorted(line.split()[0] for line in printed.splitlines() if said in line) == sorted(reports)
