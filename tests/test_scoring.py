"""Every rule of every benchmark against numbers worked out by hand, and what must hold of any judge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from srlib.benchmarks import listwise, scoring, suite
from srlib.benchmarks.scoring import Judged

BOOT = 50


def pair(name, gold="A", subset="", group="", failed=None, **said):
    """`pair("1", AB="A", BA="B")`; None is an answer that could not be read."""
    read = {shown: answer for shown, answer in said.items() if answer is not None}
    failed = {shown: "no_verdict" for shown, answer in said.items() if answer is None} | (failed or {})
    return Judged(name, gold, read, failed, subset, group)


def several(name, scores, right=1, subset="", group=""):
    shown = {str(k): score for k, score in enumerate(scores, start=1)}
    read = {k: score for k, score in shown.items() if score is not None}
    failed = {k: "no_verdict" for k, score in shown.items() if score is None}
    return Judged(name, right, read, failed, subset, group)


def scored(name, gold, score, subset="", group=""):
    return Judged(
        name,
        gold,
        {"": score} if score is not None else {},
        {} if score is not None else {"": "cut_off"},
        subset,
        group,
    )


def value(rows, metric, subset="all"):
    [found] = [row for row in rows if (row["metric"], row["subset"]) == (metric, subset)]
    return found["value"]


def rule(name, rows):
    return suite.BENCHMARKS[name].rule(rows, n_boot=BOOT, seed=0)


# ---------------------------------------------------------------- two responses


@pytest.mark.parametrize(
    ("said", "gold", "accuracy", "official"),
    [
        (dict(AB="A", BA="A"), "A", 1.0, 1.0),
        (dict(AB="B", BA="B"), "A", 0.0, 0.0),
        (dict(AB="tie", BA="tie"), "A", 0.5, 0.5),
        (dict(AB=None, BA=None), "A", 0.0, 0.5),
        (dict(A=4.0, B=2.5), "A", 1.0, 1.0),
        (dict(A=2.5, B=4.0), "A", 0.0, 0.0),
        (dict(A=3.0, B=3.0), "A", 0.5, 0.5),
        (dict(A=3.0, B=None), "A", 0.0, 0.5),
        (dict(A=3.0, B=3.0), "tie", 1.0, 1.0),
        (dict(AB="A", BA="A"), "tie", 0.0, 0.0),
    ],
)
def test_what_a_verdict_is_worth_officially_and_strictly(said, gold, accuracy, official):
    row = pair("1", gold, **said)
    assert scoring.accuracy(row) == accuracy
    assert scoring.accuracy_in_one_order(row) == official


def test_two_orders_are_averaged_and_compared():
    one = pair("1", AB="A", BA="B")
    assert (scoring.accuracy(one), scoring.consistency(one), scoring.both_correct(one)) == (0.5, 0.0, 0.0)
    both = pair("1", AB="A", BA="A")
    assert (scoring.accuracy(both), scoring.consistency(both), scoring.both_correct(both)) == (1.0, 1.0, 1.0)
    unread = pair("1", AB=None, BA=None)
    assert scoring.consistency(unread) == 0.0, "two failures are no agreement"
    assert scoring.consistency(pair("1", A=2.0, B=1.0)) is None, "scores of single responses have no order"


def test_the_order_that_is_shown_follows_from_the_id_alone():
    orders = [scoring.order_of(str(i)) for i in range(1000)]
    assert orders == [scoring.order_of(str(i)) for i in range(1000)]
    assert 450 < orders.count("AB") < 550
    for name in ("0", "1", "2", "3"):
        row = pair(name, AB="A", BA="B")
        assert scoring.accuracy_in_one_order(row) == (scoring.order_of(name) == "AB")
    assert scoring.accuracy_in_one_order(pair("0", AB="A")) == scoring.accuracy_in_one_order(pair("1", AB="A")) == 1


@pytest.mark.parametrize(
    ("ab", "ba", "right"),
    [
        ("A", "A", 1), ("A", "B", 0), ("B", "B", 0), ("A", "tie", 1), ("tie", "A", 1), ("tie", "tie", 0), ("B", "tie", 0),
        ("A", None, 1), ("B", None, 0), (None, None, 0),
    ],
)  # fmt: skip
def test_judge_bench_adds_up_two_orders(ab, ba, right):
    assert scoring.two_order_accuracy(pair("1", AB=ab, BA=ba)) == right


def test_judge_bench_by_category():
    rows = [
        pair("1", AB="A", BA="A", subset="math"),
        pair("2", AB="A", BA="B", subset="math"),
        pair("3", "B", A=1, B=2, subset="coding"),
    ]
    found = rule("judge_bench", rows)
    assert [value(found, "accuracy", s) for s in ("all", "math", "coding")] == [
        pytest.approx(2 / 3, abs=1e-6),
        0.5,
        1.0,
    ]
    assert value(found, "consistency") == 0.5, "of the two items that were asked in both orders"


def test_reward_bench_weighs_math_like_all_code_and_averages_four_sections():
    """Every subset once right and once wrong, except math (right) and one code language (wrong)."""
    rows = []
    for section in suite.REWARD_BENCH_SECTIONS.values():
        for subset in section:
            first, second = {"math-prm": ("A", "A"), "hep-go": ("B", "B")}.get(subset, ("A", "B"))
            rows += [
                pair(f"{subset}-1", AB=first, BA=first, subset=subset),
                pair(f"{subset}-2", AB=second, BA=second, subset=subset),
            ]
    found = rule("reward_bench", rows)
    assert value(found, "accuracy", "math-prm") == 1.0
    assert (
        value(found, "accuracy", "Chat")
        == value(found, "accuracy", "Chat Hard")
        == value(found, "accuracy", "Safety")
        == 0.5
    )
    reasoning = (984 * 1 + 164 * 0 + 5 * 164 * 0.5) / (984 + 6 * 164)
    assert value(found, "accuracy", "Reasoning") == pytest.approx(reasoning, abs=1e-6)
    assert value(found, "accuracy", "mean of four") == pytest.approx((3 * 0.5 + reasoning) / 4, abs=1e-6)
    assert sum(w for s in suite.REWARD_BENCH_SECTIONS.values() for w in s.values()) == 2985 - 447 + 984


def test_reward_bench_sections_weigh_by_size_not_by_rows_at_hand():
    rows = [pair("1", AB="A", subset="mt-bench-easy")] + [
        pair(f"2{i}", AB="B", subset=s) for i, s in enumerate(list(suite.REWARD_BENCH_SECTIONS["Chat"])[:3])
    ]
    rows += [pair("3", AB="B", subset="mt-bench-med")]
    found = rule("reward_bench", rows)
    assert value(found, "accuracy", "Chat") == pytest.approx(28 / 358, abs=1e-6)
    [hard] = [row for row in found if (row["metric"], row["subset"]) == ("accuracy", "Chat Hard")]
    assert hard["value"] is None, "a section without its subsets has no value"
    assert "no mt-bench-hard" in hard["failures"]
    assert value(found, "accuracy", "mean of four") is None


def test_reward_bench_official_strict_and_consistency_side_by_side():
    chat = list(suite.REWARD_BENCH_SECTIONS["Chat"])
    rows = [pair(s, AB="A", BA="A", subset=s) for s in chat[:4]] + [pair("x", AB=None, BA=None, subset=chat[4])]
    found = rule("reward_bench", rows)
    assert value(found, "accuracy", "Chat") == pytest.approx((318 + 40 * 0.5) / 358, abs=1e-6)
    assert value(found, "accuracy_strict", "Chat") == pytest.approx(318 / 358, abs=1e-6)
    assert value(found, "consistency", "Chat") == pytest.approx(318 / 358, abs=1e-6)


def test_llmbar_orders_agreement_and_the_mean_of_adversarial_subsets():
    rows = [pair("1", AB="A", BA="A", subset="Natural"), pair("2", AB="A", BA="B", subset="Natural")]
    rows += [pair(f"{s}{i}", "B", AB=v, BA=v, subset=s) for s, said in (("Neighbor", "BBBA"), ("GPTInst", "BA"), ("GPTOut", "A"), ("Manual", "B")) for i, v in enumerate(said)]  # fmt: skip
    found = rule("llmbar", rows)
    assert value(found, "accuracy", "Natural") == 0.75
    assert (value(found, "agreement", "Natural"), value(found, "both_correct", "Natural")) == (0.5, 0.5)
    assert value(found, "accuracy", "mean of Adversarial") == pytest.approx((0.75 + 0.5 + 0 + 1) / 4, abs=1e-6)


def test_pandalm_with_and_without_ties():
    rows = [
        pair("1", "A", A=2, B=1),
        pair("2", "B", A=2, B=1),
        pair("3", "tie", A=2, B=2),
        pair("4", "tie", A=2, B=1),
        pair("5", "A", A=1, B=1),
    ]
    found = rule("pandalm_human", rows)
    assert value(found, "accuracy") == pytest.approx((1 + 0 + 1 + 0 + 0.5) / 5)
    assert value(found, "accuracy_without_ties") == 0.5
    assert [row["n"] for row in found if row["metric"] == "accuracy_without_ties"] == [3]


def test_what_could_not_be_read_is_named_and_never_left_out():
    rows = [
        pair("1", AB="A"),
        pair("2", AB=None),
        Judged("3", "A", {}, {"": "missing"}),
        Judged("4", "A", {}, {"": "empty_response"}),
    ]
    [found] = [row for row in rule("hhh_alignment", rows) if row["metric"] == "accuracy"]
    assert (found["value"], found["n"], found["parse_rate"]) == (0.25, 4, 0.25)
    assert found["failures"] == {"no_verdict": 1, "missing": 1, "empty_response": 1}
    [where] = [row for row in rule("hhh_alignment", rows) if row["metric"] == "accuracy_where_read"]
    assert (where["value"], where["n"]) == (1.0, 1)


# ---------------------------------------------------------------- one response


def test_feedback_bench_correlates_what_could_be_read():
    gold, scores = [1, 2, 3, 4, 5, 5], [1, 3, 2, 5, 4, None]
    found = rule("feedback_bench", [scored(str(i), g, s) for i, (g, s) in enumerate(zip(gold, scores, strict=True))])
    x, y = gold[:5], scores[:5]
    assert value(found, "pearson") == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6)
    assert value(found, "spearman") == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-6)
    assert value(found, "kendall") == pytest.approx(stats.kendalltau(x, y)[0], abs=1e-6)
    assert value(found, "accuracy") == pytest.approx(1 / 6, abs=1e-6), "no score is wrong"
    assert {row["metric"]: row["n"] for row in found}["pearson"] == 5


def test_biggen_bench_averages_capabilities_not_items():
    few = [scored(f"a{i}", g, s, "planning", f"a{i}") for i, (g, s) in enumerate([(1, 1), (2, 2), (3, 3)])]
    many = [
        scored(f"b{i}", g, s, "safety", f"b{i}")
        for i, (g, s) in enumerate([(1, 5), (2, 4), (3, 2), (4, 2), (5, 1), (5, 3)])
    ]
    found = rule("biggen_bench", few + many)
    r = stats.pearsonr([1, 2, 3, 4, 5, 5], [5, 4, 2, 2, 1, 3])[0]
    assert value(found, "pearson", "safety") == pytest.approx(r, abs=1e-6)
    assert value(found, "pearson", "mean of capabilities") == pytest.approx((1 + r) / 2, abs=1e-6)
    constant = [scored(f"c{i}", g, 3, "tool", f"c{i}") for i, g in enumerate([1, 2, 3])]
    assert value(rule("biggen_bench", few + constant), "pearson", "mean of capabilities") is None


def test_summeval_correlates_within_documents_that_vary():
    documents = {
        "d1": [(1, 1), (2, 2), (3, 3)],
        "d2": [(1, 3), (2, 2), (3.5, 1)],
        "d3": [(4, 1), (4, 2), (4, 3)],
        "d4": [(1, 2), (2, 2)],
    }
    rows = [scored(f"{d}{i}", g, s, group=d) for d, own in documents.items() for i, (g, s) in enumerate(own)]
    found = {row["metric"]: row for row in rule("summeval", rows)}
    assert (found["spearman_by_document"]["value"], found["spearman_by_document"]["n"]) == (0.0, 2)
    assert found["kendall_by_document"]["failures"] == {"document without variance": 2}
    gold, said = zip(*(x for own in documents.values() for x in own), strict=True)
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(gold, said)[0], abs=1e-6)


# ---------------------------------------------------------------- what holds of every judge

VERDICTS = st.sampled_from(["A", "B", "tie", None])
JUDGED_PAIRS = st.lists(st.tuples(st.sampled_from("AB"), VERDICTS, VERDICTS), min_size=1, max_size=8)
OTHER = {"A": "B", "B": "A", "tie": "tie", None: None}


@settings(max_examples=30, deadline=None)
@given(JUDGED_PAIRS)
def test_exchanging_the_responses_and_their_labels_changes_nothing(items):
    """The same judge, and the responses of every item under each other's names."""
    as_given = [pair(str(i), g, AB=ab, BA=ba) for i, (g, ab, ba) in enumerate(items)]
    exchanged = [pair(str(i), OTHER[g], AB=OTHER[ba], BA=OTHER[ab]) for i, (g, ab, ba) in enumerate(items)]
    for name in ("hhh_alignment", "pandalm_human", "judge_bench", "llmbar"):
        before, after = (suite.BENCHMARKS[name].rule(rows, n_boot=1, seed=0) for rows in (as_given, exchanged))
        assert [(r["metric"], r["subset"], r["value"], r["n"]) for r in before] == [
            (r["metric"], r["subset"], r["value"], r["n"]) for r in after
        ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("AB"), min_size=1, max_size=20), st.sampled_from(["first", "same score"]))
def test_a_constant_judge_scores_chance(gold, kind):
    """Always the response shown first, in both orders; or always the same score."""
    said = dict(AB="A", BA="B") if kind == "first" else dict(A=3.0, B=3.0)
    rows = [pair(str(i), g, **said) for i, g in enumerate(gold)]
    for name in ("hhh_alignment", "preference_bench", "evalbiasbench", "llmbar"):
        assert value(suite.BENCHMARKS[name].rule(rows, n_boot=1, seed=0), "accuracy") == 0.5
    assert value(suite.BENCHMARKS["judge_bench"].rule(rows, n_boot=1, seed=0), "accuracy") == 0, "both orders must win"
    four = [several(str(i), [3, 3, 3, 3]) for i in range(len(gold))]
    assert {listwise.best_of(row) for row in four} == {0.25}


def test_a_judge_that_likes_the_first_place_scores_chance_in_one_order():
    rows = [pair(str(i), AB="A", BA="B") for i in range(2000)]
    assert np.mean([scoring.accuracy_in_one_order(row) for row in rows]) == pytest.approx(0.5, abs=0.03)


def test_intervals_resample_prompts_not_items():
    """Forty items of two prompts, one prompt right: the interval covers everything."""
    rows = [pair(str(i), AB="A" if i % 2 else "B", group=str(i % 2)) for i in range(40)]
    alone = [pair(str(i), AB="A" if i % 2 else "B") for i in range(40)]
    grouped, single = (scoring.by_item(r, scoring.PAIRS, n_boot=400)[0] for r in (rows, alone))
    assert (grouped["ci_low"], grouped["ci_high"]) == (0.0, 1.0)
    assert 0.3 < single["ci_low"] < single["ci_high"] < 0.7
