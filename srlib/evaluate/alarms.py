"""Alarms between iterations: is the loop teaching something other than judging?

Each alarm is one number, larger is worse, and fires above its threshold (`srlib params alarm`). `of_draws` compares the judgments
of a judge and of the judge before it on the same items; `of_training` reads the log and the pairs of one DPO training.
An undefined value (no shared item, nothing to divide by) is None and does not fire."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import entropy

from srlib.schema import Item, Judgment, Pair, SrlibError
from srlib.stats.agreement import distinct_n

Draws = Sequence[Judgment]
Log = Sequence[Mapping[str, float]]
Thresholds = Mapping[str, float]  # alarm -> the value above which it fires; alarms without one are left out
Rows = list[dict[str, Any]]  # {alarm, iteration, value, n, protocol, threshold, fired}


def of_draws(
    items: Sequence[Item], before: Draws, after: Draws, *, iteration: int, protocol: str, thresholds: Thresholds
) -> Rows:
    """Rows for two judges' judgments of the same items, `n` of them; `iteration` made the later judge. Leave
    distinct_fall and entropy_fall out for greedy judgments: they are about several draws of an item."""
    judged = {j.example_id for j in before} & {j.example_id for j in after}
    shared = [item for item in items if item.id in judged]
    old, new = _measure(shared, before), _measure(shared, after)
    a, b = old["verdicts"], new["verdicts"]  # with their scales: a 4 of 5 is another outcome than a 4 of 10
    drift = sum(abs(a[v] / a.total() - b[v] / b.total()) for v in a | b) / 2 if a and b else np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "score_drift": drift, "saturation": new["top"] - old["top"], "parse_fall": old["parsed"] - new["parsed"],
            "length_growth": new["tokens"] / old["tokens"] - 1, "distinct_fall": 1 - new["distinct"] / old["distinct"],
            "entropy_fall": 1 - new["entropy"] / old["entropy"],
        }  # fmt: skip
    rows = [_row(alarm, value, iteration, len(shared), protocol) for alarm, value in values.items()]
    return renewed(rows, thresholds)


def of_training(
    log: Log, pairs: Sequence[Pair], *, beta: float, chosen_tokens: float, iteration: int, thresholds: Thresholds
) -> Rows:
    """Rows for TRL's log of DPO (rewards are beta times the log-ratio to the reference, summed over tokens; the last
    quarter of the steps counts) and the pairs it trained on. `chosen_tokens` is the mean length of a chosen side."""
    rewards = [step["rewards/chosen"] for step in log if "rewards/chosen" in step]
    last = rewards[-max(1, len(rewards) // 4) :]
    protocol = f"last {len(last)} of {len(rewards)} DPO steps against the reference, nats per token; n counts steps"
    rows = [_row("logp_fall", -_mean(last) / beta / chosen_tokens, iteration, len(last), protocol)]
    meta = [(p.chosen_score, p.rejected_score) for p in pairs if p.strategy == "meta_judge"]  # arXiv 2407.19594: 97.7 %
    higher = [a > b for a, b in meta if isinstance(a, float) and isinstance(b, float) and a != b]
    protocol = f"{len(meta)} meta-judged pairs, of which n have two different scores"
    rows += [_row("meta_higher", _mean(higher), iteration, len(higher), protocol)] if meta else []
    return renewed(rows, thresholds)


def renewed(rows: Sequence[Mapping[str, Any]], thresholds: Thresholds) -> Rows:
    """The same values against new thresholds: a finished stage keeps its rows, and the run's thresholds may change."""
    limits = [(row, thresholds.get(row["alarm"], row.get("threshold"))) for row in rows]
    kept = [dict(row, threshold=limit) for row, limit in limits if limit is not None]
    return [row | {"fired": row["value"] is not None and row["value"] > row["threshold"]} for row in kept]


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each alarm that fired."""
    line = "Alarm after iteration {iteration}: {alarm} is {value:.3g}, above {threshold:g} (n {n}; {protocol})."
    return [line.format(**row) for row in rows if row["fired"]]


def stop(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise SrlibError if an alarm fired."""
    if fired := [f"alarm_{row['alarm']}" for row in rows if row["fired"]]:
        advice = f"To go on, set it to false or raise {', '.join(fired)}, and run again: what is drawn is kept."
        raise SrlibError(f"{' '.join(sentences(rows))} stop_on_alarm stops the run before the next iteration. {advice}")


def _row(alarm: str, value: float, iteration: int, n: int, protocol: str) -> dict[str, Any]:
    value = round(float(value), 6) if np.isfinite(value) else None
    return dict(alarm=alarm, iteration=iteration, value=value, n=n, protocol=protocol)


def _measure(items: Sequence[Item], judgments: Draws) -> dict[str, Any]:
    draws: dict[str, list[Judgment]] = {item.id: [] for item in items}
    for judgment in judgments:
        draws.get(judgment.example_id, []).append(judgment)
    flat = [(item, j) for item in items for j in draws[item.id]]
    distinct = [distinct_n([j.text.split() for j in several], 2) for several in draws.values()]
    counts = [Counter(j.verdict for j in several if j.verdict is not None) for several in draws.values()]
    return {
        "verdicts": Counter((item.verdicts, j.verdict) for item, j in flat if j.verdict is not None),
        "top": _mean([j.score == item.rubric.scale[-1] for item, j in flat if j.score is not None]),
        "parsed": _mean([j.verdict is not None for _, j in flat]),
        "tokens": _mean([j.tokens for _, j in flat]),
        "distinct": _mean([share for share in distinct if share == share]),
        "entropy": _mean([entropy(list(count.values())) for count in counts if count]),
    }


def _mean(values: Sequence[float]) -> np.float64:
    return np.float64(np.mean(values) if values else np.nan)
