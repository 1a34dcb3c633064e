"""Notebooks 10 to 12, their cells run in this process on a small finished run of the built-in world."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from cells import run_cells
from conftest import SHRUNKEN

pytest.importorskip("torch")

from srlib import config, curate, files, prompts, sample
from srlib.data import world
from srlib.judge import Judge
from srlib.sample.draws import judgment
from srlib.schema import Example, Judgment

pytest.importorskip("matplotlib").use("agg")
pytestmark = [pytest.mark.torch, pytest.mark.slow]
SMALL = SHRUNKEN | {"dtype": "float32", "max_new_tokens": 60, "n_samples": 2, "margin": 1.0}


@pytest.fixture(scope="module")
def run(base_dir, one_thread, tmp_path_factory):
    """A run after its first iteration, with the base model as its judge and a right and a wrong judgment of each prompt."""
    path = tmp_path_factory.mktemp("run")
    rows = {name: world.examples(name, 0, n) for name, n in {"train": 24, "validation": 8, "test": 12}.items()}
    rows |= {"train_pairwise": world.comparisons(0, 12, "train"), "pairwise": world.comparisons(0, 6)}
    for name, items in rows.items():
        files.write_rows(path / "data" / f"{name}.jsonl", items)
    drawn = []
    for e in rows["train"]:
        wrong = max(e.rubric.scale, key=lambda score: abs(score - e.score))
        texts = [prompts.completion(e.rationale, score) for score in (e.score, wrong)]
        drawn += [judgment(e, i, text, True) for i, text in enumerate(texts)]
    files.write_rows(path / "judgments" / "1" / "judgments.jsonl", drawn)
    files.write_rows(path / "pairs" / "1" / "pairs.jsonl", curate.curate(rows["train"], drawn).pairs)
    shutil.copytree(base_dir, path / "judges" / "sft")
    files.write_json(path / "judges" / "sft" / "judge.json", {"template": "brief"})
    for name in ("data", "judgments/1", "pairs/1", "judges/sft"):
        files.write_json(path / name / "manifest.json", {"facts": {}})
    values = config.load().model_copy(update=SMALL).model_dump(mode="json", exclude={"run_dir"})
    files.write_text(path / "params.yaml", yaml.safe_dump(values))
    return path


def test_10_two_judges_of_one_budget_are_read_twice(run):
    space = run_cells("10_verdicts", run_dir=str(run), n_boot=100, dpo_batch_size=8)
    kinds = curate.kinds(["cot:0.7", "verdict:0.15", "deduction:0.15"], 24)
    assert {kind: int(n) for kind, n in space["counts"].three_kinds.items()} == kinds
    assert space["counts"].rationales.sum() == 24
    plain, mixed = (space["compared"][name] for name in ("rationales", "three_kinds"))
    assert [pair.id for pair in plain] == [pair.id for pair in mixed]
    assert [len(steps) for steps in space["log"].values()] == [3, 3]
    rows = {(row["arm"], row["metric"]): row for row in files.read_json(run / "verdicts" / "results.json")}
    arms = [f"{judge}{end}" for judge in ("sft", "rationales", "three_kinds") for end in ("", "_verdict_only")]
    assert {arm for arm, _ in rows} == set(arms)
    assert [rows[arm, "parse_rate"]["value"] for arm in arms if "only" in arm] == [1.0] * 3
    assert [rows[arm, "accuracy"]["n"] for arm in arms] == [12] * 6
    assert {j.rationale for j in space["readings"]["sft_verdict_only"]} == {""}
    assert isinstance(space["readings"]["sft"][0], Judgment)
    weights = {(run / "verdicts" / name / "model.safetensors").read_bytes() for name in space["compared"]}
    assert len(weights) == 2, "another kind of pair makes another judge"
    assert list(space["differences"]) == ["with a rationale", "verdict alone"]


TAUGHT = dict(iterations=1, n_samples=4, sft_steps=2, sft_batch_size=4, n_boot=100)


def poisoned(run, path):
    """A copy of the run in which every label that a self-taught judge might read is another one."""
    shutil.copytree(run, path)
    for split in ("train", "validation"):
        rows = files.read_rows(path / "data" / f"{split}.jsonl", Example)
        wrong = [e.rubric.scale[(e.rubric.scale.index(e.score) + 1) % len(e.rubric.scale)] for e in rows]
        lies = [{"score": score, "rationale": "A lie.", "meta": {"score": score}} for score in wrong]
        rows = [e.model_copy(update=lie) for e, lie in zip(rows, lies, strict=True)]
        files.write_rows(path / "data" / f"{split}.jsonl", rows)
    return path


def test_12_no_label_is_read_and_both_orders_are_judged(run, tmp_path):
    space = run_cells("12_self_taught", run_dir=str(run), **TAUGHT)
    assert list(space["judges"]) == ["sft", "self_taught_1", "gold"]
    assert space["form"] == "brief-verdict", "the base model has never seen two responses"
    made, asked = space["made"]["train"], space["asked"]
    assert [c.id for c in asked] == [name for c in made for name in (c.id, f"{c.id}#swapped")]
    responses = {e.id: e for e in files.read_rows(run / "data" / "train.jsonl", Example)}
    others = {e.response: e.instruction for e in responses.values()}
    for c in made:
        assert (c.response_a, c.preference) == (responses[c.id].response, "A")
        assert others[c.response_b] != c.instruction
    own, control = space["account"]
    assert own["rows"] == control["rows"] > 0, "the control has as many gold comparisons"
    assert sorted({row["completion"] for row in space["rows_of"]["self_taught_1"]}) == ["[RESULT] A", "[RESULT] B"]
    for rows in space["rows_of"].values():
        assert sum(row["completion"].endswith("A") for row in rows) * 2 == len(rows)
    found = {(row["arm"], row["metric"]): row for row in files.read_json(run / "self_taught" / "results.json")}
    assert {found[name, "accuracy"]["n"] for name in space["judges"]} == {6}
    assert found["gold", "parse_rate"]["value"] == 1

    again = run_cells("12_self_taught", run_dir=str(poisoned(run, tmp_path / "poisoned")), **TAUGHT)
    assert again["rows_of"]["self_taught_1"] == space["rows_of"]["self_taught_1"]
    one, other = (path["judges"]["self_taught_1"] / "model.safetensors" for path in (space, again))
    assert one.read_bytes() == other.read_bytes()
    assert (again["best"], again["validated"]) == (space["best"], space["validated"])


def test_12_a_writer_writes_the_worse_response_and_rationales_are_kept_if_they_can_be_read(run, monkeypatch):
    def compares(model, tokenizer, items, n=1, **_):  # right where B is better, else wrong, then right, then unreadable
        texts = {"A": ["Both greet. [RESULT] B", "A greets. [RESULT] A"], "B": ["B greets. [RESULT] B", "Hm."]}
        return [judgment(c, i, texts[c.gold or "A"][i % 2], True) for c in items for i in range(n)]

    requests = []

    def write(texts, **_):
        requests.append(texts)
        return [[] if i == 0 else [""] if i == 1 else [f"New {i}"] for i in range(len(texts))]

    monkeypatch.setattr(sample, "judgments", compares)
    monkeypatch.setattr(Judge, "load", classmethod(lambda cls, path, **_: SimpleNamespace(write=write)))
    space = run_cells("12_self_taught", run_dir=str(run), writer="http://writer", **TAUGHT | {"n_samples": 2})
    assert space["form"] == "brief"
    assert len(space["made"]["train"]) == 22, "a row for which nothing was written has no comparison"
    assert all(c.response_b.startswith("New ") for c in space["made"]["train"])
    assert requests[0][5].startswith(space["CHANGE"])
    assert (requests[1][0], requests[1][5]) == ("-", "New 5")
    assert {row["completion"] for row in space["rows_of"]["self_taught_1"]} == {
        "A greets. [RESULT] A",
        "B greets. [RESULT] B",
    }
    assert all(row["completion"].startswith("Response A: ") for row in space["rows_of"]["gold"])


def test_11_two_students_without_a_reference_and_no_gold_score_is_read(run, tmp_path, monkeypatch):
    small = dict(sft_steps=2, sft_batch_size=4, n_boot=100)
    space = run_cells("11_distil", run_dir=str(run), **small)
    taught = {e.id: e for e in space["taught"]}
    assert len(space["rows"]) == len(taught) == 24
    for row, e in zip(space["rows"], taught.values(), strict=True):
        assert "### Reference" not in row["prompt"]
        assert e.reference_answer not in row["prompt"]
        assert sum(row["teacher"]) == pytest.approx(1, abs=1e-4)
        assert len(row["verdicts"]) == 5
    assert list(space["values"]) == ["teacher", "sft", "student_nll", "student_kl"]
    found = {(row["arm"], row["metric"]): row for row in files.read_json(run / "distil" / "results.json")}
    apart = np.abs(space["values"]["student_kl"] - space["values"]["teacher"])
    assert found["student_kl", "distance"]["value"] == pytest.approx(np.nanmean(apart), abs=1e-6)
    assert {"auroc", "aurc", "spearman", "parse_rate"} <= {metric for _, metric in found}
    weights = [(path / "model.safetensors").read_bytes() for path in space["judges"].values()]
    assert weights[0] != weights[1], "the KL makes another student"

    def three(model, tokenizer, items, **_):  # the test split is not what the rest is about
        return [judgment(e, 0, "[RESULT] 3", True) for e in items]

    monkeypatch.setattr(sample, "judgments", three)
    again = run_cells("11_distil", run_dir=str(poisoned(run, tmp_path / "poisoned")), **small)
    assert again["rows"] == space["rows"]
    assert [(path / "model.safetensors").read_bytes() for path in again["judges"].values()] == weights
    calibrated = run_cells("11_distil", run_dir=str(run), labels="gold", **small)
    assert not (calibrated["quality"] == space["quality"]).all()
