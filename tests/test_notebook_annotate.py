"""Notebook 07 without a browser: it runs to its end, hides results from who is not done, and then shows them."""

import json

import pytest
from annotated import write_run

from srlib import files as store
from srlib.annotate import preference
from srlib.annotate import session as annotate
from srlib.schema import Example, Judgment

papermill = pytest.importorskip("papermill")


def go(project, **parameters) -> str:
    """Everything that the executed notebook shows, as one text."""
    made = project / "out.ipynb"
    papermill.execute_notebook(
        project / "notebooks" / "07_annotate.ipynb", made, parameters={"n_boot": 100} | parameters, cwd=project / "notebooks",
        progress_bar=False,
    )  # fmt: skip
    outputs = [o for cell in json.loads(made.read_text())["cells"] for o in cell.get("outputs", [])]
    return "\n".join("".join(o.get("text", "") or o.get("data", {}).get("text/plain", "")) for o in outputs)


def test_results_of_two_annotators_and_none_for_the_third_who_is_not_done(project, quiet_kernels):
    run = project / "runs" / "last"
    write_run(run)
    examples = store.read_rows(run / "data" / "test.jsonl", Example)
    arms = [store.read_rows(run / "eval" / arm / "test.jsonl", Judgment) for arm in ("sre_2", "sft")]
    items = annotate.shown(preference.side_by_side(examples, *arms)[0], 10)
    for name in ("anna", "ben"):
        session = annotate.Session(items, annotate.file_of(run / "annotations" / "test-sre_2-sft", name))
        for number, item in enumerate(items):
            sre_2 = "left" if item.left is item.side.a else "right"
            for criterion in annotate.CRITERIA:
                session.answer(number, criterion, "tie" if number == 9 or (name == "ben" and number > 7) else sre_2)

    shown = go(project, n_items=10)
    assert "annotator is empty" in shown
    assert "120 answers; 0 more" in shown
    assert "0.925" in shown  # (17 wins + 3 ties / 2) / 20
    assert "no judge was asked" in shown

    hidden = go(project, n_items=10, annotator="cleo")
    assert "cleo: 0 of 10 items are done; the results are shown behind the last one" in hidden
    assert "0.925" not in hidden
