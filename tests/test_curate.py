"""Judgments -> pairs: the rules and all reasons on hand-made cases, and every prompt is accounted for."""

import functools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlib import curate as module
from srlib.curate import (
    correct_answer,
    curate,
    followups,
    graded,
    majority_vote,
    meta_equal,
    meta_judge,
    rule_named,
)
from srlib.schema import Comparison, Example, Judgment, Rubric, SrlibError

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


def compared(**preferences):
    """meta_equal with these preferences: `e0_1="A"` is the comparison of judgment 0 as A with 1 as B."""
    named = {f"e#{name[1:].replace('_', '>')}": p for name, p in preferences.items()}
    return functools.partial(meta_equal, preferences=named)


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
        ([1, 5, 4, 3, 2], 5.0, graded, 2, [(4, 2), (5, 1)]), ([1, 5, 4, 3, 2], 5.0, graded, 3, [(5, 1)]),  # 3 is left over
        ([3, 1], 4.0, graded, 2, [(3, 1)]), ([5, 2, 3], 4.0, graded, 1, [(5, 2)]), (["B", "A"], "A", graded, 9, [("A", "B")]),
        ([2, 4, 4], 4.0, compared(e1_2="B", e2_1="A"), 9, [(4, 4)]),
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
        ([4, 4], {"rule": graded}, "all_right"), ([4, 3], {"rule": graded}, "margin"), ([2, 2], {"rule": graded}, "all_wrong"),
        ([None, None], {"rule": graded}, "no_score"), (["B", None], {"gold": "A", "rule": graded}, "all_wrong"),
        ([4, 1], {"rule": compared(e0_1="A")}, "no_equal"), ([4, 4, 1], {"rule": compared(e0_2="A")}, "no_comparison"),
        ([4, 4], {"rule": compared(e0_1="A", e1_0="A")}, "undecided"), ([4, 4], {"rule": compared(e0_1="tie")}, "undecided"),
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
        "e has no gold score or preference, which graded needs": graded,
        "needs ratings": meta_judge,
        "needs preferences": meta_equal,
        "prompt e: .* each of them only once": lambda item, judgments, margin: [(judgments[0], judgments[0])],
        "judgments of this prompt": lambda item, judgments, margin: [sampled([4, 1], "other")],
    }
    for message, rule in rules.items():
        with pytest.raises(SrlibError, match=message):
            one([4, 1, 2], None, rule)


def test_a_rule_is_found_by_name(tmp_path):
    (tmp_path / "rules.py").write_text(
        "def far(a, b):\n    return b - a\n\ndef mine(*args):\n    return str(far(1, 3))\n"
    )
    assert rule_named("majority_vote", {}, tmp_path) is majority_vote
    assert rule_named("majority_vote", {"majority_vote": len}, tmp_path) is len, "the notebook's own comes first"
    assert rule_named("shortest", {"shortest": len}, tmp_path) is len
    assert rule_named("rules.py:mine", {}, tmp_path)(None, [], 3) == "2"
    for strategy in ("best", "none.py:f", "rules.py:f"):
        with pytest.raises(SrlibError, match=f"strategy {strategy}: there is no f"):  # file, function
            rule_named(strategy, {"best": 1, "f": len}, tmp_path)


def test_a_repeated_text_counts_once_and_a_pair_says_where_it_comes_from():
    [pair] = one([None, 4, 4, 1, 1], texts=["x", "a", "a", "b b", "b b"], iteration=2).pairs
    assert pair.model_dump() == {
        "id": "e#1>3", "example_id": "e", "kind": "cot", "rationale": None, "chosen": "a", "rejected": "b b", "chosen_id": "e#1", "rejected_id": "e#3",
        "chosen_score": 4.0, "rejected_score": 1.0, "gold": 4.0, "margin": 3.0, "strategy": "correct_answer", "iteration": 2,
    }  # fmt: skip
    assert module.provenance([pair]) == dict(pairs=1, prompts=1, mean_margin=3.0, chosen_words=1.0, rejected_words=2.0)
    assert module.provenance([])["chosen_words"] is module.provenance(one(["A", "B"], "A").pairs)["mean_margin"] is None
    assert {p.strategy for p in one([4, 1], rule=rated(5, 1)).pairs} == {"meta_judge"}
    for seed in range(5):  # a long judgment takes no partner with it
        pairs = one([4, 4, 1, 1], seed=seed, fits=lambda item, text: text[7] not in "02").pairs
        assert [(p.chosen_id, p.rejected_id) for p in pairs] == [("e#1", "e#3")]
    [row] = followups.meta_examples([item_of(gold="A")], sampled(["B", None]))
    assert (row.id, row.response) == ("e#0", "Reason 0. [RESULT] B")
    assert all(text in row.instruction for text in ("Greet e.", "Hello", "Go", FIVE.text))


PAPER = ["cot:0.7", "verdict:0.15", "deduction:0.15"]


def paired(n, verdicts=(4, 1), rule=correct_answer, **fields):
    """(items by id, curation) of n prompts that each give a pair; every response is another one."""
    items = [
        item_of(f"e{i}").model_copy(update={"response": f"Hello number {i}, dear friend", **fields}) for i in range(n)
    ]
    judgments = [j for item in items for j in sampled(verdicts, item.id)]
    return {item.id: item for item in items}, curate(items, judgments, rule)


def mix_of(items, curation, mix=PAPER, left_out=0, written="Go away {}"):
    asked = followups.to_deduce(items, curation.pairs)
    deduced = {e.id: written.format(e.response) for e in asked[left_out:]}
    return module.mixed(curation, mix, asked, deduced)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 20, 99, 100])
@pytest.mark.parametrize("mix", [PAPER, ["verdict:1"], ["cot:2", "verdict:1"], []])
def test_weights_are_honoured_to_the_pair_at_the_number_of_the_control(n, mix):
    items, curation = paired(n)
    pairs = mix_of(items, curation, mix).pairs
    counts = Counter(p.kind for p in pairs)
    weights = {kind: float(w) for kind, _, w in (entry.partition(":") for entry in mix or ["cot:1"])}
    assert len(pairs) == n, "as many as in the control, on the same prompts"
    assert [p.id for p in pairs] == [p.id for p in curation.pairs]
    assert all(abs(counts[kind] - n * w / sum(weights.values())) < 1 for kind, w in weights.items())
    assert counts.keys() <= weights.keys()


def test_what_a_pair_of_each_kind_compares():
    items, curation = paired(20)
    before = {p.id: p for p in curation.pairs}
    for pair in mix_of(items, curation).pairs:
        was, response = before[pair.id], items[pair.example_id].response
        same = {"kind", "chosen", "rejected", "rationale"}
        assert pair.model_dump(exclude=same) == was.model_dump(exclude=same)
        assert (pair.chosen, pair.rejected, pair.rationale) == {
            "cot": (was.chosen, was.rejected, None),
            "verdict": ("[RESULT] 4", "[RESULT] 1", None),
            "deduction": (response, f"Go away {response}", "Reason 0."),
        }[pair.kind]


def test_too_few_of_a_kind_shrink_all_and_the_prompts_are_counted():
    items, curation = paired(40)
    short = mix_of(items, curation, left_out=37)
    counts = Counter(p.kind for p in short.pairs)
    assert counts == module.kinds(PAPER, len(short.pairs))
    assert counts["deduction"] == 3 < module.kinds(PAPER, len(short.pairs) + 1)["deduction"]
    assert len(short.pairs) + short.drops["mix"] == 40
    alike = mix_of(items, curation, ["cot:1", "deduction:1"], written="{}")
    assert len(alike.pairs) <= 1, "the response that was judged is no worse one"
    assert module.similarity("a b c d e f g h i j", "a b c d e f g h i k") == 0.9 == module.ALIKE
    quoted, both = paired(4, response="Reason 0.")
    assert followups.to_deduce(quoted, both.pairs) == [], "the prompt would hold the response"
    compared, both = {"e": item_of(gold="A")}, one(["A", "B"], "A")
    assert followups.to_deduce(compared, both.pairs) == []
    assert [p.rejected for p in mix_of(compared, both, ["verdict:1"]).pairs] == ["[RESULT] B"]
    for verdicts, rule in (((4, None), graded), ((4, 4), lambda item, judgments, margin: [tuple(judgments)])):
        items, without = paired(4, verdicts, rule)
        assert mix_of(items, without, ["verdict:1"]).drops == {"mix": 4}, "there is no wrong verdict to reject"
    assert module.kinds(PAPER, 7) == {"cot": 5, "verdict": 1, "deduction": 1}, "the largest remainder is rounded up"
    equal, two = paired(4, (4, 4), lambda item, judgments, margin: [tuple(judgments)])
    pairs = [p.model_copy(update={"rejected_score": 1.0} if i < 2 else {}) for i, p in enumerate(two.pairs)]
    asked = followups.to_deduce(equal, pairs[:2])  # the same two can be both kinds, so there is one of each
    no = {e.id: "No." for e in asked}
    both = module.mixed(module.replace(two, pairs=pairs), ["verdict:1", "deduction:1"], asked, no)
    assert [p.kind for p in both.pairs] == ["deduction", "verdict"]
    pairs = [
        p.model_copy(update={"rejected_score": 1.0 if i == 0 else p.chosen_score}) for i, p in enumerate(pairs[:2])
    ]
    both = module.mixed(module.replace(two, pairs=pairs), ["verdict:1", "deduction:1"], asked, no)
    assert [p.kind for p in both.pairs] == ["verdict", "deduction"], "only the first can be a pair of verdicts"


@pytest.mark.parametrize(
    "mix", ["cot", "cot:0", "cot:-1", "cot:nan", "cot:1e9", "cots:1", "cot:1,cot:1", "verdict:0,cot:0"]
)
def test_a_mix_that_cannot_be_read_is_refused(mix):
    with pytest.raises(SrlibError, match=r"pair_mix .* is not KIND:WEIGHT with a weight above 0; write each"):
        module.kinds(mix.split(","), 1)


def test_graded_rejects_what_cannot_be_read_first_and_chooses_nothing_unreadable():
    verdicts = [None, 1, 4, None, 3, None]
    texts = ["It greets.", "One.", "Four.", "", "Three.", "It"]  # a judgment without text is nothing to learn from
    curation = one(verdicts, rule=graded, margin=3, texts=texts)
    assert [(p.chosen_score, p.rejected_score, p.margin) for p in curation.pairs] == [(4, None, None), (3, None, None)]
    assert {p.rejected for p in curation.pairs} == {"It greets.", "It"}
    assert (curation.pairs[0].gold, curation.n_judgments) == (4.0, {"e": 6})
    assert one([1, None], rule=graded).pairs[0].chosen_score == 1, "wrong and readable is above unreadable"
    assert one([4, None]).drops == {"all_right": 1}, "other rules see judgments with a verdict only"
    own = functools.partial(lambda item, judgments, margin, n: str(len(judgments) - n), n=1)
    assert one(verdicts, rule=own, texts=texts).drops == {"2": 1}
    own.func.reads_unreadable = True
    assert one(verdicts, rule=own, texts=texts).drops == {"4": 1}
    items, judgments = many([5.0] * 3 + [3.0], [5, None, 1])
    both = curate(items, judgments, graded, pairs_per_prompt=2, balance=True)
    assert (len(both.pairs), both.drops, both.waterfall()[0]) == (4, {}, ("judgments", 12))


def test_equal_judgments_are_compared_in_both_orders_within_a_bound():
    verdicts = [2, 4, 4, None, 4, 4, 4, 4]
    judgments = sampled(verdicts, texts=[*map(str, range(7)), "6"])  # the last repeats a text
    asked = followups.meta_comparisons([item_of(), item_of("f")], judgments)
    names = [c.id for c in asked]
    first = [1, 2, 4, 5]  # at most COMPARED of those with the most frequent verdict
    assert names[:-2] == [f"e#{a}>{b}" for a in first for b in first if a != b]
    assert (len(first), names[-2:]) == (followups.COMPARED, ["e#1>0", "e#0>1"])
    assert (asked[0].response_a, asked[0].response_b, asked[0].preference) == ("1", "2", None)
    assert all(text in asked[0].instruction for text in ("Greet e.", "Hello", FIVE.text))
    higher = {"e#1>0": "A", "e#0>1": "A", "e#1>2": "A", "e#2>1": "tie", "e#4>0": None, "e#5>0": "tie"}
    assert followups.higher_preferred(judgments, higher) == [True, False]
    assert followups.higher_preferred(sampled(["A", "B"]), {"e#0>1": "A"}) == [], "no preference is higher than another"


def test_meta_equal_takes_the_best_and_the_worst_of_those_compared():
    wins = compared(e0_1="A", e1_0="B", e1_2="A", e2_1="B", e0_2="tie", e2_0="B", e0_3="A", e3_4="B")
    for seed in range(3):  # 3 has another score, and 4 was never compared with an equal one
        [pair] = one([5, 5, 5, 1, 5], rule=wins, seed=seed).pairs
        assert (pair.chosen_id, pair.rejected_id, pair.margin, pair.strategy) == ("e#0", "e#2", 0.0, "meta_equal")
    [pair] = one(["B", "B", "A"], "A", rule=compared(e1_0="A")).pairs
    assert (pair.chosen_id, pair.rejected_id) == ("e#1", "e#0")


def test_only_prompts_whose_judgments_agree_are_judged_with_a_hint():
    draws = {"right": [4, 4, None], "wrong": [1, 3, 5], "both": [4, 1], "unread": [None, None]}
    items, judgments = [item_of(n) for n in draws], [j for n, v in draws.items() for j in sampled(v, n)]
    assert followups.to_hint(items, judgments, "none", 2) == []
    asked = followups.to_hint(items, judgments, "rescue", 2)
    assert [item.id for item in asked] == [
        f"{n}~{kind}" for n in ("right", "wrong", "unread") for kind in ("right", "wrong")
    ]
    assert [item.score for item in asked[::2]] == [4, 4, 4]
    assert {item.score for seed in range(20) for item in followups.to_hint(items, judgments, "all", 2, seed)[1::2]} == {
        1,
        2,
    }
    assert {item.score for seed in range(20) for item in followups.to_hint(items, judgments, "all", 0, seed)[1::2]} == {
        1,
        2,
        3,
        5,
    }
    assert [item.id for item in followups.to_hint(items[:1], judgments, "rescue", 4)] == ["right~right"], (
        "no score is 4 off"
    )
    [_, wrong] = followups.to_hint([item_of(gold="A")], [], "rescue", 99)
    assert (wrong.gold in ("B", "tie"), wrong.instruction) == (True, "Greet e.")
    with pytest.raises(SrlibError, match="hints name the right verdict, and some items have no gold"):
        followups.to_hint([item_of(gold=None)], [], "rescue", 2)
    assert followups.to_hint([item_of(gold=None)], [], "none", 2) == []


def test_hinted_judgments_join_the_others_and_their_pairs_say_so():
    items = [item_of("e"), item_of("f"), item_of("g")]
    judgments = [*sampled([4, 4], "e"), *sampled([1, 2], "f"), *sampled([4, 1], "g")]
    asked = followups.to_hint(items, judgments, "rescue", 2)
    drawn = [
        sampled([score], name)[0] for name, score in [("e~right", 4), ("e~wrong", int(asked[1].score)), ("f~right", 3)]
    ]
    drawn += [sampled([None], "f~wrong")[0]]
    hinted = followups.from_hints(asked, drawn, 2)
    assert [(j.id, j.score) for j in hinted] == [("e#2", 4), ("e#3", asked[1].score)], (
        "3 is not the verdict of its hint"
    )
    curation = curate(items, judgments + hinted, hinted={j.id for j in hinted})
    found = {p.example_id: p for p in curation.pairs}
    assert {name: p.strategy for name, p in found.items()} == {"e": "hinted", "g": "correct_answer"}
    assert (found["e"].rejected_id, curation.drops) == ("e#3", {"all_wrong": 1})
    assert curation.waterfall()[0] == ("judgments", 8)


def test_every_judgment_votes_and_a_text_is_paired_once():
    texts = ["Warm. [RESULT] 4"] * 7 + [f"Rude {i}. [RESULT] 2" for i in range(3)]
    found = one([4] * 7 + [2] * 3, rule=majority_vote, texts=texts).pairs
    assert [(p.chosen_score, p.rejected_score) for p in found] == [(4, 2)]


@pytest.mark.parametrize(("margin", "pairs"), [(0.1, 20), (0.2, 18), (0.3, 16)])
def test_a_margin_is_met_by_scores_that_are_exactly_so_far_apart(margin, pairs):
    tenths = Rubric(criterion="Is it polite?", levels={0: "rude", 1: "kind"}, step=0.1)
    apart = round(10 * margin)
    verdicts = [(round(i / 10, 1), round(j / 10, 1)) for i in range(11) for j in range(11) if abs(i - j) == apart]
    asked = [
        item_of(f"e{k}").model_copy(update={"rubric": tenths, "score": gold}) for k, (gold, _) in enumerate(verdicts)
    ]
    given = [sampled([4, 1], item.id) for item in asked]
    given = [
        j.model_copy(update={"score": score, "text": f"[RESULT] {score}"})
        for two, both in zip(given, verdicts, strict=True)
        for j, score in zip(two, both, strict=True)
    ]
    assert len(curate(asked, given, margin=margin).pairs) == len(verdicts) == pairs
    assert len(curate(asked, given, graded, margin=margin).pairs) == pairs


def test_a_limit_leaves_balanced_scores_balanced():
    items, judgments = many([1, 3, 5] * 10)
    counts = Counter(p.gold for p in curate(items, judgments, balance=True, max_pairs=12).pairs)
    assert counts == {1: 4, 3: 4, 5: 4}


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
    names, counts = zip(*left.waterfall(), strict=True)
    flips, cap = module.REASONS["flips"], module.REASONS["cap"]
    assert (names, counts) == (("judgments", f"− {flips}", f"− {cap}", "in pairs"), (16, 12, 8, 6))


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
    asked = followups.meta_comparisons(items, judgments) if name == "meta_equal" else []
    preferences = {c.id: data.draw(st.sampled_from(["A", "B", "tie", None])) for c in asked}
    known = {"meta_judge": {"ratings": ratings}, "meta_equal": {"preferences": preferences}}
    rule = functools.partial(module.RULES[name], **known[name]) if name in known else module.RULES[name]
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
        elif name == "meta_equal":
            assert p.chosen_score == p.rejected_score
        else:
            off = [math.inf if s is None else abs(s - p.gold) for s in (p.chosen_score, p.rejected_score)]
            assert name == "majority_vote" or off[1] - off[0] >= max(margin, 1)
            assert name != "majority_vote" or p.margin >= max(margin, 1)
            assert name != "correct_answer" or off[0] == 0
