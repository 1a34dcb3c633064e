"""How often a judge that compares prefers the judgment with the higher score, before and after it learned from its own preferences.

    python bench/higher_preferred.py runs/equal-0 runs/equal-1     # writes higher.json into each run

The judgments are those of the first round: of each prompt one with the most frequent score and one with another, compared in
both orders (`meta_comparisons`). Every judge of a run, `sft` and `sre_N`, compares the same ones. `right` is how often it
prefers the one nearer to the gold score; where both are as near, the comparison counts in `preferred` alone. Rows are those
of results.json, for scripts/over_seeds.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from srlib import config, files, models, sample
from srlib.curate import followups
from srlib.evaluate import results
from srlib.run import stages
from srlib.schema import Example, Judgment
from srlib.stats import intervals


def main(run: Path) -> None:
    cfg, rows = config.load(run / "params.yaml"), []
    drawn = files.read_rows(run / "judgments" / "1" / "judgments.jsonl", Judgment)
    items = {item.id: item for item in files.read_rows(run / "data" / "train.jsonl", Example)}
    scores = {j.id: j.score for j in drawn}
    asked, a, b, gold = [], [], [], []
    for c in followups.meta_comparisons(
        [items[name] for name in dict.fromkeys(j.example_id for j in drawn) if name in items], drawn
    ):
        first, _, index = c.id.rpartition(">")
        name = first.rpartition("#")[0]
        if scores[first] != (other := scores[f"{name}#{index}"]):
            for column, value in zip((asked, a, b, gold), (c, scores[first], other, items[name].score), strict=True):
                column.append(value)
    a, b, gold = map(np.array, (a, b, gold))
    groups = [c.id.rpartition("#")[0] for c in asked]
    nearer = np.sign(np.abs(b - gold) - np.abs(a - gold))  # 1: the first is nearer to the gold score, -1: the second
    chain = [f"judges/{name}" for name in ("sft", *(f"sre_{t + 1}" for t in range(cfg.iterations)))]
    skipped = stages.skipped(cfg, run)  # a judge that other parameters left there
    for path in [run / name for name in chain if name not in skipped]:
        info = models.judge_info(path)
        asking = dict(
            template=info["template"], max_new_tokens=info["max_new_tokens"], distributions=False, desc=path.name
        )
        said = [j.preference or "" for j in sample.judgments(*models.load(path, dtype=cfg.dtype), asked, **asking)]
        chosen = np.array([{"A": 1, "B": -1}.get(preferred, 0) for preferred in said])
        metrics = {"parse_rate": intervals.mean(np.array(said) != "", group=groups)}
        for metric, better in {"preferred": np.sign(a - b), "right": nearer}.items():
            kept = np.flatnonzero(chosen * better)
            values, of = (chosen == better)[kept], intervals.pick(groups, kept)
            metrics[metric] = intervals.mean(values, group=of) if len(kept) else intervals.Interval()
        about = dict(arm=path.name, split="higher score", seed=cfg.seed, iteration=0, protocol="greedy, both orders")
        rows += results.as_rows(about, metrics)
    files.write_json(run / "higher.json", rows)
    for row in rows:
        print(run.name, row["arm"], row["metric"], row["value"], row["ci_low"], row["ci_high"], row["n"])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(Path(name))
