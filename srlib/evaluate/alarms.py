"""Alarms between iterations: is the loop teaching something else than judging?

Each alarm is one number, larger is worse, and fires above its threshold. `of_draws` holds the judgments of one judge
against those of the judge before it, on the same items; `of_training` reads the log and the pairs of one DPO training:

    score_drift     total variation between the two histograms of scores, 0 to 1
    saturation      rise of the share of scores at the top of their scale
    parse_fall      fall of the share of judgments with a verdict
    length_growth   growth of the mean judgment in tokens: 0.5 is half as long again
    distinct_fall   fall of distinct-2 among the draws of a prompt (Li et al. 2016), relative to before
    entropy_fall    fall of the mean entropy of a prompt's N verdicts, relative to before
    logp_fall       how far the log-probability of the chosen side fell below the reference's, in nats a token
    meta_higher     share of meta-judged pairs with two scores whose chosen one is the higher (97.7% after a collapse,
                    Meta-Rewarding, arXiv 2407.19594)

A value that is undefined (no item in common, nothing to divide by) is None and does not fire. Imports metrics, schema.

>>> pair = dict(id="p", example_id="e", chosen="a", rejected="b", chosen_id="e#0", rejected_id="e#1", target=None)
>>> pair |= dict(chosen_score=4, rejected_score=2, margin=None, strategy="meta_judge", iteration=1)
>>> [row] = of_training([], [Pair(**pair)], beta=0.1, chosen_tokens=20, iteration=1, thresholds={"meta_higher": 0.9})
>>> row["value"], row["fired"], row["n"]
(1.0, True, 1)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srlib.schema import Example, Item, Judgment, Pair, SrlibError
from srlib.stats import metrics

NUMBER = {"A": 1.0, "tie": 0.0, "B": -1.0}  # preferences as numbers, to tell them apart

Thresholds = Mapping[str, float]  # alarm -> above which value it fires; what is not named is not looked at


class AlarmError(SrlibError):
    """An alarm has fired, and the run was to stop on one."""


def of_draws(
    items: Sequence[Item],
    before: Sequence[Judgment],
    after: Sequence[Judgment],
    *,
    iteration: int,
    protocol: str,
    thresholds: Thresholds,
) -> list[dict[str, Any]]:
    """Rows `{alarm, iteration, value, threshold, fired, n, protocol}` for two judges' judgments of the same items.

    Only items that both have judged count; `n` says how many. `iteration` is the one that made the later judge. With one
    judgment an item, as in a greedy evaluation, leave out distinct_fall and entropy_fall: they are about draws.
    """
    old, new = _by_item(before), _by_item(after)
    shared = [item for item in items if item.id in old and item.id in new]
    then, now = ([(item, found[item.id]) for item in shared] for found in (old, new))
    values = {
        "score_drift": lambda: _total_variation(_histogram(then), _histogram(now)),
        "saturation": lambda: _at_the_top(now) - _at_the_top(then),
        "parse_fall": lambda: _parsed(then) - _parsed(now),
        "length_growth": lambda: _ratio(_tokens(now), _tokens(then)) - 1,
        "distinct_fall": lambda: 1 - _ratio(_distinct(now), _distinct(then)),
        "entropy_fall": lambda: 1 - _ratio(_entropy(now), _entropy(then)),
    }
    how = dict(iteration=iteration, n=len(shared), protocol=protocol)
    return [
        _row(name, values[name]() if shared else math.nan, limit, **how)
        for name, limit in thresholds.items()
        if name in values
    ]


def of_training(
    log: Sequence[Mapping[str, float]],
    pairs: Sequence[Pair],
    *,
    beta: float,
    chosen_tokens: float,
    iteration: int,
    thresholds: Thresholds,
) -> list[dict[str, Any]]:
    """Rows as of `of_draws`, from the log of DPO (rewards are beta times log-ratios to the reference, summed over the
    tokens) and the pairs it was trained on; `chosen_tokens` is the mean length of a chosen side."""
    rows = []
    if "logp_fall" in thresholds:
        steps = [step["rewards/chosen"] for step in log if "rewards/chosen" in step]
        last = steps[-max(1, len(steps) // 4) :]
        fall = -float(np.mean(last)) / beta / chosen_tokens if last and chosen_tokens else math.nan
        how = f"last {len(last)} of {len(steps)} steps of DPO against the reference, nats a token; n counts steps"
        rows.append(_row("logp_fall", fall, thresholds["logp_fall"], iteration, len(last), how))
    meta = [pair for pair in pairs if pair.strategy == "meta_judge"]
    if meta and "meta_higher" in thresholds:
        scored = [p for p in meta if isinstance(p.chosen_score, float) and isinstance(p.rejected_score, float)]
        higher = [p.chosen_score > p.rejected_score for p in scored if p.chosen_score != p.rejected_score]
        share = sum(higher) / len(higher) if higher else math.nan
        how = f"{len(meta)} meta-judged pairs, of which n have two different scores"
        rows.append(_row("meta_higher", share, thresholds["meta_higher"], iteration, len(higher), how))
    return rows


def renewed(rows: Sequence[Mapping[str, Any]], thresholds: Thresholds) -> list[dict[str, Any]]:
    """The same values against today's thresholds, where there are any: a stage that is done keeps those of its day."""
    limits = [thresholds.get(row["alarm"], row["threshold"]) for row in rows]
    return [
        {**row, "threshold": limit, "fired": row["value"] is not None and row["value"] > limit}
        for row, limit in zip(rows, limits, strict=True)
    ]


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each alarm that has fired; none is good news."""
    return [
        f"Alarm after iteration {r['iteration']}: {r['alarm']} is {r['value']:.3g}, above {r['threshold']:g} "
        f"(n {r['n']}; {r['protocol']})."
        for r in rows
        if r["fired"]
    ]


def stop(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise AlarmError where one has fired; says which, and how a run goes on."""
    fired = [r["alarm"] for r in rows if r["fired"]]
    if fired:
        raise AlarmError(
            f"{' '.join(sentences(rows))} stop_on_alarm stops the run here, before the next iteration. To go on, set "
            f"stop_on_alarm to false, or {', '.join(f'alarm_{name}' for name in fired)} higher, and run again: what is "
            "drawn is kept."
        )


def _row(alarm: str, value: float, threshold: float, iteration: int, n: int, protocol: str) -> dict[str, Any]:
    known = math.isfinite(value)
    return {
        "alarm": alarm,
        "iteration": iteration,
        "value": round(float(value), 6) if known else None,
        "threshold": threshold,
        "fired": bool(known and value > threshold),
        "n": n,
        "protocol": protocol,
    }


Judged = Sequence[tuple[Item, Sequence[Judgment]]]  # an item and its judgments


def _by_item(judgments: Sequence[Judgment]) -> dict[str, list[Judgment]]:
    groups: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        groups[judgment.example_id].append(judgment)
    return groups


def _histogram(judged: Judged) -> Counter:
    """Verdicts on their own scales: a 4 of 5 is another outcome than a 4 of 10."""
    return Counter((item.verdicts, j.verdict) for item, own in judged for j in own if j.verdict is not None)


def _total_variation(a: Counter, b: Counter) -> float:
    """Half the sum of differences of shares: `({1: 1, 2: 1}, {2: 1}) -> 0.5`."""
    if not a or not b:
        return math.nan
    return sum(abs(a[cell] / a.total() - b[cell] / b.total()) for cell in a | b) / 2


def _at_the_top(judged: Judged) -> float:
    return _mean(
        [
            j.score == item.rubric.scale[-1]
            for item, own in judged
            if isinstance(item, Example)
            for j in own
            if j.score is not None
        ]
    )


def _parsed(judged: Judged) -> float:
    return _mean([j.verdict is not None for _, own in judged for j in own])


def _tokens(judged: Judged) -> float:
    return _mean([j.tokens for _, own in judged for j in own])


def _distinct(judged: Judged) -> float:
    shares = [metrics.distinct_n([j.text.split() for j in own], 2) for _, own in judged]
    return _mean([share for share in shares if not math.isnan(share)])


def _entropy(judged: Judged) -> float:
    most = max(len(own) for _, own in judged)
    numbers = [[NUMBER.get(j.verdict, j.verdict) for j in own] for _, own in judged]
    table = np.array([row + [None] * (most - len(row)) for row in numbers], dtype=float)
    found = metrics.entropy(table)
    return _mean(found[~np.isnan(found)])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
