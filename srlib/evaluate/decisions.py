"""What is chosen on validation items and measured on test items: a temperature, when to abstain, where to pass.

Imports metrics, readings, selective, evaluate. `validation` and `test` are each (examples, one judgment for each or None).
Every function returns metrics by name and, in words, what was chosen and how; a set without a distribution gives nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srlib.evaluate import arms as readings
from srlib.evaluate import results as evaluate
from srlib.schema import Example, Judgment
from srlib.stats import metrics, selective
from srlib.stats.intervals import Floats, Interval

Set = tuple[Sequence[Example], Sequence[Judgment | None]]
Found = tuple[dict[str, Interval], str]


def on_test(validation: Set, test: Set, *, risk: float = 0.2, delta: float = 0.05, n_boot: int = 2000) -> list[Found]:
    """All three decisions, in the order of this module; [] where the judge has no confidence on either set."""
    if any(not np.isfinite(readings.confidence(own)).any() for _, own in (validation, test)):
        return []
    return [
        temperature(validation, test, n_boot),
        abstention(validation, test, risk, None, n_boot),
        abstention(validation, test, risk, delta, n_boot),
        *passing(validation, test, n_boot),
    ]


def temperature(validation: Set, test: Set, n_boot: int = 2000) -> Found:
    """`ece` of the judge as it is and `ece_tempered`, after the temperature that fits the validation items best."""
    scale = sorted({score for items, _ in (validation, test) for item in items for score in item.rubric.scale})
    column = {score: i for i, score in enumerate(scale)}
    of_validation = readings.distributions(validation[1], scale)
    t = selective.temperature(of_validation, [column[item.score] for item in validation[0]])
    items, own = test
    kept = [i for i, p in enumerate(readings.confidence(own)) if np.isfinite(p)]
    p = readings.distributions([own[i] for i in kept], scale)
    said = [column[own[i].score] for i in kept]
    right = np.array([own[i].score == items[i].score for i in kept], dtype=float)
    group = evaluate.groups(items)
    how = dict(n_boot=n_boot, group=None if group is None else [group[i] for i in kept])
    rows = np.arange(len(kept))
    tempered = metrics.ece(np.minimum(selective.tempered(p, t)[rows, said], 1.0), right, **how)
    fitted = int((~np.isnan(of_validation).all(axis=1)).sum())
    return {
        "ece_tempered": tempered
    }, f"probability of its own score at temperature {t:.2f}, fitted on {fitted} validation items"


def abstention(validation: Set, test: Set, risk: float, delta: float | None, n_boot: int = 2000) -> Found:
    """`selective_risk` and `coverage` on the test items (with `delta`: `guaranteed_risk`, `guaranteed_coverage`)."""
    chosen = selective.threshold_for(*_sure(validation), risk, delta)
    found = selective.at(chosen.value, *_sure(test), n_boot=n_boot, group=evaluate.groups(test[0]))
    promise = "no guarantee" if delta is None else f"guaranteed with probability {1 - delta:g}"
    threshold = f"answers at a confidence of {chosen.value:.3f}" if np.isfinite(chosen.value) else "answers nothing"
    words = f"{threshold}, for a risk of {risk:g} on {chosen.n} validation items, {promise}"
    name = "selective" if delta is None else "guaranteed"
    return {f"{name}_risk": found["selective_risk"], f"{name}_coverage": found["coverage"]}, words


def passing(validation: Set, test: Set, n_boot: int = 2000) -> list[Found]:
    """`pass_accuracy_score` by the expected score alone, `pass_accuracy` by score and entropy, and `pass_gain`, the
    paired difference; a gold score in the upper half of its scale passes. No score is a wrong decision. Empty where all
    validation items pass, or all fail."""
    (score, entropy, passed), (test_score, test_entropy, test_passed) = _features(validation), _features(test)
    with_score = np.isfinite(score)
    if len(set(passed[with_score])) < 2:
        return []
    lines = (selective.fit_boundary(score, None, passed), selective.fit_boundary(score, entropy, passed))
    decided = np.isfinite(test_score)
    alone, both = (((b.passes(test_score, test_entropy) == test_passed) & decided).astype(float) for b in lines)
    how = dict(n_boot=n_boot, group=evaluate.groups(test[0]))
    found = {
        "pass_accuracy_score": metrics.mean(alone, **how),
        "pass_accuracy": metrics.mean(both, **how),
        "pass_gain": metrics.paired_difference(both, alone, **how),
    }
    words = f"passes above the scale's middle; logistic regression on score and entropy of {int(with_score.sum())} validation items"
    return [(found, words)]


def _sure(judged: Set) -> tuple[Floats, Floats]:
    items, own = judged
    right = [j is not None and j.score == item.score for item, j in zip(items, own, strict=True)]
    return readings.confidence(own), np.array(right, dtype=float)


def _features(judged: Set) -> tuple[Floats, Floats, Floats]:
    """(n,) expected score from 0 to 1 of its scale, (n,) entropy in nats, both NaN without a distribution, (n,) passed."""
    rows = []
    for item, j in zip(*judged, strict=True):
        low, high = item.rubric.scale[0], item.rubric.scale[-1]
        p = np.array([np.nan] if j is None or not j.distribution else list(j.distribution.values()))
        entropy = -(p * np.log(np.maximum(p, selective.SMALLEST))).sum()
        score = np.nan if np.isnan(entropy) else (j.expected_score - low) / (high - low)
        rows.append((score, entropy, float(item.score > (low + high) / 2)))
    return tuple(np.array(rows).T)
