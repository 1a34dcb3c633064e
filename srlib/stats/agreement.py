"""Agreement of scores with gold scores, of two scores with a preference, and of N scores of one item with each other.

Scores are floats, NaN if a judgment has none. A missing score is wrong in everything that counts right and wrong, and
absent from correlations and errors: `measure([1, 2, 3], [1, 2, float("nan")])["accuracy"].value` is 2/3."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata

from srlib.stats import intervals
from srlib.stats.intervals import NAN, Array, Floats, Interval, Keys, columns


def measure(gold: Array, scores: Array, n_boot: int = 2000, seed: int = 0, group: Keys = None) -> dict[str, Interval]:
    """accuracy, balanced_accuracy, parse_rate, mae, pearson, spearman, kendall and qwk of `scores` (n,), `gold` (n,).
    NaN in `scores` is left out of all but the first three, and their `n` says how many remain. Balanced accuracy is the
    mean accuracy of the gold scores that occur; Kendall is tau-b; QWK weighs by the squared distance of scores (Lin's
    concordance; on an even scale Cohen's kappa). A correlation with a constant is NaN, QWK if both are the same constant."""
    gold, scores = columns(missing=["scores"], gold=gold, scores=scores)
    kept, missing = np.isfinite(scores), 1e300
    outcome = gold + 1j * np.where(kept, scores, missing)  # a pair of numbers that sorts like one
    cells, counts, units = intervals.resample(outcome, n_boot, seed, group, jackknife=True)
    x, y = cells.real, cells.imag
    right, scored = x == y, y != missing
    of_score = (x == np.unique(x)[:, None]).astype(float)  # (gold scores, cells)
    with np.errstate(invalid="ignore"):
        by_score = (counts * right) @ of_score.T / (counts @ of_score.T)  # NaN if a resample lacks a gold score
        values = {
            "accuracy": counts @ right / counts.sum(1),
            "balanced_accuracy": np.nansum(by_score, axis=1) / np.isfinite(by_score).sum(1),
            "parse_rate": counts @ scored / counts.sum(1),
            "mae": counts[:, scored] @ np.abs(x - y)[scored] / counts[:, scored].sum(1),
        }
    n = int(kept.sum())
    metrics = {name: intervals.interval(v, n if name == "mae" else len(gold), units) for name, v in values.items()}
    names = ("pearson", "spearman", "kendall", "qwk")
    if not n:
        return metrics | dict.fromkeys(names, Interval())
    # Items without a score are no evidence of how scores go together, so they are no jackknife units either.
    members = intervals.pick(group, np.flatnonzero(kept))
    cells, counts, units = intervals.resample(outcome[kept], 1, 0, members, jackknife=True)
    tables, of = np.unique(np.delete(counts, 1, axis=0), axis=0, return_inverse=True)  # the data, and without each unit
    some = [_correlations(*(np.repeat(v, t.astype(int)) for v in (cells.real, cells.imag))) for t in tables]
    values = np.transpose(some)[:, of.ravel()]
    return metrics | {name: intervals.on_z_scale(v, n, units) for name, v in zip(names, values, strict=True)}


def _correlations(x: Floats, y: Floats) -> tuple[float, float, float, float]:
    constant = [len(set(v)) < 2 for v in (x, y)]
    if not len(x) or (all(constant) and x[0] == y[0]):
        return NAN, NAN, NAN, NAN
    qwk = 1 - ((x - y) ** 2).mean() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    if any(constant):
        return NAN, NAN, NAN, qwk
    pearson, spearman = (np.corrcoef(a, b)[0, 1] for a, b in ((x, y), (rankdata(x), rankdata(y))))
    return pearson, spearman, kendalltau(x, y).statistic, qwk


def pairwise_accuracy(score_a: Array, score_b: Array, preference: Sequence[str], **options: Any) -> Interval:
    """Share of pairs (n,) that two scores rank as `preference` ("A", "B", "tie") does; options of `intervals.mean`.
    Equal scores earn half if one side is better, all if the gold is a tie. A missed tie earns nothing, nor does a
    missing score on either side: the usual half would pay for silence."""
    gold = [{"A": 1, "B": -1, "tie": 0}[side] for side in preference]
    a, b, gold = columns(["score_a", "score_b"], score_a=score_a, score_b=score_b, preference=gold)
    ranked = np.sign(a - b)  # NaN if a score is missing, which equals nothing
    return intervals.mean(np.where(ranked == gold, 1.0, np.where(ranked == 0, 0.5, 0.0)), **options)


def at_equal(x: Array, y: Array, stratum: Sequence[Hashable], **options: Any) -> dict[str, Interval]:
    """`slope` (growth of y (n,) for one standard deviation of x (n,)) and `correlation` at equal `stratum` (n,), such
    as the gold score: both are centred within strata and pooled. Undefined if x (for the correlation, or y) is constant
    there. `([1, 2, 1, 2], [0, 1, 5, 6], "aabb")` has slope 0.5 and correlation 1. Options of `intervals.mean`."""
    index = np.unique(list(stratum), return_inverse=True)[1]
    x, y, _ = columns(x=x, y=y, stratum=index)
    x, y = (v - (np.bincount(index, v) / np.bincount(index))[index] for v in (x, y))
    x, z = (v / v.std() if v.std() > 1e-9 else None for v in (x, y))  # rounding is no variance
    effects = dict.fromkeys(("slope", "correlation"), Interval())
    for name, other in {"slope": y, "correlation": z}.items() if x is not None else ():
        if other is not None:  # standard deviations are estimates, too: influence values
            spread = x * x - 1 + (other * other - 1) * (name == "correlation")
            effects[name] = intervals.mean(x * other - (x * other).mean() * spread / 2, **options)
    return effects


def majority(scores: Array) -> float:
    """Self-consistency: the most frequent of N scores (N,), NaN if none was parsed. Among equally frequent ones the
    nearest to the mean of the N wins (to nine decimals), then the lower: `[1, 1, 4, 4, 5] -> 4`."""
    (scores,) = columns(["scores"], scores=scores)
    values, counts = np.unique(scores[~np.isnan(scores)], return_counts=True)
    modes = values[counts == counts.max(initial=0)]
    return float(modes[np.abs(modes - np.nanmean(scores)).round(9).argmin()]) if len(modes) else NAN


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int = 2) -> float:
    """Distinct over all n-grams (Li et al. 2016): `distinct_n([[1, 2, 3], [1, 2, 4]], 2)` is 3/4, NaN if none."""
    grams = [tuple(tokens[i : i + n]) for tokens in texts for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else NAN
