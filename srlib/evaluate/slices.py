"""Error slices: the kinds of items on which a judge is wrong (after QualEval, arXiv 2311.02807).

A slice is the set of items that satisfy a few conditions: `gold is 2 and response_words > 31`. `named` makes a slice of
every value of every feature; `grow` combines them into the leaves of a shallow decision tree. A tree says nothing about
the items it was fitted to: grow it on one split, `measure` it on another. An item's error is 1 if its judgment is wrong
or has no verdict, else 0; of N draws it is the share of those."""

import math
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from srlib.schema import Comparison, Item, Judgment
from srlib.stats.comparison import holm
from srlib.stats.intervals import Keys, mean

Features = Mapping[str, float | str]
SUPPORT = 20  # items that a slice, and the rest, must have to be measured
VALUES = 12  # a number with more values is sliced by its thirds
CATEGORIES = 50  # a text feature with more values identifies items, and so does a value with more characters
RELATIONS = {"is": operator.eq, "is not": operator.ne, "<=": operator.le, ">": operator.gt}
SAID = {"<=": "at most", ">": "above", "gold": "gold score", "response_words": "length in words"}
SAID["annotator"] = "gold annotator"
OPPOSITE = {"is": "is not", "<=": ">", ">": "<="}


class Slice(NamedTuple):
    conditions: tuple[tuple[str, str, float | str], ...]  # (feature, relation, value)

    @property
    def name(self) -> str:
        """The conditions in words: `gold score is 2 and length in words above 31`."""
        said = []
        for name, relation, value in self.conditions:
            shown = f"{value:.12g}" if isinstance(value, float) else value
            said.append(f"{SAID.get(name, name)} {SAID.get(relation, relation)} {shown}")
        return " and ".join(said) or "all items"

    def members(self, rows: Sequence[Features]) -> np.ndarray:
        """(n,) bool: the rows that satisfy every condition; a text is neither above nor below a number."""
        inside = np.ones(len(rows), dtype=bool)
        for name, relation, value in self.conditions:
            column = [x if type(x) is type(value) else math.nan for x in (row.get(name, "none") for row in rows)]
            inside &= np.array([RELATIONS[relation](x, value) for x in column], dtype=bool)
        return inside


def features(item: Item, meta: Mapping[str, Any] | None = None) -> dict[str, float | str]:
    """Criterion, gold, scale and response_words (of both responses of a comparison), and the numbers and short texts of
    `meta`: `{"topic": "picnic", "year": 1999} -> "topic": "picnic", "year": 1999.0`."""
    responses = (item.response_a, item.response_b) if isinstance(item, Comparison) else (item.response,)
    row: dict[str, float | str] = {
        "criterion": item.rubric.criterion,
        "gold": "none" if item.gold is None else item.gold,
        "scale": " to ".join(str(verdict).removesuffix(".0") for verdict in (item.verdicts[0], item.verdicts[-1])),
        "response_words": float(sum(len(text.split()) for text in responses)),
    }
    for name, value in (meta or {}).items():
        if name == "key" and "checks" in meta:  # of the built-in world: the number of the key check, if there is one
            name, value = "key check", "not in the rubric" if value is None else "in the rubric"
        if isinstance(value, str | int | float) and len(str(value)) <= CATEGORIES:  # True is a text
            row.setdefault(name, float(value) if type(value) in (int, float) else str(value))
    return row


def error_rates(items: Sequence[Item], judgments: Sequence[Judgment]) -> dict[str, float]:
    """Share of each judged item's judgments without its gold verdict, by id: `scores [4, 4, 3, None], gold 4 -> 0.5`.
    Raises ValueError on an item without one."""
    gold, wrong = {item.id: item.gold for item in items}, defaultdict(list)
    if unknown := [name for name, verdict in gold.items() if verdict is None]:
        raise ValueError(f"item {unknown[0]} has no gold verdict, so its error is unknown; leave it out")
    for judgment in judgments:
        if judgment.example_id in gold:
            wrong[judgment.example_id].append(judgment.verdict != gold[judgment.example_id])
    return {name: float(np.mean(flags)) for name, flags in wrong.items()}


def named(rows: Sequence[Features]) -> list[Slice]:
    """A slice for each value of each feature; of a feature with many numbers, for its lowest and its highest third."""
    conditions: list[tuple[str, str, float | str]] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        column = [row.get(name, "none") for row in rows]
        values = sorted(set(column), key=str)
        if len(values) > VALUES and all(isinstance(value, float) for value in values):
            low, high = np.quantile(column, [1 / 3, 2 / 3], method="lower").tolist()
            conditions += [(name, "<=", low), (name, ">", high)]
        elif 1 < len(values) <= CATEGORIES:
            conditions += [(name, "is", value) for value in values]
    return [Slice((condition,)) for condition in conditions]


def grow(rows: Sequence[Features], errors: Sequence[float], depth: int = 3) -> list[Slice]:
    """The leaves of a decision tree that predicts `errors` (n,) from the conditions of `named`. They partition the
    items, and each has at least SUPPORT of `rows`; without a useful split, all items are one leaf."""
    from sklearn.tree import DecisionTreeRegressor

    conditions = [part.conditions[0] for part in named(rows)]
    if not conditions:
        return [Slice(())]
    table = np.transpose([Slice((condition,)).members(rows) for condition in conditions])
    tree = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=SUPPORT, random_state=0).fit(table, errors).tree_

    def leaves(node: int, path: tuple) -> list[Slice]:
        if tree.children_left[node] < 0:
            return [Slice(path)]
        name, relation, value = conditions[tree.feature[node]]
        unmet = leaves(tree.children_left[node], (*path, (name, OPPOSITE[relation], value)))
        return unmet + leaves(tree.children_right[node], (*path, (name, relation, value)))

    return leaves(0, ())


def measure(
    slices: Sequence[Slice], rows: Sequence[Features], errors: Sequence[float], group: Keys = None, n_boot: int = 2000
) -> list[dict[str, Any]]:
    """Rows `{slice, error, ci_low, ci_high, n, rest, p, p_holm}`: error rates with 95% intervals, the worst first. p is
    a score test with the variance of whole groups (Boos 1992, On generalized score tests), p_holm is corrected for all
    slices. Left out: slices with fewer than SUPPORT items inside or outside, or of the items of an earlier one."""
    errors, group = np.asarray(errors, dtype=float), range(len(errors)) if group is None else group
    table: dict[bytes, dict[str, Any]] = {}
    for part in slices:
        inside = part.members(rows)
        if min(inside.sum(), (~inside).sum()) >= SUPPORT and inside.tobytes() not in table:
            members = [key for key, is_in in zip(group, inside, strict=True) if is_in]
            error, low, high, n = mean(errors[inside], n_boot=n_boot, group=members)
            row = dict(slice=part.name, error=error, ci_low=low, ci_high=high, n=n, rest=float(errors[~inside].mean()))
            table[inside.tobytes()] = row | {"p": _score_test(inside, errors, group)}
    for row, p in zip(table.values(), holm([row["p"] for row in table.values()]), strict=True):
        row["p_holm"] = float(p)
    return sorted(table.values(), key=lambda row: -row["error"])


def _score_test(inside: np.ndarray, errors: np.ndarray, group: Keys) -> float:
    number = {key: i for i, key in enumerate(dict.fromkeys(group))}
    sums = np.bincount([number[key] for key in group], (inside - inside.mean()) * (errors - errors.mean()))
    spread = float(np.sqrt((sums**2).sum()))
    return float(2 * stats.t.sf(abs(sums.sum()) / spread, max(1, len(sums) - 1))) if spread else 1.0


def advice(table: Sequence[Mapping[str, Any]], level: float = 0.05) -> list[str]:
    """What to do about each slice that is worse than the rest beyond chance, the worst first; one sentence if none is."""
    none = f"None of {len(table)} is worse than the rest beyond chance: no kind of item is shown to need more data."
    return [
        f"{row['slice']}: {row['error']:.0%} [{100 * row['ci_low']:.0f}, {100 * row['ci_high']:.0f}] of {row['n']} items are "
        f"wrong, {row['rest']:.0%} of the rest. Add graded answers of this kind, or sample more of these prompts."
        for row in table
        if row["p_holm"] <= level and row["error"] > row["rest"]
    ] or [none if table else "No slice has enough items inside and outside it to be measured."]
