"""When a judge should keep silent: risk and coverage, abstention, temperature, and passing on score and uncertainty.

Imports metrics alone; numbers in, numbers out. An item's `confidence` is the probability that the judge gives its own
score; NaN is an item on which it abstains in any case, because there is no verdict or none of the scale's is likely.
Whatever is chosen here (a threshold, a temperature, a boundary) is chosen on validation items and measured on others.

>>> curve([0.9, 0.8, 0.4, float("nan")], [1, 1, 0, 0])
Curve(coverage=array([0.25, 0.5 , 0.75]), risk=array([0.        , 0.        , 0.33333333]), threshold=array([0.9, 0.8, 0.4]))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray

from srlib.stats import intervals
from srlib.stats.intervals import NAN, Floats, Interval, Keys

SMALLEST = 5e-7  # probabilities are kept to six decimals: one that reads 0 may be as large


class Curve(NamedTuple):
    coverage: Floats  # (K,) ascending: share of all items that are answered
    risk: Floats  # (K,) share of wrong answers among them
    threshold: Floats  # (K,) answered are the items whose confidence is at least this


def curve(confidence: Array, correct: Array) -> Curve:
    """Risk at every coverage that a threshold can reach, for confidence (n,) and correct (n,) in 0 and 1: a risk-coverage
    curve (El-Yaniv & Wiener 2010). It ends where only the NaN are left; it is empty where all are."""
    confidence, correct = _checked(confidence, correct)
    items, starts = _by_confidence(confidence)
    ends = np.append(starts[1:], len(items))[: len(starts)]  # first place behind each distinct confidence
    wrong = np.cumsum(1 - correct[items])
    return Curve(ends / len(confidence), wrong[ends - 1] / ends, confidence[items][starts])


def summary(
    confidence: Array, correct: Array, n_boot: int = 2000, seed: int = 0, level: float = 0.95, group: Keys = None
) -> dict[str, Interval]:
    """How well confidence (n,) tells right from wrong: `auroc` and `aurc`, over the items that are answered.

    AUROC: how often a right answer is surer than a wrong one, ties half; NaN where all are right or all wrong. AURC: mean
    risk of the curve over its coverages, so 0 is the best, and the overall share of errors what a constant gets. Below
    the risk of answering everything, confidence is worth something (Geifman et al. 2018, arXiv 1805.08206).
    """
    confidence, correct = _checked(confidence, correct)
    kept = ~np.isnan(confidence)
    if not kept.any():
        return {name: Interval(NAN, NAN, NAN, 0) for name in ("auroc", "aurc")}
    group = None if group is None else [key for key, keep in zip(group, kept, strict=True) if keep]
    confidence, correct = confidence[kept], correct[kept]
    items, starts = _by_confidence(confidence)
    _, counts = intervals.resample(np.arange(len(items)), n_boot, seed, group)
    # (tables, distinct confidences), the surest first
    everything = np.add.reduceat(counts[:, items], starts, axis=1)
    wrong = np.add.reduceat(counts[:, items] * (1 - correct[items]), starts, axis=1)
    right = everything - wrong
    with np.errstate(divide="ignore", invalid="ignore"):
        risk = np.nan_to_num(wrong.cumsum(1) / everything.cumsum(1))  # 0 / 0: nobody is that sure in this resample
        ahead = right.cumsum(1) - right / 2  # right answers that are surer, half of the equally sure
        values = {
            "auroc": (wrong * ahead).sum(1) / (wrong.sum(1) * right.sum(1)),
            "aurc": (everything * risk).sum(1) / everything.sum(1),
        }
    return {name: intervals.interval(found, len(items), level) for name, found in values.items()}


class Threshold(NamedTuple):
    value: float  # answer where confidence >= value; infinite: nowhere, no threshold is known to be good enough
    coverage: float  # on the validation items
    risk: float  # on the validation items; NaN where nothing is answered
    bound: float  # the risk is below this with probability 1 - delta; NaN where no guarantee was asked for
    n: int  # validation items, abstentions included


def threshold_for(confidence: Array, correct: Array, risk: float, delta: float | None = None) -> Threshold:
    """The threshold that answers most of the validation items (n,) with a risk of at most `risk`.

    With `delta` the risk on new items of the same kind stays below `risk` with probability 1 - delta: at each tenth of
    coverage the exact binomial bound (Clopper & Pearson 1934) is taken at delta / 10, so that it holds at all ten at
    once; the idea is Geifman & El-Yaniv's (arXiv 1705.08500). It takes items: without any error, 10% at delta 0.05
    needs 51 answered ones. Without `delta` the validation risk is taken as it is: no guarantee, and on new items it is
    above the target about as often as below. Items that belong together weaken the guarantee: it counts each as one.
    """
    from scipy.stats import beta

    if not 0 < risk < 1 or not (delta is None or 0 < delta < 1):
        raise ValueError(f"risk {risk} and delta {delta} must lie between 0 and 1")
    found = curve(confidence, correct)
    n = len(np.asarray(confidence))
    answered = np.round(found.coverage * n).astype(int)
    wrong = np.round(found.risk * answered).astype(int)
    if delta is None:
        looked_at, bound = np.arange(len(answered)), found.risk
    else:
        tenths = np.searchsorted(found.coverage, np.arange(1, 11) / 10 - 1e-9)
        looked_at = np.unique(tenths[tenths < len(answered)])
        bound = np.where(wrong < answered, beta.ppf(1 - delta / 10, wrong + 1, answered - wrong), 1.0)
    good = [k for k in looked_at if bound[k] <= risk]
    if not good:
        return Threshold(float("inf"), 0.0, NAN, NAN, n)
    k = good[-1]
    guaranteed = NAN if delta is None else float(bound[k])
    return Threshold(float(found.threshold[k]), float(found.coverage[k]), float(found.risk[k]), guaranteed, n)


def at(
    threshold: float,
    confidence: Array,
    correct: Array,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    group: Keys = None,
) -> dict[str, Interval]:
    """`coverage` and `selective_risk` of a threshold on items (n,) that had no part in choosing it; NaN abstains. The
    risk's n is the number of answers; without any it is NaN."""
    confidence, correct = _checked(confidence, correct)
    answers = confidence >= threshold  # False for NaN
    outcomes, counts = intervals.resample(answers * (1 + correct), n_boot, seed, group)  # 0 silent, 1 wrong, 2 right
    answered = counts[:, outcomes > 0].sum(1)
    with np.errstate(invalid="ignore"):
        risk = counts[:, outcomes == 1].sum(1) / answered
    return {
        "coverage": intervals.interval(answered / counts.sum(1), len(answers), level),
        "selective_risk": intervals.interval(risk, int(answers.sum()), level),
    }


# ---------------------------------------------------------------- temperature


def temperature(probabilities: Array, gold: Array) -> float:
    """The temperature that makes the gold scores of validation items likeliest (Guo et al. 2017, arXiv 1706.04599).

    `probabilities` (n, K), NaN in the columns of scores that an item's scale does not have, in all where the judge gave
    none: such rows are left out. `gold` (n,) is the column of the right score. Searched from 0.05 to 20; above 1 the
    judge was too sure of itself.
    """
    from scipy.optimize import minimize_scalar

    probabilities, gold = intervals.floats("probabilities", probabilities, missing=True, ndim=2), np.asarray(gold)
    kept = ~np.isnan(probabilities).all(axis=1)
    if not kept.any():
        raise ValueError("no row has probabilities; a temperature needs the judge's distribution over the scale")
    probabilities, gold = probabilities[kept], gold[kept]
    rows = np.arange(len(gold))
    if np.isnan(probabilities[rows, gold]).any():
        i = int(np.isnan(probabilities[rows, gold]).argmax())
        raise ValueError(f"gold[{np.flatnonzero(kept)[i]}] is column {gold[i]}, which is not on that item's scale")

    def loss(log_t: float) -> float:
        return -np.log(np.maximum(tempered(probabilities, np.exp(log_t))[rows, gold], 1e-300)).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def tempered(probabilities: Array, t: float) -> Floats:
    """Probabilities (n, K) at temperature `t`, `p**(1/t)` of sum 1: `[.8, .2]` at 2 is `[.667, .333]`. NaN stays NaN."""
    p = intervals.floats("probabilities", probabilities, missing=True, ndim=2)
    logs = np.log(np.maximum(p, SMALLEST)) / t  # maximum keeps NaN
    present = ~np.isnan(logs)
    logs -= np.max(logs, axis=1, keepdims=True, where=present, initial=-np.inf)
    weights = np.exp(logs)
    with np.errstate(invalid="ignore"):
        return weights / weights.sum(axis=1, keepdims=True, where=present)


# ---------------------------------------------------------------- passing


@dataclass(frozen=True)
class Boundary:
    """Pass where `weights @ (1, s, u, s * u) >= 0`, s and u being score and uncertainty less `center`, over `spread`."""

    weights: tuple[float, float, float, float]
    center: tuple[float, float]
    spread: tuple[float, float]

    def passes(self, score: Array, uncertainty: Array) -> NDArray[np.bool_]:
        """(n,), (n,) -> (n,). An item without a score does not pass."""
        given = np.column_stack([score, uncertainty]).astype(float)
        s, u = ((given - self.center) / self.spread).T
        return np.column_stack([np.ones(len(s)), s, u, s * u]) @ self.weights >= 0  # False for NaN


def fit_boundary(score: Array, uncertainty: Array | None, passed: Array) -> Boundary:
    """Where to draw the line between passing and failing, by logistic regression on validation items (n,).

    How far a score can be trusted depends on its uncertainty, so the line is drawn in the plane of both ("Leveraging
    Uncertainty Estimates To Improve Classifier Performance", arXiv 2311.11723, which searches bins of it; here it is
    smooth, for small validation sets). `uncertainty=None` draws it on the score alone. `passed` (n,) is 0 or 1. Items
    with NaN are left out. Raises ValueError where all pass or all fail: then there is no line.
    """
    from sklearn.linear_model import LogisticRegression

    used = uncertainty is not None
    score, passed = intervals.floats("score", score, missing=True), intervals.floats("passed", passed)
    uncertainty = intervals.floats("uncertainty", uncertainty, missing=True) if used else np.zeros(len(score))
    intervals.same_length(score=score, uncertainty=uncertainty, passed=passed)
    kept = ~np.isnan(score + uncertainty)
    if len(np.unique(passed[kept])) < 2:
        raise ValueError(f"of {int(kept.sum())} items with a score all pass or all fail; choose another pass mark")
    values = np.column_stack([score, uncertainty])[kept]
    center, spread = values.mean(axis=0), np.where(values.std(axis=0) > 0, values.std(axis=0), 1.0)
    s, u = ((values - center) / spread).T
    features = np.column_stack([s, u, s * u])[:, : 3 if used else 1]
    fitted = LogisticRegression().fit(features, passed[kept])
    weights = [*fitted.intercept_, *fitted.coef_[0], *[0.0] * (0 if used else 2)]
    return Boundary(tuple(map(float, weights)), tuple(map(float, center)), tuple(map(float, spread)))


# ---------------------------------------------------------------- what is given


def _checked(confidence: Array, correct: Array) -> tuple[Floats, Floats]:
    confidence, correct = intervals.floats("confidence", confidence, missing=True), intervals.floats("correct", correct)
    intervals.same_length(confidence=confidence, correct=correct)
    if not len(correct):
        raise ValueError("no items: nothing to abstain on")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct[{int((~np.isin(correct, (0, 1))).argmax())}] is neither 0 nor 1")
    return confidence, correct


def _by_confidence(confidence: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items that have a confidence, the surest first, and where in that order each distinct confidence begins."""
    items = np.argsort(-confidence, kind="stable")[: int((~np.isnan(confidence)).sum())]  # NaN sorts last
    return items, np.flatnonzero(np.diff(confidence[items], prepend=np.inf))
