"""Only the judge that the run evaluated leaves a run, with a card that the run's own files back."""

import contextlib
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from srlib import config, files, models
from srlib.data import world
from srlib.report import card, export
from srlib.report.export import GateError
from srlib.run import stages
from srlib.schema import Judgment, SrlibError

pytestmark = pytest.mark.torch
GATE = export.Gate(items=32, same_score=32, largest_difference=0.0004, tolerance=0.02, ids=[])


@pytest.fixture(autouse=True)
def _six_items(one_thread, monkeypatch):
    monkeypatch.setattr(export, "ITEMS", 6)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def make_run(root: Path, judge: Path, **params) -> Path:
    """What a finished run leaves, with this judge and a few examples."""
    run = root / "care-run"
    shutil.copytree(judge, run / "judge")
    if not (run / "judge" / "judge.json").exists():
        files.write_json(run / "judge" / "judge.json", {"max_new_tokens": 60, "base": "models/tiny-base"})
    for split in ("validation", "test"):
        files.write_rows(run / "data" / f"{split}.jsonl", world.examples(split, 0, 20, care=1.0))
    (run / "params.yaml").write_text(yaml.safe_dump({"model": "models/tiny-base", "beta": 0.3, **params}))
    facts = {"rows": {"train": 800, "validation": 20, "test": 20, "ood": 0}, "pairwise": 3}
    files.write_json(run / "data" / "manifest.json", {"key": "0", "facts": facts})
    files.write_json(run / "judge" / "manifest.json", {"key": "1", "stage": "dpo_2"})
    row = dict(arm="sre_2", split="test", metric="accuracy", value=0.6, ci_low=0.5, ci_high=0.7, n=20)
    changes = [{"arm": "sft"}, {}, {"metric": "pearson", "ci_low": None}, {"split": "ood", "value": None}]
    files.write_json(run / "results.json", [row | change for change in changes])
    return run


@pytest.fixture
def merged_run(tmp_path, base_dir):
    return make_run(tmp_path, base_dir)


def test_an_adapter_leaves_merged_in_16_bit_or_as_it_is(adapter_judge, base_dir, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter_run = make_run(tmp_path, adapter_judge)
    gate, out = export.export(adapter_run, tmp_path / "out", "merged"), tmp_path / "out"
    assert gate.same_score == gate.items == 6
    assert 0 < gate.largest_difference < export.TOLERANCE / 4, "rounding is meant to show, and to be small"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "care-run"}
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}
    assert not (out / "manifest.json").exists()
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float16
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert models.judge_info(out) == models.judge_info(adapter_run / "judge") | {"base": base_dir.name}
    assert files.read_json(out / "export.json") == {"format": "merged", **gate._asdict()}
    (tmp_path / "linked").mkdir()
    (tmp_path / "kept").symlink_to("linked")
    files.write_text(tmp_path / "kept.partial" / "notes.txt", "of somebody")
    gate, out = export.export(adapter_run, tmp_path / "kept"), tmp_path / "kept"  # as the run keeps it
    assert (out.is_symlink(), (tmp_path / "kept.partial" / "notes.txt").read_text()) == (True, "of somebody")
    assert gate.largest_difference <= 1e-5
    assert models.base_of(out) == str(base_dir)


def test_an_item_beyond_the_context_is_compared_as_what_it_is(base_dir, one_thread):
    some = world.examples("test", 0, 2, care=1.0)
    items = [some[0], some[1].model_copy(update={"response": "again and " * 3000})]
    judgments, logprobs = export.judged(models.load(base_dir), items, {"template": "brief", "max_new_tokens": 8})
    assert [j.failure == "too_long" for j in judgments] == [False, True]
    assert logprobs[0] < 0 == logprobs[1]


def test_after_4_bit_training_the_merge_is_into_the_quantized_weights(adapter_judge, tmp_path, monkeypatch):
    run, write = make_run(tmp_path, adapter_judge, quantization="4bit"), export.write
    assert export.export(run, tmp_path / "right", "merged").same_score == 6
    monkeypatch.setattr(export, "write", lambda *how, quantization, **w: write(*how, quantization="none", **w))
    with pytest.raises(GateError, match=r"is not the judge of the run, and was deleted: .* nats per token") as caught:
        export.export(run, tmp_path / "wrong", "merged")
    assert caught.value.exit_status == 1
    assert {path.name for path in tmp_path.iterdir()} == {"right", "care-run"}


def test_the_gate_holds_every_score_and_every_item():
    def judged(scores, logprobs):
        rows = [dict(score=score, failure=None if score is not None else "no_verdict") for score in scores]
        return [Judgment(example_id=f"e{i}", text="t", **row) for i, row in enumerate(rows)], logprobs

    before = judged([0, 2, None], [-0.1, -0.2, -0.3])
    assert export.compare(before, judged([0, 2, None], [-0.1, -0.215, -0.3])).largest_difference == 0.015
    for scores, logprob, message in (
        ([0, None, None], -0.3, r"1 of 3 greedy scores changed \(e1: 2.0 -> no_verdict\)"),
        ([1, 2, None], -0.3, "1 of 3 .*e0: 0.0 -> 1.0"),
        ([0, 2, None], -0.33, "0 of 3 .* differ by up to 0.03 nats"),
        ([0, 2, None], math.nan, "0 of 3"),
    ):
        with pytest.raises(GateError, match=message):
            export.compare(before, judged(scores, [-0.1, -0.2, logprob]))


def test_a_refusal_comes_before_anything_is_written(merged_run, adapter_judge, tmp_path):
    out, adapter_run = tmp_path / "out", make_run(tmp_path / "elsewhere", adapter_judge)
    other, empty = make_run(tmp_path / "other", adapter_judge), make_run(tmp_path / "empty", adapter_judge)
    newer, changed = make_run(tmp_path / "newer", adapter_judge), make_run(tmp_path / "changed", adapter_judge)
    files.write_json(newer / "judges" / "sre_2" / "manifest.json", {"key": "2", "stage": "dpo_2"})
    files.write_json(changed / "judge" / "manifest.json", {"key": "1", "parts": {"input data": "0"}})
    files.write_json(changed / "data" / "manifest.json", {"key": "0", "content": "0", "params": {"care": 1.0}})
    shutil.rmtree(empty / "data")
    files.write_json(other / "judge" / "manifest.json", {"params": {"beta": 0.1, "iteration": 2}})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for run, to, how, message in (
        (tmp_path / "none", out, "", "holds no judge; give the directory of a finished run"),
        (merged_run, out, "zip", "--format 'zip' is not one of adapter, merged"),
        (merged_run, out, "adapter", "this run keeps no adapter"),
        (other, out, "", r"other parameters \(beta 0.1 -> 0.3\); run it to its end first"),
        (newer, out, "", "has a newer judge than .*judge; run it to its end first"),
        (changed, out, "", r"other parameters \(care 1.0 -> 0.5\); run it to its end first"),
        (adapter_run, tmp_path / "full", "", "is there already; name a new directory"),
        (adapter_run, tmp_path / "no" / "out", "", "its folder does not exist; make the folder first"),
        (adapter_run, adapter_run / "judge" / "out", "", "lies inside the judge that is exported"),
        (empty, out, "", "holds no validation and no test examples"),
    ):
        with pytest.raises(SrlibError, match=message):
            export.export(run, to, how)
    assert not out.exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_the_card_is_made_from_the_run(merged_run):
    cfg = config.load(None, ["beta=0.3", "data=/home/somebody/secret/rows|.jsonl", "workers=1"])
    text = str(card.card(merged_run, cfg, models.judge_info(merged_run / "judge"), "merged", GATE))
    for line in (
        "license: apache-2.0\n",
        "`models/tiny-base`: apache-2.0.",
        "Source `rows\\|.jsonl`: 800 train, 20 validation, 20 test, 3 pairwise.",
        "| beta | 0.3 | beta of the DPO loss: a larger one stays closer to the reference |",
        "| arm | test | ood |\n| --- | ---: | ---: |\n| sft | 60.0 [50.0, 70.0] (n 20) | – |\n",
        "| **sre_2** | 60.0 [50.0, 70.0] (n 20) | – |\n",
        "Pearson with gold on test: 0.600 (n 20).",
        "32 of 32 greedy scores",
    ):
        assert line in text
    assert not re.search("workers|/home|base_model", text)  # the base is a directory of this machine
    assert ("Made by\nself-rationalization (" in text, "- dpo" in text) == (True, True)
    files.write_json(merged_run / "judge" / "manifest.json", {"key": "1", "stage": "sft"})
    text = str(card.card(merged_run, cfg, models.judge_info(merged_run / "judge"), "merged", GATE))
    assert ("Made by\nsupervised fine-tuning from" in text, "- dpo" in text) == (True, False)


def test_a_model_that_has_moved_is_the_same_model(merged_run, tmp_path):
    model = shutil.copytree(merged_run / "judge", tmp_path / "moved")
    params = {"model": "where/it/was", "beta": 0.3}
    parts = {"model": stages.content(str(model), tmp_path), "beta": 0.3}
    files.write_json(merged_run / "judge" / "manifest.json", {"key": "1", "params": params, "parts": parts})
    for given, message in ((str(model), ""), ("other", "model where/it/was -> other")):
        cfg = config.load(None, ["beta=0.3", f"model={given}", "keep=last"])
        with pytest.raises(SrlibError, match=message) if message else contextlib.nullcontext():
            export._check(merged_run / "judge", cfg, tmp_path / "out", "merged")


def test_of_a_path_strangers_see_the_last_part():
    shown = {"/home/anna/base": "base", "~/base": "base", r"C:\Users\anna\base": "base", "C:/Users/anna/base": "base"}
    shown |= {"../base": "base", "org/name": "org/name", "models/tiny-base": "models/tiny-base", "0.5": "0.5"}
    assert {value: card.shown(value) for value in shown} == shown


def test_the_card_of_a_run_that_lacks_files_says_so_and_names_the_licence_of_the_base(merged_run, tmp_path):
    for path in ("results.json", "data/manifest.json", "judge/manifest.json"):
        (merged_run / path).unlink()
    text = str(card.card(merged_run, config.load(None), {"base": "some-org/some-model"}, "adapter", GATE))
    front = yaml.safe_load(text.split("---")[1])
    assert (front["base_model"], front["library_name"], front["license"]) == ("some-org/some-model", "peft", "other")
    for words in ("has not been evaluated", "its licence is not known here", "sizes not recorded", "arm `unknown`"):
        assert words in text
    for front, licence in {"license: llama3.1": "llama3.1", "license_name: my|one": "myone", "a: [": None}.items():
        (tmp_path / "README.md").write_text(f"---\n{front}\n---\nlicense: mit\n")
        assert card.licence_of(tmp_path) == licence
