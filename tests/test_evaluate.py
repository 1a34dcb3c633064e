"""Arms, how each reads its judgments, and every row of results.json on a handful of hand-made judgments."""

import math

import numpy as np
import pytest

from srlib import files as store
from srlib.data import world
from srlib.evaluate.arms import Arm, arm, read
from srlib.evaluate.results import COMPARED, Settings
from srlib.evaluate import arms as readings
from srlib.evaluate import results as evaluate
from srlib.schema import Comparison, Example, Judgment, Rubric

FIVE = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])
SETTINGS = Settings(n_samples=4, temperature=0.7)


def judged(name, *scores, logprobs=None, tokens=5):
    """The draws of one example; None is a failed parse."""
    return [
        Judgment(
            example_id=name, index=i, text=f"[RESULT] {s}", score=s, failure=None if s else "no_verdict", tokens=tokens,
            logprob=logprobs[i] if logprobs else -1.0 - i,
        )
        for i, s in enumerate(scores)
    ]  # fmt: skip


def greedy(*scores, names="abcdefgh"):
    return [j for name, score in zip(names, scores, strict=False) for j in judged(name, score)]


def examples(*golds):
    return [
        Example(id=name, instruction=f"Greet {name}.", response="Hello", rubric=FIVE, score=gold)
        for name, gold in zip("abcdefgh", golds, strict=False)
    ]


def of(rows, **wanted):
    [row] = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row


def table(arms, judgments, splits, out, **settings):
    """results() with every .done file there."""
    for a in arms:
        for split in splits:
            store.write_json(out / a.judged_in / f"{split}.done", {"seconds": 1.5, "tokens": 40})
    given = dict(seed=3, settings=SETTINGS, n_boot=100) | settings
    return evaluate.results(arms, judgments, splits, out, **given)


@pytest.mark.parametrize(
    ("name", "judge", "how", "judged_in", "iteration"),
    [
        ("base", None, "greedy", "base", 0),
        ("sft", "sft", "greedy", "sft", 0),
        ("sft_score_only", "sft_score_only", "greedy", "sft_score_only", 0),
        ("rft", "rft", "greedy", "rft", 0),
        ("sft_self_consistency", "sft", "majority", "sft_draws", 0),
        ("sft_best_of_n", "sft", "likelihood", "sft_draws", 0),
        ("sft_mean_of_n", "sft", "mean", "sft_draws", 0),
        ("sre_2_median_of_n", "sre_2", "median", "sre_2_draws", 2),
        ("sre_1", "sre_1", "greedy", "sre_1", 1),
        ("sre_2_self_consistency", "sre_2", "majority", "sre_2_draws", 2),
        ("sre_12", "sre_12", "greedy", "sre_12", 12),
    ],
)
def test_arm(name, judge, how, judged_in, iteration):
    found = arm(name)
    assert found == Arm(name, judge, how)
    assert (found.judged_in, found.iteration) == (judged_in, iteration)


def scores_of(found):
    return [None if j is None else j.score for j in found]


def test_greedy_reads_the_one_judgment_also_a_failed_one():
    found = read(arm("sft"), greedy(4, None, 1))
    assert scores_of(found) == [4, None, 1]
    assert found[1].failure == "no_verdict"
    np.testing.assert_array_equal(readings.scores(found), [4, math.nan, 1])


def test_majority_reads_the_likeliest_draw_of_the_most_frequent_score():
    draws = judged("a", 4, 4, 1, None, logprobs=[-2, -1, 0, 0]) + judged("b", None, None) + judged("c", None, 2)
    draws += judged("d", 1, 1, 4, 4, 5)  # a tie: the nearest to the mean
    found = read(arm("sft_self_consistency"), draws)
    assert scores_of(found) == [4, None, 2, 4]
    assert found[0].id == "a#1"
    assert found[1] is None
    assert math.isnan(readings.scores(found)[1])


def test_likelihood_reads_the_likeliest_draw_that_has_a_score():
    draws = judged("a", 4, 2, None, logprobs=[-2, -1, 0]) + judged("b", None, None) + judged("c", 1, logprobs=[-9])
    found = read(arm("sft_best_of_n"), draws)
    assert [j and j.id for j in found] == ["a#1", None, "c#0"]


def test_an_unknown_way_to_read_is_refused():
    with pytest.raises(
        ValueError, match="arm x is read as 'mode'; there are greedy, majority, likelihood, mean, median"
    ):
        read(Arm("x", "sft", "mode"), greedy(1))


def test_mean_and_median_are_scores_between_scores():
    draws = judged("a", 5, 4, 1, 1, 1, None, logprobs=[-2, -1, -5, -4, -3, 0]) + judged("b", None, None)
    mean, nothing = read(arm("sft_mean_of_n"), draws)
    assert (mean.score, mean.id, mean.expected_score, nothing) == (
        2.4,
        "a#4",
        2.4,
        None,
    )  # the likeliest of the nearest
    draws = judged("a", 4, 1, 5, 2)
    assert scores_of(read(arm("sre_1_median_of_n"), draws)) == [3]
    assert evaluate.on_scale(examples(1, 1, 1), [3.5, math.nan, 2.6]).tolist()[::2] == [3, 3]
    assert math.isnan(evaluate.on_scale(examples(1), [math.nan])[0])


def test_a_mean_is_right_where_the_nearest_score_is(tmp_path):
    draws = [
        j
        for name, own in zip("abcd", [(1, 1, 2), (2, 3, 3), (4, 5, 4), (None, 5, 4)], strict=True)
        for j in judged(name, *own)
    ]
    rows = table([arm("sft_mean_of_n")], {"sft_draws": {"test": draws}}, {"test": examples(1, 2, 4, 4)}, tmp_path)
    assert of(rows, metric="accuracy")["value"] == 0.75  # 1.33, 2.67, 4.33 and 4.5, of which the lower
    assert of(rows, metric="mae")["value"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 3 + 1 / 2) / 4, abs=1e-6)
    assert "mean of 4 draws at T=0.7" in rows[0]["protocol"]
    assert "accuracies of the nearest score of the scale" in rows[0]["protocol"]


def silent(draws):
    """What a server that gives no log-probabilities returns."""
    return [j.model_copy(update={"logprob": None}) for j in draws]


def test_draws_without_log_probabilities_can_be_counted_but_not_ranked():
    draws = silent(judged("a", 4, 4, 1))
    assert [j.id for j in read(arm("sft_self_consistency"), draws)] == ["a#0"]
    assert scores_of(read(arm("sft_mean_of_n"), draws)) == [3]
    votes = [Judgment(example_id="p0", index=i, text="", preference=p) for i, p in enumerate("BAA")]
    assert [j.id for j in read(arm("sft_self_consistency"), votes)] == ["p0#1"]
    assert [j.id for j in read(arm("sft_median_of_n"), votes)] == ["p0#1"]  # preferences have no median
    with pytest.raises(ValueError, match="judgment a#0 has no log-probability, so the best of 3 cannot be told"):
        read(arm("sft_best_of_n"), draws)


def test_a_judge_abstains_where_no_score_is_likely():
    sure = {4.0: 0.8, 5.0: 0.2}
    given = [
        judged("a", 4)[0].model_copy(update={"distribution": sure, "on_scale": on_scale})
        for on_scale in (None, 1.0, 0.9, 0.4)
    ]
    found = readings.confidence([*given, judged("b", None)[0], judged("c", 4)[0], None])
    np.testing.assert_allclose(found, [0.8, 0.8, 0.72, math.nan, math.nan, math.nan, math.nan])
    np.testing.assert_allclose(
        readings.distributions([given[0], None], [3.0, 4.0, 5.0]), [[math.nan, 0.8, 0.2], [math.nan] * 3]
    )


def test_a_majority_is_as_sure_as_its_draws_agree():
    draws = judged("a", 2, 2, 3, None) + judged("b", 4, None, None) + judged("c", None, None)
    first, *rest = read(arm("sft_self_consistency"), draws)
    assert (first.distribution, first.on_scale) == ({2.0: 2 / 3, 3.0: 1 / 3}, 0.75)
    np.testing.assert_allclose(
        readings.confidence([first, *rest]), [0.5, math.nan, math.nan]
    )  # one of three is too few
    of_the_judge = [j.model_copy(update={"distribution": {1.0: 0.9, 2.0: 0.1}}) for j in judged("d", 2, 2)]
    assert read(arm("sft_self_consistency"), of_the_judge)[0].distribution == {1.0: 0.0, 2.0: 1.0}


def test_confidence_makes_rows_where_there_are_distributions(tmp_path):
    own = [
        j.model_copy(update={"distribution": {j.score: p, 6 - j.score: round(1 - p, 6)}})
        for j, p in zip(greedy(1, 2, 4, 5), (0.9, 0.8, 0.7, 0.6), strict=True)
    ]
    rows = table([arm("sft")], {"sft": {"test": own}}, {"test": examples(1, 2, 4, 4)}, tmp_path)
    assert [of(rows, metric=name)["value"] for name in ("auroc", "aurc")] == [1.0, 0.25 / 4]
    assert of(rows, metric="ece")["value"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)
    assert {row["metric"] for row in rows if row["n"] == 4} >= {"ece", "auroc", "aurc", "balanced_accuracy"}


def test_comparisons_of_one_prompt_are_drawn_together():
    items = [*comparisons("A", "B"), *comparisons("A", "B")]
    assert evaluate.groups(items) is None  # one prompt for all is no group
    items[0] = items[0].model_copy(update={"group": "other"})
    assert evaluate.groups(items) == ["other", "Greet.", "Greet.", "Greet."]
    assert evaluate.groups(examples(1, 2, 3)) is None


def test_a_failed_parse_is_wrong_and_leaves_the_correlations(tmp_path):
    arms = [arm("sft")]
    rows = table(arms, {"sft": {"test": greedy(1, 2, 3, None)}}, {"test": examples(1, 2, 4, 5)}, tmp_path)
    assert {row["metric"] for row in rows} == {
        "accuracy", "balanced_accuracy", "pearson", "spearman", "kendall", "qwk", "mae", "parse_rate", "seconds", "tokens",
    }  # fmt: skip
    assert (of(rows, metric="accuracy")["value"], of(rows, metric="accuracy")["n"]) == (0.5, 4)
    assert (of(rows, metric="parse_rate")["value"], of(rows, metric="parse_rate")["n"]) == (0.75, 4)
    assert (of(rows, metric="mae")["value"], of(rows, metric="mae")["n"]) == (round(1 / 3, 6), 3)
    assert of(rows, metric="pearson")["n"] == 3
    assert of(rows, metric="spearman")["value"] == 1.0
    for row in rows:
        assert set(row) == {
            "arm",
            "split",
            "metric",
            "value",
            "ci_low",
            "ci_high",
            "n",
            "seed",
            "iteration",
            "protocol",
        }
        assert (row["arm"], row["split"], row["seed"], row["iteration"]) == ("sft", "test", 3, 0)
        if row["metric"] not in ("seconds", "tokens"):
            assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert of(rows, metric="seconds")["value"] == 1.5
    assert of(rows, metric="tokens") == of(rows, metric="seconds") | {"metric": "tokens", "value": 40}
    assert of(rows, metric="tokens")["n"] == 4


def test_nothing_parsed_has_no_correlation_rather_than_nan(tmp_path):
    rows = table([arm("sft")], {"sft": {"test": greedy(None, None)}}, {"test": examples(1, 2)}, tmp_path)
    assert of(rows, metric="accuracy")["value"] == 0
    assert of(rows, metric="parse_rate")["value"] == 0
    assert of(rows, metric="pearson") | {"n": 0} == of(rows, metric="pearson")
    assert [of(rows, metric="mae")[name] for name in ("value", "ci_low", "ci_high")] == [None] * 3
    store.write_json(tmp_path / "results.json", rows)  # which refuses NaN


def test_arms_share_draws_and_differ_in_reading(tmp_path):
    arms = [arm("sft_self_consistency"), arm("sft_best_of_n")]
    draws = judged("a", 4, 4, 1, logprobs=[-3, -2, -1]) + judged("b", None, 2, 2, logprobs=[-1, -2, -3])
    rows = table(arms, {"sft_draws": {"test": draws}}, {"test": examples(4, 2)}, tmp_path)
    assert of(rows, arm="sft_self_consistency", metric="accuracy")["value"] == 1.0
    assert of(rows, arm="sft_best_of_n", metric="accuracy")["value"] == 0.5


def test_rationales_are_checked_where_a_program_can(tmp_path):
    items = world.examples("test", 0, 6, care=1.0)
    right = [
        Judgment(example_id=e.id, text="", rationale=e.rationale, score=e.score, tokens=9, logprob=-1.0) for e in items
    ]
    hasty = [e.rationale for e in world.examples("test", 0, 6, care=0.0)]
    brief = [j.model_copy(update={"rationale": text}) for j, text in zip(right, hasty, strict=True)]
    bare = [j.model_copy(update={"rationale": ""}) for j in right]
    lost = [
        Judgment(example_id=e.id, text=e.rationale, rationale=e.rationale.split(".")[0] + ".", failure="cut_off")
        for e in items
    ]
    passes = {"sft": brief, "sre_1": right, "sft_score_only": bare, "base": lost}
    arms = [arm(name) for name in passes]
    rows = table(arms, {name: {"test": own} for name, own in passes.items()}, {"test": items}, tmp_path)

    def value(name, metric):
        return of(rows, arm=name, metric=metric)["value"]

    assert (value("sft", "rationale_accuracy"), value("sre_1", "rationale_accuracy")) == (1.0, 1.0)
    assert value("base", "rationale_accuracy") == 0.25
    assert value("base", "accuracy") == 0.0
    assert value("sft", "rationale_win_rate") == 0.5  # against itself
    assert value("sre_1", "rationale_win_rate") > 0.5  # the same verdicts, and the evidence for them
    assert value("base", "rationale_win_rate") == 0.0
    assert not [row for row in rows if row["arm"] == "sft_score_only" and row["metric"].startswith("rationale")]


def test_no_win_rate_without_the_arm_it_is_against(tmp_path):
    items = world.examples("test", 0, 3)
    own = [Judgment(example_id=e.id, text="", rationale=e.rationale, score=e.score, logprob=-1.0) for e in items]
    rows = table([arm("base")], {"base": {"test": own}}, {"test": items}, tmp_path)
    assert {row["metric"] for row in rows} >= {"rationale_accuracy"}
    assert "rationale_win_rate" not in {row["metric"] for row in rows}


def comparisons(*preferences):
    return [
        Comparison(id=f"p{i}", instruction="Greet.", response_a="A", response_b="B", rubric=FIVE, preference=p)
        for i, p in enumerate(preferences)
    ]


SIDES = [f"p{i}#{side}" for i in range(4) for side in "AB"]


def test_pairwise_counts_ties_half_and_silence_nothing(tmp_path):
    items = comparisons("A", "B", "A", "B")
    own = greedy(4, 2, 3, 3, None, 1, 2, 5, names=SIDES)  # right, a tie, no score, right
    rows = table([arm("sft")], {"sft": {"pairwise": own}}, {"pairwise": items}, tmp_path)
    assert {row["metric"] for row in rows} == {"accuracy", "parse_rate", "seconds", "tokens"}
    assert (of(rows, metric="accuracy")["value"], of(rows, metric="accuracy")["n"]) == (2.5 / 4, 4)
    assert (of(rows, metric="parse_rate")["value"], of(rows, metric="parse_rate")["n"]) == (7 / 8, 8)
    assert of(rows, metric="tokens")["n"] == 8


def test_pairwise_compares_expected_scores_where_there_are_any(tmp_path):
    own = greedy(3, 3, names=SIDES)
    own[0] = own[0].model_copy(update={"distribution": {3.0: 0.6, 5.0: 0.4}})
    rows = table([arm("sft")], {"sft": {"pairwise": own}}, {"pairwise": comparisons("A")}, tmp_path)
    assert of(rows, metric="accuracy")["value"] == 1.0


@pytest.mark.filterwarnings("error")
def test_pairwise_compares_the_mean_of_the_draws(tmp_path):
    draws = judged("p0#A", 3, 3, 5) + judged("p0#B", 3, 3, 4)  # the same majority, another mean
    draws += judged("p1#A", None, None) + judged("p1#B", 1, None)
    rows = table(
        [arm("sft_self_consistency")], {"sft_draws": {"pairwise": draws}}, {"pairwise": comparisons("A", "B")}, tmp_path
    )
    assert of(rows, metric="accuracy")["value"] == 0.5
    assert of(rows, metric="parse_rate")["value"] == 0.75


def voted(*preferences, index=0):
    """Judgments of p0, p0 swapped, p1, p1 swapped, ...; None is a failed parse."""
    names = [name for i in range(len(preferences)) for name in (f"p{i}", f"p{i}#swapped")]
    return [
        Judgment(
            example_id=name, index=index, text="", preference=p, failure=None if p else "no_verdict", logprob=-1.0 - i
        )
        for i, (name, p) in enumerate(zip(names, preferences, strict=False))
    ]


def test_two_orders(tmp_path):
    """Right in both; the first in both orders; no verdict once; a tie in both: the gold is in the given order."""
    own = voted("A", "B", "A", "A", None, "B", "tie", "tie")
    rows = table([arm("sft")], {"sft": {COMPARED: own}}, {COMPARED: comparisons("A", "B", "A", "A")}, tmp_path)
    values = {row["metric"]: row["value"] for row in rows}
    assert values == {
        "accuracy": (1 + 0.5 + 0.5 + 0.5) / 4, "accuracy_as_given": 1.5 / 4, "accuracy_swapped": 3.5 / 4, "consistency": 0.5,
        "position_bias": round((0 + 1 - 0.5 + 0) / 4, 6), "parse_rate": 7 / 8, "seconds": 1.5, "tokens": 40,
    }  # fmt: skip
    assert {row["n"] for row in rows if row["metric"] not in ("seconds", "tokens")} == {4}
    assert of(rows, metric="tokens")["n"] == 8
    assert "both orders, greedy" in rows[0]["protocol"]
    assert "tie 0.5, no verdict 0" in rows[0]["protocol"]


@pytest.mark.parametrize(
    ("said", "right", "agree", "bias"), [("AB", 1.0, 1, 0), ("AA", 0.5, 0, 1), ("BB", 0.5, 0, -1), ("BA", 0.0, 1, 0)]
)
def test_a_judge_of_one_habit(said, right, agree, bias, tmp_path):
    rows = table([arm("sft")], {"sft": {COMPARED: voted(*said)}}, {COMPARED: comparisons("A")}, tmp_path)
    values = [of(rows, metric=metric)["value"] for metric in ("accuracy", "consistency", "position_bias")]
    assert values == [right, agree, bias]


def test_a_comparison_without_gold_is_no_item(tmp_path):
    with pytest.raises(ValueError, match="comparison p0 has no gold preference"):
        table([arm("sft")], {"sft": {COMPARED: voted("A", "B")}}, {COMPARED: comparisons(None)}, tmp_path)


def test_most_draws_decide_and_then_the_likeliest():
    draws = [
        Judgment(example_id="p0", index=i, text="", preference=p, failure=None if p else "cut_off", logprob=logprob)
        for i, (p, logprob) in enumerate([("A", -3), ("B", -1), ("A", -2), (None, 0)])
    ]
    assert read(arm("sft_self_consistency"), draws)[0].id == "p0#2"
    assert read(arm("sft_self_consistency"), draws[:2])[0].id == "p0#1"  # one vote each
    assert read(arm("sft_best_of_n"), draws)[0].id == "p0#1"
    assert read(arm("sft_best_of_n"), draws[3:]) == [None]


def test_an_empty_split_has_no_rows(tmp_path):
    assert table([arm("sft")], {"sft": {"pairwise": []}}, {"pairwise": []}, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "split", "wanted"),
    [
        ("sft", "test", "pointwise, greedy, parsed score; no score counts as wrong"),
        ("sre_2_self_consistency", "ood", "pointwise, majority of 4 draws at T=0.7, parsed score; no score counts as wrong"),
        (
            "sft_best_of_n", "test",
            "pointwise, best of 4 draws at T=0.7, selector: mean token log-probability, parsed score; no score counts as wrong",
        ),
        ("sft", "pairwise", "pointwise on both responses, greedy; compares the expected score; tie 0.5, no score 0"),
        (
            "sft_self_consistency", "pairwise",
            "pointwise on both responses, majority of 4 draws at T=0.7; compares the mean of the draws; tie 0.5, no score 0",
        ),
    ],
)  # fmt: skip
def test_protocol(name, split, wanted):
    assert evaluate.protocol(arm(name), split, SETTINGS) == wanted


def test_protocol_calls_the_ceiling_a_ceiling():
    assert "a ceiling" in evaluate.protocol(arm("sft_careful_only"), "test", SETTINGS)
    assert "a ceiling" not in evaluate.protocol(arm("sft_continued"), "test", SETTINGS)


def test_what_is_judged_already_is_read_and_no_model_loaded(tmp_path):
    own = greedy(4, 2)
    store.write_rows(tmp_path / "sft" / "test.jsonl", own)
    store.write_json(tmp_path / "sft" / "test.done", {"seconds": 1, "tokens": 2})
    found = evaluate.judge_all([arm("sft")], {"sft": "no/such/model"}, {"test": examples(4, 2)}, tmp_path, SETTINGS)
    assert found == {"sft": {"test": own}}


def test_pointwise_takes_both_sides_of_a_comparison():
    assert [e.id for e in evaluate.to_judge("pairwise", comparisons("A", "B"))] == SIDES[:4]
    rows = examples(1, 2)
    assert evaluate.to_judge("test", rows) == rows
    asked = evaluate.to_judge(COMPARED, comparisons("A", "tie"))
    assert [(c.id, c.response_a, c.gold) for c in asked] == [
        ("p0", "A", "A"), ("p0#swapped", "B", "B"), ("p1", "A", "tie"), ("p1#swapped", "B", "tie"),
    ]  # fmt: skip


def test_baselines_are_rows_like_any(tmp_path):
    rows = evaluate.baselines(
        examples(1, 2, 3),
        {"test": examples(1, 2, 5), "pairwise": comparisons("A"), COMPARED: comparisons("A"), "ood": []},
        seed=3,
        n_boot=100,
    )
    assert {row["split"] for row in rows} == {"test"}
    assert {row["arm"] for row in rows} == {"question_mean", "word_overlap"}
    assert of(rows, arm="question_mean", metric="accuracy")["value"] == round(2 / 3, 6)
    assert all(row["protocol"].startswith("no judge") and row["seed"] == 3 for row in rows)
