"""Which of two arms' rationales is better: items to compare, a judge's preferences, win rates; A is the first arm."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from srlib.curate import META_RUBRIC
from srlib.judge import Judge
from srlib.schema import OTHER_WAY, Comparison, Example, Judgment, Preference, format_score
from srlib.stats.intervals import Interval, Keys, mean

Judged = Sequence[Judgment | None]


class Side(NamedTuple):
    """Two arms' judgments of one example, side by side."""

    example: Example
    a: Judgment
    b: Judgment


def side_by_side(
    examples: Sequence[Example], a: Judged, b: Judged, equal_score_only: bool = False
) -> tuple[list[Side], Counter[str]]:
    """The items that can be compared, and how many cannot, by reason; `a` and `b` hold a judgment of each example. With
    `equal_score_only`, a rationale cannot win by its score."""
    sides, left_out = [], Counter()
    for example, *pair in zip(examples, a, b, strict=True):
        if any(judgment is None or judgment.score is None for judgment in pair):
            left_out["an arm has no score"] += 1
        elif not all(judgment.rationale.strip() for judgment in pair):
            left_out["an arm wrote no rationale"] += 1
        elif equal_score_only and pair[0].score != pair[1].score:
            left_out["the scores differ"] += 1
        elif (pair[0].rationale, pair[0].score) == (pair[1].rationale, pair[1].score):
            left_out["both arms wrote the same"] += 1
        else:
            sides.append(Side(example, *pair))
    return sides, left_out


def as_comparison(side: Side) -> Comparison:
    """The two rationales as responses to the task of judging, for a judge that compares."""
    e = side.example
    reference = f"\nReference answer: {e.reference_answer}" if e.reference_answer else ""
    task = f"Instruction: {e.instruction}\nResponse: {e.response}{reference}\nRubric: {e.rubric.text}"
    task = f"Judge a response to an instruction by a rubric: feedback first, then a score.\n{task}"
    a, b = (f"{judgment.rationale}\nScore: {format_score(judgment.score)}" for judgment in (side.a, side.b))
    return Comparison(id=e.id, instruction=task, response_a=a, response_b=b, rubric=META_RUBRIC, preference=None)


def judge_preferences(judge: Judge, sides: Sequence[Side], **options: Any) -> list[tuple[Preference | None, ...]]:
    """Greedy preferences for each item as given and swapped, both in terms of the arms; None without a verdict. The
    judge must compare (sft_mode mix or merge, or a general model on a server); `options` go to Judge.score_many."""
    given = [as_comparison(side) for side in sides]
    judgments = judge.score_many([order for c in given for order in (c, c.swapped())], **options)
    preferences = {j.example_id: j.preference for j in judgments}  # a server may have left some out
    flipped = {**OTHER_WAY, None: None}
    return [(preferences.get(c.id), flipped[preferences.get(f"{c.id}#swapped")]) for c in given]


class WinRates(NamedTuple):
    """How often the first arm wins: `A, A, tie, B -> 2.5 of 4` with ties split, `2 of 3` without them."""

    ties_split: Interval
    ties_excluded: Interval
    wins: int
    ties: int
    losses: int


def win_rates(preferences: Sequence[Preference], group: Keys = None, n_boot: int = 2000) -> WinRates:
    """Win rates of A with 95% bootstrap intervals; `group` (n,) names the item if several people judged it."""
    credit, keys = {"A": 1.0, "tie": 0.5, "B": 0.0}, range(len(preferences)) if group is None else group
    rated = [(credit[p], key) for p, key in zip(preferences, keys, strict=True)]
    subsets = (rated, [(value, key) for value, key in rated if value != 0.5])
    rates = [mean([v for v, _ in some], n_boot, group=[k for _, k in some]) if some else Interval() for some in subsets]
    return WinRates(*rates, *(list(preferences).count(p) for p in ("A", "tie", "B")))
