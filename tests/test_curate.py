"""Judgments -> pairs: every strategy and every reason on hand-made cases, and no prompt unaccounted for."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlib.curate import DROPS, META_RUBRIC, STRATEGIES, curate, distance, meta_examples, provenance
from srlib.schema import Comparison, Example, Judgment, Rubric

FIVE = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])


def example(name="e", gold=4.0):
    return Example(id=name, instruction=f"Greet {name}.", response="Hello", rubric=FIVE, score=gold)


def drawn(scores, name="e", texts=None):
    """Judgments with these scores, None for one that could not be read."""
    return [
        Judgment(
            example_id=name, index=i, text=texts[i] if texts else f"Reason {i}. [RESULT] {s}", score=s,
            failure="no_verdict" if s is None else None,
        )
        for i, s in enumerate(scores)
    ]  # fmt: skip


def one(scores, gold=4.0, texts=None, **settings):
    return curate([example(gold=gold)], drawn(scores, texts=texts), **settings)


def rated(judgments, ratings):
    return {j.id: rating for j, rating in zip(judgments, ratings, strict=True) if rating is not None}


def sides(curation):
    return sorted((p.chosen_score, p.rejected_score) for p in curation.pairs)


@pytest.mark.parametrize(
    ("scores", "gold", "margin", "wanted"),
    [
        ([4, 4, 3, 1], 4, 2, [(4, 1)]),
        ([4, 4, 3, 1], 4, 3, [(4, 1)]),
        ([4, 4, 3, 1], 4, 1, [(4, 1), (4, 3)]),
        ([4, 2, 2, 2], 4, 2, [(4, 2)]),
        ([3, 3, 1, 5, None], 3, 2, [(3, 1), (3, 5)]),
        ([4, 1, 1, None], 4, 1, [(4, 1)]),
    ],
)
def test_correct_answer(scores, gold, margin, wanted):
    found = one(scores, gold, margin=margin)
    assert sides(found) == wanted
    assert all(p.target == gold and p.margin == abs(p.rejected_score - gold) for p in found.pairs)
    assert found.drops == {}


@pytest.mark.parametrize(
    ("scores", "margin", "target", "wanted"),
    [
        ([2, 2, 4, 5], 2, 2, [(2, 4), (2, 5)]),
        ([2, 2, 4, 5], 3, 2, [(2, 5)]),
        ([5, 5, 5, 1], 2, 5, [(5, 1)]),
        ([1, 1, 4, 4, 5], 3, 4, [(4, 1), (4, 1)]),  # a tie: the nearest to the mean of all
    ],
)
def test_majority_vote_needs_no_gold(scores, margin, target, wanted):
    found = one(scores, gold=None, strategy="majority_vote", margin=margin)
    assert sides(found) == wanted
    assert {p.target for p in found.pairs} == {target}


def test_correct_answer_without_gold_is_refused():
    with pytest.raises(
        ValueError, match="example e has no gold score; strategy correct_answer needs one, majority_vote"
    ):
        one([1, 4], gold=None)


def test_meta_judge_pairs_the_best_with_the_worst():
    judgments = drawn([4, 2, 3, None, 1])
    ratings = rated(judgments, [5, 1, 4, None, 2])
    found = curate([example()], judgments, strategy="meta_judge", margin=2, ratings=ratings)
    assert [(p.chosen_id, p.rejected_id) for p in found.pairs] == [("e#0", "e#1"), ("e#2", "e#4")]
    assert {(p.target, p.margin) for p in found.pairs} == {(None, None)}
    found = curate([example()], judgments, strategy="meta_judge", margin=3, ratings=ratings)
    assert [(p.chosen_id, p.rejected_id) for p in found.pairs] == [("e#0", "e#1")]
    with pytest.raises(ValueError, match="meta_judge needs ratings"):
        curate([example()], judgments, strategy="meta_judge")


def test_meta_judge_with_one_text_rated_twice():
    judgments = drawn([3, 3, 3, 3], texts=["same", "good", "bad", "same"])
    ratings = rated(judgments, [5, 4, 2, 1])
    found = curate([example()], judgments, strategy="meta_judge", margin=1, ratings=ratings)
    assert [(p.chosen, p.rejected) for p in found.pairs] == [("same", "bad")]


def test_meta_judge_never_prefers_among_equals():
    judgments = drawn([1, 2, 3, 4])
    found = curate([example()], judgments, strategy="meta_judge", margin=0, ratings=rated(judgments, [3, 3, 3, 3]))
    assert (found.pairs, found.drops) == ([], {"margin": 1})


def test_meta_examples_ask_about_every_judgment_with_a_score():
    judgments = drawn([4, None, 1])
    rows = meta_examples([example()], judgments)
    assert [row.id for row in rows] == ["e#0", "e#2"]
    assert [row.response for row in rows] == [judgments[0].text, judgments[2].text]
    assert all(
        row.rubric == META_RUBRIC and "Greet e." in row.instruction and "Hello" in row.instruction for row in rows
    )
    assert all(example().rubric.text in row.instruction for row in rows), "else nobody can tell whether a score follows"


@pytest.mark.parametrize(
    ("scores", "settings", "reason"),
    [
        ([None, None], {}, "no_score"),
        ([], {}, "no_score"),
        ([1, 2, 3], {}, "all_wrong"),
        ([4, 4, None], {}, "all_right"),
        ([4, 3, 5], {}, "margin"),
        ([4, 1], {"fits": lambda example, text: False}, "too_long"),
        ([4, 1], {"fits": lambda example, text: "RESULT] 1" not in text}, "too_long"),
        ([4, 1], {"fits": lambda example, text: "RESULT] 4" not in text}, "too_long"),
        ([2, 2, 3], {"strategy": "majority_vote"}, "margin"),
        ([2, 2], {"strategy": "majority_vote"}, "all_right"),
        ([None], {"strategy": "majority_vote"}, "no_score"),
        ([4, 1], {"strategy": "meta_judge", "ratings": {}}, "no_score"),
        ([4, 1], {"strategy": "meta_judge", "ratings": {"e#0": 3, "e#1": 3}}, "margin"),
        ([4], {"strategy": "meta_judge", "ratings": {"e#0": 3}}, "margin"),
    ],
)
def test_every_reason_to_drop_a_prompt(scores, settings, reason):
    found = one(scores, **settings)
    assert (found.pairs, found.drops) == ([], {reason: 1})
    assert reason in DROPS


def test_pairs_whose_rejected_side_flips_are_dropped_and_counted():
    examples = [example(name) for name in "abc"]
    judgments = [j for name in "abc" for j in drawn([4, 4, 1, 2], name)]
    asked = []

    def flipping(pairs):
        asked.append([pair.id for pair in pairs])
        return {"a#2", "a#3", "b#2"}

    before = curate(examples, judgments, margin=2)
    found = curate(examples, judgments, margin=2, flipping=flipping)
    assert asked == [[pair.id for pair in before.pairs]]  # once, with all pairs
    assert found.pairs == [p for p in before.pairs if p.rejected_id not in {"a#2", "a#3", "b#2"}]
    assert found.drops == {"flips": 1}
    assert found.waterfall() == [("judgments", 12), ("- flips", 8), ("in pairs", 6)]
    assert len({p.example_id for p in found.pairs}) + sum(found.drops.values()) == 3


def test_the_limit_on_pairs_is_filled_with_pairs_that_hold():
    examples = [example(name) for name in "abcd"]
    judgments = [j for name in "abcd" for j in drawn([4, 1], name)]
    found = curate(examples, judgments, max_pairs=2, flipping=lambda pairs: {"a#1", "b#1"})
    assert sorted(p.example_id for p in found.pairs) == ["c", "d"]
    assert found.drops == {"flips": 2}


def test_too_long_is_dropped_whole_and_the_rest_stays():
    found = one([4, 4, 1, 1], margin=2, fits=lambda example, text: "Reason 0" not in text)
    [pair] = found.pairs
    assert pair.chosen == "Reason 1. [RESULT] 4"
    assert pair.rejected in ("Reason 2. [RESULT] 1", "Reason 3. [RESULT] 1")


@pytest.mark.parametrize("seed", range(5))
def test_what_is_too_long_takes_no_partner_with_it(seed):
    found = one([4, 4, 1, 1], margin=2, seed=seed, fits=lambda example, text: text[7] not in "02")
    assert [(p.chosen_id, p.rejected_id) for p in found.pairs] == [("e#1", "e#3")]


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_pairs_per_prompt_and_no_judgment_twice(most):
    found = one([4] * 6 + [1, 2] * 4, pairs_per_prompt=most)
    assert len(found.pairs) == most
    used = [name for p in found.pairs for name in (p.chosen_id, p.rejected_id)]
    assert len(used) == len(set(used))


def test_one_text_drawn_twice_counts_once():
    found = one([4, 4, 4, 1, 1], texts=["a", "a", "a", "b", "b"])
    assert [(p.chosen, p.rejected) for p in found.pairs] == [("a", "b")]


def test_a_pair_says_where_it_comes_from():
    [pair] = one([None, 4, 1], iteration=2).pairs
    assert pair.model_dump() == {
        "id": "e#1>2", "example_id": "e", "chosen": "Reason 1. [RESULT] 4", "rejected": "Reason 2. [RESULT] 1",
        "chosen_id": "e#1", "rejected_id": "e#2", "chosen_score": 4.0, "rejected_score": 1.0, "target": 4.0, "margin": 3.0,
        "strategy": "correct_answer", "iteration": 2,
    }  # fmt: skip


def many(golds, scores=(1, 1, 3, 3, 5, 5)):
    """One example for each gold score, all with the same draws."""
    rows = [example(f"e{i}", gold) for i, gold in enumerate(golds)]
    return rows, [j for row in rows for j in drawn(scores, row.id)]


def test_balance_gives_every_score_as_many_pairs():
    rows, judgments = many([1] * 7 + [3] * 2 + [5] * 4)
    plain = curate(rows, judgments, pairs_per_prompt=2)
    assert Counter(p.target for p in plain.pairs) == {1: 14, 3: 4, 5: 8}
    even = curate(rows, judgments, pairs_per_prompt=2, balance=True)
    assert Counter(p.target for p in even.pairs) == {1: 4, 3: 4, 5: 4}
    assert even.drops == {"balance": 7}  # five prompts of score 1, two of score 5


def test_cap_limits_the_pairs():
    rows, judgments = many([1] * 6)
    assert len(curate(rows, judgments, pairs_per_prompt=2, max_pairs=0).pairs) == 12
    found = curate(rows, judgments, pairs_per_prompt=2, max_pairs=5)
    assert (len(found.pairs), found.drops) == (5, {"cap": 3})
    assert len({p.example_id for p in found.pairs}) == 3


def in_other_orders(rows, judgments):
    for seed in range(5):
        yield random.Random(seed).sample(rows, len(rows)), random.Random(seed).sample(judgments, len(judgments))


def test_the_order_of_the_rows_does_not_change_the_pairs():
    rows, judgments = many([1, 3, 5, 1, 3, 5, 5, 5, 1])
    first = curate(rows, judgments, pairs_per_prompt=2)
    assert curate(rows, judgments, pairs_per_prompt=2) == first
    for same, reordered in in_other_orders(rows, judgments):
        found = curate(same, reordered, pairs_per_prompt=2)
        assert sorted(found.pairs, key=lambda p: p.id) == sorted(first.pairs, key=lambda p: p.id)
        assert found.drops == first.drops


@pytest.mark.parametrize("settings", [{}, {"balance": True}, {"max_pairs": 5}, {"balance": True, "max_pairs": 5}])
def test_nor_their_order_nor_what_balance_and_cap_keep(settings):
    rows, judgments = many([1, 3, 5, 1, 3, 5, 5, 5, 1])
    first = curate(rows, judgments, pairs_per_prompt=1, **settings)
    for same, reordered in in_other_orders(rows, judgments):
        assert curate(same, reordered, pairs_per_prompt=1, **settings) == first


def test_a_part_of_the_prompts_gives_the_same_pairs():
    rows, judgments = many([1, 3, 5, 1, 3, 5])
    of_all = {p.id: p for p in curate(rows, judgments).pairs}
    of_some = curate(rows[2:4], judgments).pairs
    assert len(of_some) == 4
    assert all(of_all[p.id] == p for p in of_some)


def test_seed_and_iteration_draw_other_pairs():
    rows, judgments = many([1, 3, 5] * 4)
    drawn_by = [curate(rows, judgments, pairs_per_prompt=1, seed=s, iteration=t) for s in (0, 1) for t in (1, 2)]
    chosen = [frozenset(p.id for p in c.pairs) for c in drawn_by]
    assert len(set(chosen)) == 4


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="'best' is not one of correct_answer, majority_vote, meta_judge"):
        one([4, 1], strategy="best")


@settings(max_examples=150, deadline=None)
@given(
    draws=st.lists(st.lists(st.sampled_from([None, 1, 2, 3, 4, 5]), max_size=6), max_size=8),
    strategy=st.sampled_from(STRATEGIES), margin=st.sampled_from([0, 1, 2]), most=st.integers(1, 3),
    balance=st.booleans(), cap=st.sampled_from([0, 1, 4]), data=st.data(),
)  # fmt: skip
def test_every_prompt_is_accounted_for(draws, strategy, margin, most, balance, cap, data):
    golds = [data.draw(st.sampled_from([1.0, 3.0, 5.0])) for _ in draws]
    rows = [example(f"e{i}", gold) for i, gold in enumerate(golds)]
    judgments = [j for row, scores in zip(rows, draws, strict=True) for j in drawn(scores, row.id)]
    ratings = {j.id: data.draw(st.integers(1, 5)) for j in judgments if j.score is not None}
    found = curate(
        rows, judgments, strategy=strategy, margin=margin, pairs_per_prompt=most, balance=balance, max_pairs=cap,
        ratings=ratings, fits=lambda example, text: "Reason 5" not in text,
    )  # fmt: skip
    kept = Counter(p.example_id for p in found.pairs)
    assert (found.n_prompts, found.n_judgments) == (len(rows), len(judgments))
    assert len(kept) + sum(found.drops.values()) == len(rows)
    assert found.waterfall()[-2][1] == sum(j.example_id in kept for j in judgments)
    assert found.waterfall()[-1] == ("in pairs", 2 * len(found.pairs))
    assert max(kept.values(), default=0) <= most
    assert not cap or len(found.pairs) <= cap
    used = [name for p in found.pairs for name in (p.chosen_id, p.rejected_id)]
    assert len(used) == len(set(used))
    assert not any("Reason 5" in p.chosen + p.rejected for p in found.pairs)
    for p in found.pairs:
        assert None not in (p.chosen_score, p.rejected_score)
        if strategy == "meta_judge":
            assert ratings[p.chosen_id] - ratings[p.rejected_id] >= max(margin, 1)
        else:
            assert p.chosen_score == p.target != p.rejected_score
            assert abs(p.rejected_score - p.target) >= margin


def test_waterfall_goes_down_by_every_reason():
    rows = [example(name) for name in "abcd"]
    judgments = list(itertools.chain(drawn([4, 1], "a"), drawn([None], "b"), drawn([4, 4], "c"), drawn([4, 3], "d")))
    assert curate(rows, judgments).waterfall() == [
        ("judgments", 7), ("- no score", 6), ("- all right", 4), ("- margin", 2), ("in pairs", 2),
    ]  # fmt: skip


def test_provenance():
    assert provenance([]) == {"pairs": 0, "prompts": 0}
    facts = provenance(one([4, 4, 1, 2], pairs_per_prompt=2).pairs)
    assert facts == {"pairs": 2, "prompts": 1, "mean_margin": 2.5, "chosen_words": 4.0, "rejected_words": 4.0}


# ---------------------------------------------------------------- comparisons


def comparison(name="c", gold="A"):
    return Comparison(
        id=name, instruction=f"Greet {name}.", response_a="Hello", response_b="Go", rubric=FIVE, preference=gold
    )


def voted(preferences, name="c"):
    """Judgments with these preferences, None for one that could not be read."""
    return [
        Judgment(
            example_id=name,
            index=i,
            text=f"Reason {i}. [RESULT] {p}",
            preference=p,
            failure=None if p else "no_verdict",
        )
        for i, p in enumerate(preferences)
    ]


def of_two(preferences, gold="A", **settings):
    return curate([comparison(gold=gold)], voted(preferences), **settings)


@pytest.mark.parametrize(
    ("preferences", "gold", "wanted"),
    [
        (["A", "B"], "A", [("A", "B")]),
        (["A", "tie", None], "A", [("A", "tie")]),  # a tie is another verdict than the gold one
        (["B", "A", "B"], "B", [("B", "A")]),
        (["tie", "B"], "tie", [("tie", "B")]),
    ],
)
def test_a_right_preference_is_chosen_over_any_other_whatever_the_margin(preferences, gold, wanted):
    for margin in (0, 2, 100):
        found = of_two(preferences, gold, margin=margin)
        assert sides(found) == wanted
        assert {(p.target, p.margin) for p in found.pairs} == {(gold, None)}
        assert found.drops == {}


@pytest.mark.parametrize(
    ("preferences", "settings", "reason"),
    [
        ([None, None], {}, "no_score"),
        (["B", "tie"], {}, "all_wrong"),
        (["A", "A", None], {}, "all_right"),
        (["A", "B"], {"fits": lambda item, text: "RESULT] B" not in text}, "too_long"),
        (["A", "A"], {"strategy": "majority_vote"}, "all_right"),
        (["A", "B", "B", "A", "tie"], {"strategy": "majority_vote"}, "no_majority"),
    ],
)
def test_every_reason_to_drop_a_comparison(preferences, settings, reason):
    found = of_two(preferences, **settings)
    assert (found.pairs, found.drops) == ([], {reason: 1})
    assert reason in DROPS


def test_the_preference_of_most_draws_needs_no_gold():
    found = of_two(["B", "A", "B", "tie"], gold=None, strategy="majority_vote", pairs_per_prompt=1)
    assert [(p.chosen_score, p.target, p.margin) for p in found.pairs] == [("B", "B", None)]
    with pytest.raises(ValueError, match="comparison c has no gold preference; strategy correct_answer needs one"):
        of_two(["A", "B"], gold=None)


def test_the_meta_judge_reads_both_responses():
    judgments = voted(["A", "B", None])
    rows = meta_examples([comparison()], judgments)
    assert [row.id for row in rows] == ["c#0", "c#1"]
    assert all("Hello" in row.instruction and "Go" in row.instruction for row in rows)
    found = curate([comparison()], judgments, strategy="meta_judge", ratings=rated(judgments, [2, 5, None]))
    assert [(p.chosen_score, p.rejected_score, p.target) for p in found.pairs] == [("B", "A", None)]


def test_scores_and_preferences_side_by_side():
    """Each kind is balanced within itself, and examples give the pairs that they give alone."""
    examples, judgments = many([1] * 6 + [5] * 2)
    alone = curate(examples, judgments, pairs_per_prompt=1, balance=True).pairs
    pairs = [comparison(f"c{i}", gold) for i, gold in enumerate(["A", "A", "A", "B"])]
    judgments += [j for c in pairs for j in voted(["A", "B"], c.id)]
    found = curate([*examples, *pairs], judgments, pairs_per_prompt=1, balance=True)
    assert Counter(p.target for p in found.pairs) == {1: 2, 5: 2, "A": 1, "B": 1}
    assert found.drops == {"balance": 6}
    assert {p.example_id for p in found.pairs if p.target == 5} == {p.example_id for p in alone if p.target == 5}
    assert provenance(found.pairs)["mean_margin"] >= 2  # of those that have one


def test_distance():
    assert (distance(4.0, 1.0), distance(1.0, 1.0), distance("A", "A")) == (3.0, 0.0, 0.0)
    assert distance("tie", "A") == distance("B", "A") == float("inf")
