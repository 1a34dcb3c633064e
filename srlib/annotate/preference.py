"""Which of two rationales for the same item is better: what a judge prefers, how often an arm wins, how far raters agree.

Two arms' judgments of one example stand side by side; A is the first arm. A judge is asked in both orders, and an arm wins
an item only if it is preferred in both (Zheng et al., arXiv 2306.05685, section 3.4); anything else is a tie. What people
say comes from srlib.annotate. Both end in the same win rates: ties as half a win, and ties left out.

    sides, left_out = side_by_side(examples, sft, sre)             # {"same_text": 31, ...} were left out
    both = ask(judge, sides)
    win_rates([b.preference for b in both if b.preference])        # of the first arm
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from srlib import curate
from srlib.judge import Judge
from srlib.schema import OTHER_WAY, PREFERENCES, Comparison, Example, Judgment, Preference, format_score
from srlib.stats import intervals, metrics
from srlib.stats.intervals import NAN, Interval

# Why an item is not compared, in the order in which it is asked.
LEFT_OUT = {
    "no_score": "an arm's judgment has no score",
    "no_rationale": "an arm wrote a score without a rationale",
    "other_score": "the two scores differ",
    "same_text": "both arms wrote the same",
}


@dataclass(frozen=True)
class SideBySide:
    """Two arms' judgments of one example."""

    example: Example
    a: Judgment
    b: Judgment

    @property
    def equal_score(self) -> bool:
        return self.a.score == self.b.score


def side_by_side(
    examples: Sequence[Example],
    a: Sequence[Judgment | None],
    b: Sequence[Judgment | None],
    equal_score_only: bool = False,
) -> tuple[list[SideBySide], dict[str, int]]:
    """What can be compared, and how many items cannot, by reason (LEFT_OUT).

    `a` and `b` hold one judgment of each example, in the order of `examples` (readings.read), None where the arm has none.
    Two equal texts are left out: nobody can prefer one. With `equal_score_only`, a rationale cannot win by its score.
    """
    sides, left_out = [], Counter()
    for example, one, other in zip(examples, a, b, strict=True):
        if one is None or other is None or one.score is None or other.score is None:
            left_out["no_score"] += 1
            continue
        side = SideBySide(example, one, other)
        if not (one.rationale.strip() and other.rationale.strip()):
            left_out["no_rationale"] += 1
        elif equal_score_only and not side.equal_score:
            left_out["other_score"] += 1
        elif (one.rationale, one.score) == (other.rationale, other.score):
            left_out["same_text"] += 1
        else:
            sides.append(side)
    return sides, {reason: left_out[reason] for reason in LEFT_OUT if left_out[reason]}


# ---------------------------------------------------------------- by a judge


class BothOrders(NamedTuple):
    """What a judge said of one item, both times in terms of the arms; None where its verdict could not be read."""

    as_given: Preference | None
    swapped: Preference | None

    @property
    def preference(self) -> Preference | None:
        """An arm that is preferred in both orders wins, else it is a tie; None where a verdict is missing.

        >>> BothOrders("A", "A").preference, BothOrders("A", "B").preference, BothOrders("A", None).preference
        ('A', 'tie', None)
        """
        if self.as_given is None or self.swapped is None:
            return None
        return self.as_given if self.as_given == self.swapped else "tie"


def comparison(side: SideBySide) -> Comparison:
    """The two rationales as responses to the task of judging: what a judge that compares is asked."""
    example = side.example
    reference = f"\nReference answer: {example.reference_answer}" if example.reference_answer else ""
    return Comparison(
        id=example.id,
        instruction=(
            "Judge a response to an instruction by a rubric: feedback first, then a score.\n"
            f"Instruction: {example.instruction}\nResponse: {example.response}{reference}\nRubric: {example.rubric.text}"
        ),
        response_a=_written(side.a),
        response_b=_written(side.b),
        rubric=curate.META_RUBRIC,
        preference=None,
    )


def _written(judgment: Judgment) -> str:
    return f"{judgment.rationale}\nScore: {format_score(judgment.score)}"


def ask(judge: Judge, sides: Sequence[SideBySide], **how: Any) -> list[BothOrders]:
    """A judge's preference for each item, greedily, in both orders; for a judge that compares (sft_mode mix or merge, or
    a general model behind a server). `how` is what Judge.score_many takes besides (out, batch_size, ...)."""
    asked = [c for side in sides for c in (comparison(side), comparison(side).swapped())]
    said = {j.example_id: j.preference for j in judge.score_many(asked, **how)}
    both = []
    for given, swapped in zip(asked[::2], asked[1::2], strict=True):
        turned = said.get(swapped.id)  # a server may have left one out
        both.append(BothOrders(said.get(given.id), None if turned is None else OTHER_WAY[turned]))
    return both


def consistency(both: Sequence[BothOrders], n_boot: int = 2000, seed: int = 0) -> Interval:
    """How often a judge says the same in both orders, of the items where both verdicts could be read."""
    same = [float(b.as_given == b.swapped) for b in both if None not in b]
    return metrics.mean(same, n_boot, seed) if same else Interval(NAN, NAN, NAN, 0)


# ---------------------------------------------------------------- win rates and agreement


class WinRates(NamedTuple):
    """How often the first arm wins. `n` of an interval is what it rests on: all verdicts, or those that are no tie."""

    ties_split: Interval  # (wins + ties / 2) / n
    ties_excluded: Interval  # wins / (wins + losses)
    wins: int
    ties: int
    losses: int

    def row(self) -> dict[str, float]:
        """One line of a table."""
        split, excluded = self.ties_split, self.ties_excluded
        return {
            "win rate": split.value, "low": split.low, "high": split.high, "n": split.n, "without ties": excluded.value,
            "its low": excluded.low, "its high": excluded.high, "wins": self.wins, "ties": self.ties,
            "losses": self.losses,
        }  # fmt: skip


def win_rates(
    preferences: Sequence[Preference], group: intervals.Keys = None, n_boot: int = 2000, seed: int = 0
) -> WinRates:
    """Win rates of A with 95% bootstrap intervals; `group` (n,) names each verdict's item where several people judged it.

    >>> won = win_rates(["A", "A", "tie", "B"])
    >>> won.ties_split.value, round(won.ties_excluded.value, 3), won.ties_excluded.n
    (0.625, 0.667, 3)
    """
    credit = {"A": 1.0, "tie": 0.5, "B": 0.0}
    values, keys = [credit[p] for p in preferences], list(range(len(preferences)) if group is None else group)
    decided = [i for i, p in enumerate(preferences) if p != "tie"]
    rates = [
        metrics.mean([values[i] for i in some], n_boot, seed, group=[keys[i] for i in some])
        if some
        else Interval(NAN, NAN, NAN, 0)
        for some in (range(len(values)), decided)
    ]
    return WinRates(*rates, *(list(preferences).count(p) for p in ("A", "tie", "B")))


def alpha(ratings: Sequence[Sequence[Preference]], n_boot: int = 2000, seed: int = 0) -> Interval:
    """Krippendorff's alpha of the raters, nominal: 1 is agreement, 0 what chance gives (Content Analysis, 4th ed., ch. 12).

    `ratings` holds for each item what its raters said; items with fewer than two are left out, and `n` counts the rest.
    The interval resamples items. Where all said the same of everything there is no chance to hold it against: NaN.

    >>> alpha([["A", "A"], ["B", "B"], ["tie", "tie"], ["A", "B"]]).value.__round__(3)
    0.667
    """
    import krippendorff

    counts = np.array([[own.count(p) for p in PREFERENCES] for own in map(list, ratings) if len(own) > 1], dtype=float)
    n = len(counts)

    def value(table: np.ndarray) -> float:
        varied = (table.sum(axis=0) > 0).sum() > 1
        return float(krippendorff.alpha(value_counts=table, level_of_measurement="nominal")) if varied else NAN

    if not n:
        return Interval(NAN, NAN, NAN, 0)
    rng = np.random.default_rng(seed)
    draws = np.array([value(counts[rng.integers(0, n, n)]) for _ in range(n_boot)])
    if np.isnan(found := value(counts)) or np.isnan(draws).all():
        return Interval(found, NAN, NAN, n)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(found, float(low), float(high), n)
