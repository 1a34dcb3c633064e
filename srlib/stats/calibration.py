"""Confidence against correctness: calibration error, risk and coverage of a judge that may abstain, temperature.

An item's `confidence` (n,) is the probability that the judge gives to its own score, NaN if it abstains anyway;
`correct` (n,) is 0 or 1. A threshold or a temperature is chosen on validation items and measured on others."""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from srlib.stats import intervals
from srlib.stats.intervals import TAILS, Array, Floats, Interval, Keys, columns


class Curve(NamedTuple):
    coverage: Floats  # (K,) ascending: share of all items that are answered
    risk: Floats  # (K,) share of wrong answers among them
    threshold: Floats  # (K,) least confidence that is answered
    n: int  # items with a confidence


def ece(confidence: Array, correct: Array, n_boot: int = 2000, seed: int = 0, group: Keys = None) -> Interval:
    """Expected calibration error (Guo et al. 2017): mean gap of confidence and accuracy in ten bins, weighted by size.
    Chance alone makes gaps: the value is too large, that of a resample more so, and percentiles miss the truth. The interval
    covers them and their mirror image about the value, and begins at 0 if a calibrated judge would often have such an error
    (consistency resampling, Broecker and Smith 2007; with groups, the errors of each times one random number)."""
    confidence, correct = columns(confidence=confidence, correct=correct)
    counts, n = intervals.resamples(len(correct), n_boot, seed, group), len(correct)
    bins = np.eye(10)[np.searchsorted(np.linspace(0, 1, 11)[1:-1], confidence)]  # (n, 10)
    errors = np.abs(counts @ ((confidence - correct)[:, None] * bins)).sum(1) / counts.sum(1)
    value, low, high = float(errors[0]), *np.quantile(errors[1:], TAILS).tolist()
    rng = np.random.default_rng(seed)
    if group is None:
        gaps = confidence - (rng.random((n_boot, n)) < confidence)
    else:
        place = {key: i for i, key in enumerate(dict.fromkeys(group))}
        gaps = (confidence - correct) * rng.standard_normal((n_boot, len(place)))[:, [place[key] for key in group]]
    by_chance = np.abs(gaps @ bins).sum(1) / n
    least = 0.0 if value <= np.quantile(by_chance, TAILS[1]) else low
    low, high = np.maximum(0, np.minimum(least, 2 * value - high)), np.maximum(high, 2 * value - least)  # NaN stays
    return Interval(value, float(low), float(np.minimum(high, 1)), n)


def curve(confidence: Array, correct: Array) -> Curve:
    """Risk-coverage curve (El-Yaniv & Wiener 2010), a point for each distinct confidence; empty if there is none."""
    confidence, correct = columns(["confidence"], confidence=confidence, correct=correct)
    known = ~np.isnan(confidence)
    levels, index = np.unique(-confidence[known], return_inverse=True)
    answered = np.bincount(index, minlength=len(levels)).cumsum()
    wrong = np.bincount(index, 1 - correct[known], len(levels)).cumsum()
    return Curve(answered / len(confidence), wrong / answered, -levels, int(known.sum()))


def summary(confidence: Array, correct: Array, group: Keys = None, **options: Any) -> dict[str, Interval]:
    """`auroc` and `aurc` of items that have a confidence; options of `intervals.resamples`. AUROC: how often a right
    answer is surer than a wrong one, ties half. AURC: mean risk over the coverages of the curve; a constant confidence
    earns the overall risk (Geifman et al. 2018, arXiv 1805.08206)."""
    confidence, correct = columns(["confidence"], confidence=confidence, correct=correct)
    known = np.flatnonzero(~np.isnan(confidence))
    if not len(known):
        return {"auroc": Interval(), "aurc": Interval()}
    counts = intervals.resamples(len(known), group=intervals.pick(group, known), **options)
    order = np.argsort(-confidence[known], kind="stable")  # the surest first
    starts = np.flatnonzero(np.diff(confidence[known][order], prepend=np.inf))
    counts, error = counts[:, order], 1 - correct[known][order]
    answered, wrong = (np.add.reduceat(c, starts, axis=1) for c in (counts, counts * error))  # (tables, confidences)
    right = answered - wrong
    with np.errstate(divide="ignore", invalid="ignore"):
        risk = np.nan_to_num(wrong.cumsum(1) / answered.cumsum(1))  # 0 / 0: no item is that sure in this resample
        auroc = (wrong * (right.cumsum(1) - right / 2)).sum(1) / (wrong.sum(1) * right.sum(1))
    values = {"auroc": auroc, "aurc": (answered * risk).sum(1) / answered.sum(1)}
    return {name: intervals.interval(each, len(known)) for name, each in values.items()}


def threshold_for(confidence: Array, correct: Array, risk: float, delta: float | None = None) -> float:
    """The least confidence to answer at for a risk of at most `risk` on validation items, infinite if none will do.
    With `delta`, new items of the same kind stay below `risk` with probability 1 - delta: the exact binomial bound
    (Clopper & Pearson 1934) at delta / 10 holds at all tenths of coverage at once (after arXiv 1705.08500). Without any
    error, 10% at delta 0.05 needs 51 answered items; items that belong together weaken the guarantee."""
    coverage, bound, threshold, _ = curve(confidence, correct)
    candidates = np.arange(len(coverage))
    if delta is not None:
        tenths = np.searchsorted(coverage, np.arange(1, 11) / 10 - 1e-9)
        candidates = np.unique(tenths[tenths < len(coverage)])
        answered = np.round(coverage * len(np.asarray(confidence)))
        wrong = np.round(bound * answered)
        bound = np.where(wrong < answered, beta.ppf(1 - delta / 10, wrong + 1, answered - wrong), 1.0)
    good = candidates[bound[candidates] <= risk]
    return float(threshold[good[-1]]) if len(good) else float("inf")


def at(threshold: float, confidence: Array, correct: Array, group: Keys = None, **options: Any) -> dict[str, Interval]:
    """`coverage` and, over the answers, `selective_risk` of a threshold on new items; options of `intervals.mean`."""
    confidence, correct = columns(["confidence"], confidence=confidence, correct=correct)
    answers = np.flatnonzero(confidence >= threshold)  # NaN abstains
    members = intervals.pick(group, answers)
    risk = intervals.mean(1 - correct[answers], group=members, **options) if len(answers) else Interval()
    return {"coverage": intervals.mean(confidence >= threshold, group=group, **options), "selective_risk": risk}


def temperature(probabilities: Array, gold: Array) -> float:
    """The temperature (0.05 to 20) that makes the gold scores of validation items likeliest (Guo et al. 2017, arXiv
    1706.04599); above 1, the judge was overconfident. `probabilities` (n, K) are NaN for scores off an item's scale;
    rows that are NaN throughout are left out. `gold` (n,) is the column of the right score."""
    (p,), gold = columns(["probabilities"], probabilities=probabilities), np.asarray(gold)
    known = np.flatnonzero(~np.isnan(p).all(axis=1))
    if not len(known) or np.isnan(p[known, gold[known]]).any():
        raise ValueError("a temperature needs one row of probabilities, and in each such row that of the gold score")

    def loss(log_t: float) -> float:
        return -np.log(np.maximum(tempered(p, np.exp(log_t))[known, gold[known]], 1e-300)).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def tempered(probabilities: Array, t: float) -> Floats:
    """Probabilities (n, K) at temperature `t`, `p**(1/t)` of sum 1: `[.8, .2]` at 2 is `[.667, .333]`. NaN stays."""
    logs = np.log(np.maximum(np.asarray(probabilities, dtype=float), 5e-7)) / t  # a 0 was rounded to six decimals
    weights = np.exp(logs - np.fmax.reduce(logs, axis=1, keepdims=True))
    with np.errstate(invalid="ignore"):
        return weights / np.nansum(weights, axis=1, keepdims=True)
