"""What a judge said about the items of a benchmark -> figures, by its own rule. Arithmetic alone: no file, no judge.

Imports metrics. A rule is a function of judged items; each figure is a row with its n, its interval (over groups of
items that share a prompt), the share of answers that could be read, and the names of those that could not:

>>> right = Judged("1", gold="A", said={"AB": "A", "BA": "B"})  # in the second order B came first, and was preferred
>>> credit("A", "A"), credit("tie", "A"), credit(None, "A")
(1.0, 0.5, 0.0)
>>> accuracy(right), consistency(right), both_correct(right)
(0.5, 0.0, 0.0)

`said` is keyed by what the judge was shown. Letters and numbers name responses, never places:

    ""          the one response of an item -> its score; or all responses of an item -> the one it prefers
    "A", "B"    one response of two -> its score
    "AB", "BA"  both, in this order -> "A", "B" or "tie"
    "1", "2"    one response of several -> its score
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srlib.stats import intervals, metrics

Answer = float | str
Rows = list[dict[str, Any]]
Value = Callable[["Judged"], float | None]  # what one item is worth under a metric, None where that does not apply
NAN = float("nan")


@dataclass(frozen=True)
class Judged:
    """One item, what is right, and what the judge said."""

    id: str
    gold: (
        float | str
    )  # a score; the better response of two ("A", "B", "tie"); of several, how many, the first ones, are right
    said: Mapping[str, Answer] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)  # what the judge was shown -> why there is no answer
    subset: str = ""
    group: str = ""  # items of one group stand or fall together; "": the item alone


def figure(metric: str, rows: Sequence[Judged], found: intervals.Interval, subset: str = "all") -> dict[str, Any]:
    """One row of the results. A value that is not defined is None, never a number."""
    answers = sum(len(row.said) + len(row.failed) for row in rows)
    failures = Counter(name for row in rows for name in row.failed.values())
    return {
        "subset": subset, "metric": metric, **intervals.fields(found),
        "parse_rate": round(sum(len(row.said) for row in rows) / max(1, answers), 6), "failures": dict(failures),
    }  # fmt: skip


# ---------------------------------------------------------------- two responses


def order_of(name: str) -> str:
    """The order in which the two responses of an item are shown where a protocol shows one: `"AB"` or `"BA"`, by a hash
    of the item's id, so that reruns agree and the better response stands first in half of the items."""
    return ("AB", "BA")[hashlib.blake2b(name.encode(), digest_size=1).digest()[0] & 1]


def verdicts(row: Judged) -> dict[str, str | None]:
    """Order -> which response is preferred, None where that could not be read. Two scores are one verdict, under ""."""
    shown: dict[str, Answer | None] = {**dict.fromkeys(row.failed), **row.said}
    orders = {order: shown[order] for order in ("AB", "BA", "") if order in shown}
    if orders or not shown:
        return orders or {"": None}
    a, b = shown.get("A"), shown.get("B")
    return {"": None if a is None or b is None else "A" if a > b else "B" if b > a else "tie"}


def credit(said: str | None, gold: str, tie: float = 0.5, failure: float = 0.0) -> float:
    """What a verdict is worth: 1 where it is right, `tie` for a tie between two that are not, `failure` for none."""
    if said is None:
        return failure
    return 1.0 if said == gold else tie if said == "tie" else 0.0


def accuracy(row: Judged, tie: float = 0.5, failure: float = 0.0) -> float:
    """Mean credit of the orders that were asked."""
    found = verdicts(row)
    return sum(credit(said, row.gold, tie, failure) for said in found.values()) / len(found)


def accuracy_in_one_order(row: Judged, tie: float = 0.5, failure: float = 0.5) -> float:
    """Credit of the order that `order_of` names, or of the only one there is."""
    found = verdicts(row)
    return credit(found.get(order_of(row.id), next(iter(found.values()))), row.gold, tie, failure)


def accuracy_without_ties(row: Judged) -> float | None:
    """`accuracy` of items where one response is better."""
    return None if row.gold == "tie" else accuracy(row)


def accuracy_where_read(row: Judged) -> float | None:
    """`accuracy` of items where every verdict could be read: what a judge that fails often is worth when it does not."""
    return None if None in verdicts(row).values() else accuracy(row)


def consistency(row: Judged) -> float | None:
    """Whether both orders came to the same verdict; two that could not be read did not."""
    found = verdicts(row)
    return None if "AB" not in found or "BA" not in found else float(found["AB"] == found["BA"] is not None)


def both_correct(row: Judged) -> float | None:
    found = verdicts(row)
    return None if "AB" not in found or "BA" not in found else float(found["AB"] == row.gold == found["BA"])


def two_order_accuracy(row: Judged) -> float:
    """JudgeBench (arXiv 2410.12784): each order adds 1 where it is right and takes 1 where it prefers the other; the item
    counts where the sum is above 0. So one right order and one that is a tie, or unread, is right."""
    found = verdicts(row).values()
    return float(sum((said == row.gold) - (said not in (row.gold, "tie", None)) for said in found) > 0)


# ---------------------------------------------------------------- rules


def by_item(
    rows: Sequence[Judged],
    values: Mapping[str, Value],
    sections: Mapping[str, Mapping[str, float]] | None = None,
    overall: str = "",
    n_boot: int = 2000,
    seed: int = 0,
) -> Rows:
    """For each metric: all items, each subset, each section (subsets with their weights), and, under the name
    `overall`, the plain mean of the sections. A section that lacks one of its subsets has no value, and says which."""
    out: Rows = []
    for metric, read in values.items():
        worth = [read(row) for row in rows]
        kept = [row for row, value in zip(rows, worth, strict=True) if value is not None]
        if not kept:
            continue
        x, subsets = np.array([v for v in worth if v is not None]), np.array([row.subset for row in kept])
        counts = intervals.resamples(len(kept), n_boot, seed, groups(kept))
        means = {name: mean_where(counts, x, subsets == name) for name in dict.fromkeys(subsets.tolist())}
        if not overall:
            out.append(figure(metric, kept, metrics.mean(x, n_boot, seed, group=groups(kept))))
        for name in means if len(means) > 1 or overall else ():
            own = [row for row in kept if row.subset == name]
            found_here = metrics.mean(x[subsets == name], n_boot, seed, group=groups(own))
            out.append(figure(metric, own, found_here, name))
        found = []
        for section, weights in (sections or {}).items():
            own = [row for row in kept if row.subset in weights]
            absent = [name for name in weights if name not in means]
            total = sum(w * means.get(name, np.full(len(counts), NAN)) for name, w in weights.items())
            found.append(total / sum(weights.values()))
            out.append(figure(metric, own, intervals.interval(found[-1], len(own)), section))
            out[-1]["failures"] |= {f"no {name}": 1 for name in absent}
        if overall:
            out.append(figure(metric, kept, intervals.interval(sum(found) / len(found), len(kept)), overall))
    return out


def by_score(rows: Sequence[Judged], names: Sequence[str], macro: str = "", n_boot: int = 2000, seed: int = 0) -> Rows:
    """Agreement of scores with gold scores (metrics.agreement), of all items and of each subset. `macro` names the mean
    over subsets of Pearson's correlation; it is not defined where that of one subset is not."""
    out: Rows = []
    subsets = list(dict.fromkeys(row.subset for row in rows))
    for subset in ["all", *(subsets if len(subsets) > 1 else [])]:
        own = [row for row in rows if subset in ("all", row.subset)]
        gold, scores = _gold(own), _said(own)
        # What is there is the scale: a mean of several scores, or of several people, is on no rubric's.
        scale = [*gold, *scores[np.isfinite(scores)]]
        found = metrics.agreement(gold, scores, scale, n_boot=n_boot, seed=seed, group=groups(own))
        out += [figure(name, own, found[name], subset) for name in names]
    if macro:
        counts = intervals.resamples(len(rows), n_boot, seed, groups(rows))
        gold, scores, at = _gold(rows), _said(rows), np.array([row.subset for row in rows])
        each = [_pearson(counts[:, at == name], gold[at == name], scores[at == name]) for name in subsets]
        n = int(np.isfinite(scores).sum())
        out.append(figure("pearson", rows, intervals.interval(sum(each) / len(each), n), macro))
    return out


def by_document(rows: Sequence[Judged], n_boot: int = 2000, seed: int = 0) -> Rows:
    """SummEval and its like: Spearman's and Kendall's correlation (tau-b) of the summaries of one document, the mean of
    the documents where gold and scores both vary; `n` counts those, `failures` the others."""
    from scipy.stats import kendalltau, spearmanr

    found: dict[str, list[float]] = {"spearman_by_document": [], "kendall_by_document": []}
    flat = 0
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group and "" in row.said]
        gold, scores = _gold(own), _said(own)
        if len(own) < 2 or np.ptp(gold) == 0 or np.ptp(scores) == 0:
            flat += 1
            continue
        found["spearman_by_document"].append(float(spearmanr(gold, scores)[0]))
        found["kendall_by_document"].append(float(kendalltau(gold, scores)[0]))
    undefined = intervals.Interval(NAN, NAN, NAN, 0)
    out = [
        figure(name, rows, metrics.mean(values, n_boot, seed) if values else undefined)
        for name, values in found.items()
    ]
    for row in out:
        row["failures"] |= {"document without variance": flat} if flat else {}
    return out


PAIRS: Mapping[str, Value] = {
    "accuracy": accuracy, "accuracy_where_read": accuracy_where_read, "consistency": consistency,
}  # fmt: skip


# ---------------------------------------------------------------- arithmetic


def mean_where(counts: np.ndarray, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Mean of x (items,) where `at` holds, for each row of counts (tables, items); NaN where none was drawn."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts[:, at] @ x[at] / counts[:, at].sum(1)


def _pearson(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the pairs that have both, for each row of counts (tables, items); NaN of a constant."""
    both = np.isfinite(y)
    if not both.any():
        return np.full(len(counts), NAN)
    x, y = x[both] - x[both].mean(), y[both] - y[both].mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        p = counts[:, both] / counts[:, both].sum(1, keepdims=True)
        mx, my = p @ x, p @ y
        var_x, var_y = p @ x**2 - mx**2, p @ y**2 - my**2
        return np.where((var_x > 1e-12) & (var_y > 1e-12), (p @ (x * y) - mx * my) / np.sqrt(var_x * var_y), NAN)


def _gold(rows: Sequence[Judged]) -> np.ndarray:
    return np.array([row.gold for row in rows], dtype=float)


def _said(rows: Sequence[Judged]) -> np.ndarray:
    return np.array([row.said.get("", NAN) for row in rows], dtype=float)


def groups(rows: Sequence[Judged]) -> list[str]:
    return [row.group or row.id for row in rows]
