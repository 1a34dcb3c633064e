"""How far comparisons can be told without reading the instruction: a bag of words that sees the two responses and nothing else.

    python bench/words_alone.py runs/notes-0 runs/notes-1 runs/notes-2     # writes self_taught/words.json into each run

A logistic regression on the difference of the responses' word counts learns from the comparisons that notebook 12 makes, and
from as many of the gold ones that its control learns from, and is tried on what the judges are tried on. `overlap` learns nothing: it
prefers the response that has more words of the instruction. Rows are those of results.json, for scripts/over_seeds.py.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from srlib import config, files
from srlib.data import world
from srlib.evaluate import results
from srlib.schema import Comparison, Example
from srlib.stats import intervals


def made(items: list[Example], rng: random.Random) -> list[Comparison]:
    """Each response beside one to another instruction, as in notebook 12 without a writer."""
    rows = []
    for e in items:
        other = rng.choice([o.response for o in items if o.instruction != e.instruction and o.response != e.response])
        shared = e.model_dump(include={"id", "instruction", "rubric"})
        rows.append(Comparison(**shared, response_a=e.response, response_b=other, preference="A"))
    return rows


def told_by_words(known: list[Comparison], asked: list[Comparison]) -> np.ndarray:
    """What a bag of words gets of each comparison in both orders, a mean in [0, 1]."""
    known, both = results.to_judge(results.COMPARED, known), results.to_judge(results.COMPARED, asked)
    counted = CountVectorizer(token_pattern=r"\S+|\n", min_df=2).fit(c.response_a for c in known)

    def difference(rows: list[Comparison]) -> np.ndarray:
        return counted.transform(c.response_a for c in rows) - counted.transform(c.response_b for c in rows)

    model = LogisticRegression(C=0.1, max_iter=1000).fit(difference(known), [c.gold for c in known])
    return np.reshape(model.predict(difference(both)) == [c.gold for c in both], (-1, 2)).mean(1)


def told_by_overlap(asked: list[Comparison]) -> np.ndarray:
    """1 where the better response has more words of the instruction, 1/2 where both have as many."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+", text.lower()))

    shared = [[len(words(c.instruction) & words(r)) for r in (c.response_a, c.response_b)] for c in asked]
    return np.array(
        [(1 + np.sign(a - b) * (1 if c.gold == "A" else -1)) / 2 for c, (a, b) in zip(asked, shared, strict=True)]
    )


def main() -> None:
    for run in map(Path, sys.argv[1:]):
        cfg, rng = config.load(run / "params.yaml"), random.Random(0)
        train, validation = (files.read_rows(run / "data" / f"{s}.jsonl", Example) for s in ("train", "validation"))
        constructed, held = made(train, rng), made(validation, rng)
        labelled = files.read_rows(run / "data" / "train_pairwise.jsonl", Comparison)
        if not cfg.data:
            labelled = world.comparisons(cfg.seed, 2 * len(train), "train", cfg.care)
        gold = [c for c in labelled if c.gold != "tie"][: len(constructed)]
        test = [c for c in files.read_rows(run / "data" / "pairwise.jsonl", Comparison) if c.gold != "tie"]
        told = {("words", "made"): told_by_words(constructed, held), ("overlap", "made"): told_by_overlap(held)}
        told |= {("words", "gold"): told_by_words(gold, test), ("overlap", "gold"): told_by_overlap(test)}
        rows = []
        for (arm, split), right in told.items():
            protocol = f"both orders, {len(constructed)} comparisons learned from" if arm == "words" else "no training"
            about = dict(arm=arm, split=split, seed=cfg.seed, iteration=0, protocol=protocol)
            rows += results.as_rows(about, {"accuracy": intervals.mean(right, n_boot=2000)})
        files.write_json(run / "self_taught" / "words.json", rows)
        print(run, {f"{row['arm']}, {row['split']}": round(row["value"], 3) for row in rows})


if __name__ == "__main__":
    main()
