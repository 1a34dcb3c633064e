"""Notebook 01 on files: judged examples as CSV, comparisons as JSON lines, and what the other notebooks then find."""

import json

import judged
import pytest

from srlib import config as params
from srlib import files as store
from srlib.run import stages
from srlib.schema import Comparison, Example

papermill = pytest.importorskip("papermill")


def test_the_collections_through_the_notebook(project, quiet_kernels, tmp_path):
    rows = judged.feedback(400)
    rows[7]["orig_score"] = "none"
    values = {
        "run_dir": "runs/t", "data": str(judged.write(tmp_path / "rows.csv", rows)), "bad_rows": "drop",
        "data_pairwise": str(judged.write(tmp_path / "pairs.jsonl", judged.preference(60))), "balance_classes": True,
        "n_train": 100, "n_validation": 10, "n_test": 20, "n_train_pairwise": 12, "n_pairwise": 5,
    }  # fmt: skip
    made = tmp_path / "01_data.ipynb"
    papermill.execute_notebook(
        project / "notebooks" / "01_data.ipynb", made, parameters=values, cwd=project / "notebooks", progress_bar=False
    )
    folder = project / "runs" / "t" / "data"
    splits = {
        name: store.read_rows(folder / f"{name}.jsonl", Example) for name in ("train", "validation", "test", "ood")
    }
    pairs = {name: store.read_rows(folder / f"{name}.jsonl", Comparison) for name in ("train_pairwise", "pairwise")}
    sizes = {name: len(own) for name, own in (splits | pairs).items()}
    assert sizes == {"train": 100, "validation": 10, "test": 20, "ood": 0, "train_pairwise": 12, "pairwise": 5}
    assert {e.score for e in splits["train"]} == {1, 2, 3, 4, 5}
    facts = store.read_json(folder / "manifest.json")["facts"]
    assert (facts["counts"]["rows"], facts["counts"]["bad rows"]) == (460, 1)
    assert {(line["split"], line["text"]) for line in facts["overlap"]} == {
        (split, text) for split in ("validation", "test", "pairwise") for text in ("instruction", "response")
    }
    text = "".join(
        "".join(output.get("text", ""))
        for cell in json.loads(made.read_text())["cells"]
        for output in cell.get("outputs", [])
    )
    assert "Feedback Collection              orig_score" in text
    assert "row 8: field orig_score: 'none' is not a number" in text

    # The stage is current until a file is another one, or another revision is asked for.
    stage = stages.every(1)[0]
    known = {name: param.default for name, param in params.of_notebook("01_data", project / "notebooks").items()}
    assert stages.why(stage, known | values, project / "runs" / "t", project) is None
    judged.write(tmp_path / "pairs.jsonl", judged.preference(61))
    assert stages.why(stage, known | values, project / "runs" / "t", project) == "data_pairwise changed"
