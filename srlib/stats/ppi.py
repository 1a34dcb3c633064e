"""A few people's scores and many of a judge's: the mean score that people would have given, without the judge's bias.

Prediction-powered inference (Angelopoulos et al. 2023, arXiv 2301.09633) with the weight of PPI++ (arXiv 2311.01453): the
mean of the judge's scores over all rows, corrected by how far they are off on the rows that people scored. It is right on
average whatever the judge says; a good judge makes the interval narrower than the labels alone do, a useless one gets no
weight. A judge that is no better than what it judges saves half of the labels at most (arXiv 2410.13341).

Imports metrics and store; written here because the authors' package brings numba and statsmodels. `of_files` is what
`srlib ppi` calls.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike as Array
from pydantic import BaseModel, ConfigDict

from srlib import files as store
from srlib.stats import intervals
from srlib.stats.intervals import Interval


class Estimate(NamedTuple):
    mean: Interval  # of what people would say; n labels
    classical: Interval  # from the labels alone
    weight: float  # PPI++'s lambda: how much the judge counts, 0 not at all, 1 as much as in plain PPI
    effective_n: float  # so many labels would give the same interval without a judge
    rows: int  # labelled or not

    @property
    def saved(self) -> float:
        """Share of labels that the judge saves: `1 - n / effective_n`, 0 where it helps nothing."""
        return 1 - self.mean.n / self.effective_n


def debiased_mean(labels: Array, predictions: Array, unlabeled: Array, level: float = 0.95) -> Estimate:
    """Mean of the labels that all rows would get, for labels (n,), the judge's predictions on the same rows (n,) and on N
    rows without a label (N,). Rows are independent, and which were labelled was left to chance.

    `labels = [1, 2, 3, 4], predictions = [1, 2, 3, 4], unlabeled = [2, 4]`: covariance 5/3, variance of all predictions
    22/15, so the weight is (5/3) / ((1 + 4/2) 22/15) = 0.379 and the mean 2.5 + 0.379 (3 - 2.5) = 2.689. Intervals are
    Student's t with n - 1 degrees of freedom: with few labels the normal one is too narrow.
    """
    from scipy.stats import t

    y, f = intervals.floats("labels", labels), intervals.floats("predictions", predictions)
    g = intervals.floats("unlabeled", unlabeled)
    intervals.same_length(labels=y, predictions=f)
    n, more = len(y), len(g)
    if n < 2 or not more:
        raise ValueError(f"{n} labels and {more} rows without one; it takes two labels and one such row at least")
    spread = np.concatenate([f, g]).var(ddof=1)
    weight = 0.0
    if spread > 0:  # arXiv 2311.01453, section 6: the weight of least variance, kept between not at all and in full
        weight = float(np.clip(np.cov(y, f)[0, 1] / ((1 + n / more) * spread), 0, 1))
    value = float((y - weight * f).mean() + weight * g.mean())
    variance = (y - weight * f).var(ddof=1) / n + weight**2 * spread / more
    alone = y.var(ddof=1) / n
    quantile = float(t.ppf((1 + level) / 2, n - 1))

    def around(center: float, of: float) -> Interval:
        half = quantile * math.sqrt(of)
        return Interval(center, center - half, center + half, n)

    effective = n * alone / variance if variance > 0 else math.inf if alone > 0 else float(n)
    return Estimate(around(value, variance), around(float(y.mean()), alone), weight, float(effective), n + more)


def told(found: Estimate, missing: Mapping[str, int], level: float) -> str:
    """The estimate in words, as `srlib ppi` prints it."""
    n, percent = found.mean.n, f"{100 * level:g}%"
    worth = f"as narrow as {found.effective_n:.0f} labels alone would make it; labels saved {found.saved:.0%}"
    lines = [
        f"labels and judge: {found.mean.value:.4f} [{found.mean.low:.4f}, {found.mean.high:.4f}]  {percent}, {n} labels, "
        f"{found.rows - n} rows without one; {worth}",
        f"labels alone:     {found.classical.value:.4f} [{found.classical.low:.4f}, {found.classical.high:.4f}]  {percent}",
        f"the judge's weight (lambda of PPI++) is {found.weight:.3f}; rows count as independent, and as labelled by chance",
    ]
    counts = ", ".join(f"{name} {count}" for name, count in sorted(missing.items())) or "none"
    return "\n".join([*lines, f"without a score: {counts}"])


class Judged(BaseModel):
    """What is read of a judgment; `srlib judge` writes more. The expected score predicts, where there is one."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    id: str | None  # null where `srlib judge` could not read the row
    score: float | None
    expected_score: float | None = None
    failure: str | None = None

    @property
    def prediction(self) -> float | None:
        return self.score if self.expected_score is None else self.expected_score


class Label(BaseModel):
    """What a person said about the row with this id; null where they said nothing."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    id: str
    score: float | None


@dataclass(frozen=True)
class Matched:
    labels: list[float]
    predictions: list[float]  # of the labelled rows
    unlabeled: list[float]  # of the others
    missing: dict[str, int]  # judgments and labels without a score, by name


def of_files(judged: Path | str, labels: Path | str, level: float = 0.95) -> tuple[Estimate, dict[str, int]]:
    """The estimate for a file of judgments (`srlib judge` writes it) and one of labels, and what was missing by name."""
    found = match(store.read_rows(judged, Judged), store.read_rows(labels, Label))
    return debiased_mean(found.labels, found.predictions, found.unlabeled, level), found.missing


def match(judged: Sequence[Judged], labels: Sequence[Label]) -> Matched:
    """Judgments and labels by id.

    A judgment without a score stays: leaving its row out would change which rows the mean is about. It predicts the mean
    of the judge's other scores, which is right because the estimate is for any prediction, and `missing` counts it under
    its failure's name, or `no_score`. A label of null is counted as `label_null`, and its row as unlabelled. Raises
    ValueError for a label whose id was not judged, and where no judgment has a score.
    """
    read = [row.prediction for row in judged if row.prediction is not None]
    if not read:
        raise ValueError(f"none of {len(judged)} judgments has a score; there is nothing to predict labels with")
    missing = Counter(row.failure or "no_score" for row in judged if row.prediction is None)
    missing.update("label_null" for label in labels if label.score is None)
    people = {label.id: label.score for label in labels if label.score is not None}
    unknown = {label.id for label in labels} - {row.id for row in judged}
    if unknown:
        raise ValueError(
            f"{len(unknown)} labels are for ids that were not judged, such as {store.shorten(min(unknown))}; "
            "judge these rows as well, or take their labels out"
        )
    center = float(np.mean(read))
    predicted = [(row.id, center if row.prediction is None else row.prediction) for row in judged]
    pairs = [(people[name], score) for name, score in predicted if name in people]
    return Matched(
        labels=[label for label, _ in pairs],
        predictions=[score for _, score in pairs],
        unlabeled=[score for name, score in predicted if name not in people],
        missing=dict(missing),
    )
