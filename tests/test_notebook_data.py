"""Notebook 01, its cells run in this process on a stage that is only a directory: the built-in world, and files."""

import json
from pathlib import Path
from types import SimpleNamespace

import judged
import pytest

import srlib.run
from srlib import config, files
from srlib.schema import Example

pytest.importorskip("matplotlib").use("agg")
CELLS = json.loads((Path(__file__).parent.parent / "notebooks" / "01_data.ipynb").read_text())["cells"]
SIZES = {"n_train": 40, "n_validation": 10, "n_test": 20, "n_ood": 10, "n_train_pairwise": 12, "n_pairwise": 5}
OTHERS = dict(bad_rows="drop")


def execute(path, monkeypatch, done=False, facts=None, **changes):
    """Run every code cell but the set-up; returns the facts that the stage is finished with, or the namespace if done."""
    parameters, kept, space = SIZES | OTHERS | {"balance_classes": True} | changes, {}, {}
    options = {"cfg": config.load().model_copy(update=parameters), "finish": lambda **facts: kept.update(facts)}
    stage = SimpleNamespace(path=path, done=done, facts=facts, **options)
    monkeypatch.setattr(srlib.run, "open_stage", lambda name, values: stage, raising=False)
    for cell in (cell for cell in CELLS if cell["cell_type"] == "code" and cell["metadata"].get("tags") != ["setup"]):
        exec("".join(cell["source"]), space)
        if cell["metadata"].get("tags") == ["parameters"]:
            space |= {name: value for name, value in parameters.items() if name in space}
    return space if done else kept


def test_the_world_and_a_stage_that_is_done(tmp_path, monkeypatch):
    facts = execute(tmp_path, monkeypatch, balance_classes=False)
    assert facts["rows"] == {"train": 40, "validation": 10, "test": 20, "ood": 10}
    assert (facts["train_pairwise"], facts["pairwise"]) == (12, 5)
    space = execute(tmp_path, monkeypatch, done=True, facts=facts)
    assert [len(rows) for rows in space["rows"].values()] == [40, 10, 20, 10, 12, 5]


def test_files_of_the_collections(tmp_path, monkeypatch, capsys):
    rows = judged.feedback(400)
    rows[7]["orig_score"] = "none"
    pairs = str(judged.write(tmp_path / "pairs.jsonl", judged.preference(60)))
    source = str(judged.write(tmp_path / "rows.csv", rows))
    facts = execute(tmp_path, monkeypatch, data=source, data_pairwise=pairs)
    assert facts["rows"] == {"train": 40, "validation": 10, "test": 20, "ood": 0}
    assert {e.score for e in files.read_rows(tmp_path / "train.jsonl", Example)} == {1, 2, 3, 4, 5}
    assert (facts["counts"]["rows"], facts["counts"]["bad rows"]) == (460, 1)
    assert [line["split"] for line in facts["overlap"][::2]] == ["validation", "test", "pairwise"]
    assert "row 9: field orig_score: 'none' is not a number" in capsys.readouterr().out
