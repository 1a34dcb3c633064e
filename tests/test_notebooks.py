"""The notebooks for real: the whole method through papermill in its smallest form, with a kill in it."""

import itertools
import json
import re
import resource

import pytest
from conftest import SHRUNKEN
from offline import tracked
from throwaway import PATIENCE, srlib_run, stop

from srlib import config, files
from srlib.run import stages
from srlib.schema import Judgment

pytestmark = pytest.mark.torch

# One iteration: data, sft, sample_1, curate_1, dpo_1, eval. Sampling goes in six batches of sixteen.
SIZES = {"validation": 5, "test": 12, "ood": 5, "pairwise": 3}
SMALL = SHRUNKEN | {"iterations": 1, "arms": "base,sft,sre_1", "n_train": 24, "sample_batch_size": 4}
SMALL |= {f"n_{split}": n for split, n in SIZES.items()}


@pytest.fixture
def start(project, quiet_kernels):
    started = []
    yield lambda *args, **changes: started.append(srlib_run(project, *args, **SMALL | changes)) or started[-1]
    for process in started:
        process.kill()


def finished(process, timeout=PATIENCE):
    printed, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, printed
    return printed


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def results(run):
    """All of results.json but the seconds."""
    rows = [row for row in files.read_json(run / "results.json") if row["metric"] != "seconds"]
    columns = ("value", "ci_low", "ci_high", "n", "iteration")
    return {(row["arm"], row["split"], row["metric"]): [row[name] for name in columns] for row in rows}


def test_the_whole_method_killed_resumed_and_cached(project, start, monkeypatch):
    for name in ("SRLIB_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"canary-{name}")
    run = project / "runs" / "t"
    samples = run / "judgments" / "1.partial" / "judgments.jsonl"
    stop(start("runs/t"), lambda: lines(samples) >= 16)
    assert 16 <= lines(samples) < 24 * 4
    printed = finished(start("runs/t"))
    assert re.search(r"sft +cached\n(data .*\n)*sample_1 +runs: incomplete", printed)
    assert re.search(r"dpo_1 +done in [\d.]+ s, [\d,]+ tokens/s", printed)
    known = files.read_json(run / "judge" / "judge.json")["validation"]
    assert known.keys() == {"parse_rate", "prompt_nll_highest"}, "what `srlib judge` compares other rows with"
    found = results(run)
    for arm, split in itertools.product(("base", "sft", "sre_1"), SIZES):
        value, low, high, *rest = found[arm, split, "accuracy"]
        assert 0 <= low <= value <= high <= 1
        assert rest == [SIZES[split], int(arm == "sre_1")]
    for path in (run / "notebooks").iterdir():
        text = path.read_text()
        outputs = {output["output_type"] for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])}
        assert {"display_data", "execute_result", "error"} & outputs <= {"display_data", "execute_result"}, path
        assert str(project) not in text, "a notebook that is shown around tells nothing of this machine"
    assert not [*run.rglob("*.partial"), *(run / ".checkpoints").glob("*")]
    assert not [path for path in run.rglob("*") if path.is_file() and b"canary-" in path.read_bytes()], "a key leaks"
    report = (run / "report.html").read_text()
    assert "sre_1" in report
    assert not [word for word in ("<script", str(project)) if word in report]
    weights = [(run / path / "model.safetensors").read_bytes() for path in ("judge", "judges/sre_1", "judges/sft")]
    assert weights[0] == weights[1] != weights[2]

    before = {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}
    assert finished(start("runs/t")).count(" cached") == 6
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}
    monkeypatch.chdir(project)  # another beta makes another judge; what came before, and what never sees it, stays
    cfg = config.load("params/tiny.yaml", [f"{name}={value}" for name, value in (SMALL | {"beta": 0.9}).items()])
    reasons = [stages.reason(run / one.output, stages.parts(one, cfg, run)) for one in stages.of(cfg)]
    assert reasons == [None, None, None, None, "beta 0.1 -> 0.9", None]

    passes = {path: path.stat().st_mtime_ns for path in (run / "eval").glob("*/*.jsonl")}
    assert "sft_draws" not in [path.parent.name for path in passes]
    finished(start("runs/t", arms="base,sft,sft_self_consistency,sre_1"))
    now = {path: path.stat().st_mtime_ns for path in (run / "eval").glob("*/*.jsonl")}
    assert passes == {path: now[path] for path in passes}, "an arm more judges nothing again"
    assert ("sft_self_consistency", "test", "accuracy") in results(run)
    refused = start("runs/t", sft_mode="mix")
    assert "sft_mode mix learns from comparisons, and there are none" in refused.communicate(timeout=PATIENCE)[0]
    assert (run / "judges" / "sft" / "manifest.json").exists(), "nothing is trained or lost"


@pytest.mark.slow
def test_two_processes_share_training_draws_and_evaluation(project, start):
    """The same judgments to the last digit where the weights are the same; weights agree but for rounding."""
    one, two = (project / "runs" / name for name in ("one", "two"))
    for process in (start("runs/one"), start("runs/two", gpus=2)):
        finished(process)
    for pair in ("eval/base/test.jsonl", "eval/base/pairwise.jsonl", "pairs/1/pairs.jsonl"):
        assert (one / pair).read_bytes() == (two / pair).read_bytes(), pair
    drawn = [
        [(j.id, j.text) for j in files.read_rows(run / "judgments/1/judgments.jsonl", Judgment)] for run in (one, two)
    ]
    assert drawn[0] == drawn[1]
    assert results(one).keys() == results(two).keys()
    assert not [*two.rglob("*-of-*"), *two.rglob("opened")]


@pytest.mark.slow
def test_killed_at_every_stage_a_run_ends_like_one_that_nobody_disturbed(project, start):
    run, whole = project / "runs" / "killed", start("runs/whole", diagnose="true")

    def trains(stage):
        beats = [path.read_text() for path in run.glob(f".progress/{stage}.json")]
        return [beat for beat in beats if re.search(r'train[^}]*"done": [1-9]', beat)]

    stop(start("runs/killed"), lambda: trains("sft"))
    stop(start("runs/killed"), lambda: lines(run / "judgments" / "1.partial" / "judgments.jsonl") >= 16)
    stop(start("runs/killed"), lambda: trains("dpo_1"))
    stop(start("runs/killed"), lambda: any(lines(path) for path in (run / "eval.partial").rglob("*.jsonl")))
    finished(start("runs/killed"))
    finished(whole)
    assert len(results(run)) > 50
    assert results(run) == results(project / "runs" / "whole")
    assert "diagnose.ipynb" in (project / "runs" / "whole" / "report.html").read_text()


@pytest.mark.slow
def test_grpo_is_an_arm_like_the_others_on_the_tokens_of_the_loop(project, start):
    run = project / "runs" / "grpo"
    printed = finished(start("runs/grpo", arms="sft,sre_1,grpo", grpo_batch_size=4))
    for stage in ("dpo_1", "grpo"):  # side by side
        assert re.search(rf"{stage} +done.*eval +done", printed, re.DOTALL)
    assert results(run)["grpo", "test", "accuracy"][3:] == [SIZES["test"], 0]
    train, sampled = (files.read_json(run / path) for path in ("judges/grpo/train.json", "judgments/1/manifest.json"))
    assert train["budget"] == sampled["facts"]["tokens"]
    assert abs(train["drawn_tokens"] / train["budget"] - 1) < 0.25, "a step samples a sixth of it"
    assert all(-1 <= step["reward"] <= 1 for step in train["log"])
    weights = [(run / "judges" / name / "model.safetensors").read_bytes() for name in ("sft", "sre_1", "grpo")]
    assert len({*weights}) == 3
    assert finished(start("runs/grpo", arms="sft,sre_1,grpo", grpo_batch_size=4)).count(" cached") == 7


@pytest.mark.slow
def test_a_full_disk_stops_with_a_message_and_the_same_command_resumes(project, start):
    """No file may grow beyond 30 kB: the rows are longer. What a disk says differs, where it is said does not."""
    process = start("runs/full", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)))
    printed, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in printed) == (1, False)
    assert "the same command then resumes" in printed
    stop(start("runs/full"), lambda: (project / "runs" / "full" / "data" / "manifest.json").exists())


def test_a_spreadsheet_without_comments_ends_in_a_judge_and_a_report(project, start):
    """Semicolons, CRLF, a byte-order mark, two dirty rows, no ids, one rubric file, and nobody says why: one command."""
    answers = {1: "Please read the manual.", 2: "Try again later.", 3: "Turn it off and on.", 4: "Hold the key;\nwait."}
    rows = [f'How do I reset device {i}?;"{answers[i % 4 + 1]}";{i % 4 + 1} ;' for i in range(60)]
    rows += [f'How do I reset device {i % 2}?;"{"again and " * 2000}";2 ;' for i in range(5)]
    rows[7], rows[30] = rows[7].replace(";4 ;", ";n/a;"), rows[30].replace(";3 ;", ";;")
    text = "\r\n".join(["Question;Answer;Grade;", *rows, ";;;", ""])
    (project / "graded.csv").write_bytes(text.encode("utf-8-sig"))
    levels = "\n".join(f"  {score}: {words}" for score, words in enumerate(["no help", "vague", "helps", "solves"], 1))
    (project / "rubric.yaml").write_text(f"criterion: Does it help?\nlevels:\n{levels}\n")
    own = {"data": "graded.csv", "rubric": "rubric.yaml", "n_train": 800, "n_test": 400, "arms": "base,sft"}
    own["sample_batch_size"] = 0
    printed = finished(start("runs/t", **own))
    assert re.search(r"left out: .*row 9: field Grade: 'n/a' is not a number", printed)
    assert re.search(r"left out: .*row 32: field Grade is missing", printed)
    facts = files.read_json(project / "runs" / "t" / "rationales" / "manifest.json")["facts"]
    assert facts["rows without a rationale"] > 20
    rows_found = facts["rationales found"] + facts["rationales found with a hint"]
    assert facts["rows left without"] == facts["rows without a rationale"] - rows_found
    texts = [
        files.read_rows(project / "runs" / "t" / "rationales" / f"{n}.jsonl", Judgment) for n in ("judgments", "hinted")
    ]
    failed, again = ({j.id: j.text for j in several if len(j.text.split()) > 3} for several in texts)
    assert 0 < max(j.prompt_tokens for several in texts for j in several) < 512, "no texts that do not fit"
    assert not again or sum(failed.get(name) == text for name, text in again.items()) < len(again) / 20, "other draws"
    trained = files.read_json(project / "runs" / "t" / "judges" / "sft" / "train.json")
    assert trained["rationales"] in (project / "runs" / "t" / "report.html").read_text()
    read = facts["rows without a rationale"] - facts["of these too long for max_length"]
    assert trained["rows"] == (rows_found if rows_found >= 10 else read), "few rationales: verdicts alone"
    assert (project / "runs" / "t" / "judge" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_wandb_group_holds_curves_judgments_and_numbers(project, start):
    finished(start("runs/t", wandb_mode="offline"))
    by_job = {run["job_type"]: run for run in tracked(project / "runs" / "t" / "wandb")}
    assert set(by_job) >= {"sft", "sample_1", "curate_1", "dpo_1", "eval"}
    assert {run["group"] for run in by_job.values()} == {"t"}
    steps = [row["train/global_step"] for row in by_job["sft"]["history"] if "train/loss" in row]
    assert steps == list(range(1, SMALL["sft_steps"] + 1))
    assert any("train/rewards/margins" in row for row in by_job["dpo_1"]["history"])
    assert by_job["sample_1"]["tables"]["judgments"]["columns"] == ["id", "score", "failure", "text"]
    assert by_job["curate_1"]["summary"]["pairs"] > 0
    rows = {
        (row["arm"], row["split"], row["metric"]): row["value"]
        for row in files.read_json(project / "runs" / "t" / "results.json")
    }
    assert by_job["eval"]["summary"]["sre_1/test/accuracy"] == rows["sre_1", "test", "accuracy"]
    assert len(by_job["eval"]["tables"]["judgments/sre_1"]["data"]) == SIZES["test"]
    assert len(by_job["eval"]["tables"]["results"]["data"]) == len(rows)
