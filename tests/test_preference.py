"""Rationales side by side, a judge in both orders, win rates and agreement, against values worked out by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlib.annotate.preference import BothOrders, alpha, consistency, side_by_side, win_rates
from srlib.annotate import preference
from srlib.judge import Judge
from srlib.schema import OTHER_WAY, PREFERENCES, Example, Judgment, Rubric

THREE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])


def example(name="e", reference=None):
    return Example(id=name, instruction=f"Greet {name}.", response="Hello", rubric=THREE, reference_answer=reference)


def judged(rationale, score=3.0, name="e"):
    failure = "no_verdict" if score is None else None
    return Judgment(example_id=name, text=f"{rationale} [RESULT]", rationale=rationale, score=score, failure=failure)


def test_every_item_is_compared_or_counted_under_one_reason():
    a = [judged("Short."), judged("Short."), judged(""), judged("Short."), judged("Short.", None), None]
    b = [judged("Long."), judged("Long.", 2), judged("Long."), judged("Short."), judged("Long."), judged("Long.")]
    examples = [example(f"e{i}") for i in range(6)]
    sides, left_out = side_by_side(examples, a, b)
    assert [side.example.id for side in sides] == ["e0", "e1"]
    assert [side.equal_score for side in sides] == [True, False]
    assert left_out == {"no_score": 2, "no_rationale": 1, "same_text": 1}
    sides, left_out = side_by_side(examples, a, b, equal_score_only=True)
    assert [side.example.id for side in sides] == ["e0"]
    assert left_out == {"no_score": 2, "no_rationale": 1, "other_score": 1, "same_text": 1}
    assert set(left_out) == set(preference.LEFT_OUT)


def test_the_same_words_for_another_score_can_be_compared():
    sides, left_out = side_by_side([example()], [judged("Polite.", 3)], [judged("Polite.", 1)])
    assert (len(sides), left_out) == (1, {})


def test_a_comparison_shows_the_task_and_both_rationales_with_their_scores():
    [side], _ = side_by_side([example(reference="Good day.")], [judged("It greets.", 3)], [judged("It is rude.", 1)])
    asked = preference.comparison(side)
    for part in ("Greet e.", "Response: Hello", "Reference answer: Good day.", "[Is it polite?]", "Score 3: kind"):
        assert part in asked.instruction
    assert (asked.response_a, asked.response_b) == ("It greets.\nScore: 3", "It is rude.\nScore: 1")
    assert asked.preference is None


def asking(prefers):
    """A judge by program: `prefers(comparison)` says A, B, tie, or None for a verdict that cannot be read."""

    def sampler(items, **how):
        said = [(item, prefers(item)) for item in items]
        return [
            Judgment(example_id=item.id, text="", preference=p, failure="no_verdict" if p is None else None)
            for item, p in said
        ]

    return Judge(sampler)


def some_sides(n=4):
    examples = [example(f"e{i}") for i in range(n)]
    long, short = [judged("It greets, and kindly so.")] * n, [judged("It greets.")] * n
    return side_by_side(examples, long, short)[0]


def test_a_judge_that_knows_what_it_prefers_says_so_in_both_orders():
    longer = asking(lambda c: "A" if len(c.response_a) > len(c.response_b) else "B")
    both = preference.ask(longer, some_sides())
    assert both == [BothOrders("A", "A")] * 4
    assert consistency(both).value == 1


def test_a_judge_that_likes_the_first_place_wins_nothing_for_anybody():
    both = preference.ask(asking(lambda c: "A"), some_sides())
    assert both == [BothOrders("A", "B")] * 4
    assert consistency(both)[::3] == (0.0, 4)
    assert {b.preference for b in both} == {"tie"}


def test_a_verdict_that_cannot_be_read_is_no_verdict():
    both = preference.ask(asking(lambda c: None if c.id == "e1#swapped" else "tie"), some_sides())
    assert [b.preference for b in both] == ["tie", None, "tie", "tie"]
    assert consistency(both).n == 3
    assert math.isnan(consistency([BothOrders(None, "A")]).value)


@pytest.mark.parametrize(
    ("both", "wanted"),
    [(("A", "A"), "A"), (("B", "B"), "B"), (("A", "B"), "tie"), (("A", "tie"), "tie"), (("tie", None), None)],
)
def test_a_win_is_a_win_in_both_orders(both, wanted):
    assert BothOrders(*both).preference == wanted


def test_win_rates_with_ties_split_and_excluded():
    won = win_rates(["A"] * 5 + ["tie"] * 3 + ["B"] * 2)
    assert (won.ties_split.value, won.ties_split.n) == (0.65, 10)
    assert (won.ties_excluded.value, won.ties_excluded.n) == (pytest.approx(5 / 7), 7)
    assert (won.wins, won.ties, won.losses) == (5, 3, 2)
    assert won.ties_split.low < 0.65 < won.ties_split.high


def test_without_verdicts_there_is_no_number():
    for verdicts, n in (([], 0), (["tie", "tie"], 2)):
        won = win_rates(verdicts)
        assert won.ties_split.n == n
        assert won.ties_excluded.n == 0
        assert math.isnan(won.ties_excluded.value)
        assert math.isnan(won.ties_split.value) == (n == 0)


def test_verdicts_of_one_item_are_resampled_together():
    """Ten people who say the same of each of four items know as much as one of them."""
    verdicts, items = [p for p in "AAAB" for _ in range(10)], [i for i in range(4) for _ in range(10)]
    alone, together = win_rates(list("AAAB")), win_rates(verdicts, group=items)
    assert together.ties_split[:3] == alone.ties_split[:3]
    assert together.ties_split.n == 40
    assert win_rates(verdicts).ties_split.low > together.ties_split.low


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(PREFERENCES), min_size=1, max_size=30))
def test_the_other_arm_wins_what_this_one_loses(verdicts):
    one, other = (win_rates(v, n_boot=50) for v in (verdicts, [OTHER_WAY[p] for p in verdicts]))
    assert one.ties_split.value == pytest.approx(1 - other.ties_split.value)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)


def test_alpha_by_hand():
    """Two raters, four items, one disagreement: D_o = 2/8, D_e = 1 - (3*2 + 3*2 + 2*1) / (8*7) = 3/4, alpha = 2/3."""
    got = alpha([["A", "A"], ["B", "B"], ["tie", "tie"], ["A", "B"]], n_boot=200)
    assert got.value == pytest.approx(2 / 3)
    assert got.n == 4
    assert got.low < got.value < got.high


def test_alpha_leaves_out_what_one_rater_saw_alone():
    pairs = [["A", "A"], ["B", "B"], ["A", "B"]]
    assert alpha([*pairs, ["tie"], []], n_boot=10)[::3] == alpha(pairs, n_boot=10)[::3]


@pytest.mark.parametrize("ratings", [[], [["A"]], [["A", "A"], ["A", "A"]]])
def test_alpha_is_undefined_without_chance(ratings):
    assert math.isnan(alpha(ratings, n_boot=10).value)


def test_alpha_of_full_agreement_and_of_opposites():
    assert alpha([["A", "A"], ["B", "B"]] * 5, n_boot=50).value == 1
    assert alpha([["A", "B"]] * 10, n_boot=50).value < 0
