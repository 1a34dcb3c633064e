"""One arm against others on the same items. With `group`, the items of a group are exchanged and drawn together."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from srlib.stats import intervals
from srlib.stats.intervals import NAN, Array, Floats, Interval, Keys, columns


class Difference(NamedTuple):
    value: float  # mean of arm - other
    low: float
    high: float
    n: int  # items
    p: float  # two-sided, of a paired permutation test
    p_holm: float  # corrected for all comparisons of the table
    detectable: float  # true difference found 8 times in 10 at p < 0.05, before Holm; NaN if no item differs


def differences(arm: Array, others: Mapping[str, Array], group: Keys = None, **options: Any) -> dict[str, Difference]:
    """Per-item values (n,) of one arm, such as 0 and 1, against those of each other; options of `intervals.mean`."""
    deltas = {name: paired_difference(arm, other, group=group, **options) for name, other in others.items()}
    p = [permutation_test(arm, other, group=group) for other in others.values()]
    detectable = [0.714 * (d.high - d.low) or NAN for d in deltas.values()]  # (1.96 + 0.84) of 2 * 1.96 standard errors
    rows = zip(deltas, deltas.values(), p, holm(p).tolist(), detectable, strict=True)
    return {name: Difference(*interval, *rest) for name, interval, *rest in rows}


def paired_difference(a: Array, b: Array, **options: Any) -> Interval:
    """Mean of `a - b` over the same items (n,), `([1, 1, 0], [0, 1, 0]) -> 1/3`; options of `intervals.mean`."""
    a, b = columns(a=a, b=b)
    return intervals.mean(a - b, **options)


def win_rate(quality_a: Array, quality_b: Array, **options: Any) -> Interval:
    """How often a is better than b on the same items, ties half; options of `intervals.mean`. Qualities are (n,), or
    (n, k) in lexicographic order: `(3, 0)` beats `(2, 9)` and loses to `(3, 1)`."""
    a, b = columns(quality_a=quality_a, quality_b=quality_b)
    sign = np.sign(a - b).reshape(len(a), -1)
    outcome = sign[np.arange(len(sign)), (sign != 0).argmax(axis=1)]  # the first column that differs decides
    return intervals.mean((1 + outcome) / 2, **options)


def bradley_terry(wins: Array) -> Floats:
    """(n,) strengths from `wins` (n, n), how often i beat j, a tie half a win each (MM of Hunter 2004). Each also has a draw with a
    player of strength 1, so that strengths are finite if one always wins."""
    wins, strength = np.asarray(wins, float), np.ones(len(wins))
    for _ in range(200):
        opponents = ((wins + wins.T) / (strength[:, None] + strength)).sum(1) + 1 / (1 + strength)
        strength = (wins.sum(1) + 0.5) / opponents
    return strength


def permutation_test(a: Array, b: Array, *, group: Keys = None, n_permutations: int = 9999) -> float:
    """Two-sided p value of "a and b (n,) can be exchanged", by item or by group: from all exchanges if there are at
    most `n_permutations`, else from so many and the data (Ernst 2004). Of 5 items 5 better: 2 / 2**5."""
    place = {key: i for i, key in enumerate(sorted(set(group or ())))}
    index = range(len(a)) if group is None else [place[key] for key in group]
    a, b, _ = columns(a=a, b=b, group=index)
    sums = np.bincount(index, a - b)
    sums = sums[sums != 0]  # exchanging equal values changes nothing
    if len(sums) < 2:
        return 1.0
    options = dict(permutation_type="samples", n_resamples=n_permutations, vectorized=True, batch=1000, rng=0)
    return float(stats.permutation_test((sums,), lambda x, axis: x.sum(axis=axis), **options).pvalue)


def holm(p: Array) -> Floats:
    """Holm's step-down correction (1979) of p values (m,), however they depend on each other, in their order: rejecting
    below alpha errs anywhere in the table with probability alpha at most. `[.01, .04, .03] -> [.03, .06, .06]`"""
    (p,) = columns(p=p)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1)[np.argsort(order)]
