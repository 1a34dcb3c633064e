"""Where the time of a run goes, stage by stage: at work, or on the way to it.

    srlib bench --stages runs/tiny

At work is what the stage says of itself: seconds of training, of drawing, of judging (over the processes side by side).
The rest is imports, loading, tables and figures, the kernel. Stages run side by side, so their sum is not the run's time;
of a run in several sittings the time between them is counted, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import bench
from srlib import files as store
from srlib.evaluate import cost as ledger
from srlib.hardware import machine


def stages(run: Path, out: Path) -> str:
    """Write <out>/stages.json and .md from what the run wrote down, and return the table. BenchError where there is no
    complete run."""
    found = ledger.stages(run)
    if "eval" not in [row["stage"] for row in found]:
        raise bench.BenchError(f"{run} is not a complete run: there is no eval in it; run `srlib run` first")
    rows = []
    for row in found:
        times = _times(run / "notebooks" / f"{row['stage']}.ipynb")
        rows.append({"stage": row["stage"], **times, "work": _work(run, row["stage"])})
    begun = min(row.pop("start") for row in rows)
    whole = max(row.pop("end") for row in rows) - begun
    name = f"{run.parent.name}/{run.name}"
    result = {**machine.facts(), "command": f"srlib bench --stages {name}", "seconds": round(whole, 1), "rows": rows}
    text = _table(result)
    store.write_json(out / "stages.json", result)
    store.write_text(out / "stages.md", text)
    return text


def _times(notebook: Path) -> dict[str, float]:
    """When a notebook ran, and for how long, the kernel's start included, by papermill's own record."""
    try:
        notes = store.read_json(notebook)["metadata"]["papermill"]
        start, end = (datetime.fromisoformat(notes[name]).timestamp() for name in ("start_time", "end_time"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise bench.BenchError(f"{notebook}: no executed notebook ({error}); run `srlib run` first") from None
    return {"start": start, "end": end, "seconds": round(end - start, 1)}


def _work(run: Path, stage: str) -> float:
    """Seconds of training, drawing or judging; of a stage that does none of these, 0."""
    if stage == "eval":
        took = [store.read_json(path)["seconds"] for path in (run / "eval").glob("*/*.done")]
        return _sum(run, stage, took)
    kind, _, number = stage.partition("_")
    made = {"sample": f"judgments/{number}", "dpo": f"judges/sre_{number}", "curate": f"pairs/{number}"}
    path = run / made.get(kind, stage if stage == "data" else f"judges/{stage}") / "manifest.json"
    return _sum(run, stage, [store.read_json(path)["facts"].get("seconds", 0.0)])


def _sum(run: Path, stage: str, seconds: list[float | None]) -> float:
    if None in seconds:
        raise bench.BenchError(
            f"{run}: stage {stage} was killed and resumed, so nobody knows what it took; run it anew"
        )
    return round(sum(seconds), 1)


def _table(result: Mapping[str, Any]) -> str:
    head = (
        "# A run, stage by stage\n\n"
        f"`{result['command']}`: {result['device']}, {result['cores']} cores; {result['seconds']:,.0f} s from the first "
        "stage's start to the last one's end. At work: seconds of training, drawing, judging; in `eval` those of all "
        "processes side by side.\n\n"
        "| stage | seconds | at work | the rest |\n| --- | ---: | ---: | ---: |\n"
    )
    lines = []
    for row in result["rows"]:
        rest = "" if row["stage"] == "eval" else f"{row['seconds'] - row['work']:,.1f}"
        lines.append(f"| {row['stage']} | {row['seconds']:,.1f} | {row['work']:,.1f} | {rest} |")
    return head + "\n".join(lines) + "\n"
