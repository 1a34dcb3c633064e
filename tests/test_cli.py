"""The command: what it prints, where runs go, and how it says no."""

import subprocess
import sys
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

    def run(cfg, run_dir, workers, force, console):
        seen.runs.append((run_dir.name, cfg.seed, workers, force))
        if isinstance(seen.answer, BaseException):
            raise seen.answer
        return seen.answer

    monkeypatch.chdir(make_project(tmp_path))
    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(page, "write_report", seen.reports.append)
    monkeypatch.setattr(tables, "table", lambda run: f"TABLE {run.name}")
    monkeypatch.setattr(tables, "compare", lambda runs, out=None: f"COMPARED {[run.name for run in runs]}")
    plan = SimpleNamespace(refusal=lambda cfg: seen.refusal)
    monkeypatch.setitem(sys.modules, "srlib.run.plan", plan)
    monkeypatch.setattr(sys.modules["srlib.run"], "plan", plan, raising=False)
    return seen


def srlib(*arguments):
    result = CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, " ".join(result.output.split())


def test_runs_go_where_their_file_is_called(tmp_path, ran):
    run = ("run", "params/tiny.yaml")
    assert srlib(*run, "-p", "seed=3", "--workers", "1", "--force") == (0, "TABLE tiny")
    assert ran.reports == [tmp_path / "runs" / "tiny"]
    srlib(*run, "--run-dir", "elsewhere")
    srlib(*run, "-p", "run_dir=runs/b03")
    assert srlib(*run, "--seeds", "0, 2,2") == (0, "== tiny-0 == tiny-2 COMPARED ['tiny-0', 'tiny-2']")
    same = [("elsewhere", 0, 0, False), ("b03", 0, 0, False), ("tiny-0", 0, 0, False), ("tiny-2", 2, 0, False)]
    assert ran.runs == [("tiny", 3, 1, True), *same]


def test_what_cannot_be_is_refused_before_anything_runs(ran):
    for arguments in (["-p", "betta=1"], ["-p", "beta=0"], ["--seeds", "0,x"], ["--seeds", ","]):
        code, printed = srlib("run", "params/tiny.yaml", *arguments)
        assert (code, "Traceback" in printed) == (2, False), printed
    ran.refusal = "this run does not fit [red]"
    assert srlib("run", "params/tiny.yaml") == (2, "this run does not fit [red]")
    assert ran.runs == []
    assert srlib("run", "params/tiny.yaml", "--anyway")[0] == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([SimpleNamespace(status="done"), SimpleNamespace(status="failed")], (1, "")),
        (StoreError("tiny: cannot be written [red]"), (StoreError.exit_status, "tiny: cannot be written [red]")),
        (KeyboardInterrupt(), (130, "stopped; the same command resumes")),
    ],
)
def test_exit_status(ran, answer, expected):
    ran.answer = answer
    assert (srlib("run", "params/tiny.yaml"), ran.reports) == (expected, [])
    ran.answer = None  # not iterable: a bug keeps its traceback
    with pytest.raises(TypeError):
        CliRunner().invoke(cli.app, ["run", "params/tiny.yaml"], catch_exceptions=False)


def test_params_gives_an_overview_and_shows_details(ran):
    code, printed = srlib("params")
    assert (code, "05_dpo beta" in printed, printed.count("micro_batch_size")) == (0, True, 1)
    code, printed = srlib("params", "05")
    for word in ("beta", "float", "0.1", "> 0", "inverse temperature", "micro_batch_size"):
        assert word in printed, "those of its cell, and those that its cells read as cfg.name"
    code, printed = srlib("params", "lora")
    assert ("lora_rank" in printed, "lora_targets" in printed, "beta" in printed) == (True, True, False)
    assert srlib("params", "nothing")[0] == 2


def test_judge_passes_on_what_it_is_given(ran, monkeypatch):
    calls, made = [], {"rows": 3, "scored": 2, "failures": {"bad_row": 1}, "parse_rate": 1.0}
    made |= {"judgments_per_second": 9.5, "told": "3 requests"}
    fake = SimpleNamespace(judge_file=lambda *given, **options: calls.append((*given, options)) or made)
    monkeypatch.setitem(sys.modules, "srlib.judge", fake)
    printed = srlib("judge", "http://localhost/v1", "rows.jsonl", "-o", "out.jsonl", "--limit", "3", "--model", "m")[1]
    assert "3 rows, 2 with a score" in printed
    assert "bad_row 1 3 requests" in printed
    assert calls == [("http://localhost/v1", Path("rows.jsonl"), Path("out.jsonl"), {"limit": 3, "model": "m"})]


def test_help_fits_one_screen_even_outside_of_the_project(tmp_path):
    command = [sys.executable, "-c", "from srlib.cli import app; app()", "--help"]
    printed = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert len(printed.splitlines()) <= 40
    for name in ("run", "plan", "params", "compare", "judge", "eval", "score", "ppi", "export"):
        assert f"│ {name} " in printed
