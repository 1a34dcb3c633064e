"""A run by hand for notebook 07: twelve items, two arms, hostile text in every rationale."""

from pathlib import Path

from srlib import files as store
from srlib.schema import Example, Judgment, Rubric

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "</p></div><style>body { display: none }</style> The greeting is there: pass."
)
RUBRIC = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])


def write_run(run: Path) -> None:
    """What notebook 07 reads of a run: 12 items, judged by two arms, one rationale of them hostile."""
    examples = [
        Example(id=f"test-{i}", instruction=f"Greet guest {i}. {HOSTILE}", response=f"Hello <b>guest</b> {i}, come in.", rubric=RUBRIC, score=4)
        for i in range(12)
    ]  # fmt: skip
    (run / "data").mkdir(parents=True)
    store.write_rows(run / "data" / "test.jsonl", examples)
    for arm, score in (("sft", 3), ("sre_2", 4)):
        (run / "eval" / arm).mkdir(parents=True)
        rows = [
            Judgment(example_id=e.id, text="", rationale=f"{HOSTILE} It greets {e.id}: {arm[::-1]}.", score=score) for e in examples
        ]  # fmt: skip
        store.write_rows(run / "eval" / arm / "test.jsonl", rows)
    for stage in ("data", "eval"):
        store.write_json(run / stage / "manifest.json", {"key": "made by hand"})
