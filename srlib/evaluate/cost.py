"""What a run cost: tokens, seconds, memory, energy, for each stage and for each arm.

    stages(run)                                      # a row for each finished stage
    arms(run, {"base": None, "sre_1": "sre_1"})      # a row for each arm: what it took to make its judge

All of it is read from what the stages wrote down. A number that nobody measured is None, never 0, and a sum with one of
those in it is None. Units: bytes, joules, seconds. The energy is that of whole GPUs while a stage ran, and whoever else
used them. Imports store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlib import files as store

USED = ("seconds", "peak_memory", "peak_gpu_memory", "energy")  # as runs.OpenStage writes them into a manifest


def stages(run: Path) -> list[dict[str, Any]]:
    """Rows `{stage, tokens_read, tokens_written, seconds, peak_memory, peak_gpu_memory, energy}` in the order in which
    the stages ended. Training reads what it learns from, as often as it does; sampling reads each prompt once and writes
    N judgments of it; other stages count no tokens."""
    found = [path.parent for pattern in ("*", "*/*") for path in run.glob(f"{pattern}/manifest.json")]
    copies = {"judge", ".judge.tmp"}  # of one of judges/
    made = [_manifest(path) for path in found if path.name not in copies and path.suffix not in (".partial", ".old")]
    return [_stage(manifest) for manifest in sorted(made, key=lambda m: (m["created"], m["stage"]))]


def arms(run: Path, judges: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Rows for the arms `{name: judge}`: training and drawing of everything that the judge needed, with the columns

        arm, training s, training tokens, drawing s, prompt tokens read, drawn tokens, peak memory, energy

    An arm without a judge, the base model, took no tokens and no time here; memory and energy were not measured.
    """
    rows = []
    for arm, judge in judges.items():
        trained, drawn = _lineage(judge)
        training = [_manifest(run / "judges" / name) for name in trained]
        drawing = [_manifest(run / "judgments" / str(t)) for t in drawn]
        took = [store.read_json(run / "judges" / name / "train.json") for name in trained]
        facts = [manifest["facts"] for manifest in drawing]
        peaks, energy = ([m.get(name) for m in training + drawing] or [None] for name in ("peak_memory", "energy"))
        rows.append(
            {
                "arm": arm,
                "training s": _sum([own["seconds"] for own in took]),
                "training tokens": _sum([own["tokens"] for own in took]),
                "drawing s": _sum([own["seconds"] for own in facts]),
                "prompt tokens read": _sum([own.get("prompt_tokens") for own in facts]),
                "drawn tokens": _sum([own["tokens"] for own in facts]),
                "peak memory": None if None in peaks else max(peaks),
                "energy": _sum(energy),
            }
        )
    return rows


def _lineage(judge: str | None) -> tuple[list[str], list[int]]:
    """What was trained and which rounds were drawn for a judge: `"sre_2" -> (["sft", "sre_1", "sre_2"], [1, 2])`."""
    if judge is None:
        return [], []
    if match := re.fullmatch(r"sre_(\d+)", judge):
        rounds = list(range(1, int(match[1]) + 1))
        return ["sft", *(f"sre_{t}" for t in rounds)], rounds
    if judge in ("sft_continued", "rft"):
        return ["sft", judge], [1] if judge == "rft" else []
    return [judge], []


def _stage(manifest: Mapping[str, Any]) -> dict[str, Any]:
    facts, draws = manifest.get("facts", {}), str(manifest["stage"]).startswith("sample")
    row = {
        "stage": manifest["stage"],
        "tokens_read": facts.get("prompt_tokens" if draws else "tokens"),
        "tokens_written": facts.get("tokens") if draws else None,
    }
    return row | {name: manifest.get(name) for name in USED}


def _manifest(directory: Path) -> dict[str, Any]:
    return store.read_json(directory / "manifest.json")


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(values)
