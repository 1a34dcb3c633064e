"""For the tests of notebooks 07 and 08 and of the report: run a notebook's code without a kernel, and a run made by hand."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import srlib
from srlib import files
from srlib.report import plots
from srlib.schema import Example, Judgment, Pair, Rubric

NOTEBOOKS = Path(srlib.__file__).resolve().parent.parent / "notebooks"
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "</p></div><style>body { display: none } * { background: url(https://evil.test/a) }</style> The greeting is there: pass."
    "</script><svg onload='window.hacked = 3'></svg><iframe srcdoc='<script>parent.hacked = 4</script>'></iframe>"
    "<a href='javascript:window.hacked = 5'>on</a> ![fig](https://evil.test/b) [on](javascript:window.hacked=6) &lt;script&gt;"
    "<p style='background: url(https://evil.test/c)' onmouseover='window.hacked = 7'><base href='https://evil.test/'>"
    "<link rel=stylesheet href='https://evil.test/d'><meta http-equiv=refresh content='0; url=https://evil.test/e'>{{ 7 * 7 }}"
    " \u202edesrever is the rest"  # after a right-to-left override that nothing ends
)
RUBRIC = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])


def run_cells(notebook: str, **parameters: Any) -> dict[str, Any]:
    """The namespace after all code cells, in seconds instead of minutes; `parameters` replace those of its own cell."""
    namespace: dict[str, Any] = {"display": lambda *values: None}
    for cell in json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "setup" not in tags:
            exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
            namespace |= parameters if "parameters" in tags else {}
    return namespace


def write_run(run: Path, n: int = 12, splits: tuple[str, ...] = ("test",), also: str = "") -> None:
    """A run that sft judged wrong, and sre_1 and sre_2 right; instructions and rationales are hostile, `also` ends all else."""
    rubric = Rubric(criterion=RUBRIC.criterion + also, levels=[text + also for text in RUBRIC.levels.values()])
    text, response = {"rubric": rubric, "score": 4}, "Hello <b>guest</b> {}."
    text |= {"reference_answer": f"Good day. {also}", "meta": {"topic": f"greetings{also}"}} if also else {}
    for split in splits:
        names = {i: {"id": f"{split}-{i}{also}", "instruction": f"Greet guest {i}. {HOSTILE}"} for i in range(n)}
        examples = [Example(**name, **text, response=response.format(i) + also) for i, name in names.items()]
        files.write_rows(run / "data" / f"{split}.jsonl", examples)
        for arm, score in (("sft", 3), ("sre_1", 4), ("sre_2", 4)):
            said = dict(text=f"{HOSTILE} {arm[::-1]}", rationale=f"{HOSTILE} {arm[::-1]}", score=score)
            said["distribution"] = {float(s): 0.6 if s == score else 0.1 for s in range(1, 6)}
            files.write_rows(
                run / "eval" / arm / f"{split}.jsonl", [Judgment(example_id=e.id, **said) for e in examples]
            )
    for stage in ("data", "eval"):
        used = {"created": "2027", "facts": {}, "seconds": 1.0, "peak_memory": 9, "peak_gpu_memory": None}
        files.write_json(run / stage / "manifest.json", {"key": "made by hand", "stage": stage, **used})


def write_reported(run: Path, n: int = 12, also: str = "") -> None:
    """The same run with results, pairs and an executed notebook, so that it has a report."""
    nbformat = __import__("nbformat").v4
    write_run(run, n, ("test", "train"), also)
    rows = [("sft", 0.0, 0.0), ("sre_1", 0.9, 1.0), ("sre_2", 0.9, 1.0)]
    rows = [
        {"arm": arm, "split": "test", "metric": "accuracy", "ci_low": low, "value": v, "ci_high": v, "n": n}
        for arm, low, v in rows
    ]
    files.write_json(run / "results.json", rows)
    files.write_text(run / "params.yaml", "arms: [sft, sre_1, sre_2]\nmodel: /home/anna/base\n")
    files.write_json(run / "data" / "manifest.json", {"facts": {"rows": {"train": n, "test": n}}})
    ids = dict(
        example_id=f"train-1{also}", chosen_id="train-1#0", rejected_id="train-1#1", chosen_score=4, rejected_score=1
    )
    about = dict(gold=4, margin=3, strategy="correct_answer", iteration=1)
    sides = dict(
        chosen=f"The greeting: pass. {HOSTILE} [RESULT] 4", rejected=f"The greeting: fail. {HOSTILE} [RESULT] 1"
    )
    files.write_rows(run / "pairs" / "1" / "pairs.jsonl", [Pair(id=f"p{also}", **ids, **about, **sides)])
    table = f"<table><caption>What it holds</caption><tr>{'<td>wide cell</td>' * 30}</tr></table>"
    output = nbformat.new_output("display_data", {"text/html": table})
    plots.forest(rows, [("accuracy", "test")] * 3).savefig(drawn := io.BytesIO(), format="png")
    figure = nbformat.new_output("display_data", {"image/png": base64.b64encode(drawn.getvalue()).decode()})
    printed = nbformat.new_output("stream", text=f"{HOSTILE}\n")
    cells = [nbformat.new_markdown_cell("# 6 · Eval"), nbformat.new_code_cell("1", outputs=[output, printed, figure])]
    files.write_json(run / "notebooks" / "eval.ipynb", nbformat.new_notebook(cells=cells))
