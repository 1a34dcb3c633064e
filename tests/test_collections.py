"""The pipeline on what the paper trains on, in small: Feedback- and Preference-Collection-shaped Parquet files and a
Qwen-shaped model from scratch."""

import io

import architectures
import judged
import pytest
from rich.console import Console
from test_notebooks import check_both_ways

from srlib import config as params
from srlib import files as store
from srlib.run import pipeline
from srlib.schema import Judgment, Pair

pytestmark = pytest.mark.torch

SMALL = {
    "n_train": 30, "n_validation": 5, "n_test": 6, "n_ood": 5, "n_train_pairwise": 30, "n_pairwise": 4, "sft_mode": "mix",
    "iterations": 1, "arms": "sft,sre_1", "lora_rank": 0, "sft_steps": 80, "sft_learning_rate": 0.005, "max_length": 1024,
    "max_new_tokens": 120, "n_samples": 4, "sample_prompts": 24, "sample_batch_size": 12, "margin": 1, "n_boot": 200, "audit_items": 0,
    "backend": "transformers", "wandb_mode": "disabled",
}  # fmt: skip


def test_parquet_of_both_collections_and_a_qwen_from_scratch(project, quiet_kernels, tmp_path):
    feedback, preference = judged.feedback(120), judged.preference(60)
    files = {
        "data": judged.write(tmp_path / "feedback.parquet", feedback),
        "data_pairwise": judged.write(tmp_path / "preference.parquet", preference),
    }
    texts = [row[name] for row in feedback for name in ("orig_instruction", "orig_response", "orig_feedback")]
    model = architectures.make("qwen2", tmp_path / "qwen", [*texts, "[RESULT] 1 2 3 4 5 A B", *map(str, feedback[:9])])

    wanted = [f"{name}={value}" for name, value in (SMALL | files | {"model": model}).items()]
    console = Console(file=io.StringIO(), width=200, highlight=False)
    values = params.load(project / "params" / "tiny.yaml", wanted, project / "notebooks")
    reports = pipeline.run(values, project / "runs" / "t", root=project, console=console)
    assert {r.status for r in reports} == {"done"}, console.file.getvalue()
    assert [r.stage for r in reports] == ["data", "sft", "sample_1", "curate_1", "dpo_1", "eval"]

    run = project / "runs" / "t"
    assert store.read_json(run / "judges" / "sft" / "train.json")["rows"] == 30 + 30
    drawn = store.read_rows(run / "judgments" / "1" / "judgments.jsonl", Judgment)
    assert len(drawn) == 4 * 24
    assert sum(j.score is not None for j in drawn) > 20
    assert sum(j.preference is not None for j in drawn) > 5
    pairs = store.read_rows(run / "pairs" / "1" / "pairs.jsonl", Pair)
    assert {isinstance(pair.chosen_score, str) for pair in pairs} == {True, False}, "both kinds are learned from"
    check_both_ways(store.read_json(run / "results.json"), {"sft", "sre_1"})
