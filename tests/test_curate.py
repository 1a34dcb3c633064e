"""Judgments -> pairs: the rules and all reasons on hand-made cases, and every prompt is accounted for."""

import functools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlib import curate as module
from srlib.curate import CurateError, correct_answer, curate, majority_vote, meta_judge, rule_named
from srlib.schema import Comparison, Example, Judgment, Rubric

FIVE = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])


def item_of(name="e", gold=4.0):
    shared = dict(id=name, instruction=f"Greet {name}.", rubric=FIVE)
    if isinstance(gold, str):
        return Comparison(**shared, response_a="Hello", response_b="Go", preference=gold)
    return Example(**shared, response="Hello", score=gold)


def sampled(verdicts, name="e", texts=None):
    """Judgments with these scores or preferences; None for one that could not be parsed."""
    field = {int: "score", str: "preference", type(None): "failure"}
    texts = texts or [f"Reason {i}. [RESULT] {v}" for i, v in enumerate(verdicts)]
    return [
        Judgment(example_id=name, index=i, text=texts[i], **{field[type(v)]: v or "no_verdict"})
        for i, v in enumerate(verdicts)
    ]


def one(verdicts, gold=4.0, rule=correct_answer, texts=None, **settings):
    return curate([item_of(gold=gold)], sampled(verdicts, texts=texts), rule, **{"pairs_per_prompt": 3} | settings)


def many(golds, verdicts=(1, 1, 3, 3, 5, 5)):
    items = [item_of(f"e{i}", gold) for i, gold in enumerate(golds)]
    return items, [j for item in items for j in sampled(verdicts, item.id)]


def rated(*ratings):
    return functools.partial(meta_judge, ratings={f"e#{i}": r for i, r in enumerate(ratings)})


@pytest.mark.parametrize(
    ("verdicts", "gold", "rule", "margin", "expected"),
    [
        ([4, 4, 3, 1], 4.0, correct_answer, 3, [(4, 1)]), ([4, 4, 3, 1], 4.0, correct_answer, 1, [(4, 1), (4, 3)]),
        ([3, 3, 1, 5, None], 3.0, correct_answer, 2, [(3, 1), (3, 5)]), ([2, 2, 4, 5], 4.0, majority_vote, 3, [(2, 5)]),
        ([1, 1, 4, 4, 5], 1.0, majority_vote, 3, [(4, 1), (4, 1)]),  # of two modes the nearer to the mean
        ([1, 1, 3, 3], None, majority_vote, 2, [(1, 3), (1, 3)]),  # both as near: the lower
        ([4, 2, 3, 1], 4.0, rated(5, 1, 4, 2), 2, [(3, 1), (4, 2)]), ([4, 2, 3, 1], None, rated(5, 1, 4, 2), 3, [(4, 2)]),
        (["A", "tie", None], "A", correct_answer, 100, [("A", "tie")]), (["A", "B"], "A", rated(2, 5), 2, [("B", "A")]),
        (["B", "A", "B", "tie"], "A", majority_vote, 2, [("B", "A"), ("B", "tie")]),
    ],
)  # fmt: skip
def test_rules(verdicts, gold, rule, margin, expected):
    curation = one(verdicts, gold, rule, margin=margin)
    assert sorted((p.chosen_score, p.rejected_score) for p in curation.pairs) == expected
    assert curation.drops == {}
    for p in curation.pairs:
        assert (p.gold, p.margin) == (gold, None if gold == "A" else abs(p.chosen_score - p.rejected_score))


@pytest.mark.parametrize(
    ("verdicts", "settings", "reason"),
    [
        ([], {}, "no_score"), ([None, None], {}, "no_score"), ([1, 2, 3], {}, "all_wrong"), ([4, 4, None], {}, "all_right"),
        ([4, 3, 5], {}, "margin"), ([4, 1], {"fits": lambda item, text: False}, "too_long"),
        ([4, 1], {"fits": lambda item, text: "RESULT] 1" not in text}, "too_long"),
        ([4, 3, 3], {"fits": lambda item, text: "Reason 2" not in text}, "margin"),  # nor would the long one help
        ([4, 1], {"fits": lambda item, text: "Reason 0" not in text, "rule": lambda *_: []}, "no_pair"),
        ([2, 2, 3], {"rule": majority_vote}, "margin"), (["A", "B"], {"rule": majority_vote}, "no_majority"),
        (["B", "tie"], {"gold": "A"}, "all_wrong"), ([4, 1], {"rule": rated()}, "no_score"), ([4], {"rule": rated(3)}, "margin"),
        ([4, 1], {"rule": rated(3, 3), "margin": 0}, "margin"),  # none is preferred among equals
        ([4, 1], {"rule": lambda *_: "mine"}, "mine"), ([4, 1], {"flipping": lambda pairs: {"e#1"}}, "flips"),
    ],
)  # fmt: skip
def test_reasons(verdicts, settings, reason):
    curation = one(verdicts, **settings)
    assert (curation.pairs, curation.drops) == ([], {reason: 1})
    assert reason in {**module.REASONS, "mine": ""}


def test_a_rule_that_cannot_work_is_refused():
    rules = {
        "e has no gold score or preference, which correct_answer needs": correct_answer,
        "needs ratings": meta_judge,
        "prompt e: .* each of them only once": lambda item, judgments, margin: [(judgments[0], judgments[0])],
        "judgments of this prompt": lambda item, judgments, margin: [sampled([4, 1], "other")],
    }
    for message, rule in rules.items():
        with pytest.raises(CurateError, match=message):
            one([4, 1, 2], None, rule)


def test_a_rule_is_found_by_name(tmp_path):
    (tmp_path / "rules.py").write_text(
        "def far(a, b):\n    return b - a\n\ndef mine(*args):\n    return str(far(1, 3))\n"
    )
    assert rule_named("majority_vote", {"majority_vote": print}, tmp_path) is majority_vote
    assert rule_named("shortest", {"shortest": len}, tmp_path) is len
    assert rule_named("rules.py:mine", {}, tmp_path)(None, [], 3) == "2"
    for strategy in ("best", "none.py:f", "rules.py:f"):
        with pytest.raises(CurateError, match=f"strategy {strategy}: there is no f"):  # file, function
            rule_named(strategy, {"best": 1, "f": len}, tmp_path)


def test_a_repeated_text_counts_once_and_a_pair_says_where_it_comes_from():
    [pair] = one([None, 4, 4, 1, 1], texts=["x", "a", "a", "b b", "b b"], iteration=2).pairs
    assert pair.model_dump() == {
        "id": "e#1>3", "example_id": "e", "chosen": "a", "rejected": "b b", "chosen_id": "e#1", "rejected_id": "e#3",
        "chosen_score": 4.0, "rejected_score": 1.0, "gold": 4.0, "margin": 3.0, "strategy": "correct_answer", "iteration": 2,
    }  # fmt: skip
    assert module.provenance([pair]) == dict(pairs=1, prompts=1, mean_margin=3.0, chosen_words=1.0, rejected_words=2.0)
    assert module.provenance([])["chosen_words"] is module.provenance(one(["A", "B"], "A").pairs)["mean_margin"] is None
    assert {p.strategy for p in one([4, 1], rule=rated(5, 1)).pairs} == {"meta_judge"}
    for seed in range(5):  # a long judgment takes no partner with it
        pairs = one([4, 4, 1, 1], seed=seed, fits=lambda item, text: text[7] not in "02").pairs
        assert [(p.chosen_id, p.rejected_id) for p in pairs] == [("e#1", "e#3")]
    [row] = module.meta_examples([item_of(gold="A")], sampled(["B", None]))
    assert (row.id, row.response) == ("e#0", "Reason 0. [RESULT] B")
    assert all(text in row.instruction for text in ("Greet e.", "Hello", "Go", FIVE.text))


def test_filters_count_the_prompts_that_they_empty():
    items, judgments = many([1.0] * 7 + [3.0] * 2 + [5.0] * 4)
    assert Counter(p.gold for p in curate(items, judgments, pairs_per_prompt=2).pairs) == {1: 14, 3: 4, 5: 8}
    even = curate(items, judgments, pairs_per_prompt=2, balance=True)
    assert (Counter(p.gold for p in even.pairs), even.drops) == ({1: 4, 3: 4, 5: 4}, {"balance": 7})
    pairs = [item_of(f"c{i}", gold) for i, gold in enumerate(["A", "A", "A", "B"])]
    both = curate([*items, *pairs], judgments + [j for c in pairs for j in sampled(["A", "B"], c.id)], balance=True)
    assert Counter(p.gold for p in both.pairs) == {1: 2, 3: 2, 5: 2, "A": 1, "B": 1}  # each kind within itself
    items, judgments = many([4.0] * 4, [4, 4, 1, 2])
    seen, flips = [], {"e0#2", "e0#3", "e1#2"}
    left = curate(items, judgments, pairs_per_prompt=2, max_pairs=3, flipping=lambda pairs: seen.append(pairs) or flips)
    assert [len(pairs) for pairs in seen] == [8]  # once, with all pairs
    assert (len(left.pairs), left.drops) == (3, {"flips": 1, "cap": 1})
    assert left.waterfall() == [("judgments", 16), ("- flips", 12), ("- cap", 8), ("in pairs", 6)]


def test_pairs_depend_on_seed_and_iteration_and_on_no_order():
    items, judgments = many([1.0, 3.0, 5.0, 1.0, 3.0, 5.0, 5.0, 5.0, 1.0])
    ids = {p.id for p in curate(items, judgments).pairs}
    for limits in ({}, {"balance": True}, {"max_pairs": 5}):
        shuffled = [random.Random(0).sample(rows, len(rows)) for rows in (items, judgments)]
        assert curate(*shuffled, **limits) == curate(items, judgments, **limits)
    for draw in ({"seed": 1}, {"iteration": 2}):
        assert {p.id for p in curate(items, judgments, **draw).pairs} != ids
    assert ids.issuperset(p.id for p in curate(items[2:4], judgments).pairs)


@settings(max_examples=150, deadline=None)
@given(
    draws=st.lists(st.lists(st.sampled_from([None, 1, 2, 3, 4, 5]), max_size=6), max_size=8), margin=st.integers(0, 2),
    name=st.sampled_from(sorted(module.RULES)), most=st.integers(1, 3), balance=st.booleans(), cap=st.sampled_from([0, 1, 4]),
    data=st.data(),
)  # fmt: skip
def test_every_prompt_is_accounted_for(draws, name, margin, most, balance, cap, data):
    items = [item_of(f"e{i}", data.draw(st.sampled_from([1.0, 3.0, 5.0]))) for i in range(len(draws))]
    judgments = [j for item, scores in zip(items, draws, strict=True) for j in sampled(scores, item.id)]
    ratings = {j.id: data.draw(st.integers(1, 5)) for j in judgments if j.score is not None}
    rule = functools.partial(meta_judge, ratings=ratings) if name == "meta_judge" else module.RULES[name]
    limits = dict(margin=margin, pairs_per_prompt=most, balance=balance, max_pairs=cap)
    curation = curate(items, judgments, rule, **limits, fits=lambda item, text: "Reason 5" not in text)
    kept = Counter(p.example_id for p in curation.pairs)
    assert len(kept) + sum(curation.drops.values()) == len(items)
    assert (curation.waterfall()[0][1], curation.waterfall()[-1][1]) == (len(judgments), 2 * len(curation.pairs))
    assert curation.waterfall()[-2][1] == sum(j.example_id in kept for j in judgments)
    assert max(kept.values(), default=0) <= most
    assert not cap or len(curation.pairs) <= cap
    used = [j for p in curation.pairs for j in (p.chosen_id, p.rejected_id)]
    assert len(used) == len(set(used))
    for p in curation.pairs:
        assert "Reason 5" not in p.chosen + p.rejected
        if name == "meta_judge":
            assert ratings[p.chosen_id] - ratings[p.rejected_id] >= max(margin, 1)
        else:
            assert p.margin >= max(margin, 1)
            assert name == "majority_vote" or p.chosen_score == p.gold
