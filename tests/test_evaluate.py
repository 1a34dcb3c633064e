"""Arms, how each reads its judgments, and every row of results.json on a handful of judgments made by hand. No torch."""

import functools
import math

import numpy as np
import pytest

from srlib import files
from srlib.data import world
from srlib.evaluate import results
from srlib.evaluate.arms import ARMS, arm, confidence, distributions, in_order, on_scale, read, scores
from srlib.evaluate.results import COMPARED
from srlib.schema import Comparison, Example, Judgment, Rubric, SrlibError

NAN = math.nan
FIVE = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])
DRAW = {"n": 4, "temperature": 0.7, "template": "brief"}
SIDES = [f"p{i}#{side}" for i in range(4) for side in "AB"]


def draws(name, *verdicts, logprobs=None):
    """The draws of one item; None is a failed parse."""
    logprobs = logprobs or [-1.0 - i for i in range(len(verdicts))]
    kinds = [{"preference": v} if isinstance(v, str) else {"score": v} for v in verdicts]
    kinds = [kind if v else {"failure": "no_verdict"} for kind, v in zip(kinds, verdicts, strict=True)]
    return [
        Judgment(example_id=name, index=i, text=f"[RESULT] {v}", logprob=p, **kind)
        for i, (v, kind, p) in enumerate(zip(verdicts, kinds, logprobs, strict=True))
    ]


def greedy(*verdicts, names="abcdefgh"):
    return [j for name, verdict in zip(names, verdicts, strict=False) for j in draws(name, verdict)]


def both_orders(*preferences):
    """Judgments of p0, p0 swapped, p1, p1 swapped, ..."""
    names = [name for i in range(len(preferences)) for name in (f"p{i}", f"p{i}#swapped")]
    return greedy(*preferences, names=names)


def examples(*golds):
    made = zip("abcdefgh", golds, strict=False)
    return [Example(id=i, instruction=f"Greet {i}.", response="Hello", rubric=FIVE, score=gold) for i, gold in made]


def comparisons(*golds):
    shared = dict(instruction="Greet.", response_a="A", response_b="B", rubric=FIVE)
    return [Comparison(id=f"p{i}", preference=gold, **shared) for i, gold in enumerate(golds)]


def table(name, judgments, split, items, out, *others):
    """{metric: row} of one arm; `others` are more (name, judgments)."""
    passes = {arm(n).judged_in: {split: j} for n, j in [(name, judgments), *others]}
    for judged_in in passes:
        files.write_json(out / judged_in / f"{split}.done", {"seconds": 1.5, "tokens": 40})
    arms = [arm(n) for n in (name, *(n for n, _ in others))]
    rows = results.results(arms, passes, {split: items}, out, draw=DRAW, seed=3, n_boot=100)
    files.write_json(out / "results.json", rows)  # which refuses NaN
    return {row["metric"]: row for row in rows if row["arm"] == name}


def values(*given):
    return {metric: row["value"] for metric, row in table(*given).items()}


def test_an_arms_name_says_its_judge_and_its_reading():
    names = "base sft_score_only sft_self_consistency sft_best_of_n sre_2_median_of_n sre_12".split()
    assert [(a.judge, a.read, a.iteration, a.judged_in) for a in map(arm, names)] == [
        (None, "greedy", 0, "base"), ("sft_score_only", "greedy", 0, "sft_score_only"), ("sft", "majority", 0, "sft_draws"),
        ("sft", "likelihood", 0, "sft_draws"), ("sre_2", "median", 2, "sre_2_draws"), ("sre_12", "greedy", 12, "sre_12"),
    ]  # fmt: skip


def test_a_judge_is_also_asked_for_its_verdict_alone(tmp_path, monkeypatch):
    from srlib import models, sample

    items, asked = examples(1, 2), []
    monkeypatch.setattr(models, "load", lambda path: ("model", "tokenizer"))
    monkeypatch.setattr(models, "judge_info", lambda path, template: {"template": "prometheus"})
    monkeypatch.setattr(sample, "verdicts", lambda *given, **named: asked.append((given, named)) or greedy(1, 5))
    a = arm("sre_1_verdict_only")
    assert (a.judge, a.read, a.iteration, a.judged_in) == ("sre_1", "greedy", 1, "sre_1_verdict_only")
    results.judge_pass(a, "judge", {"test": items}, tmp_path, {}, DRAW)
    out = tmp_path / "sre_1_verdict_only" / "test.jsonl"
    assert asked == [(("model", "tokenizer", items), {"template": "prometheus", "out": out})]
    row = table(a.name, greedy(1, 5), "test", items, tmp_path)["accuracy"]
    assert (row["value"], "asks for it alone" in row["protocol"]) == (0.5, True)
    drawn = results.protocol(arm("sft_best_of_n"), "test", DRAW | {"top_p": 0.9})
    assert "4 draws at T=0.7, top_p=0.9" in drawn


def test_arms_stand_in_order():
    shuffled = ["sre_10", "sft", "zebra", "sre_2_self_consistency", "sre_2", "base", "sre_1", "sre_3", "rft", "sft"]
    expected = ["base", "sft", "rft", "sre_1", "sre_2", "sre_2_self_consistency", "sre_3", "sre_10", "zebra"]
    assert (in_order(shuffled), in_order(list(ARMS)[::-1])) == (expected, list(ARMS))


def test_majority_reads_the_likeliest_draw_of_the_most_frequent_score():
    judgments = draws("a", 4, 4, 1, None, logprobs=[-2, -1, 0, 0]) + draws("b", None, None) + draws("c", None, 2)
    judgments += draws("d", 1, 1, 4, 4, 5)  # a tie: the nearest to the mean
    got = read(arm("sft_self_consistency"), judgments)
    assert [j and (j.id, j.score) for j in got] == [("a#1", 4), None, ("c#1", 2), ("d#2", 4)]
    assert (got[0].distribution, got[0].on_scale) == ({4.0: 2 / 3, 1.0: 1 / 3}, 0.75)
    np.testing.assert_allclose(confidence(got), [0.5, NAN, 0.5, 0.4])
    votes = draws("p", "A", "B", "A", None, logprobs=[-3, -1, -2, 0])
    assert read(arm("sft_self_consistency"), votes)[0].id == "p#2"
    assert read(arm("sft_median_of_n"), votes[:2])[0].id == "p#1"  # one vote each; preferences have no median


def test_likelihood_reads_the_likeliest_draw_that_has_a_score_and_greedy_the_one():
    np.testing.assert_array_equal(scores(read(arm("sft"), greedy(4, None, 1))), [4, NAN, 1])
    judgments = draws("a", 4, 2, None, logprobs=[-2, -1, 0]) + draws("b", None, None) + draws("c", 1, logprobs=[-9])
    assert [j and j.id for j in read(arm("sft_best_of_n"), judgments)] == ["a#1", None, "c#0"]
    silent = [j.model_copy(update={"logprob": None}) for j in draws("a", 4, 4, 1)]  # as some servers answer
    assert [j.id for j in read(arm("sft_self_consistency"), silent)] == ["a#0"]
    with pytest.raises(SrlibError, match="sft_best_of_n: judgment a#0 has no log-probability"):
        read(arm("sft_best_of_n"), silent)


def test_mean_and_median_are_scores_between_scores(tmp_path):
    judgments = draws("a", 5, 4, 1, 1, 1, None, logprobs=[-2, -1, -5, -4, -3, 0]) + draws("b", None, None)
    mean, nothing = read(arm("sft_mean_of_n"), judgments)
    assert (mean.score, mean.expected_score, nothing) == (2.4, 2.4, None)
    assert mean.id == "a#4", "the likeliest of the nearest"
    assert read(arm("sre_1_median_of_n"), draws("a", 4, 1, 5, 2))[0].score == 3
    np.testing.assert_array_equal(on_scale(examples(1, 1, 1), [3.5, NAN, 2.6]), [3, NAN, 3])
    each = zip("abcd", [(1, 1, 2), (2, 3, 3), (4, 5, 4), (None, 5, 4)], strict=True)
    judgments = [j for name, own in each for j in draws(name, *own)]
    got = table("sft_mean_of_n", judgments, "test", examples(1, 2, 4, 4), tmp_path)
    assert got["accuracy"]["value"] == 0.75  # 1.33, 2.67, 4.33 and 4.5, of which the lower
    assert got["mae"]["value"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 3 + 1 / 2) / 4, abs=1e-6)
    assert "mean of 4 draws at T=0.7" in got["mae"]["protocol"]


def test_a_judge_abstains_if_no_score_is_likely():
    sure = {4.0: 0.8, 5.0: 0.2}
    given = [draws("a", 4)[0].model_copy(update={"distribution": sure, "on_scale": p}) for p in (None, 1.0, 0.9, 0.4)]
    got = confidence([*given, draws("b", None)[0], draws("c", 4)[0], None])
    np.testing.assert_allclose(got, [0.8, 0.8, 0.72, NAN, NAN, NAN, NAN])
    np.testing.assert_allclose(distributions([given[0], None], [3.0, 4.0, 5.0]), [[NAN, 0.8, 0.2], [NAN] * 3])


def test_a_failed_parse_is_wrong_and_leaves_the_correlations(tmp_path):
    got = table("sft", greedy(1, 2, 3, None), "test", examples(1, 2, 4, 5), tmp_path)
    agreement = "accuracy balanced_accuracy parse_rate mae pearson spearman kendall qwk".split()
    assert list(got) == [*agreement, "seconds", "tokens"]
    assert [(got[m]["value"], got[m]["n"]) for m in ("accuracy", "parse_rate")] == [(0.5, 4), (0.75, 4)]
    assert (got["mae"]["value"], got["mae"]["n"], got["pearson"]["n"]) == (round(1 / 3, 6), 3, 3)
    assert all(got[m]["ci_low"] <= got[m]["value"] <= got[m]["ci_high"] for m in agreement)
    about = dict(arm="sft", split="test", seed=3, iteration=0, ci_low=None, ci_high=None, n=4)
    about |= dict(protocol="pointwise, greedy, parsed score; no score counts as wrong")
    assert got["tokens"] == about | {"metric": "tokens", "value": 40}
    nothing = table("sft", greedy(None, None), "test", examples(1, 2), tmp_path)
    assert [nothing["mae"][name] for name in ("value", "ci_low", "ci_high", "n")] == [None, None, None, 0]


def test_confidence_makes_rows_if_there_are_distributions(tmp_path):
    own = [
        j.model_copy(update={"distribution": {j.score: p, 6 - j.score: round(1 - p, 6)}})
        for j, p in zip(greedy(1, 2, 4, 5), (0.95, 0.85, 0.75, 0.65), strict=True)
    ]
    got = values("sft", own, "test", examples(1, 2, 4, 4), tmp_path)
    assert (got["auroc"], got["aurc"]) == (1.0, 0.25 / 4)
    assert got["ece"] == pytest.approx((0.05 + 0.15 + 0.25 + 0.65) / 4)


def test_rationales_are_checked_if_a_program_can(tmp_path):
    items = world.examples("test", 0, 6, care=1.0)
    right = [Judgment(example_id=e.id, text="", rationale=e.rationale, score=e.score) for e in items]
    hasty = [e.rationale for e in world.examples("test", 0, 6, care=0.0)]
    brief = [j.model_copy(update={"rationale": text}) for j, text in zip(right, hasty, strict=True)]
    cut = [(e.id, e.rationale.split(".")[0] + ".") for e in items]
    lost = [Judgment(example_id=i, text="", rationale=text, failure="cut_off") for i, text in cut]
    sft, ours = ("sft", brief), ("sre_1", right)
    got = values(*ours, "test", items, tmp_path, sft)
    assert got["rationale_accuracy"] == values(*sft, "test", items, tmp_path)["rationale_accuracy"] == 1.0
    assert got["rationale_win_rate"] > 0.5  # the same verdicts, and the evidence for them
    assert values(*sft, "test", items, tmp_path)["rationale_win_rate"] == 0.5  # against itself
    got = values("base", lost, "test", items, tmp_path, sft)
    assert (got["accuracy"], got["rationale_accuracy"], got["rationale_win_rate"]) == (0.0, 0.25, 0.0)
    assert "rationale_win_rate" not in values("base", lost, "test", items, tmp_path)
    bare = [j.model_copy(update={"rationale": ""}) for j in right]
    assert "rationale_accuracy" not in values("sft_score_only", bare, "test", items, tmp_path)

    for mine in (3, "ok", None, [], [{"name": "tone"}]):  # meta is the user's
        own = [e.model_copy(update={"meta": {"checks": mine}}) for e in items]
        assert results.quality(own, right) is None


def test_items_of_one_instruction_are_drawn_together():
    items = [*comparisons("A", "B"), *comparisons("A", "B")]
    assert results.groups(items) is None  # one instruction for all is no group
    items[0] = items[0].model_copy(update={"group": "other"})
    assert results.groups(items) == ["other", "Greet.", "Greet.", "Greet."]
    assert results.groups(examples(1, 2, 3)) is None
    several = [examples(1)[0].model_copy(update={"id": str(i), "group": str(max(i, 2))}) for i in range(40)]
    assert len(set(results.groups(several))) == 38, "two that share an instruction are enough"


def test_pairwise_compares_expected_scores_ties_half_silence_nothing(tmp_path):
    own = greedy(4, 2, 3, 3, None, 1, 2, 5, names=SIDES)  # right, a tie, no score, right
    got = table("sft", own, "pairwise", comparisons("A", "B", "A", "B"), tmp_path)
    assert list(got) == ["accuracy", "parse_rate", "seconds", "tokens"]
    assert (got["accuracy"]["value"], got["accuracy"]["n"]) == (2.5 / 4, 4)
    assert (got["parse_rate"]["value"], got["parse_rate"]["n"], got["tokens"]["n"]) == (7 / 8, 8, 8)
    assert got["accuracy"]["protocol"].endswith("greedy; compares the expected score; tie 0.5, no score 0")
    own[2] = own[2].model_copy(update={"distribution": {1.0: 0.1, 3.0: 0.9}})
    assert values("sft", own, "pairwise", comparisons("A", "B", "A", "B"), tmp_path)["accuracy"] == 3 / 4
    sampled = draws("p0#A", 3, 3, 5) + draws("p0#B", 3, 3, 4)  # the same majority, another mean
    sampled += draws("p1#A", None, None) + draws("p1#B", 1, None)
    got = values("sft_self_consistency", sampled, "pairwise", comparisons("A", "B"), tmp_path)
    assert (got["accuracy"], got["parse_rate"]) == (0.5, 0.75)


def test_two_orders(tmp_path):
    """Right in both; the first in both orders; no verdict once; a tie in both: the gold is in the given order."""
    own = both_orders("A", "B", "A", "A", None, "B", "tie", "tie")
    got = values("sft", own, COMPARED, comparisons("A", "B", "A", "A"), tmp_path)
    assert got == {
        "accuracy": (1 + 0.5 + 0.5 + 0.5) / 4, "accuracy_as_given": 1.5 / 4, "accuracy_swapped": 3.5 / 4, "consistency": 0.5,
        "position_bias": round((0 + 1 - 0.5 + 0) / 4, 6), "parse_rate": 7 / 8, "seconds": 1.5, "tokens": 40,
    }  # fmt: skip
    for said, expected in {"AB": (1, 1, 0), "AA": (0.5, 0, 1), "BB": (0.5, 0, -1), "BA": (0, 1, 0)}.items():
        got = values("sft", both_orders(*said), COMPARED, comparisons("A"), tmp_path)
        assert tuple(got[m] for m in ("accuracy", "consistency", "position_bias")) == expected
    assert values("sft", both_orders(None, None), COMPARED, comparisons("A"), tmp_path)["consistency"] == 0
    with pytest.raises(ValueError, match="comparison p0 has no gold preference"):
        table("sft", both_orders("A", "B"), COMPARED, comparisons(None), tmp_path)


def test_what_each_split_asks_a_judge():
    assert [e.id for e in results.to_judge("pairwise", comparisons("A", "B"))] == SIDES[:4]
    asked = results.to_judge(COMPARED, comparisons("A", "tie"))
    assert [(c.id[:3], c.response_a, c.gold) for c in asked[:2]] == [("p0", "A", "A"), ("p0#", "B", "B")]
    assert [c.gold for c in asked[2:]] == ["tie", "tie"]


def test_what_is_judged_already_is_read_and_no_model_loaded(tmp_path):
    own = greedy(4, 2)
    files.write_rows(tmp_path / "sft" / "test.jsonl", own)
    files.write_json(tmp_path / "sft" / "test.done", {"seconds": 1, "tokens": 2})
    about = dict(load={}, draw=DRAW, workers=2)
    got = results.judge_all([arm("sft")], {"sft": "no/such/model"}, {"test": examples(4, 2)}, tmp_path, **about)
    assert got == {"sft": {"test": own}}


def test_baselines_are_rows_like_any(tmp_path):
    splits = {"test": examples(1, 2, 5), "pairwise": comparisons("A"), COMPARED: comparisons("A"), "ood": []}
    rows = results.baselines(examples(1, 2, 3), splits, seed=3, n_boot=100)
    assert {(row["arm"], row["split"]) for row in rows} == {("question_mean", "test"), ("word_overlap", "test")}
    assert next(row["value"] for row in rows if row["metric"] == "accuracy") == round(2 / 3, 6)
    assert all(row["protocol"].startswith("no judge") and row["seed"] == 3 for row in rows)


def test_annotators_are_held_against_each_other():
    ratings = {"a": [1, 3], "b": [2, 2], "c": [3], "d": "45", "e": [1, 9], "f": [None, 2], "g": [True, 2]}
    rated = [e.model_copy(update={"meta": {"ratings": ratings[e.id]}}) for e in examples(1, 2, 3, 4, 5, 1, 2)]
    rows = {row["metric"]: row for row in results.annotators({"test": rated}, seed=0, n_boot=100)}
    assert (rows["accuracy"]["value"], rows["accuracy"]["n"]) == (0.5, 2), "two items have two ratings on their scale"
    assert rows["mae"]["value"] == 1
    assert rows["accuracy"]["protocol"] == "one annotator's rating against another's, 2 pairs; resampled by question"
    several = [e.model_copy(update={"meta": {"ratings": [1, 3]}, "group": "one question"}) for e in examples(1, 2, 3)]
    row = results.annotators({"test": several}, seed=0, n_boot=100)[0]
    assert (row["n"], row["ci_low"]) == (3, None), "three answers to one question say nothing of other questions"
    assert results.annotators({"test": examples(1, 2), "pairwise": comparisons("A")}, seed=0) == []


def test_examples_of_a_prompt_take_every_score_in_turn():
    shots = [e.model_copy(update={"rationale": f"So {e.id}."}) for e in examples(5, 5, 1, 3, 1)]
    assert [e.id for e in results.few(shots, 4)] == ["c", "d", "a", "e"]
    assert results.few(examples(1, 2), 2) == (), "a score without a rationale shows nobody how to judge"
    two = {"ratings": [1, 5], "rationales": ["So low.", "So high."]}  # of which the gold score is the mean
    shot = shots[3].model_copy(update={"meta": two, "rationale": "So low."})
    assert results.few([shot, shot.model_copy(update={"id": "low", "score": 1.0})], 2)[0].id == "low"
    assert len(results.few([shot], 2)) == 0


def test_a_prompt_is_chosen_on_validation(tmp_path):
    items = examples(1, 2, 3)
    shots = [e.model_copy(update={"id": f"shot {e.id}", "rationale": "So."}) for e in examples(1, 2, 3, 4)]

    def judge(rows, out, template, shots=()):  # two examples in prometheus are right on all, two in brief on two
        right = {("prometheus", 2): 3, ("brief", 2): 2, ("brief", 4): 2}.get((template, len(shots)), 1)
        return [j for i, row in enumerate(rows) for j in draws(row.id, row.score if i < right else 5)]

    brief, splits = functools.partial(judge, template="brief"), {"validation": items}
    chosen = results.chosen_prompt(arm("base_few_shot"), brief, splits, tmp_path, shots)
    assert [e.id for e in chosen["shots"]] == ["shot a", "shot b"], "of equally good ones the shorter"
    assert files.read_json(tmp_path / "prompts.json")["right"]["4 examples"] == 2
    files.write_json(tmp_path / "base_few_shot" / "prompts.json", files.read_json(tmp_path / "prompts.json"))
    row = table("base_few_shot", greedy(1, 2, 5), "test", items, tmp_path)["accuracy"]
    assert row["protocol"].endswith("; prompt of 2 examples, as on validation")
    assert results.chosen_prompt(arm("base_best_prompt"), brief, splits, tmp_path, shots)["template"] == "prometheus"
    results.chosen_prompt(arm("base_few_shot"), brief, splits, tmp_path, examples(1, 2))
    assert list(files.read_json(tmp_path / "prompts.json")["right"]) == ["0 examples"], "none has a rationale to show"
    with pytest.raises(SrlibError, match="chosen on validation rows, and there are none"):
        results.chosen_prompt(arm("base_few_shot"), brief, {"test": items}, tmp_path, shots)
