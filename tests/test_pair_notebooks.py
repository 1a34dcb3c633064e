"""Notebooks 10 to 12, their cells run in this process on a small finished run of the built-in world."""

import shutil

import pytest
import yaml
from cells import run_cells
from conftest import SHRUNKEN

pytest.importorskip("torch")

from srlib import config, curate, files, prompts
from srlib.data import world
from srlib.sample.draws import judgment
from srlib.schema import Judgment

pytest.importorskip("matplotlib").use("agg")
pytestmark = [pytest.mark.torch, pytest.mark.slow]
SMALL = SHRUNKEN | {"dtype": "float32", "max_new_tokens": 60, "n_samples": 2, "margin": 1.0}


@pytest.fixture(scope="module")
def run(base_dir, one_thread, tmp_path_factory):
    """A run after its first iteration, with the base model as its judge and a right and a wrong judgment of each prompt."""
    path = tmp_path_factory.mktemp("run")
    rows = {name: world.examples(name, 0, n) for name, n in {"train": 24, "validation": 8, "test": 12}.items()}
    rows |= {"train_pairwise": world.training_comparisons("train", 0, 12), "pairwise": world.comparisons(0, 6)}
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
