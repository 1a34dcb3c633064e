"""95% bootstrap and jackknife intervals of items, or of groups of items that stand or fall together.

If a statistic depends on the items only through how often each distinct outcome occurs, a bootstrap resample is one
multinomial draw of that table, 2,000 resamples are a matrix of counts (2000, outcomes), and a few matrix products compute
the statistic for all of them. With `group`, whole groups are drawn: all answers to one question, say. Means get BCa
intervals; correlations and QWK, for which percentiles are too narrow, t intervals on Fisher's z scale with a jackknife
standard error (coverage: docs/bench/coverage.md). A mean of 0 or 1 has an interval of no width: read `n` beside it.

>>> mean([1, 1, 0, 1])
Interval(value=0.75, low=0.25, high=1.0, n=4)
"""

from collections.abc import Collection, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Keys = Sequence[Hashable] | None
NAN = float("nan")
TAILS = np.array([0.025, 0.975])


class Interval(NamedTuple):
    value: float  # NaN if undefined, never 0
    low: float
    high: float
    n: int  # items, pairs or seeds behind the value


UNDEFINED = Interval(NAN, NAN, NAN, 0)


def fields(interval: Interval) -> dict[str, float | int | None]:
    """Fields of a result row, null if undefined: `{"value": 0.4, "ci_low": 0.3, "ci_high": 0.5, "n": 9}`."""
    value, low, high = (round(float(x), 6) if np.isfinite(x) else None for x in interval[:3])
    return {"value": value, "ci_low": low, "ci_high": high, "n": interval.n}


def mean(values: Array, n_boot: int = 2000, seed: int = 0, group: Keys = None) -> Interval:
    """Mean of per-item values (n,), BCa. Raises ValueError on NaN: decide first what a missing value counts."""
    (values,) = columns(values=values)
    cells, counts, units = resample(values, n_boot, seed, group, jackknife=True)
    with np.errstate(invalid="ignore"):  # without a single item there is none
        return interval(counts @ cells / counts.sum(1), len(values), units)


def seeds(values: Array) -> Interval:
    """Mean over seeds with Student's t interval, NaN for one seed: `[60, 62, 64] -> (62, 57.03, 66.97, 3)`. NaN values are
    left out, and `n` says how many remain."""
    from scipy.stats import t

    (values,) = columns(missing=["values"], values=values)
    values = values[~np.isnan(values)]
    n, center = len(values), float(values.mean()) if len(values) else NAN
    half = float(t.ppf(TAILS[1], n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else NAN
    return Interval(center, center - half, center + half, n)


def resamples(n: int, n_boot: int = 2000, seed: int = 0, group: Keys = None) -> Floats:
    """How often each of n items occurs in the data (once), then in each resample: (1 + n_boot, n). For any statistic:
    `interval(counts @ values / counts.sum(1), n)` is a mean with its percentile interval."""
    return resample(np.arange(n), n_boot, seed, group)[1]


def resample(
    outcomes: NDArray[Any], n_boot: int, seed: int, group: Keys = None, jackknife: bool = False
) -> tuple[NDArray[Any], Floats, Floats]:
    """Distinct outcomes (cells,) of items (n,), and how often each occurs in the data, in each resample and (`jackknife`) in
    the data without each unit, an item or a group: (1 + n_boot + U, cells). `[4, 4, 2] -> [2, 4], [[1, 2], ...]`. The third
    value says how many units leave each of the last U tables (U,)."""
    if n_boot < 1:
        raise ValueError(f"n_boot is {n_boot}; an interval needs at least one resample, 2000 is usual")
    if not len(outcomes):
        raise ValueError("no items: nothing to compute a metric from")
    rng = np.random.default_rng(seed)
    cells, index, observed = np.unique(outcomes, return_inverse=True, return_counts=True)
    n, units = len(cells), observed.astype(float)
    if group is not None:
        rows = np.unique(group, return_inverse=True)[1]
        columns(items=index, group=rows)
        units, table = np.ones(rows.max() + 1), np.zeros((rows.max() + 1, n))
        np.add.at(table, (rows, index), 1)
        draws = rng.multinomial(len(units), units / len(units), size=n_boot) @ table
    elif n == len(outcomes):  # every outcome is distinct: counting draws is faster
        draws = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(n_boot)])
    else:
        draws = rng.multinomial(len(outcomes), observed / len(outcomes), size=n_boot)
    without = [observed - (np.eye(n) if group is None else table)] if jackknife else []
    return cells, np.vstack([observed, draws, *without]).astype(float), units


def pick(group: Keys, kept: Sequence[int]) -> Keys:
    """The groups of the items at these positions; None if there are no groups."""
    return None if group is None else [group[i] for i in kept]


def interval(values: Floats, n: int, units: Floats | None = None) -> Interval:
    """Percentile interval of a statistic from its `values` (1 + n_boot,) on the data and the resamples, NaN if undefined.
    With `units` (U,), U more values are those of the jackknife and correct for bias and skew (BCa, Efron & Tibshirani
    1993, chapter 14)."""
    from scipy.special import ndtr, ndtri

    value, draws, without = float(values[0]), values[1:], values[:0]
    if units is not None:
        draws, without = draws[: -len(units)], draws[-len(units) :]
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(draws):
        return Interval(value, NAN, NAN, n)
    quantiles = TAILS
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    if len(without) and not np.isnan(without).any() and 0 < below < 1:
        off = units @ without / units.sum() - without
        squares = units @ off**2
        skew = units @ off**3 / (6 * squares**1.5) if squares > 0 else 0.0
        z = ndtri(below) + ndtri(TAILS)
        quantiles = ndtr(ndtri(below) + z / (1 - skew * z))
    return Interval(value, *np.quantile(draws, quantiles).tolist(), n)


def on_z_scale(values: Floats, n: int, units: Floats) -> Interval:
    """t interval of a correlation from its `values` (1 + U,) on the data, then without each of the `units` (U,): the
    jackknife standard error (Efron & Tibshirani 1993, chapter 11) times the slope of Fisher's z (arctanh). If one item
    decides whether there is a correlation at all, it is [-1, 1]."""
    from scipy.stats import t

    value, without, total = float(values[0]), values[1:], units.sum()
    if np.isnan(value) or abs(value) > 1 - 1e-12:
        return Interval(value, value, value, n)
    center = units @ without / total
    error = np.sqrt((total - 1) / total * (units @ (without - center) ** 2)) / (1 - value**2)
    half = t.ppf(TAILS[1], max(total - 1, 1)) * error
    ends = np.tanh(np.arctanh(value) + np.array([-half, half])) if np.isfinite(half) else np.array([-1.0, 1.0])
    return Interval(value, *ends.tolist(), n)


def columns(missing: Collection[str] = (), ndim: int = 1, **arrays: Array) -> list[Floats]:
    """The arrays as floats, None as NaN: `a, b = columns(a=[1, 2], b=[3, 4])`. Raises ValueError naming the first value that
    is infinite, or NaN unless its name is in `missing`, and arrays of other dimensions or of different lengths."""
    found = {name: np.array(values, dtype=float) for name, values in arrays.items()}
    for name, array in found.items():
        if array.ndim != ndim:
            raise ValueError(f"{name} has shape {array.shape}; it must have {ndim} dimension{'s' * (ndim > 1)}")
        bad = np.argwhere(np.isinf(array) | (np.isnan(array) & (name not in missing)))
        if len(bad):
            at, hint = ", ".join(map(str, bad[0])), " or NaN" * (name in missing)
            raise ValueError(f"{name}[{at}] is {array[*bad[0]]}; it must be a finite number{hint}")
    if len({len(array) for array in found.values()}) > 1:
        raise ValueError(", ".join(f"{name} has {len(array)} items" for name, array in found.items()))
    return list(found.values())
