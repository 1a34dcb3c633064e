"""Every rule of every benchmark against numbers computed by hand or published, and what must hold for any judge."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from srlib.benchmarks import named, rules
from srlib.benchmarks.rules import Judged
from srlib.schema import SrlibError

SECTIONS = named("reward_bench").rule.keywords["sections"]


def judged(name, gold, answers, subset="", group=""):
    """None is an answer that could not be parsed."""
    failures = {order: "no_verdict" for order, answer in answers.items() if answer is None}
    return Judged(str(name), gold, answers, failures, subset, group or str(name))


def pair(name, gold="A", subset="", group="", **answers):
    return judged(name, gold, answers, subset, group)


def several(name, scores, right=1, subset="", group=""):
    return judged(name, right, {str(k): score for k, score in enumerate(scores, start=1)}, subset, group)


def score(rows):
    """Items with one response, from (gold, score), (gold, score, subset) or (gold, score, subset, group)."""
    return [judged(i, gold, {"": score}, *rest) for i, (gold, score, *rest) in enumerate(rows)]


def row_of(rows, metric, subset="all"):
    return next(row for row in rows if (row["metric"], row["subset"]) == (metric, subset))


def value(rows, metric, subset="all"):
    return row_of(rows, metric, subset)["value"]


def test_credit_of_a_verdict_strictly_and_by_the_official_rule():
    def credits(gold="A", **answers):
        return [rules.pair_metrics(pair("1", gold, **answers))[name] for name in ("accuracy", "one_order")]

    assert [credits(AB=v, BA=v) for v in ("A", "B", "tie", None)] == [[1, 1], [0, 0], [0.5, 0.5], [0, 0.5]]
    assert [credits(A=3.0, B=b) for b in (2.5, 4.0, 3.0, None)] == [[1, 1], [0, 0], [0.5, 0.5], [0, 0.5]]
    assert [credits("tie", A=3.0, B=3.0), credits("tie", AB="A", BA="A")] == [[1, 1], [0, 0]]


def test_two_orders_are_averaged_and_compared():
    def found(**answers):
        names = ("accuracy", "two_orders", "consistency", "both_correct", "accuracy_where_read")
        return [rules.pair_metrics(pair("1", **answers))[name] for name in names]

    assert found(AB="A", BA="A") == [1, 1, 1, 1, 1]
    assert found(AB="A", BA="B") == [0.5, 0, 0, 0, 0.5]
    assert found(AB="A", BA=None) == [0.5, 1, 0, 0, None]
    assert found(AB=None, BA=None) == [0, 0, 0, 0, None], "two failures do not agree"
    assert found(A=2.0, B=1.0) == [1, 1, None, None, 1], "scores of single responses have no order"


def test_the_single_order_follows_from_the_id_and_is_balanced():
    credits = [rules.pair_metrics(pair(i, AB="A", BA="B"))["one_order"] for i in range(2000)]
    assert credits[:8] == [0, 1, 0, 0, 0, 1, 1, 0]
    assert np.mean(credits) == pytest.approx(0.5, abs=0.03), "a judge that prefers the first response scores chance"


# Released judgments as counts of (verdict in the order AB, in BA): r right, w wrong, t tie.
LLMBAR_GPT4 = {
    "Natural": dict(rr=93, rw=2, wr=3, ww=2),
    "Neighbor": dict(rr=101, rw=3, wr=6, ww=24),
    "GPTInst": dict(rr=77, rw=1, wr=4, ww=10),
    "GPTOut": dict(rr=35, wr=3, ww=9),
    "Manual": dict(rr=33, rw=2, wr=6, ww=5),
}
JUDGE_BENCH = {
    "o1-mini, Arena-Hard prompt": dict(rr=203, wr=43, rw=33, ww=32, tr=15, rt=12, tw=7, tt=5),
    "Skywork-Reward-Llama-3.1-8B": dict(rr=218, ww=131, wr=1),
}


def released(counts, subset=""):
    letter = {"r": "A", "w": "B", "t": "tie"}
    orders = [(letter[ab], letter[ba]) for (ab, ba), n in counts.items() for _ in range(n)]
    return [pair(f"{subset}{i}", "A", subset, AB=ab, BA=ba) for i, (ab, ba) in enumerate(orders)]


def test_gpt4_on_llmbar_has_the_five_published_figures():
    benchmark = named("llmbar")
    found = benchmark.rule([row for subset, counts in LLMBAR_GPT4.items() for row in released(counts, subset)])
    for subset in LLMBAR_GPT4:
        [published] = benchmark.published[f"accuracy {subset}"]
        assert round(value(found, "accuracy", subset), 3) == published["value"]
    assert (value(found, "agreement", "Natural"), value(found, "both_correct", "Natural")) == (0.95, 0.93)


def test_two_judges_on_judge_bench_have_the_figures_of_its_authors_code():
    benchmark = named("judge_bench")
    published = {figure["judge"]: figure["value"] for figure in benchmark.published["accuracy all"]}
    for judge, counts in JUDGE_BENCH.items():
        assert round(value(benchmark.rule(released(counts)), "accuracy"), 4) == published[judge]


def test_reward_bench_weighs_subsets_by_size_and_averages_four_sections():
    """Every subset is right, except hep-go, and mt-bench-med, which is a failure."""
    verdicts = {"hep-go": "B", "mt-bench-med": None}
    names = [subset for section in SECTIONS.values() for subset in section]
    rows = [pair(name, AB=v, BA=v, subset=name) for name in names for v in [verdicts.get(name, "A")]]
    found = named("reward_bench").rule(rows)
    reasoning, chat = 1 - 164 / (984 + 6 * 164), 1 - 40 / 358
    assert value(found, "accuracy", "Chat") == pytest.approx(chat + 0.5 * 40 / 358, abs=1e-6)
    assert value(found, "accuracy_strict", "mean of four") == pytest.approx((2 + reasoning + chat) / 4, abs=1e-6)
    assert sum(weight for section in SECTIONS.values() for weight in section.values()) == 2985 - 447 + 984
    fewer = named("reward_bench").rule([row for row in rows if row.subset != "mt-bench-hard"])
    hard = row_of(fewer, "accuracy", "Chat Hard")
    assert (hard["value"], hard["failures"]) == (None, {"no mt-bench-hard": 1})
    assert value(fewer, "accuracy", "mean of four") is None


def test_failures_are_named_and_never_left_out():
    empty = Judged("3", "tie", {"": None}, {"": "empty_response"}, "", "3")
    found = named("pandalm_human").rule([pair("1", AB="A"), pair("2", AB=None), empty])
    numbers = {"value": 0.333333, "n": 3, "parse_rate": 0.333333, "failures": {"no_verdict": 1, "empty_response": 1}}
    assert row_of(found, "accuracy") | numbers == row_of(found, "accuracy")
    assert (value(found, "accuracy_where_read"), value(found, "accuracy_without_ties")) == (1.0, 0.5)


def test_feedback_bench_correlates_the_scores_that_were_parsed():
    found = named("feedback_bench").rule(score(zip([1, 2, 3, 4, 5, 5], [1, 3, 2, 5, 4, None], strict=True)))
    x, y = [1, 2, 3, 4, 5], [1, 3, 2, 5, 4]
    correlations = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    for name, correlation in correlations.items():
        assert value(found, name) == pytest.approx(correlation(x, y)[0], abs=1e-6)
    assert value(found, "accuracy") == pytest.approx(1 / 6, abs=1e-6), "a missing score is wrong"
    assert row_of(found, "pearson")["n"] == 5


def test_biggen_bench_averages_capabilities_not_items():
    few = [(1, 1, "planning"), (2, 2, "planning"), (3, 3, "planning")]
    many = [(g, s, "safety") for g, s in [(1, 5), (2, 4), (3, 2), (4, 2), (5, 1), (5, 3), (4, None)]]
    found = named("biggen_bench").rule(score(few + many))
    r = stats.pearsonr([1, 2, 3, 4, 5, 5], [5, 4, 2, 2, 1, 3])[0]
    assert value(found, "pearson", "safety") == pytest.approx(r, abs=1e-6)
    assert value(found, "pearson", "mean of capabilities") == pytest.approx((1 + r) / 2, abs=1e-6)
    constant = score([*few, (1, 3, "tool"), (2, 3, "tool"), (3, 3, "tool")])
    assert value(named("biggen_bench").rule(constant), "pearson", "mean of capabilities") is None


def test_summeval_correlates_within_documents_that_vary():
    documents = {"d1": "11 22 33", "d2": "13 22 41", "d3": "41 42 43", "d4": "12 22"}
    rows = [(int(p[0]), int(p[1]), "", d) for d, points in documents.items() for p in points.split()]
    found = named("summeval").rule(score(rows))
    by_document = row_of(found, "kendall_by_document")
    assert (value(found, "spearman_by_document"), by_document["value"], by_document["n"]) == (0.0, 0.0, 2)
    assert by_document["failures"] == {"document without variance": 2}
    assert value(found, "spearman") == pytest.approx(stats.spearmanr([r[:2] for r in rows])[0], abs=1e-6)


def test_rm_bench_counts_the_triangles_of_its_matrix():
    """chosen 3, 5, 7 against rejected 4, 5, 6: row by row 0 0 0 / 1 0 0 / 1 1 1."""
    row = several("1", [3, 5, 7, 4, 5, 6], right=3, subset="chat")
    assert rules.style_metrics(row) == {"hard": 0.0, "normal": 1 / 3, "easy": 1.0, "average": pytest.approx(4 / 9)}
    assert rules.style_metrics(several("1", [3, 5, None, 4, 5, 6], right=3))["easy"] == pytest.approx(1 / 3)
    found = named("rm_bench").rule([row] + [several(d, [9, 9, 9, 1, 1, 1], 3, d) for d in ("code", "math", "safety")])
    assert value(found, "hard", "mean of four") == 0.75
    assert value(found, "average", "mean of four") == pytest.approx((4 / 9 + 3) / 4, abs=1e-6)
    with pytest.raises(SrlibError, match="item 1: RM-Bench needs the scores of six responses"):
        rules.style_metrics(judged("1", 3, {"": "2"}))


def test_reward_bench_2_splits_the_point_among_tied_highest_scores():
    scores = [[9, 1, 2, 3], [9, 9, 2, 3], [9, 9, 9, 9], [1, 9, 9, 2], [None, 9, 2, 3], [5, None, 2, 3], [None] * 4]
    assert [rules.best_of(several("1", four)) for four in scores] == [1.0, 0.5, 0.25, 0.0, 0.0, 1.0, 0.25]
    assert [rules.best_of(judged("1", 1, {"": choice})) for choice in ("1", "3", None)] == [1.0, 0.0, 0.25]


def test_the_ties_subset():
    """Several right answers beside one: gap 3, spread 1 beside gap 0.5; gap 0, spread 0 beside 4; gap 1, spread 2."""
    rows = [several("tied:1", [8, 7, 4], 2, "Ties", "1"), several("ref:1", [9, 8.5], 1, "Ties", "1")]
    rows += [several("tied:2", [5, 5, 5], 2, "Ties", "2"), several("ref:2", [9, 5], 1, "Ties", "2")]
    rows += [several("tied:3", [9, 7, 6], 2, "Ties", "3"), several("ref:3", [9, None], 1, "Ties", "3")]

    def score(*picked):
        return rules.ties_score([rows[i] for i in picked], np.ones((1, len(picked))))[0]

    assert score(0, 1) == pytest.approx(0.3 + 0.3 + 0.2 + 0.0 + 0.01 * math.tanh(0.5 - 1))
    assert score(2, 3) == pytest.approx(0.3 * 0 + 0.3 + 0.2 * 0 + 0.2 * 0 + 0.01 * 0)
    assert score(4, 5) == pytest.approx(0.3 + 0.0 + 0.0 + 0.0 - 0.01), "a prompt with a missing score is wrong"
    assert score(0, 1, 2, 3) == pytest.approx(0.15 + 0.3 + 0.1 + 0.0 + 0.005 * math.tanh(0.5 - 1))


def test_reward_bench_2_is_the_mean_of_six():
    rows = [several(f"{s}/1", [9, 1, 1, 1], 1, s) for s in rules.RB2_SUBSETS[:4]]
    rows += [several("Focus/1", [1, 1, 1, 1], 1, "Focus")]
    ties = [several("tied:1", [8, 7, 4], 2, "Ties", "1"), several("ref:1", [9, 2], 1, "Ties", "1")]
    found = named("reward_bench_2").rule(rows + ties)
    expected = (4 + 0.25 + 1.0 + 0.01 * math.tanh(2)) / 6
    assert value(found, "score", "mean of six") == pytest.approx(expected, abs=1e-6)
    without = row_of(named("reward_bench_2").rule(rows), "score", "mean of six")
    assert (without["value"], without["failures"]) == (None, {"no Ties": 1})


def test_exchanging_the_responses_and_their_labels_changes_nothing():
    other = {"A": "B", "B": "A", "tie": "tie", None: None}
    items = list(enumerate(itertools.product("AB", other, other)))
    given = [pair(i, gold, AB=ab, BA=ba) for i, (gold, ab, ba) in items]
    exchanged = [pair(i, other[gold], AB=other[ba], BA=other[ab]) for i, (gold, ab, ba) in items]
    for name in ("pandalm_human", "judge_bench", "llmbar"):
        before, after = (named(name).rule(rows) for rows in (given, exchanged))
        assert [(r["metric"], r["value"], r["n"]) for r in before] == [(r["metric"], r["value"], r["n"]) for r in after]


def test_intervals_resample_prompts_not_items():
    """Forty items of two prompts, one prompt right: the interval covers everything."""
    grouped = rules.by_item([pair(i, AB="AB"[i % 2], group=str(i % 2)) for i in range(40)])[0]
    single = rules.by_item([pair(i, AB="AB"[i % 2]) for i in range(40)])[0]
    assert (grouped["ci_low"], grouped["ci_high"]) == (0.0, 1.0)
    assert 0.3 < single["ci_low"] < single["ci_high"] < 0.7
