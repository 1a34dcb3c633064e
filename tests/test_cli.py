"""The command: what it prints, where runs go, and how it says no."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from throwaway import make_project
from typer.testing import CliRunner

from srlib import cli
from srlib.files import StoreError
from srlib.report import page, tables
from srlib.run import pipeline


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Runs that were asked for, as (name, seed, workers, force); `ran.answer` is what the pipeline returns or raises."""
    seen = SimpleNamespace(runs=[], reports=[], refusal=None, answer=[SimpleNamespace(status="done")])

    def run_all(runs, workers, force, console):
        [(run_dir, cfg)] = runs.items()
        seen.runs.append((run_dir.name, cfg.seed, workers, force))
        seen.data = cfg.data
        if isinstance(seen.answer, BaseException):
            raise seen.answer
        return [seen.answer]

    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setattr(pipeline, "run_all", run_all)
    monkeypatch.setattr(page, "write_report", seen.reports.append)
    monkeypatch.setattr(tables, "table", lambda run: f"TABLE {run.name}")
    monkeypatch.setattr(tables, "compare", lambda runs, out=None: f"COMPARED {[run.name for run in runs]}")
    plan = SimpleNamespace(refusal=lambda cfg: seen.refusal)
    monkeypatch.setitem(sys.modules, "srlib.run.plan", plan)
    monkeypatch.setattr(sys.modules["srlib.run"], "plan", plan, raising=False)
    return seen


NEXT = "srlib judge runs/{}/judge rows.jsonl -o judged.jsonl"


def srlib(*arguments):
    result = CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, " ".join(result.output.split())


def test_runs_go_where_their_file_is_called(tmp_path, ran, monkeypatch):
    run = ("run", "params/tiny.yaml")
    status, said = srlib(*run, "-p", "seed=3", "--workers", "1", "--force")
    ends = "Report: runs/tiny/report.html judge: runs/tiny/judge"
    assert (status, said) == (0, f"TABLE tiny {ends} Next, judge rows of your own: {NEXT.format('tiny')}")
    assert ran.reports == [tmp_path / "runs" / "tiny"]
    srlib(*run, "--run-dir", "elsewhere")
    srlib(*run, "-p", "run_dir=runs/b03")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    (tmp_path / "inside" / "graded.csv").touch()
    srlib("run", "../params/tiny.yaml", "--run-dir", ".", "-p", "data=graded.csv")
    assert ran.data == str(tmp_path / "inside" / "graded.csv"), "a file where the user is"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graded.csv").touch()
    srlib(*run, "-p", "data=graded.csv")
    assert (ran.data, ran.runs.pop()[0]) == ("graded.csv", "tiny"), "a file of the project"
    said = srlib(*run, "--seeds", "0, 2,2")[1]
    assert said.startswith("== tiny-0 == tiny-2 COMPARED ['tiny-0', 'tiny-2'] Report: runs/tiny-0/report.html")
    assert said.endswith(NEXT.format("tiny-2"))
    same = [(name, 0, 0, False) for name in ("elsewhere", "b03", "inside", "tiny-0")] + [("tiny-2", 2, 0, False)]
    assert ran.runs == [("tiny", 3, 1, True), *same]


def test_a_sweep_makes_a_run_for_each_value_and_seed(tmp_path, ran):
    run, names = ("run", "params/tiny.yaml"), lambda: [name for name, *_ in ran.runs]
    both = ["tiny-margin=1-strategy=majority_vote-0", "tiny-margin=2-strategy=majority_vote-0"]
    others = [name.replace("majority_vote", "correct_answer") for name in both]
    swept = ("-p", "margin=1,2", "-p", "strategy=majority_vote,correct_answer", "-p", "arms=base,sft", "--seeds", "0")
    assert srlib(*run, *swept)[0] == 0
    assert sorted(names()) == sorted(both + others)
    ran.runs.clear()
    srlib(*run, "--grid", "margin=1,2", "-p", "arms=base,sft")
    assert names() == ["tiny-margin=1", "tiny-margin=2"]
    ran.runs.clear()
    status, _ = srlib(*run, "-p", "lora_targets=q_proj,v_proj", "-p", "arms=base,sft")
    assert (status, names()) == (0, ["tiny"]), "these commas are their own"
    ran.runs.clear()
    srlib(*run, "-p", "seed=0,1")
    assert [(name, seed) for name, seed, *_ in ran.runs] == [("tiny-0", 0), ("tiny-1", 1)]
    ran.runs.clear()
    for bad in (["margin=1,x"], ["margin=1,"], ["margin=1,1.0"], ["keep=last,bset"]):
        assert srlib(*run, "-p", *bad)[0] == 2
    code, printed = srlib(*run, "-p", "strategy=correct_answer,majorty_vote")
    assert (code, "majorty_vote" in printed, ran.runs) == (2, True, []), "before the first of them trains"
    (tmp_path / "runs" / "compare-tiny-margin").write_text("of somebody")
    code, printed = srlib(*run, "-p", "margin=1,2")
    assert (code, "was not made by this command" in printed, ran.runs) == (2, True, [])


def test_a_terminal_that_cannot_print_a_result_does_not_lose_it(tmp_path):
    code = "import sys; from srlib import cli, judge; scored = int(sys.argv.pop()); judge.summary = lambda done: '± \\udcff'\n"
    code += "judge.judge_file = lambda *_, **__: {'scored': scored}; cli.app()"
    out = tmp_path / "out.jsonl"
    for scored, status in (("1", 0), ("0", 3)):
        command = [sys.executable, "-c", code, "judge", "j", "rows.jsonl", "-o", out, scored]
        environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C"}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (status, b"\\xb1 \\udcff\n", b"")


def test_what_cannot_be_is_refused_and_failures_have_their_status(ran, monkeypatch):
    for arguments in (["-p", "betta=1"], ["-p", "beta=0"], ["--seeds", "0,x"], ["--seeds", ","]):
        code, printed = srlib("run", "params/tiny.yaml", *arguments)
        assert (code, "Traceback" in printed) == (2, False), printed
    monkeypatch.setitem(sys.modules, "ray", None)  # not installed
    code, printed = srlib("run", "params/tiny.yaml", "--cluster", "auto")
    assert (code, printed) == (
        2,
        "--cluster needs Ray on every node: `uv pip install -e '.[cluster]'` in the clone",
    )
    ran.refusal = "this run does not fit [red]"
    assert srlib("run", "params/tiny.yaml", "--cluster", "auto") == (code, printed), "other machines compute there"
    for here in ([], ["--cluster", "local"]):
        assert srlib("run", "params/tiny.yaml", *here) == (2, "this run does not fit [red]")
    assert ran.runs == []
    for answer, code, words in (
        ([SimpleNamespace(status="done"), SimpleNamespace(status="failed")], 1, ""),
        (StoreError("tiny: cannot be written [red]"), StoreError.exit_status, "tiny: cannot be written [red]"),
        (KeyboardInterrupt(), 130, "stopped; the same command resumes"),
        (
            PermissionError(13, "Permission denied", "/data"),
            1,
            "/data: Permission denied; name another, or change its permissions",
        ),
    ):
        ran.answer = answer
        assert (srlib("run", "params/tiny.yaml", "--anyway"), ran.reports) == ((code, words), [])
    ran.answer = None  # not iterable: a bug keeps its traceback
    with pytest.raises(TypeError):
        CliRunner().invoke(cli.app, ["run", "params/tiny.yaml", "--anyway"], catch_exceptions=False)


def test_a_batch_system_stops_a_run_as_ctrl_c_does(ran, monkeypatch):
    def stopped(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr(pipeline, "run_all", stopped)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert srlib("run", "params/tiny.yaml", "--anyway") == (130, "stopped; the same command resumes")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_help_and_params_fit_one_screen_and_show_details(ran):
    command = [sys.executable, "-c", "from srlib.cli import app; app()"]
    printed = subprocess.check_output([*command, "--help"], cwd="/", text=True)
    names = ("run", "plan", "params", "compare", "judge", "eval", "score", "ppi", "export")
    assert (len(printed.splitlines()) <= 40, [name for name in names if f"│ {name} " not in printed]) == (True, [])
    Path("notebooks/Untitled.ipynb").write_text('{"cells": []}')  # as JupyterLab makes one
    code, printed = srlib("params")
    assert (code, "05_dpo beta" in printed, printed.count("micro_batch_size")) == (0, True, 1)
    printed = srlib("params", "05")[1]  # those of its cell, and those that its cells read as cfg.name
    assert not [word for word in ("beta float 0.1 > 0 beta of the DPO loss", "micro_batch_size") if word not in printed]
    printed = srlib("params", "lora")[1]
    assert ("lora_rank" in printed, "lora_targets" in printed, "beta" in printed) == (True, True, False)
    assert srlib("params", "nothing")[0] == 2
