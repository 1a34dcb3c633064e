"""Error slices: where a judge is wrong, in words (after QualEval, arXiv 2311.02807).

A slice is a set of items that a few plain conditions describe: `criteria is order`, `gold <= 2 and response_words > 31`.
`named` makes one of every value of every feature; `grow` finds some, as the leaves of a shallow decision tree. A tree
that searched some items says nothing about those items, so grow it on one split and `measure` on another. Whether a
slice differs from the rest is tested, and corrected for how many were looked at; `summary` tells only what passed.

    rows = [features(example, example.meta) for example in test]
    found = named(rows) + grow(validation_rows, validation_errors)
    table = measure(found, rows, errors)
    summary(table, arm="sre_2", split="test")

An item's error is 1 where its judgment is wrong or cannot be read; of N draws it is the share of those. Imports
metrics and schema; scikit-learn inside.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from srlib.schema import Comparison, Item, Judgment
from srlib.stats import metrics

Features = Mapping[str, float | str]
SUPPORT = 20  # fewest items of a slice that is worth a number
VALUES = 12  # a number with more values than this is cut at its thirds
CATEGORIES = 50  # a text with more values than this names items rather than kinds of them
LONGEST = 60  # characters of a text that can still be a category


class Condition(NamedTuple):
    feature: str
    relation: str  # "is", "is not", "<=", ">"
    value: float | str

    def holds(self, row: Features) -> bool:
        own = row.get(self.feature, "none")
        if self.relation in ("is", "is not"):
            return (own == self.value) == (self.relation == "is")
        return isinstance(own, float) and (own <= self.value) == (self.relation == "<=")

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:g}"
        return f"{self.feature} {self.relation} {value}"


@dataclass(frozen=True)
class Slice:
    conditions: tuple[Condition, ...]
    found_by: str  # "feature", "tree", or what else the caller says

    @property
    def name(self) -> str:
        return " and ".join(map(str, self.conditions)) or "all items"

    def members(self, rows: Sequence[Features]) -> np.ndarray:
        """(n,) bool: which rows are in it."""
        return np.array([all(condition.holds(row) for condition in self.conditions) for row in rows], dtype=bool)


def features(item: Item, own: Mapping[str, Any] | None = None) -> dict[str, float | str]:
    """What can be said of an item without a judge: criterion, gold, scale, response_words (of both responses, where there
    are two); and of `own`, the source's columns, every number and every short text: `{"topic": "picnic"} -> "topic": "picnic"`."""
    responses = (item.response_a, item.response_b) if isinstance(item, Comparison) else (item.response,)
    ends = [verdict if isinstance(verdict, str) else f"{verdict:g}" for verdict in item.verdicts]
    found: dict[str, float | str] = {
        "criterion": item.rubric.criterion,
        "gold": "none" if item.gold is None else item.gold,
        "scale": f"{ends[0]} to {ends[-1]}",
        "response_words": float(sum(len(text.split()) for text in responses)),
    }
    for name, value in (own or {}).items():
        if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= LONGEST):
            found.setdefault(name, "none" if value is None else str(value))
        elif isinstance(value, int | float):
            found.setdefault(name, float(value))
    return found


def error_rates(items: Sequence[Item], judgments: Sequence[Judgment]) -> dict[str, float]:
    """Item id -> share of its judgments that do not end in the gold verdict: `scores [4, 4, 3, None], gold 4 -> 0.5`.

    Items that were not judged are not in it. Raises ValueError on one without gold, of which nobody knows the error.
    """
    wrong: dict[str, list[bool]] = defaultdict(list)
    gold = {item.id: item.gold for item in items}
    for judgment in judgments:
        if judgment.example_id in gold:
            if gold[judgment.example_id] is None:
                raise ValueError(f"item {judgment.example_id} has no gold verdict to be wrong about; leave it out")
            wrong[judgment.example_id].append(judgment.verdict != gold[judgment.example_id])
    return {name: sum(own) / len(own) for name, own in wrong.items()}


def named(rows: Sequence[Features]) -> list[Slice]:
    """A slice for every value of every feature that has a handful: numbers with more than VALUES are cut at their
    thirds, texts with more than CATEGORIES make no slices."""
    found = []
    for name, column in _columns(rows).items():
        numbers = all(isinstance(value, float) for value in column)
        if numbers and len(set(column)) > VALUES:
            cuts = sorted({float(cut) for cut in np.quantile(column, [1 / 3, 2 / 3], method="lower")})
            above, below = [(), *([(">", cut)] for cut in cuts)], [*([("<=", cut)] for cut in cuts), ()]
            parts = zip(above, below, strict=True)
            found += [tuple(Condition(name, *end) for end in (*low, *high)) for low, high in parts]
        elif 1 < len(set(column)) <= CATEGORIES:
            found += [(Condition(name, "is", value),) for value in sorted(set(column), key=lambda v: (str(type(v)), v))]
    return [Slice(conditions, "feature") for conditions in found]


def grow(
    rows: Sequence[Features], errors: Sequence[float], depth: int = 3, support: int = SUPPORT, found_by: str = "tree"
) -> list[Slice]:
    """The leaves of a decision tree that predicts `errors` (n,) from `rows`: they part the items, and each has at least
    `support` of these. One leaf, all items, where there is nothing to part."""
    from sklearn.tree import DecisionTreeRegressor

    tests = _tests(rows, support)
    if len(rows) < 2 * support or not tests:
        return [Slice((), found_by)]
    table = np.array([[_value(row, *test) for test in tests] for row in rows])
    tree = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=support, random_state=0).fit(table, errors).tree_

    def leaves(node: int, path: tuple[Condition, ...]) -> list[Slice]:
        if tree.children_left[node] < 0:
            return [Slice(path, found_by)]
        name, value = tests[tree.feature[node]]
        cut = float(tree.threshold[node])
        no, yes = ("<=", cut), (">", cut)
        if value is not None:
            no, yes = ("is not", value), ("is", value)
        children = (int(tree.children_left[node]), no), (int(tree.children_right[node]), yes)
        return [leaf for child, test in children for leaf in leaves(child, _and(path, Condition(name, *test)))]

    return leaves(0, ())


def measure(
    slices: Sequence[Slice],
    rows: Sequence[Features],
    errors: Sequence[float],
    *,
    support: int = SUPPORT,
    group: Sequence[Hashable] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Error rate of each slice with its 95% interval, and whether it differs from the rest's; worst first.

    Rows `{slice, found_by, error, ci_low, ci_high, n, rest, p, p_corrected}`. p is Fisher's exact test where errors are 0
    or 1 and every item stands for itself; where `group` ties items together, or errors are shares, a score test whose
    variance is that of whole groups (Boos 1992, On generalized score tests). p_corrected is Bonferroni's, over all slices here. A slice with fewer than `support` items,
    or with as few outside, has no number: its error is None, it is listed last, and is not tested. Of slices that hold
    the same items the first counts.
    """
    errors = np.asarray(errors, dtype=float)
    held = [(part.members(rows), part) for part in slices]
    distinct = {inside.tobytes(): (inside, part) for inside, part in reversed(held)}
    found = []
    for inside, part in reversed(distinct.values()):
        row = dict(slice=part.name, found_by=part.found_by, error=None, ci_low=None, ci_high=None)
        row |= dict(n=int(inside.sum()), rest=None, p=None, p_corrected=None)
        if min(inside.sum(), (~inside).sum()) >= support:
            own = [group[i] for i in np.flatnonzero(inside)] if group is not None else None
            value, low, high, _ = metrics.mean(errors[inside], n_boot=n_boot, seed=seed, group=own)
            row |= dict(error=value, ci_low=low, ci_high=high, rest=float(errors[~inside].mean()))
            row["p"] = _p(inside, errors, group)
        found.append(row)
    tested = [row for row in found if row["p"] is not None]
    for row in tested:
        row["p_corrected"] = min(1.0, row["p"] * len(tested))
    return sorted(found, key=lambda row: (row["error"] is None, -(row["error"] or 0)))


def summary(table: Sequence[Mapping[str, Any]], arm: str, split: str, level: float = 0.05, most: int = 5) -> list[str]:
    """The table in plain words: which slices are worse than the rest and which better, as far as the test carries it."""
    tested = [row for row in table if row["p_corrected"] is not None]
    small = len(table) - len(tested)
    left_out = f" {small} more are too small, or too large, to say anything." if small else ""
    lines = [f"{arm} on {split}: {len(tested)} slices were tested.{left_out}"]
    sure = [row for row in tested if row["p_corrected"] <= level]
    if not sure:
        return [*lines, f"No slice differs from the rest by more than chance explains (p > {level:g}, corrected)."]
    worse = [row for row in sure if row["error"] > row["rest"]][:most]
    better = [row for row in sure[::-1] if row["error"] < row["rest"]][:most]
    for word, chosen in (("more", worse), ("less", better)):
        lines += [
            f"It is wrong {word} often where {r['slice']}: {_percent(r)} of {r['n']} items, and {r['rest']:.0%} of the "
            f"rest (corrected p {_short(r['p_corrected'])})."
            for r in chosen
        ]
    shown = len(worse) + len(better)
    return lines + ([f"{len(sure) - shown} more slices differ; see the table."] if len(sure) > shown else [])


def sentence(table: Sequence[Mapping[str, Any]], level: float = 0.05) -> str:
    """The table in one sentence, for the report."""
    tested = [row for row in table if row["p_corrected"] is not None]
    sure = [row for row in tested if row["p_corrected"] <= level]
    if not sure:
        return f"Of {len(tested)} slices none differs from the rest by more than chance explains (p > {level:g}, corrected)."
    worse = [row for row in sure if row["error"] > row["rest"]]
    out = max(worse, key=lambda row: row["error"]) if worse else min(sure, key=lambda row: row["error"])
    return (
        f"Of {len(tested)} slices {len(sure)} differ from the rest by more than chance explains; of these it is wrong "
        f"{'most' if worse else 'least'} often where {out['slice']}: {_percent(out)} of {out['n']} items, {out['rest']:.0%} "
        "of the rest."
    )


def focus(leaves: Sequence[Slice], rows: Sequence[Features], errors: Mapping[int, float]) -> np.ndarray:
    """(n,) weights for drawing prompts: the mean error of each row's leaf, and never less than a tenth of the overall
    one, so that nothing is forgotten. `errors` holds those of the rows (by position) that were judged; none wrong, all equal."""
    judged = sorted(errors)
    known = np.array([errors[i] for i in judged], dtype=float)
    overall = float(known.mean()) if len(known) else 0.0
    weights = np.full(len(rows), overall)
    for leaf in leaves:
        inside = leaf.members(rows)
        if inside[judged].any():
            weights[inside] = known[inside[judged]].mean()
    return np.maximum(weights, overall / 10) if overall else np.ones(len(rows))


def to_json(leaves: Sequence[Slice]) -> list[dict[str, Any]]:
    return [{"found_by": leaf.found_by, "conditions": [list(c) for c in leaf.conditions]} for leaf in leaves]


def from_json(records: Sequence[Mapping[str, Any]]) -> list[Slice]:
    return [Slice(tuple(Condition(*c) for c in record["conditions"]), record["found_by"]) for record in records]


def _columns(rows: Sequence[Features]) -> dict[str, list[float | str]]:
    """Feature -> its values; a feature that some rows lack is "none" there. One text among numbers makes all texts."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, "none") for row in rows] for name in names}


def _tests(rows: Sequence[Features], support: int) -> list[tuple[str, str | float | None]]:
    """What the tree may ask: a number (None), or whether a feature has a value that enough rows have, and enough lack."""
    tests: list[tuple[str, str | float | None]] = []
    for name, column in _columns(rows).items():
        if all(isinstance(value, float) for value in column):
            tests.append((name, None))
        else:
            counts = Counter(column)
            tests += [(name, value) for value, n in counts.items() if support <= n <= len(rows) - support]
    return tests


def _value(row: Features, name: str, value: str | float | None) -> float:
    return row[name] if value is None else float(row.get(name, "none") == value)


def _and(path: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    """A deeper cut of the same number in the same direction says all that the one before it said."""
    numeric = new.relation in ("<=", ">")
    return (*(c for c in path if not (numeric and c[:2] == new[:2])), new)


def _p(inside: np.ndarray, errors: np.ndarray, group: Sequence[Hashable] | None) -> float:
    from scipy import stats

    if group is None and set(errors.tolist()) <= {0.0, 1.0}:
        wrong = errors == 1
        cells = [[int((wrong == w)[inside == i].sum()) for w in (True, False)] for i in (True, False)]
        return float(stats.fisher_exact(cells).pvalue)
    group = range(len(errors)) if group is None else group
    number = {key: i for i, key in enumerate(dict.fromkeys(group))}
    scores = (inside - inside.mean()) * (errors - errors.mean())
    sums = np.bincount([number[key] for key in group], scores)
    spread = float(np.sqrt((sums**2).sum()))
    return float(2 * stats.t.sf(abs(sums.sum()) / spread, max(1, len(sums) - 1))) if spread else 1.0


def _percent(row: Mapping[str, Any]) -> str:
    return f"{row['error']:.0%} [{100 * row['ci_low']:.0f}, {100 * row['ci_high']:.0f}]"


def _short(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
