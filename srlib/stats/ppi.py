"""Prediction-powered inference: the mean score of people, from a few of their scores and many of a judge's.

Angelopoulos et al. 2023 (arXiv 2301.09633) with the weight of PPI++ (arXiv 2311.01453): the mean of the judge's scores,
corrected by its errors on the rows that people scored. It is unbiased whatever the judge says; a good judge narrows the
interval, a useless one gets no weight. The authors' package brings numba and statsmodels; this is all we need of it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator
from scipy.stats import t

from srlib import files
from srlib.stats.intervals import Array, Interval, columns

Id = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]  # a number in many files


class Estimate(NamedTuple):
    mean: Interval  # of what people would say; n labels
    classical: Interval  # from the labels alone
    weight: float  # lambda of PPI++: 0 ignores the judge, 1 is plain PPI
    effective_n: float  # so many labels alone would give the same interval
    rows: int  # labelled or not


def debiased_mean(labels: Array, predictions: Array, unlabeled: Array, level: float = 0.95) -> Estimate:
    """Mean of the labels that all rows would get, from labels (n,), the judge's predictions on the same rows (n,) and
    on N others (N,). Rows must be independent and labelled by chance; intervals are Student's t. For
    `[1, 2, 3, 4], [1, 2, 3, 4], [2, 4]`: weight (5/3) / ((1 + 4/2) 22/15) = 0.379, mean 2.5 + 0.379 (3 - 2.5)."""
    (y, f), (g,) = columns(labels=labels, predictions=predictions), columns(unlabeled=unlabeled)
    n, more = len(y), len(g)
    if n < 2 or not more:
        raise files.RowError(f"{n} labels and {more} rows without one; give at least two labels and one such row")
    spread = np.concatenate([f, g]).var(ddof=1)  # below, the weight of least variance (arXiv 2311.01453, section 6)
    weight = float(np.clip(np.cov(y, f)[0, 1] / ((1 + n / more) * spread), 0, 1)) if spread > 0 else 0.0
    values = np.array([(y - weight * f).mean() + weight * g.mean(), y.mean()])
    variances = np.array([(y - weight * f).var(ddof=1) / n + weight**2 * spread / more, y.var(ddof=1) / n])
    half = t.ppf((1 + level) / 2, n - 1) * np.sqrt(variances)
    both = [Interval(*row, n) for row in np.transpose([values, values - half, values + half]).tolist()]
    effective = n * variances[1] / variances[0] if variances[0] > 0 else np.inf if variances[1] > 0 else n
    return Estimate(*both, weight, float(effective), n + more)


class Label(BaseModel, strict=True, allow_inf_nan=False):
    id: Id
    score: float | None  # null if the person gave none


class Judged(Label):
    id: Id | None  # null if `srlib judge` could not read the row
    expected_score: float | None = None
    preference: str | None = None  # of a comparison, which is no part of a mean score
    failure: str | None = None


def of_files(judged: Path | str, labels: Path | str, level: float = 0.95) -> tuple[Estimate, dict[str, int]]:
    """The estimate for a file of judgments and one of labels, matched by id; how many scores are missing, by reason.
    A judgment without a score predicts the mean of the judge's other scores, as dropping its row would change what the
    mean is about. Raises RowError for a label whose id was not judged, and if no judgment has a score."""
    read, people = files.read_rows(judged, Judged), files.read_rows(labels, Label)
    rows = [row for row in read if row.preference is None]
    scores = [row.score if row.expected_score is None else row.expected_score for row in rows]
    known = [score for score in scores if score is not None]
    if not known:
        raise files.RowError(f"{judged}: no judgment has a score to predict labels with; judge these rows again")
    if unknown := {label.id for label in people} - {row.id for row in rows}:
        hint = f"such as {files.shorten(min(unknown))}; judge these rows as well, or remove their labels"
        raise files.RowError(f"{labels}: {len(unknown)} labels are for ids that were not judged, {hint}")
    missing = Counter(row.failure or "no_score" for row, score in zip(rows, scores, strict=True) if score is None)
    missing.update("comparison" for row in read if row.preference is not None)
    missing.update("label_null" for label in people if label.score is None)
    gold = {label.id: label.score for label in people if label.score is not None}
    times = Counter(row.id for row in rows)
    names = [None if row.failure == "bad_row" and times[row.id] > 1 else row.id for row in rows]  # which row is meant?
    predicted = [(name, np.mean(known) if s is None else s) for name, s in zip(names, scores, strict=True)]
    pairs = [(gold[name], score) for name, score in predicted if name in gold]
    rest = [score for name, score in predicted if name not in gold]
    return debiased_mean([y for y, _ in pairs], [f for _, f in pairs], rest, level), dict(missing)


def told(estimate: Estimate, missing: Mapping[str, int], level: float) -> str:
    """The estimate in words, as `srlib ppi` prints it."""
    n, saved = estimate.mean.n, 1 - estimate.mean.n / estimate.effective_n
    (value, low, high, _), (mean, lowest, highest, _) = estimate.mean, estimate.classical
    counts = ", ".join(f"{name} {count}" for name, count in sorted(missing.items())) or "none"
    return f"""labels and judge: {value:.4f} [{low:.4f}, {high:.4f}]  {100 * level:g}%, {n} labels, {estimate.rows} rows
labels alone:     {mean:.4f} [{lowest:.4f}, {highest:.4f}]
as narrow as {estimate.effective_n:.0f} labels alone: the judge saves {saved:.0%}; lambda of PPI++ is {estimate.weight:.3f}
without a score: {counts}; rows count as independent, and as labelled by chance"""
