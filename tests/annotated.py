"""For the tests of notebooks 07 and 08: run a notebook's code without a kernel, and a run made by hand."""

import json
from pathlib import Path
from typing import Any

import srlib
from srlib import files
from srlib.schema import Example, Judgment, Rubric

NOTEBOOKS = Path(srlib.__file__).resolve().parent.parent / "notebooks"
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "</p></div><style>body { display: none }</style> The greeting is there: pass."
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


def write_run(run: Path, n: int = 12, splits: tuple[str, ...] = ("test",)) -> None:
    """A run that sft judged wrong, and sre_1 and sre_2 right; instructions and rationales are hostile."""
    text, response = {"rubric": RUBRIC, "score": 4}, "Hello <b>guest</b> {}."
    for split in splits:
        names = {i: {"id": f"{split}-{i}", "instruction": f"Greet guest {i}. {HOSTILE}"} for i in range(n)}
        examples = [Example(**name, **text, response=response.format(i)) for i, name in names.items()]
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
