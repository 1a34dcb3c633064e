"""Only the judge that the run evaluated leaves a run, with a card that the run's own files back."""

import math
import shutil
from pathlib import Path

import pytest
import yaml

from srlib import config, files, models
from srlib.data import world
from srlib.report import card, export
from srlib.report.export import ExportError, GateError
from srlib.schema import Judgment

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _six_items(one_thread, monkeypatch, base_dir):
    monkeypatch.chdir(base_dir.parent.parent)
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
    row = dict(split="test", metric="accuracy", n=20, seed=0, iteration=2, protocol="greedy")
    rows = [
        row | dict(arm="sft", value=0.4, ci_low=0.3, ci_high=0.5),
        row | dict(arm="sre_2", value=0.6, ci_low=0.5, ci_high=0.7),
        row | dict(arm="sre_2", metric="pearson", value=0.71, ci_low=None, ci_high=None),
        row | dict(arm="sre_2", split="ood", value=None, ci_low=None, ci_high=None),
    ]
    files.write_json(run / "results.json", rows)
    return run


@pytest.fixture
def adapter_run(tmp_path, adapter_judge):
    return make_run(tmp_path, adapter_judge)


@pytest.fixture
def merged_run(tmp_path, base_dir):
    return make_run(tmp_path, base_dir)


# ---------------------------------------------------------------- the gate


def test_an_adapter_leaves_merged_in_16_bit_and_loads_anywhere(adapter_run, base_dir, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gate = export.export(adapter_run, tmp_path / "out", "merged")
    assert gate.same_score == gate.items == 6
    assert 0 < gate.largest_difference < export.TOLERANCE / 4, "rounding is meant to show, and to be small"
    out = tmp_path / "out"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "care-run"}
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}
    assert not (out / "manifest.json").exists()
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float16
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert models.judge_info(out) == models.judge_info(adapter_run / "judge") | {
        "base": base_dir.name
    }  # no path of ours
    record = files.read_json(out / "export.json")
    assert (record["format"], record["ids"]) == ("merged", [row.id for row in export.gate_items(adapter_run)])


def test_an_adapter_leaves_as_it_is(adapter_run, base_dir, tmp_path):
    gate = export.export(adapter_run, tmp_path / "out")
    assert gate.largest_difference <= 1e-5
    assert models.base_of(tmp_path / "out") == str(base_dir)
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()


def test_after_4_bit_training_the_merge_is_into_the_quantized_weights(adapter_judge, tmp_path, monkeypatch):
    run, write = make_run(tmp_path, adapter_judge, quantization="4bit"), export.write
    assert export.export(run, tmp_path / "right", "merged").same_score == 6
    monkeypatch.setattr(
        export, "write", lambda judge, out, how, **w: write(judge, out, how, **w | {"quantization": "none"})
    )
    with pytest.raises(GateError, match=r"is not the judge of the run, and was deleted: .* nats a token") as caught:
        export.export(run, tmp_path / "wrong", "merged")
    assert caught.value.exit_status == 1
    assert {path.name for path in tmp_path.iterdir()} == {"right", "care-run"}


def test_the_gate_holds_every_score_and_every_item():
    def judged(scores, logprobs):
        failures = [None if score is not None else "no_verdict" for score in scores]
        rows = enumerate(zip(scores, failures, strict=True))
        return [Judgment(example_id=f"e{i}", text="t", score=s, failure=f) for i, (s, f) in rows], list(logprobs)

    before = judged([0, 2, None], [-0.1, -0.2, -0.3])
    assert export.compare(before, judged([0, 2, None], [-0.1, -0.215, -0.3])).largest_difference == 0.015
    for score, outcome in ((None, "no_verdict"), (1, "1.0")):
        with pytest.raises(GateError, match=rf"1 of 3 greedy scores changed \(e1: 2.0 -> {outcome}\)"):
            export.compare(before, judged([0, score, None], [-0.1, -0.2, -0.3]))
    with pytest.raises(GateError, match=r"1 of 3 .*e0: 0.0 -> 1.0"):
        export.compare(before, judged([1, 2, None], [-0.1, -0.2, -0.3]))
    for last in (-0.33, math.nan):
        with pytest.raises(GateError, match="0 of 3"):
            export.compare(before, judged([0, 2, None], [-0.1, -0.2, last]))


def test_the_items_are_always_the_same(merged_run):
    first = [row.id for row in export.gate_items(merged_run)]
    path = merged_run / "data" / "validation.jsonl"
    path.write_text("".join(sorted(path.read_text().splitlines(keepends=True), key=hash)))
    assert [row.id for row in export.gate_items(merged_run)] == first
    for split in ("validation", "test"):
        (merged_run / "data" / f"{split}.jsonl").unlink()
    with pytest.raises(ExportError, match="holds no validation and no test examples"):
        export.gate_items(merged_run)


# ---------------------------------------------------------------- refused, pushed


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    merged_run, adapter_judge, tmp_path, monkeypatch
):
    out, adapter_run = tmp_path / "out", make_run(tmp_path / "elsewhere", adapter_judge)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for run, how, push, message in (
        (tmp_path / "none", "", "", "holds no judge; give the directory of a finished run"),
        (merged_run, "zip", "", "--format 'zip' is not one of adapter, merged, gguf"),
        (merged_run, "gguf", "", "--format gguf needs gguf, unsloth"),
        (merged_run, "adapter", "", "this run keeps no adapter"),
        (merged_run, "", "me", "--push 'me': write ORG/NAME"),
        (merged_run, "", "me/judge", "--push needs a token that may write: set HF_TOKEN in the environment"),
    ):
        with pytest.raises(ExportError, match=message):
            export.export(run, out, how, push)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(ExportError, match="nobody else has the base of this adapter"):
        export.export(adapter_run, out, "adapter", "me/judge")
    files.write_json(merged_run / "judge" / "manifest.json", {"key": "1", "params": {"beta": 0.1, "iteration": 2}})
    with pytest.raises(ExportError, match=r"other parameters \(beta 0.1 -> 0.3\); run it to its end first"):
        export.export(merged_run, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    for path in (out, out / "mine"):
        with pytest.raises(ExportError, match="is there already; name a new directory"):
            export.export(adapter_run, path)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_hub_that_cannot_be_reached_costs_no_export(merged_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(ExportError, match=r"was written, but not pushed to me/judge .*: push it with `hf upload`"):
        export.export(merged_run, tmp_path / "out", "", "me/judge")
    assert "hf_none" not in "".join(path.read_text(errors="replace") for path in (tmp_path / "out").glob("*.*"))


# ---------------------------------------------------------------- the card

GATE = export.Gate(items=32, same_score=32, largest_difference=0.0004, tolerance=0.02, ids=[])


def test_the_card_is_made_from_the_run(merged_run):
    overrides = ["model=models/tiny-base", "beta=0.3", "data=/home/somebody/secret/rows|.jsonl", "n_samples=10"]
    text = str(
        card.card(merged_run, config.load(None, overrides), models.judge_info(merged_run / "judge"), "merged", GATE)
    )
    assert yaml.safe_load(text.split("---")[1]) == {
        "license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["judge", "self-rationalization", "dpo"],  # the base is a directory of this machine
    }  # fmt: skip
    for line in (
        "`models/tiny-base`: apache-2.0.",
        "Source `rows\\|.jsonl`: 800 train, 20 validation, 20 test, 3 pairwise.",
        "| beta | 0.3 | inverse temperature of the DPO loss: how strongly the reference holds |",
        "| arm | test | ood |\n| --- | ---: | ---: |\n",
        "| sft | 40.0 [30.0, 50.0] (n 20) | – |\n| **sre_2** | 60.0 [50.0, 70.0] (n 20) | – |\n",
        "Pearson with gold on test: 0.710 (n 20).",
        "32 of 32 greedy scores",
    ):
        assert line in text
    assert "n_samples" not in text
    assert "/home" not in text


def test_the_card_of_a_run_that_lacks_files_says_so(merged_run):
    for path in ("results.json", "data/manifest.json", "judge/manifest.json"):
        (merged_run / path).unlink()
    text = str(card.card(merged_run, config.load(None), {"base": "some-org/some-model"}, "adapter", GATE))
    for line in (
        "This run has not been evaluated.",
        "its licence is not known here",
        "sizes not recorded",
        "arm `unknown`",
    ):
        assert line in text
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["library_name"], front["base_model"]) == ("other", "peft", "some-org/some-model")
    assert "| parameter |" not in text


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: llama3.1", "llama3.1"),
        ("license: other\nlicense_name: my|one", "myone"),
        ("a: [", None),
        ("license: 3", None),
        ("", None),
    ],
)
def test_the_licence_is_the_one_in_the_card_of_the_base(tmp_path, front, licence):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nlicense: mit\n")
    assert card.licence_of(tmp_path) == licence
