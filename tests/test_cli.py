"""The command: what it prints, where runs go, and how it says no."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from throwaway import make_project
from typer.testing import CliRunner

from srlib import cli
from srlib.files import LockedError, StoreError
from srlib.models.load import ModelError
from srlib.run import pipeline
from srlib.run.pipeline import StageReport
from srlib.sample.draws import DrawsError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


@pytest.fixture
def ran(monkeypatch):
    """Runs that were asked for, as (run directory, seed); `ran.answer` is what the pipeline says or raises."""
    seen = SimpleNamespace(runs=[], compared=[], answer=[StageReport("data", "done")])

    def run(params, run_dir, workers, force, root, console):
        seen.runs.append((run_dir, params["seed"], workers, force))
        if isinstance(seen.answer, BaseException):
            raise seen.answer
        return seen.answer

    monkeypatch.setattr(pipeline, "run", run)
    report = SimpleNamespace(
        table=lambda d: f"TABLE {d.name}", compare=lambda d, out: seen.compared.append(d) or "COMPARED"
    )
    monkeypatch.setitem(sys.modules, "srlib.report", report)
    monkeypatch.setattr(__import__("srlib"), "report", report, raising=False)
    return seen


def srlib(*arguments):
    result = CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--memory", "--shape", "25m"], "--memory does not take --shape"),
        (["--stages", "runs/tiny", "--rounds", "5", "--rows", "2"], "--stages does not take --rounds, sizes"),
    ],
)
def test_a_bench_refuses_what_it_would_not_heed(given, words):
    code, printed = srlib("bench", *given)
    assert code == 2
    assert words in " ".join(printed.split())


def test_a_run_goes_where_its_file_is_called(root, ran):
    code, printed = srlib("run", "params/tiny.yaml", "-p", "seed=3", "--workers", "1", "--force")
    assert (code, ran.runs) == (0, [(root / "runs" / "tiny", 3, 1, True)])
    assert "TABLE tiny" in printed
    srlib("run", "params/tiny.yaml", "--run-dir", "elsewhere")
    srlib("run", "params/tiny.yaml", "-p", "run_dir=runs/b03")
    assert [where for where, *_ in ran.runs[1:]] == [Path("elsewhere"), root / "runs" / "b03"]


def test_seeds_are_one_run_each_and_then_compared(root, ran):
    code, printed = srlib("run", "params/tiny.yaml", "--seeds", "0, 2,2")
    assert code == 0
    assert [(where.name, seed) for where, seed, *_ in ran.runs] == [("tiny-0", 0), ("tiny-2", 2)]
    assert ran.compared == [[root / "runs" / "tiny-0", root / "runs" / "tiny-2"]]
    assert "COMPARED" in printed


def test_a_bad_parameter_is_refused_before_anything_runs(root, ran):
    for arguments in (["-p", "betta=1"], ["-p", "beta=0"], ["--seeds", "0,x"], ["--seeds", ","]):
        code, printed = srlib("run", "params/tiny.yaml", *arguments)
        assert code == 2, printed
        assert "Traceback" not in printed
    assert ran.runs == []
    assert "the nearest is beta" in srlib("run", "params/tiny.yaml", "-p", "betta=1")[1]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ([StageReport("data", "failed", error="e")], 1),
        (StoreError("runs/tiny: cannot be written [red]"), 1),
        (LockedError("process 7 is running there"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status(root, ran, answer, code):
    ran.answer = answer
    got, printed = srlib("run", "params/tiny.yaml")
    assert got == code
    assert "TABLE" not in printed
    assert "Traceback" not in printed
    if isinstance(answer, StoreError):
        assert str(answer) in printed


def test_a_bug_of_a_library_keeps_its_traceback(root, ran):
    ran.answer = None  # not iterable
    with pytest.raises(TypeError):
        CliRunner().invoke(cli.app, ["run", "params/tiny.yaml"], catch_exceptions=False)


def test_params_lists_every_one(root):
    code, printed = srlib("params")
    assert code == 0
    for word in ("beta", "float", "0.1", "> 0", "inverse", "n_samples", "05", "base,sft"):
        assert word in printed


def test_compare_and_judge_pass_on_what_they_are_given(root, ran, monkeypatch):
    assert srlib("compare", "runs/a", "runs/b")[0] == 0
    assert ran.compared == [[Path("runs/a"), Path("runs/b")]]
    calls = []
    told = {
        "rows": 3,
        "scored": 2,
        "failures": {"bad_row": 1},
        "parse_rate": 1.0,
        "judgments_per_second": 9.5,
        "told": "3 requests",
    }
    fake = SimpleNamespace(judge_file=lambda *args, **kw: calls.append((*args, kw)) or told)
    monkeypatch.setitem(sys.modules, "srlib.judge", fake)
    status, printed = srlib("judge", "runs/tiny/judge", "rows.jsonl", "-o", "out.jsonl", "--limit", "3")
    assert status == 0
    assert "3 rows, 2 with a score" in printed
    assert "bad_row 1" in printed
    assert "3 requests" in printed
    srlib("judge", "http://localhost:8000/v1", "rows.jsonl", "-o", "out.jsonl", "--model", "mine")
    rest = (Path("rows.jsonl"), Path("out.jsonl"))
    assert calls == [
        ("runs/tiny/judge", *rest, {"limit": 3, "model": ""}),
        ("http://localhost:8000/v1", *rest, {"limit": None, "model": "mine"}),
    ]


def test_eval_and_score_pass_on_what_they_are_given(root, monkeypatch):
    calls = []
    fake = SimpleNamespace(
        evaluate=lambda judge, bench, out, **how: calls.append((judge, bench.name, out, how)) or [],
        score=lambda bench, judgments, **how: calls.append((bench.name, judgments, how)) or [{"value": 1}],
        table=lambda rows: f"TABLE {len(rows)}",
    )
    monkeypatch.setitem(sys.modules, "srlib.benchmarks", fake)
    monkeypatch.setattr(__import__("srlib"), "benchmarks", fake, raising=False)
    code, printed = srlib("eval", "runs/tiny/judge", "--bench", "llmbar", "--data", "rows.jsonl", "--compare")
    assert (code, "TABLE 0" in printed, "llmbar.judgments.jsonl" in printed) == (0, True, True)
    how = {"data": Path("rows.jsonl"), "revision": "", "compare": True, "model": ""}
    assert calls.pop() == ("runs/tiny/judge", "llmbar", Path("llmbar.json"), how)
    code, printed = srlib("score", "said.jsonl", "--bench", "rm_bench", "--revision", "abc", "-o", "out.json")
    assert (code, "TABLE 1" in printed) == (0, True)
    assert calls.pop() == ("rm_bench", Path("said.jsonl"), {"data": "", "revision": "abc"})
    assert "value" in Path("out.json").read_text()
    code, printed = srlib("eval", "runs/tiny/judge", "--bench", "nothing")
    assert (code, "there are feedback_bench" in printed, calls) == (2, True, [])


@pytest.mark.parametrize(("error", "code"), [(DrawsError("3 prompts"), 1), (ModelError("no such directory"), 2)])
def test_judge_says_what_went_wrong(root, ran, monkeypatch, error, code):
    def fails(*_, **__):
        raise error

    monkeypatch.setitem(sys.modules, "srlib.judge", SimpleNamespace(judge_file=fails))
    status, printed = srlib("judge", "runs/tiny/judge", "rows.jsonl", "-o", "out.jsonl")
    assert status == code
    assert str(error) in printed
    assert "Traceback" not in printed


def test_outside_of_the_project_the_command_still_starts(tmp_path):
    code = "from srlib.cli import app; app()"
    printed = subprocess.run([sys.executable, "-c", code, "--help"], cwd=tmp_path, text=True, capture_output=True)
    assert printed.returncode == 0
    assert all(word in printed.stdout for word in ("run", "params", "compare", "judge"))
