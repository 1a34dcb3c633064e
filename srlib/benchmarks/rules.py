"""The scoring rules: judged items -> result rows. Arithmetic only; reads no file and asks no judge.

Each row has its n, a 95% interval (resampling prompts, not items), the share of parsed answers, and failures by name.
`answers` is keyed by the responses that the judge was shown; letters and numbers name responses, never positions:

    ""          the only response of an item -> its score; or all of its responses -> the best one
    "A", "B"    one response of two -> its score
    "AB", "BA"  both responses, in this order -> "A", "B" or "tie"
    "1", "2"    one response of several, the right ones first -> its score

>>> first_shown = Judged("1", gold="A", answers={"AB": "A", "BA": "B"})  # prefers the response that comes first
>>> pair_metrics(first_shown)["accuracy"], pair_metrics(first_shown)["consistency"]
(0.5, 0.0)"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

from srlib.schema import SrlibError
from srlib.stats import agreement, intervals
from srlib.stats.intervals import NAN, Interval

Rows = list[dict[str, Any]]
PAIRS = {name: name for name in ("accuracy", "accuracy_where_read", "consistency")}
STYLES = {"hard": np.triu_indices(3, 1), "normal": np.diag_indices(3), "easy": np.tril_indices(3, -1), "average": ...}
RB2_SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")


class Judged(NamedTuple):
    """One item: the judge's answers, and `gold`, a score, "A", "B", "tie", or how many of several responses are right."""

    id: str
    gold: float | str
    answers: Mapping[str, float | str | None]  # None: a failure
    failures: Mapping[str, str] = {}  # the reason of each
    subset: str = ""
    group: str = ""  # items of one group are resampled together


def pair_metrics(row: Judged) -> dict[str, float | None]:
    """Every metric of an item with two responses, None if one does not apply. Of two scores, the higher is preferred. A
    right verdict earns 1, a tie of unequal responses a half. `accuracy` is the mean of the orders, 0 for a failure. `one_order`
    (RewardBench, arXiv 2403.13787) scores one order, chosen by a hash of the id; a failure earns a half. In `two_orders` (JudgeBench,
    arXiv 2410.12784) a right order adds 1, a wrong one subtracts 1; a sum above 0 is right."""
    a, b = row.answers.get("A"), row.answers.get("B")
    by_score = {"": None if a is None or b is None else "A" if a > b else "B" if b > a else "tie"}
    by_order = {order: row.answers[order] for order in ("AB", "BA", "") if order in row.answers} or by_score
    verdicts = list(by_order.values())
    credits = {verdict: 1.0 if verdict == row.gold else 0.5 if verdict == "tie" else 0.0 for verdict in verdicts}
    accuracy = sum(credits[verdict] for verdict in verdicts) / len(verdicts)
    order = ("AB", "BA")[hashlib.blake2b(row.id.encode(), digest_size=1).digest()[0] & 1]
    shown_first = by_order.get(order, verdicts[0])
    balance = sum(1 if verdict == row.gold else -1 for verdict in verdicts if verdict not in ("tie", None))
    both = {"AB", "BA"} <= by_order.keys()
    return {
        "accuracy": accuracy, "accuracy_without_ties": None if row.gold == "tie" else accuracy,
        "accuracy_where_read": None if None in verdicts else accuracy,
        "one_order": 0.5 if shown_first is None else credits[shown_first], "two_orders": float(balance > 0),
        "consistency": float(by_order["AB"] == by_order["BA"] is not None) if both else None,
        "both_correct": float(by_order["AB"] == by_order["BA"] == row.gold) if both else None,
    }  # fmt: skip


def _scores(row: Judged) -> list[float | None]:
    """Score of each of several responses, None for a failure; empty if the judge chose one of them or said nothing."""
    return [] if "" in row.answers else [row.answers[str(k)] for k in range(1, len(row.answers) + 1)]


def style_metrics(row: Judged) -> dict[str, float]:
    """RM-Bench (arXiv 2410.16184): three right and three wrong responses, each from plain to adorned, make a 3x3 matrix of
    "the right one scores strictly higher". Hard is above the diagonal (the wrong one is more adorned), normal on it, easy
    below. A comparison with a missing score counts as wrong."""
    scores = [None] * 6 if "" in row.failures else _scores(row)
    if len(scores) != 6:
        raise SrlibError(f"item {row.id}: RM-Bench needs the scores of six responses, not of {len(scores)}")
    right, wrong = np.array(scores, dtype=float).reshape(2, 3)
    return {style: float((right[:, None] > wrong)[cells].mean()) for style, cells in STYLES.items()}


def best_of(row: Judged) -> float:
    """RewardBench 2 (arXiv 2506.01937): a choice earns 1 or 0, k responses tied for the highest score earn 1/k for each
    right one, an item without any answer a quarter. A response without a score is not among the highest."""
    if row.answers.get("") is not None:
        return float(int(row.answers[""]) <= row.gold)
    scores = [-math.inf if score is None else score for score in _scores(row)]
    highest = [k for k, score in enumerate(scores) if score == max(scores) > -math.inf]
    return sum(k < row.gold for k in highest) / len(highest) if highest else 0.25


def reward_bench_2(rows: Sequence[Judged]) -> Rows:
    """Five subsets by `best_of`, the subset Ties by `ties_score`, and the mean of the six."""
    credits, subsets = np.array([best_of(row) for row in rows]), np.array([row.subset for row in rows])
    counts = intervals.resamples(len(rows), group=[row.group for row in rows])
    values = {name: mean_where(counts, credits, subsets == name) for name in RB2_SUBSETS}
    members = {name: [row for row in rows if row.subset == name] for name in RB2_SUBSETS}
    values["Ties"] = ties_score(members["Ties"], counts[:, subsets == "Ties"])
    metrics = dict.fromkeys(RB2_SUBSETS, "accuracy") | {"Ties": "score"}
    result = [figure(metrics[name], members[name], values[name], name) for name in RB2_SUBSETS if members[name]]
    return [*result, figure("score", rows, sum(values.values()) / 6, "mean of six", {*RB2_SUBSETS} - {*subsets})]


def ties_score(rows: Sequence[Judged], counts: np.ndarray) -> np.ndarray:
    """The subset Ties of RewardBench 2, for each row of `counts` (tables, items), after process_single_model in
    github.com/allenai/reward-bench: a prompt with several equally right answers (gold > 1) is paired, by `group`, with one
    that has a single right answer. A prompt with a missing score is wrong."""
    gap, spread = np.array([_gap(row) for row in rows]).reshape(-1, 2).T
    single = {row.group: width for row, width in zip(rows, gap, strict=True) if row.gold == 1}
    several = np.array([row.gold > 1 for row in rows], dtype=bool)
    narrower = np.minimum(gap, [single.get(row.group, NAN) for row in rows])  # of the two prompts
    paired = several & ~np.isnan(narrower)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(narrower / spread - 1), nan=0.0)  # 0 for 0/0
    parts = [(0.3, gap > 0, several), (0.3, gap > 0, ~several)]  # every right answer above every wrong one
    parts += [(0.2, gap > spread, paired), (0.2, narrower > spread, paired), (0.01, margin, paired)]
    return sum(weight * mean_where(counts, values.astype(float), where) for weight, values, where in parts)


def _gap(row: Judged) -> tuple[float, float]:
    """Lowest right minus highest wrong score, and the spread of the right ones; no gap if a score is missing."""
    scores = _scores(row)
    if not scores or None in scores:
        return -math.inf, 0.0
    right, wrong = scores[: int(row.gold)], scores[int(row.gold) :]
    return min(right) - max(wrong), max(right) - min(right)


def by_item(
    rows: Sequence[Judged],
    names: Mapping[str, str] = PAIRS,
    values_of: Callable[[Judged], Mapping[str, float | None]] = pair_metrics,
    sections: Mapping[str, Mapping[str, float]] = {},
    overall: str = "",
) -> Rows:
    """Means of the metrics in `names` (name in the result -> name in `values_of`) over all items, each subset, each section
    (subsets with their weights), and, as `overall`, the sections. A section without one of its subsets has no value."""
    result: Rows = []
    values = [values_of(row) for row in rows]
    for metric, key in names.items():
        kept = [row for row, value in zip(rows, values, strict=True) if value[key] is not None]
        if not kept:
            continue
        x, subsets = np.array([v[key] for v in values if v[key] is not None]), np.array([row.subset for row in kept])
        present = list(dict.fromkeys(subsets.tolist()))
        for name in [*([] if overall else ["all"]), *(present if len(present) > 1 or overall else [])]:
            members = [row for row in kept if name in ("all", row.subset)]
            here = x[(subsets == name) | (name == "all")]
            result.append(figure(metric, members, intervals.mean(here, group=[row.group for row in members]), name))
        group, means = [row.group for row in kept], []
        counts = intervals.resamples(len(kept), group=group) if sections else None
        for name, weights in sections.items():
            total = sum(weight * mean_where(counts, x, subsets == subset) for subset, weight in weights.items())
            means.append(total / sum(weights.values()))
            members = [row for row in kept if row.subset in weights]
            result.append(figure(metric, members, means[-1], name, weights.keys() - {*present}))
        if overall:
            result.append(figure(metric, kept, sum(means) / len(means), overall))
    return result


def by_score(rows: Sequence[Judged], names: Sequence[str], macro: str = "") -> Rows:
    """Agreement of scores with gold scores (stats.agreement), over all items and each subset. `macro` names the mean of
    Pearson's correlation over subsets; it is undefined if that of one subset is."""
    result: Rows = []
    subsets = np.array([row.subset for row in rows])
    present = list(dict.fromkeys(subsets.tolist()))
    for subset in ["all", *(present if len(present) > 1 else [])]:
        members = [row for row in rows if subset in ("all", row.subset)]
        gold, scores = _gold_and_scores(members)
        measured = agreement.measure(gold, scores, group=[row.group for row in members])
        result += [figure(name, members, measured[name], subset) for name in names]
    if macro:
        gold, scores = _gold_and_scores(rows)
        counts, scored = intervals.resamples(len(rows), group=[row.group for row in rows]), np.isfinite(scores)
        each = [_pearson(counts, gold, scores, scored & (subsets == subset)) for subset in present]
        result.append(figure("pearson", rows, intervals.interval(sum(each) / len(each), int(scored.sum())), macro))
    return result


def by_document(rows: Sequence[Judged]) -> Rows:
    """SummEval (arXiv 2007.12626): Spearman's and Kendall's correlation (tau-b) among the summaries of one document, averaged
    over the documents whose gold and scores both vary; `n` counts these, `failures` the others."""
    result, varied, groups = [], [], list(dict.fromkeys(row.group for row in rows))
    for group in groups:
        gold, scores = _gold_and_scores([row for row in rows if row.group == group and not row.failures])
        if len(gold) > 1 and np.ptp(gold) > 0 and np.ptp(scores) > 0:
            varied.append((gold, scores))
    for name, correlation in (("spearman_by_document", spearmanr), ("kendall_by_document", kendalltau)):
        values = [correlation(gold, scores)[0] for gold, scores in varied]
        result.append(figure(name, rows, intervals.mean(values) if values else Interval()))
        result[-1]["failures"] |= {"document without variance": n} if (n := len(groups) - len(varied)) else {}
    return result


def figure(
    metric: str, rows: Sequence[Judged], values: Interval | np.ndarray, subset: str = "all", absent: Iterable[str] = ()
) -> dict[str, Any]:
    """One result row, from an interval or the values of all resamples; null if undefined, for want of `absent` subsets."""
    interval = values if isinstance(values, Interval) else intervals.interval(values, len(rows))
    asked, failed = sum(len(row.answers) for row in rows), Counter(f for row in rows for f in row.failures.values())
    failures = {**failed, **{f"no {name}": 1 for name in sorted(absent)}}
    parse_rate = round((asked - failed.total()) / max(1, asked), 6)
    head = {"subset": subset, "metric": metric, **intervals.fields(interval)}
    return head | {"parse_rate": parse_rate, "failures": failures}


def mean_where(counts: np.ndarray, x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of the x (items,) selected by `where`, for each row of counts (tables, items); NaN if none was drawn."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts[:, where] @ x[where] / counts[:, where].sum(1)


def _pearson(counts: np.ndarray, x: np.ndarray, y: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the items selected by `where`, for each row of counts (tables, items); NaN for a constant."""
    x, y = x - x.mean(), y - x.mean()
    mean_x, mean_y, xx, yy, xy = (mean_where(counts, values, where) for values in (x, y, x * x, y * y, x * y))
    var_x, var_y = xx - mean_x**2, yy - mean_y**2
    varied = (var_x > 1e-12) & (var_y > 1e-12)
    return np.where(varied, (xy - mean_x * mean_y) / np.sqrt(np.where(varied, var_x * var_y, 1)), NAN)


def _gold_and_scores(rows: Sequence[Judged]) -> np.ndarray:
    """(2, items): gold scores, and the judge's, NaN for a failure."""
    return np.array([(row.gold, row.answers.get("")) for row in rows], dtype=float).reshape(-1, 2).T
