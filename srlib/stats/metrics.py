"""Agreement, calibration, win rates, always with an interval.

Scores are floats with NaN where the judge gave none; a missing score is wrong wherever something is counted as right or
wrong, and absent wherever numbers are correlated.

>>> got = agreement(gold=[1, 2, 3, 4], scores=[1, 2, 3, float("nan")], scale=[1, 2, 3, 4, 5])
>>> got["accuracy"].value, got["pearson"].value, got["pearson"].n, got["parse_rate"].value
(0.75, 1.0, 3, 0.75)

Every statistic here depends on the items only through a contingency table; srlib.intervals says what that is good for.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray

from srlib.stats.intervals import (
    NAN,
    Floats,
    Interval,
    Keys,
    floats,
    interval,
    leave_one_out,
    on_z_scale,
    resample,
    same_length,
)


class WinRate(NamedTuple):
    value: float  # wins + ties / 2, as a share
    low: float
    high: float
    n: int
    wins: int
    ties: int
    losses: int


class Bin(NamedTuple):
    low: float
    high: float
    confidence: float  # mean of what was claimed in this bin, NaN where it is empty
    correct: float  # mean of what was so
    n: int


def agreement(
    gold: Array, scores: Array, scale: Array, n_boot: int = 2000, seed: int = 0, level: float = 0.95, group: Keys = None
) -> dict[str, Interval]:
    """How well `scores` (n,) agree with `gold` (n,): accuracy, balanced_accuracy, pearson, spearman, kendall, qwk, mae,
    parse_rate.

    `scale` holds every score that exists, the union where rubrics differ; anything off it raises. NaN in `scores` is
    wrong in both accuracies, counts in parse_rate, and is left out of the rest, whose `n` says how many remain. Balanced
    accuracy is the mean, over the gold scores that occur, of the share that is right: a judge that always says the most
    frequent of K scores has 1/K. Kendall is tau-b. QWK weighs by the squared distance of score values, so it is Lin's concordance coefficient; on an evenly
    spaced scale it is Cohen's kappa with quadratic weights. A correlation with a constant is NaN. A judge that always
    says 3 has a QWK of 0; only two equal constants have none. `group` (n,) names which items belong together.
    """
    points = np.unique(floats("scale", scale))
    gold, scores = floats("gold", gold), floats("scores", scores, missing=True)
    same_length(gold=gold, scores=scores)
    row, column = _index("gold", gold, points), _index("scores", scores, points)
    cells, counts = resample(row * (len(points) + 1) + column, n_boot, seed, group)
    x, y = points[cells // (len(points) + 1)], np.append(points, NAN)[cells % (len(points) + 1)]

    tables, units = leave_one_out(row * (len(points) + 1) + column, counts[0], group)
    counts = np.vstack([counts, tables])

    right, scored, n_scored = x == y, ~np.isnan(y), int(np.isfinite(scores).sum())
    bootstrapped = {
        "accuracy": (_ratio(counts @ right, counts.sum(1)), len(gold)),
        "balanced_accuracy": (_balanced(x, right, counts), len(gold)),
        "parse_rate": (_ratio(counts @ scored, counts.sum(1)), len(gold)),
        "mae": (_ratio(counts[:, scored] @ np.abs(x - y)[scored], counts[:, scored].sum(1)), n_scored),
    }
    found = {name: interval(values, n, level, units) for name, (values, n) in bootstrapped.items()}
    # What was not scored is no evidence of how scores go together, so it is no unit of these intervals either.
    kept = np.isfinite(scores)
    _, table = np.unique(column[kept] + row[kept] * (len(points) + 1), return_counts=True)
    members = None if group is None else [key for key, one in zip(group, kept, strict=True) if one]
    tables, units = leave_one_out((row * (len(points) + 1) + column)[kept], table.astype(float), members)
    associated = _association(x[scored], y[scored], np.vstack([table, tables]))
    return found | {name: on_z_scale(values, units, n_scored, level) for name, values in associated.items()}


def _balanced(gold: Floats, right: NDArray[np.bool_], counts: Floats) -> Floats:
    """Mean share of right answers over the gold values of each table: (cells,), (cells,), (tables, cells) -> (tables,)."""
    of_value = (gold == np.unique(gold)[:, None]).astype(float)  # (values, cells)
    return np.nanmean(_ratio((counts * right) @ of_value.T, counts @ of_value.T), axis=1)  # a resample may lack a value


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Shares, NaN where the whole is nothing."""
    with np.errstate(invalid="ignore"):
        return part / whole


def _association(x: Floats, y: Floats, counts: Floats) -> dict[str, Floats]:
    """All statistics of pairs of values, for many tables at once: x, y (cells,), counts (tables, cells) -> (tables,).

    Ranks need no sorting: with `order[i, j] = sign(x[i] - x[j])`, the centred mid-rank of x[i] is half the i-th entry
    of `order @ counts`, and concordant minus discordant pairs are a quadratic form of the product of the two orders.
    """
    order_x, order_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    rank_x, rank_y = counts @ order_x.T / 2, counts @ order_y.T / 2
    concordant = (counts * (counts @ (order_x * order_y))).sum(1)
    untied_x, untied_y = (counts * (counts @ order_x**2)).sum(1), (counts * (counts @ order_y**2)).sum(1)

    with np.errstate(divide="ignore", invalid="ignore"):
        p = counts / counts.sum(1, keepdims=True)
        dx, dy = x - (p @ x)[:, None], y - (p @ y)[:, None]
        var_x, var_y, cov = (p * dx**2).sum(1), (p * dy**2).sum(1), (p * dx * dy).sum(1)
        off, bias = p @ (x - y) ** 2, p @ x - p @ y
        ranks = [(p * a * b).sum(1) for a, b in ((rank_x, rank_y), (rank_x, rank_x), (rank_y, rank_y))]
        # untied_* are integers, so these comparisons are exact where a variance of 1e-17 would not be
        varied = np.where((untied_x > 0) & (untied_y > 0), 1.0, NAN)
        return {
            "pearson": varied * np.clip(cov / np.sqrt(var_x * var_y), -1, 1),
            "spearman": varied * np.clip(ranks[0] / np.sqrt(ranks[1] * ranks[2]), -1, 1),
            "kendall": varied * np.clip(concordant / np.sqrt(untied_x * untied_y), -1, 1),
            "qwk": np.where((untied_x > 0) | (untied_y > 0) | (off > 0), 1 - off / (var_x + var_y + bias**2), NAN),
        }


def mean(values: Array, n_boot: int = 2000, seed: int = 0, level: float = 0.95, group: Keys = None) -> Interval:
    """Mean of per-item values (n,), such as rationale accuracies; NaN is refused: decide first what it counts."""
    values = floats("values", values)
    cells, counts = resample(values, n_boot, seed, group)
    tables, units = leave_one_out(values, counts[0], group)
    counts = np.vstack([counts, tables])
    return interval(_ratio(counts @ cells, counts.sum(1)), len(values), level, units)


def paired_difference(
    a: Array, b: Array, n_boot: int = 2000, seed: int = 0, level: float = 0.95, group: Keys = None
) -> Interval:
    """Mean of `a - b` over the same items (n,), resampled together: `([1, 1, 0], [0, 1, 0])` has the value 1/3.

    What one item does to both cancels, so this interval is narrower than what two separate ones suggest.
    """
    a, b = floats("a", a), floats("b", b)
    same_length(a=a, b=b)
    return mean(a - b, n_boot, seed, level, group)


def at_equal(
    x: Array,
    y: Array,
    stratum: Sequence[Hashable],
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    group: Keys = None,
) -> dict[str, Interval]:
    """What `x` (n,) has to do with `y` (n,) among items of the same `stratum` (n,), such as the same gold score.

    Both are centred within each stratum, and what is left is pooled: `correlation` (a partial one, with the stratum as
    the covariate), and `slope`, by how much y grows with one standard deviation of x within strata. In resamples the
    centres are computed anew. An x that never varies within a stratum has neither (NaN); a y that never does, a slope
    of 0 and no correlation. `([1, 2, 1, 2], [0, 1, 5, 6], "aabb")` has the correlation 1 and the slope 0.5.
    """
    x, y = floats("x", x), floats("y", y)
    same_length(x=x, y=y, stratum=stratum)
    _, counts = resample(np.arange(len(x)), n_boot, seed, group)
    var_x, var_y, cov = np.zeros((3, len(counts)))
    for key in dict.fromkeys(stratum):
        here = np.array([other == key for other in stratum])
        w, dx, dy = counts[:, here], x[here] - x[here].mean(), y[here] - y[here].mean()
        n = np.maximum(w.sum(1), 1)
        mean_x, mean_y = w @ dx / n, w @ dy / n
        var_x += w @ dx**2 - n * mean_x**2
        var_y += w @ dy**2 - n * mean_y**2
        cov += w @ (dx * dy) - n * mean_x * mean_y
    var_x, var_y = (np.where(v > 1e-12 * len(x), v, 0) for v in (var_x, var_y))  # rounding is no variance
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(var_x > 0, cov / np.sqrt(var_x * counts.sum(1)), NAN)
        correlation = np.where((var_x > 0) & (var_y > 0), np.clip(cov / np.sqrt(var_x * var_y), -1, 1), NAN)
    found = {"slope": slope, "correlation": correlation}
    return {name: interval(values, len(x), level) for name, values in found.items()}


def win_rate(
    quality_a: Array, quality_b: Array, n_boot: int = 2000, seed: int = 0, level: float = 0.95, group: Keys = None
) -> WinRate:
    """How often a is better than b on the same items, ties half. Qualities are (n,), or (n, k) and compared as words in
    a dictionary are: `(3, 0)` beats `(2, 9)` and loses to `(3, 1)`."""
    a, b = floats("quality_a", quality_a, ndim=2), floats("quality_b", quality_b, ndim=2)
    if a.shape != b.shape:
        raise ValueError(f"quality_a has shape {a.shape} and quality_b {b.shape}: rows must be the same items")
    sign = np.sign(a - b)
    outcome = sign[np.arange(len(sign)), (sign != 0).argmax(axis=1)]  # the first column that differs decides
    return WinRate(
        *mean((1 + outcome) / 2, n_boot, seed, level, group), *(int((outcome == o).sum()) for o in (1, 0, -1))
    )


def pairwise_accuracy(
    score_a: Array,
    score_b: Array,
    preference: Sequence[str],
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    group: Keys = None,
) -> Interval:
    """Share of pairs that two pointwise scores rank as `preference` ("A", "B" or "tie") says, all (n,).

    Equal scores earn half where one side is better, and all where the gold is a tie; a missed tie earns nothing. A
    missing score on either side earns nothing, either: elsewhere it is often given a half, which pays for silence.
    """
    a, b = floats("score_a", score_a, missing=True), floats("score_b", score_b, missing=True)
    sign = {"A": 1.0, "B": -1.0, "tie": 0.0}
    for i, side in enumerate(preference):
        if side not in sign:
            raise ValueError(f"preference[{i}] is {side!r}; it must be 'A', 'B' or 'tie'")
    wanted = np.array([sign[side] for side in preference])
    same_length(score_a=a, score_b=b, preference=wanted)
    got = np.sign(a - b)  # NaN where a score is missing, which equals nothing
    return mean(np.where(got == wanted, 1.0, np.where(got == 0, 0.5, 0.0)), n_boot, seed, level, group)


def seeds(values: Array, level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval: `[60, 62, 64] -> Interval(62.0, 57.03, 66.97, 3)`.

    The interval speaks of a new seed's expectation, not of the items. One seed has no interval (NaN). A NaN value, a
    correlation that one seed could not define, is left out, and `n` says so.
    """
    from scipy.stats import t

    values = floats("values", values, missing=True)
    values = values[~np.isnan(values)]
    n, center = len(values), float(values.mean()) if len(values) else NAN
    half = float(t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else NAN
    return Interval(center, center - half, center + half, n)


def reliability(confidence: Array, correct: Array, bins: int = 10, span: tuple[float, float] = (0.0, 1.0)) -> list[Bin]:
    """What was claimed against what was so, in `bins` equal parts of `span`: a reliability diagram (Guo et al. 2017).

    `confidence` (n,) is a probability and `correct` (n,) is 0 or 1; or, with the scale's ends as `span`, `confidence`
    is the expected score and `correct` the gold score. A calibrated judge has `confidence == correct` in every bin.
    """
    confidence, correct, edges, where = _binned(confidence, correct, bins, span)
    n = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        claimed, was = (np.bincount(where, values, bins) / n for values in (confidence, correct))
    return [Bin(*row) for row in zip(*(v.tolist() for v in (edges[:-1], edges[1:], claimed, was, n)), strict=True)]


def ece(
    confidence: Array,
    correct: Array,
    bins: int = 10,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    group: Keys = None,
) -> Interval:
    """Expected calibration error: the mean gap of claim and truth in the bins of `reliability`, weighted by size.

    Chance makes gaps, so the error is too large, that of a resample more so, and percentiles of resamples miss the truth. The
    interval holds theirs and, reflected at the value, those that take the bias off twice; it begins at 0 where a judge that is
    right as often as it claims would have such an error (consistency resampling, Broecker and Smith 2007).
    """
    confidence, correct, _, where = _binned(confidence, correct, bins, (0.0, 1.0))
    _, counts = resample(np.arange(len(where)), n_boot, seed, group)
    in_bin = (where[:, None] == np.arange(bins)).astype(float)
    errors = np.abs(counts @ ((confidence - correct)[:, None] * in_bin)).sum(1) / counts.sum(1)
    value, (low, high) = float(errors[0]), np.quantile(errors[1:], [(1 - level) / 2, (1 + level) / 2])
    right = np.random.default_rng(seed).random((n_boot, len(where))) < confidence
    by_chance = np.abs((confidence - right) @ in_bin).sum(1) / len(where)
    if value <= np.quantile(by_chance, (1 + level) / 2):
        low = 0.0
    return Interval(value, max(0.0, min(float(low), 2 * value - high)), float(max(high, 2 * value - low)), len(where))


def majority(scores: Array) -> Floats:
    """Self-consistency: the most frequent of N scores, (n, N) -> (n,), NaN where none of the N could be read.

    Among equally frequent ones the nearest to the mean of the N wins, then the lower; no seed is involved:
    `[1, 1, 4, 4, 5] -> 4` (the mean is 3), `[2, 2, 4, 4] -> 2`.
    """
    scores = floats("scores", scores, missing=True, ndim=2)
    values, counts = _histogram(scores)
    if not len(values):
        return np.full(len(scores), NAN)
    n = counts.sum(1)
    center = counts @ values / np.maximum(n, 1)
    distance = np.abs(values - center[:, None]).round(9)  # so that 1/3 away on either side is a tie
    modes = counts == counts.max(axis=1, keepdims=True)
    return np.where(n > 0, values[np.where(modes, distance, np.inf).argmin(axis=1)], NAN)


def entropy(scores: Array) -> Floats:
    """Entropy in nats of each row's histogram of scores, (n, N) -> (n,): 0 where all agree, NaN where none was read."""
    _, counts = _histogram(floats("scores", scores, missing=True, ndim=2))
    n = counts.sum(1, keepdims=True)
    p = counts / np.maximum(n, 1)
    return np.where(n[:, 0] > 0, np.abs((p * np.log(np.where(p > 0, p, 1))).sum(1)), NAN)


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int = 2) -> float:
    """Distinct over all n-grams (Li et al. 2016): `distinct_n([[1, 2, 3], [1, 2, 4]], 2)` is 3/4, of none NaN."""
    grams = [tuple(tokens[i : i + n]) for tokens in texts for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else NAN


def _binned(confidence: Array, correct: Array, bins: int, span: tuple[float, float]):
    confidence, correct = floats("confidence", confidence), floats("correct", correct)
    same_length(confidence=confidence, correct=correct)
    outside = (confidence < span[0] - 1e-6) | (confidence > span[1] + 1e-6)  # probabilities may sum to 1.0000001
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(f"confidence[{i}] is {confidence[i]:g}, outside of {span[0]:g} to {span[1]:g}; set span")
    edges = np.linspace(*span, bins + 1)
    return confidence, correct, edges, np.searchsorted(edges[1:-1], confidence, side="right")


def _histogram(scores: Floats) -> tuple[Floats, Floats]:
    """(n, N) scores -> the distinct ones, ascending (K,), and how often each row has them (n, K)."""
    values = np.unique(scores[~np.isnan(scores)])
    return values, (scores[:, :, None] == values).sum(axis=1).astype(float)


def _index(name: str, values: Floats, points: Floats) -> NDArray[np.int64]:
    """Position of each value on the scale, `len(points)` for a missing one; scores are compared to six decimals."""
    distance = np.abs(values[:, None] - points)
    off = ~np.isnan(values) & (distance.min(axis=1) > 1e-6)
    if off.any():
        i, scale = int(off.argmax()), ", ".join(f"{point:g}" for point in points)
        raise ValueError(f"{name}[{i}] is {values[i]:g}, which is not on the scale ({scale})")
    return np.where(np.isnan(values), len(points), np.nan_to_num(distance, nan=np.inf).argmin(axis=1))
