"""Is one arm better than another: paired tests, corrected for how many there are, and what n items can show at all.

Imports metrics alone; numbers in, numbers out. Arms are compared on the same items. Where items belong together (several
answers to one question), `group` names which, and then groups are exchanged, drawn and counted, not items.

>>> found = differences([1, 1, 1, 1, 0, 1], {"sft": [0, 0, 0, 0, 0, 0], "rft": [1, 1, 1, 0, 0, 1]})
>>> round(found["sft"].value, 3), found["sft"].p, found["sft"].p_holm
(0.833, 0.0625, 0.125)
>>> found["rft"].p_holm
1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike as Array

from srlib.stats import intervals, metrics
from srlib.stats.intervals import NAN, Floats, Keys


class Difference(NamedTuple):
    value: float  # mean of ours - theirs
    low: float
    high: float
    n: int  # items
    p: float  # two-sided, paired permutation test
    p_holm: float  # the same, corrected for all comparisons of the table
    detectable: float  # the true difference that n such items find 8 times in 10; NaN where no item differs


def differences(
    ours: Array,
    others: Mapping[str, Array],
    *,
    group: Keys = None,
    n_boot: int = 2000,
    n_permutations: int = 9999,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Difference]:
    """One arm against each of the others, per-item values (n,) such as 0 and 1 for wrong and right: a table whose
    `p_holm` may be read row by row. Raises ValueError on NaN (decide first what a missing score counts) and on lengths
    that differ."""
    ours = np.asarray(ours, dtype=float)
    found = {}
    for name, other in others.items():
        interval = metrics.paired_difference(ours, other, n_boot, seed, level, group)
        p = permutation_test(ours, other, group=group, n_permutations=n_permutations, seed=seed)
        found[name] = (*interval, p, minimum_detectable(ours, other, group=group, level=level))
    corrected = holm([row[4] for row in found.values()])
    return {
        name: Difference(*row[:5], float(p), row[5]) for (name, row), p in zip(found.items(), corrected, strict=True)
    }


def permutation_test(a: Array, b: Array, *, group: Keys = None, n_permutations: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of "it does not matter which arm is called a", for per-item values a and b (n,).

    Under that hypothesis the two values of an item (or all of a group's) may be exchanged, which turns the sign of their
    difference. All exchanges are tried where there are at most `n_permutations`, else so many are drawn, and the data
    count as one of them (scipy.stats.permutation_test; Ernst 2004). `a = [1, 1, 1, 1, 1], b = [0, 0, 0, 0, 0] -> 2 / 2**5`.
    """
    from scipy.stats import permutation_test as test

    sums, _ = _by_group(a, b, group)
    sums = sums[sums != 0]  # exchanging equal values changes nothing, so they need no permutations
    if len(sums) < 2:
        return 1.0

    def difference(x: Floats, y: Floats, axis: int) -> Floats:
        return (x - y).sum(axis=axis)

    pair = (sums, np.zeros(len(sums)))
    rng = np.random.default_rng(seed)
    how = dict(permutation_type="samples", n_resamples=n_permutations, vectorized=True, rng=rng, batch=1000)
    return float(test(pair, difference, **how).pvalue)


def holm(p: Array) -> Floats:
    """Holm's step-down correction (1979) of m p values (m,), in their order: `[.01, .04, .03] -> [.03, .06, .06]`.

    Rejecting where the result is below alpha errs anywhere in the table with a probability of at most alpha, whatever
    the tests have to do with each other.
    """
    p = np.asarray(p, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():  # NaN is not, either
        raise ValueError(f"p values must lie between 0 and 1; got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def minimum_detectable(a: Array, b: Array, *, group: Keys = None, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true mean difference that a two-sided paired test at 1 - `level` finds with probability `power`, by
    the spread of these n differences: `(z_level + z_power) * standard error`, clustered by `group`.

    400 items of which 20% change from wrong to right or back: about 6.3 points. NaN where no item differs, or there is
    one group only: such data say nothing about the spread.
    """
    from scipy.stats import norm

    sums, sizes = _by_group(a, b, group)
    n, groups = sizes.sum(), len(sums)
    if groups < 2 or not sums.any():
        return NAN
    residual = sums - sums.sum() / n * sizes
    error = np.sqrt(groups / (groups - 1) * (residual**2).sum()) / n
    return float((norm.ppf((1 + level) / 2) + norm.ppf(power)) * error)


def _by_group(a: Array, b: Array, group: Keys) -> tuple[Floats, Floats]:
    """Sum of a - b, and number of items, of each group (of each item, where there are no groups)."""
    a, b = intervals.floats("a", a), intervals.floats("b", b)
    intervals.same_length(a=a, b=b, **({} if group is None else {"group": group}))
    names = range(len(a)) if group is None else group
    number = {key: i for i, key in enumerate(dict.fromkeys(names))}
    where = [number[key] for key in names]
    return np.bincount(where, a - b, len(number)), np.bincount(where, minlength=len(number)).astype(float)
