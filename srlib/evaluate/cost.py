"""The cost of a run by stage and by arm: tokens, seconds and peak memory (bytes), read from the stages' manifests.

A number that nobody measured is None, never 0, and so is a sum with one of those in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srlib import files as store
from srlib.evaluate.arms import Arm

SUMS = ("training tokens", "prompt tokens", "drawn tokens", "seconds")


def stages(run: Path) -> list[dict[str, Any]]:
    """`{"stage", *SUMS, "peak memory", "peak GPU memory"}` of each finished stage, in the order in which they ended.
    Training reads its rows once an epoch; sampling reads each prompt once and draws N judgments of it."""
    folders = [path.parent for pattern in ("*", "*/*") for path in run.glob(f"{pattern}/manifest.json")]
    finished = [folder for folder in folders if folder.name != "judge" and not folder.suffix]  # no copy, no .partial
    rows = []
    manifests = [store.read_json(folder / "manifest.json") for folder in finished]
    for manifest in sorted(manifests, key=lambda manifest: manifest["created"]):
        facts, draws = manifest["facts"], manifest["stage"].startswith("sample")
        tokens = [facts.get(name, 0) for name in ("tokens", "prompt_tokens", "drawn_tokens")]  # GRPO trains and draws
        tokens = (0, facts.get("prompt_tokens"), facts.get("tokens")) if draws else tokens
        row = {"stage": manifest["stage"], **dict(zip(SUMS, (*tokens, manifest["seconds"]), strict=True))}
        rows.append(row | {"peak memory": manifest["peak_memory"], "peak GPU memory": manifest["peak_gpu_memory"]})
    return rows


def arms(run: Path, compared: Sequence[Arm]) -> list[dict[str, Any]]:
    """`{"arm", *SUMS}`: the sums of the stages that train an arm's judge and draw what it learns from; 0 for base."""
    by_stage = {row["stage"]: row for row in stages(run)}
    parts = store.read_json(run / "judges" / "sft" / "manifest.json").get("parts", ())
    inputs = {p.replace("/", " ").split()[-1] for p in parts if p.startswith("input ")}  # "input judges/..."
    sft = [n for n in ("rationales", "sft_pointwise", "sft_pairwise") if n in by_stage and n in inputs] + ["sft"]
    needs, rows = {None: [], "sft": sft, "rft": [*sft, "sample_1", "curate_1", "rft"]}, []
    needs |= {name: [*sft, name] for name in ("sft_continued", "grpo")}
    for arm in compared:
        rounds = [f"{kind}_{t}" for t in range(1, arm.iteration + 1) for kind in ("sample", "curate", "dpo")]
        needed = [*sft, *rounds] if rounds else needs.get(arm.judge, [arm.judge])
        values = {column: [by_stage[name][column] for name in needed] for column in SUMS}
        rows.append({"arm": arm.name} | {column: None if None in v else sum(v) for column, v in values.items()})
    return rows
