"""What leaves a run is the judge that the run evaluated, or nothing leaves."""

import math
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from srlib import cli, models
from srlib import files as store
from srlib.data import world
from srlib.report import card, export
from srlib.schema import Judgment

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _here(one_thread, monkeypatch, base_dir):
    monkeypatch.chdir(base_dir.parent.parent)
    monkeypatch.setattr(export, "ITEMS", 6)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def make_run(root: Path, judge: Path, **changed) -> Path:
    """What a run leaves behind, with this judge and a few examples; no stage has run."""
    run = root / "care-run"
    shutil.copytree(judge, run / "judge")
    if not (run / "judge" / "judge.json").exists():
        store.write_json(run / "judge" / "judge.json", {"max_new_tokens": 60, "base": "models/tiny-base"})
    for split in ("validation", "test"):
        store.write_rows(run / "data" / f"{split}.jsonl", world.examples(split, 0, 20, care=1.0))
    (run / "params.yaml").write_text(yaml.safe_dump({"model": "models/tiny-base", "beta": 0.3, **changed}))
    manifest = dict(key="0", facts={"rows": {"train": 800, "validation": 20, "test": 20, "ood": 0}, "pairwise": 3})
    store.write_json(run / "data" / "manifest.json", manifest)
    store.write_json(run / "judge" / "manifest.json", {"key": "1", "stage": "dpo_2"})
    row = dict(split="test", metric="accuracy", n=20, seed=0, iteration=2, protocol="greedy")
    rows = [
        row | dict(arm="sft", value=0.4, ci_low=0.3, ci_high=0.5),
        row | dict(arm="sre_2", value=0.6, ci_low=0.5, ci_high=0.7),
    ]
    rows += [row | dict(arm="sre_2", metric="pearson", value=0.71, ci_low=0.6, ci_high=0.8)]
    store.write_json(
        run / "results.json", [*rows, row | dict(arm="sre_2", split="ood", value=None, ci_low=None, ci_high=None)]
    )
    return run


@pytest.fixture
def merged_run(tmp_path, base_dir):
    return make_run(tmp_path, base_dir)


@pytest.fixture
def fp32_run(tmp_path, base_dir, adapter_judge):
    """Its weights hold an adapter that was merged in fp32; those of the base fit into 16 bit as they are."""
    import torch

    from srlib.models import adapters

    tokenizer = models.load_tokenizer(base_dir)
    adapters.merge(str(base_dir), adapter_judge, tokenizer, torch.float32).save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    return make_run(tmp_path, tmp_path / "merged")


@pytest.fixture
def adapter_run(tmp_path, adapter_judge):
    return make_run(tmp_path, adapter_judge)


def files(path: Path) -> set[str]:
    return {item.name for item in path.parent.iterdir()}


# ---------------------------------------------------------------- what passes


def test_a_judge_of_other_parameters_is_refused(merged_run, tmp_path):
    """The run was started again with another beta, and stopped before it made a judge with it."""
    store.write_json(merged_run / "judge" / "manifest.json", {"key": "1", "params": {"beta": 0.1, "iteration": 2}})
    with pytest.raises(export.ExportError, match=r"other parameters \(beta 0.1 -> 0.3\); run it to its end first"):
        export.export(merged_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_judge_in_16_bit_passes_and_loads_anywhere(fp32_run, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(export, "ITEMS", 32)
    gate = export.export(fp32_run, tmp_path / "out" / "judge")
    out = tmp_path / "out" / "judge"
    assert (gate.items, gate.same_score) == (32, 32)
    assert 0 < gate.largest_difference < export.TOLERANCE / 4, "rounding is meant to show, and to be small"
    assert files(out) == {"judge"}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float16
    assert AutoTokenizer.from_pretrained(out).chat_template
    kept = store.read_json(out / "export.json")
    assert kept["format"] == "merged"
    assert kept["ids"] == [row.id for row in export.gate_items(fp32_run)]
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("how", ["adapter", "merged"])
def test_an_adapter_leaves_as_it_is_or_merged(adapter_run, base_dir, tmp_path, how):
    gate = export.export(adapter_run, tmp_path / "out", how)
    assert gate.same_score == gate.items == 6
    assert gate.largest_difference <= (1e-5 if how == "adapter" else export.TOLERANCE / 4)
    assert models.base_of(tmp_path / "out") == (str(base_dir) if how == "adapter" else None)
    info = models.judge_info(adapter_run / "judge")
    base = (
        str(base_dir) if how == "adapter" else base_dir.name
    )  # merged, it goes to others, whom this machine is nothing to
    assert models.judge_info(tmp_path / "out") == info | {"base": base}


def test_after_4_bit_training_the_merge_is_into_what_was_trained_on(adapter_judge, tmp_path, monkeypatch):
    run = make_run(tmp_path, adapter_judge, quantization="4bit")
    gate = export.export(run, tmp_path / "right", "merged")
    assert gate.same_score == gate.items
    exact = export.merge
    monkeypatch.setattr(export, "merge", lambda judge, **how: exact(judge, **{**how, "quantization": "none"}))
    with pytest.raises(export.GateError, match=r"is not the judge of the run, and was deleted: .* nats a token"):
        export.export(run, tmp_path / "wrong", "merged")
    assert not (tmp_path / "wrong").exists()


def test_the_items_are_always_the_same(merged_run):
    first = [row.id for row in export.gate_items(merged_run)]
    path = merged_run / "data" / "validation.jsonl"
    path.write_text("".join(sorted(path.read_text().splitlines(keepends=True), key=hash)))
    assert [row.id for row in export.gate_items(merged_run)] == first
    for split in ("validation", "test"):
        (merged_run / "data" / f"{split}.jsonl").unlink()
    with pytest.raises(export.ExportError, match="holds no validation and no test examples"):
        export.gate_items(merged_run)


# ---------------------------------------------------------------- what does not


def test_a_corrupted_merge_leaves_nothing(merged_run, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    write = export.write

    def corrupted(judge, out, *rest):
        write(judge, out, *rest)
        state = load_file(out / "model.safetensors")
        name = next(n for n in state if "layers.1" in n and "down_proj" in n)
        save_file(
            {**state, name: state[name].flip(0).contiguous()}, out / "model.safetensors", metadata={"format": "pt"}
        )

    monkeypatch.setattr(export, "write", corrupted)
    shell = CliRunner().invoke(cli.app, ["export", str(merged_run), "--to", str(tmp_path / "out")])
    assert shell.exit_code == 1
    assert "what was exported is not the judge of the run, and was deleted" in shell.output
    assert files(tmp_path / "out") == {"care-run"}


def judged(scores, logprobs):
    rows = [
        Judgment(example_id=f"e{i}", text="t", score=s, failure=None if s is not None else "no_verdict")
        for i, s in enumerate(scores)
    ]
    return export.Judged(rows, list(logprobs))


def test_the_gate_holds_every_score_and_every_item():
    before = judged([1, 2, None], [-0.1, -0.2, -0.3])
    assert export.compare(before, judged([1, 2, None], [-0.1, -0.215, -0.3])).same_score == 3
    with pytest.raises(export.GateError, match=r"1 of 3 greedy scores changed \(e1: 2 -> no_verdict\)"):
        export.compare(before, judged([1, None, None], [-0.1, -0.2, -0.3]))
    for last in (-0.33, math.nan):
        with pytest.raises(export.GateError, match=r"0 of 3 .* differ by up to .* \(e2\), 0.02 are allowed"):
            export.compare(before, judged([1, 2, None], [-0.1, -0.2, last]))


def test_what_cannot_be_is_refused_before_anything_is_written(merged_run, adapter_run_elsewhere, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for run, how, push, words in (
        (tmp_path / "none", "", "", "holds no judge; give the directory of a run that has ended"),
        (merged_run, "zip", "", "--format 'zip' is not one of adapter, merged, gguf"),
        (merged_run, "adapter", "", "this run kept merged weights and no adapter"),
        (merged_run, "", "me", "--push 'me': write ORG/NAME"),
        (merged_run, "", "me/judge", "--push needs a token that may write: set HF_TOKEN in the environment"),
    ):
        with pytest.raises(export.ExportError, match=words):
            export.export(run, out, how, push)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(export.ExportError, match="nobody else has this adapter's base, a directory of this machine"):
        export.export(adapter_run_elsewhere, out, "adapter", "me/judge")
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    shell = CliRunner().invoke(cli.app, ["export", str(merged_run), "--to", str(out)])
    assert shell.exit_code == 2
    assert "is there already; name a new directory" in shell.output
    assert [p.name for p in out.iterdir()] == ["mine"]


@pytest.fixture
def adapter_run_elsewhere(tmp_path, adapter_judge):
    return make_run(tmp_path / "elsewhere", adapter_judge)


def test_gguf_says_what_is_missing(merged_run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        export.ExportError, match=r"here the package gguf is not installed and Unsloth is not installed"
    ):
        export.export(merged_run, tmp_path / "out", "gguf")


def test_a_hub_that_cannot_be_reached_costs_no_export(merged_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(export.ExportError, match=r"was written, but not pushed to me/judge .*: push that directory"):
        export.export(merged_run, tmp_path / "out", "", "me/judge")
    assert (tmp_path / "out" / "README.md").exists()
    assert "hf_none" not in "".join(p.read_text(errors="replace") for p in (tmp_path / "out").glob("*.*"))


# ---------------------------------------------------------------- the card


GATE = dict(items=32, same_score=32, largest_difference=0.0004, tolerance=0.02, ids=[])


def test_the_card_is_made_from_the_run(merged_run):
    params = {"model": "models/tiny-base", "beta": 0.3, "data": "/home/somebody/secret/rows.jsonl", "n_samples": 10}
    text = card.card(merged_run, params, models.judge_info(merged_run / "judge"), "merged", GATE)
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"
    assert "base_model" not in front, "the base is a directory of this machine"
    assert "`models/tiny-base`: apache-2.0." in text
    assert "800 train, 20 validation, 20 test, 3 pairwise" in text
    assert "| beta | 0.3 |" in text
    assert "n_samples" not in text
    assert "| sft | 40.0 [30.0, 50.0] (n 20) | – |" in text
    assert "| **sre_2** | 60.0 [50.0, 70.0] (n 20) | – |" in text
    assert "Pearson with gold 0.710 [0.600, 0.800] (n 20)" in text
    assert "32 of 32 greedy scores" in text
    assert "/home" not in text
    assert "rows.jsonl" in text


def test_the_card_of_a_run_that_knows_little_says_so(merged_run):
    (merged_run / "results.json").unlink()
    (merged_run / "data" / "manifest.json").unlink()
    text = card.card(merged_run, {}, {"base": "some-org/some-model"}, "adapter", GATE)
    assert "This run has not been evaluated." in text
    assert "its licence is not known here" in text
    assert yaml.safe_load(text.split("---")[1]) | {} == {
        "license": "other", "library_name": "peft", "base_model": "some-org/some-model",
        "pipeline_tag": "text-generation", "tags": ["judge", "self-rationalization", "dpo"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("front", "found"),
    [
        ("license: llama3.1", "llama3.1"),
        ("license: other\nlicense_name: my|one", "myone"),
        ("a: [", None),
        ("license: 3", None),
        ("", None),
    ],
)
def test_the_licence_is_what_the_bases_own_card_says(tmp_path, front, found):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nlicense: mit\n")
    assert card.licence_of(str(tmp_path)) == found
