"""One arm against others on the same items. With `group`, the items of a group are exchanged and drawn together.

>>> found = differences([1, 1, 1, 1, 0, 1], {"sft": [0, 0, 0, 0, 0, 0], "rft": [1, 1, 1, 0, 0, 1]})
>>> round(found["sft"].value, 3), found["sft"].p, found["sft"].p_holm, found["rft"].p_holm
(0.833, 0.0625, 0.125, 1.0)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from srlib.stats import intervals
from srlib.stats.intervals import NAN, Array, Floats, Interval, Keys, columns


class Difference(NamedTuple):
    value: float  # mean of arm - other
    low: float
    high: float
    n: int  # items
    p: float  # two-sided, of a paired permutation test
    p_holm: float  # corrected for all comparisons of the table
    detectable: float  # true difference that so many such items find 8 times in 10; NaN if no item differs


def differences(
    arm: Array, others: Mapping[str, Array], *, group: Keys = None, **options: Any
) -> dict[str, Difference]:
    """Per-item values (n,) of one arm, such as 0 and 1, against those of each other arm; options of `intervals.mean`."""
    found = {name: paired_difference(arm, other, group=group, **options) for name, other in others.items()}
    p = [permutation_test(arm, other, group=group) for other in others.values()]
    # Two-sided at 5% with 80% power: 1.96 + 0.84 standard errors, and an interval is 2 * 1.96 of them wide.
    detectable = [(1.96 + 0.84) / (2 * 1.96) * (d.high - d.low) or NAN for d in found.values()]
    rows = zip(found, found.values(), p, holm(p).tolist(), detectable, strict=True)
    return {name: Difference(*interval, *rest) for name, interval, *rest in rows}


def paired_difference(a: Array, b: Array, **options: Any) -> Interval:
    """Mean of `a - b` over the same items (n,), `([1, 1, 0], [0, 1, 0]) -> 1/3`; options of `intervals.mean`. What an item
    does to both cancels, so the interval is narrower than two separate ones suggest."""
    a, b = columns(a=a, b=b)
    return intervals.mean(a - b, **options)


def win_rate(quality_a: Array, quality_b: Array, **options: Any) -> Interval:
    """How often a is better than b on the same items, ties half; options of `intervals.mean`. Qualities are (n,), or (n, k)
    in lexicographic order: `(3, 0)` beats `(2, 9)` and loses to `(3, 1)`."""
    a, b = (np.reshape(quality, (len(quality), -1)) for quality in (quality_a, quality_b))
    a, b = columns(ndim=2, quality_a=a, quality_b=b)
    sign = np.sign(a - b)
    outcome = sign[np.arange(len(sign)), (sign != 0).argmax(axis=1)]  # the first column that differs decides
    return intervals.mean((1 + outcome) / 2, **options)


def permutation_test(a: Array, b: Array, *, group: Keys = None, n_permutations: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of "the arms can be exchanged", for per-item values a and b (n,): `5 of 5 better -> 2 / 2**5`. All
    exchanges of an item's (or a group's) two values are tried if there are at most `n_permutations`, else so many are
    drawn, and the data count as one (Ernst 2004)."""
    from scipy.stats import permutation_test as test

    index = range(len(a)) if group is None else np.unique(group, return_inverse=True)[1]
    a, b, _ = columns(a=a, b=b, group=index)
    sums = np.bincount(index, a - b)
    sums = sums[sums != 0]  # exchanging equal values changes nothing
    if len(sums) < 2:
        return 1.0
    options = dict(permutation_type="samples", n_resamples=n_permutations, vectorized=True, batch=1000)
    pair, rng = (sums, np.zeros(len(sums))), np.random.default_rng(seed)
    return float(test(pair, lambda x, y, axis: (x - y).sum(axis=axis), rng=rng, **options).pvalue)


def holm(p: Array) -> Floats:
    """Holm's step-down correction (1979) of p values (m,), in their order: `[.01, .04, .03] -> [.03, .06, .06]`. Rejecting
    below alpha then errs anywhere in the table with probability alpha at most, however the tests depend on each other."""
    (p,) = columns(p=p)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1)[np.argsort(order)]
