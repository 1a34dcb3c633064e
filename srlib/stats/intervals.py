"""95% bootstrap and jackknife intervals of items, or of groups of items that stand or fall together.

If a statistic depends on the items only through how often each distinct outcome occurs, a bootstrap resample is one
multinomial draw of that table, 2,000 resamples are a matrix of counts (2000, outcomes), and a few matrix products give
the statistic of all. With `group`, whole groups are drawn: all answers to one question, say. Means get BCa intervals;
correlations and QWK, for which percentiles are too narrow, t intervals on Fisher's z scale with a jackknife standard
error (coverage: docs/bench/coverage.md). A mean of 0 or 1 has an interval of no width: read `n` beside it."""

from collections.abc import Collection, Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
Keys = Sequence[Hashable] | None
NAN = float("nan")
TAILS, NORMAL = (0.025, 0.975), NormalDist()


class Interval(NamedTuple):
    value: float = NAN  # NaN if undefined, never 0
    low: float = NAN
    high: float = NAN
    n: int = 0  # items, pairs or seeds behind the value


def fields(interval: Interval) -> dict[str, float | int | None]:
    """Fields of a result row, null if undefined: `{"value": 0.4, "ci_low": 0.3, "ci_high": 0.5, "n": 9}`."""
    value, low, high = (round(float(x), 6) if np.isfinite(x) else None for x in interval[:3])
    return {"value": value, "ci_low": low, "ci_high": high, "n": interval.n}


def mean(values: Array, n_boot: int = 2000, seed: int = 0, group: Keys = None) -> Interval:
    """Mean of per-item values (n,), `[1, 1, 0, 1] -> (0.75, 0.25, 1.0, 4)`. NaN is refused: decide what it counts."""
    (values,) = columns(values=values)
    cells, counts, units = resample(values, n_boot, seed, group, jackknife=group is not None)
    with np.errstate(invalid="ignore", divide="ignore"):  # without a single item there is none
        without = [] if group is not None else (values.sum() - cells) / (len(values) - 1)
        return interval(np.append(counts @ cells / counts.sum(1), without), len(values), units)


def seeds(values: Array) -> Interval:
    """Mean over seeds with Student's t interval, NaN for one seed: `[60, 62, 64] -> (62, 57.03, 66.97, 3)`; n leaves out NaN."""
    (values,) = columns(["values"], values=values)
    values = values[~np.isnan(values)]
    n, center = len(values), float(values.mean()) if len(values) else NAN
    half = float(stdtrit(n - 1, TAILS[1]) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else NAN
    return Interval(center, center - half, center + half, n)


def resamples(n: int, n_boot: int = 2000, seed: int = 0, group: Keys = None) -> Floats:
    """How often each of n items occurs in the data (once), then in each resample: (1 + n_boot, n). For any statistic:
    `interval(counts @ values / counts.sum(1), n)` is a mean with its percentile interval."""
    return resample(np.arange(n), n_boot, seed, group)[1]


def resample(outcomes: Array, n_boot: int, seed: int, group: Keys = None, jackknife: bool = False) -> tuple:
    """Distinct outcomes (cells,) of items (n,), `[4, 4, 2] -> [2, 4]`; how often each is in the data, each resample and
    (`jackknife`) the data without each unit, an item or a group (1 + n_boot + U, cells); units that each such table lacks (U,).
    One group says nothing about others: its resamples are NaN."""
    if n_boot < 1 or not len(outcomes):
        raise ValueError(f"{len(outcomes)} items and n_boot {n_boot}: a metric needs at least one of each")
    rng = np.random.default_rng(seed)
    cells, index, observed = np.unique(outcomes, return_inverse=True, return_counts=True)
    n, units = len(cells), observed.astype(float)
    if group is not None:
        place = {key: i for i, key in enumerate(sorted(set(group)))}  # an array would be as wide as the longest text
        rows = np.array([place[key] for key in group])
        columns(items=index, group=rows)
        units, table = np.ones(rows.max() + 1), np.zeros((rows.max() + 1, n))
        np.add.at(table, (rows, index), 1)
        draws = rng.multinomial(len(units), units / len(units), size=n_boot)
        draws = draws @ (table if len(units) > 1 else NAN * table)
    elif n == len(outcomes):  # every outcome is distinct: counting draws is faster
        draws = rng.integers(n, size=(n_boot, n)) + n * np.arange(n_boot)[:, None]
        draws = np.bincount(draws.ravel(), minlength=n_boot * n).reshape(n_boot, n)
    else:
        draws = rng.multinomial(len(outcomes), observed / len(outcomes), size=n_boot)
    without = [observed - (np.eye(n) if group is None else table)] if jackknife else []
    return cells, np.vstack([observed, draws, *without]).astype(float), units


def pick(group: Keys, kept: Sequence[int]) -> Keys:
    """The groups of the items at these positions; None if there are no groups."""
    return None if group is None else [group[i] for i in kept]


def interval(values: Floats, n: int, units: Floats | None = None) -> Interval:
    """Percentile interval of a statistic from its `values` (1 + n_boot,) on data and resamples, NaN if undefined. With
    `units` (U,), U more values, of the jackknife, correct for bias and skew (BCa, Efron & Tibshirani 1993, ch. 14)."""
    value, n_units, quantiles = float(values[0]), 0 if units is None else len(units), TAILS
    draws, without = values[1 : len(values) - n_units], values[len(values) - n_units :]
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(draws):
        return Interval(value, n=n)
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    if n_units and not np.isnan(without).any() and 0 < below < 1:
        off = units @ without / units.sum() - without
        squares = units @ off**2
        skew = units @ off**3 / (6 * squares**1.5) if squares > 0 else 0.0
        bias = NORMAL.inv_cdf(below)
        quantiles = [NORMAL.cdf(bias + z / (1 - skew * z)) for z in (bias - 1.959963985, bias + 1.959963985)]
    return Interval(value, *np.quantile(draws, quantiles).tolist(), n)


def on_z_scale(values: Floats, n: int, units: Floats) -> Interval:
    """t interval of a correlation from its `values` (1 + U,) on the data, then without each of the `units` (U,): the
    jackknife standard error (Efron & Tibshirani 1993, chapter 11) times the slope of Fisher's z (arctanh). If one item
    decides whether there is a correlation at all, or there are fewer than five and they lie on a line, it is [-1, 1]."""
    value, without, total = float(values[0]), values[1:], units.sum()
    if np.isnan(value) or abs(value) > 1 - 1e-12:
        return Interval(value, *((-1.0, 1.0) if total < 5 and not np.isnan(value) else (value, value)), n)
    spread = units @ (without - units @ without / total) ** 2
    error = np.sqrt((total - 1) / total * spread) / (1 - value**2)
    half = stdtrit(max(total - 1, 1), TAILS[1]) * error
    ends = np.tanh(np.arctanh(value) + np.array([-half, half])) if np.isfinite(half) else np.array([-1.0, 1.0])
    return Interval(value, *ends.tolist(), n)


def columns(missing: Collection[str] = (), **arrays: Array) -> list[Floats]:
    """The arrays as floats, None as NaN: `a, b = columns(a=[1, 2], b=[3, 4])`. Raises ValueError naming the first value
    that is infinite, or NaN unless its name is in `missing`, and arrays of different lengths."""
    checked = {name: np.array(values, dtype=float) for name, values in arrays.items()}
    for name, array in checked.items():
        bad = np.argwhere(np.isinf(array) | (np.isnan(array) & (name not in missing)))
        if len(bad):
            at, hint = ", ".join(map(str, bad[0])), " or NaN" * (name in missing)
            raise ValueError(f"{name}[{at}] is {array[*bad[0]]}; it must be a finite number{hint}")
    if len({len(array) for array in checked.values()}) > 1:
        raise ValueError(", ".join(f"{name} has {len(array)} items" for name, array in checked.items()))
    return list(checked.values())
