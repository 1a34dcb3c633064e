"""Every statistic against an independent implementation, every interval against a plain one or the truth. No torch."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from srlib.schema import SrlibError
from srlib.stats import agreement, calibration, comparison, intervals, ppi

NAN = float("nan")
SCALES = {"1-5": [1, 2, 3, 4, 5], "quarters": [i / 4 for i in range(11)], "uneven": [0, 1, 2.5, 7]}
CORRELATIONS = ("pearson", "spearman", "kendall", "qwk")


def noisy(seed, scale, n=120, missing=0.1):
    rng = np.random.default_rng(seed)
    gold = rng.integers(len(scale), size=n)
    scores = np.clip(gold + rng.integers(-2, 3, size=n), 0, len(scale) - 1)
    points = np.array(scale, dtype=float)
    return points[gold], np.where(rng.random(n) < missing, NAN, points[scores])


def plain(gold, scores, name):
    """One statistic by the libraries, as one would write it in a notebook."""
    scored = ~np.isnan(scores)
    x, y = gold[scored], scores[scored]
    return {
        "accuracy": lambda: np.mean(gold == scores),
        "balanced_accuracy": lambda: np.mean([np.mean(scores[gold == g] == g) for g in np.unique(gold)]),
        "parse_rate": lambda: np.mean(scored),
        "pearson": lambda: stats.pearsonr(x, y)[0],
        "spearman": lambda: stats.spearmanr(x, y)[0],
        "kendall": lambda: stats.kendalltau(x, y)[0],
        "mae": lambda: np.mean(np.abs(x - y)),
        "qwk": lambda: 1 - np.mean((x - y) ** 2) / np.mean((x[:, None] - y[None, :]) ** 2),  # observed over expected
    }[name]()


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_agreement_equals_the_libraries(scale):
    gold, scores = noisy(1, scale)
    got = agreement.measure(gold, scores, n_boot=2)
    for name, interval in got.items():
        assert interval.value == pytest.approx(plain(gold, scores, name), abs=1e-12), name
    assert (len(got), got["accuracy"].n) == (8, 120)
    assert got["pearson"].n == got["mae"].n == (~np.isnan(scores)).sum() < 120


def test_bootstrap_agrees_with_resampling_items_one_by_one():
    gold, scores = noisy(2, SCALES["1-5"], n=80)
    got = agreement.measure(gold, scores, n_boot=4000)
    for name in ("accuracy", "balanced_accuracy", "parse_rate", "mae"):
        own = stats.bootstrap(
            (np.arange(80),), lambda pick, name=name: plain(gold[pick], scores[pick], name), method="BCa",
            n_resamples=1500, vectorized=False, rng=7,
        )  # fmt: skip
        # A 2.5% quantile of 1,500 draws has a standard error of about 0.07 deviations; shares go in steps of 1/80.
        tolerance = 1.01 / 80 if name in ("accuracy", "parse_rate") else 0.25 * own.standard_error
        assert got[name][1:3] == pytest.approx(own.confidence_interval, abs=tolerance), name


@pytest.mark.parametrize("size", [1, 4])
def test_a_correlations_interval_is_that_of_its_z_and_a_jackknife(size):
    gold, scores = noisy(2, SCALES["1-5"], n=80, missing=0)
    group = np.arange(80) // size
    got = agreement.measure(gold, scores, n_boot=2, group=None if size == 1 else group.tolist())
    for name in CORRELATIONS:
        without = [plain(gold[group != g], scores[group != g], name) for g in np.unique(group)]
        error = stats.tstd(without) * (len(without) - 1) / len(without) ** 0.5
        half = stats.t.ppf(0.975, len(without) - 1) * error / (1 - got[name].value ** 2)
        center = np.arctanh(got[name].value)
        assert got[name][1:3] == pytest.approx(np.tanh([center - half, center + half]), abs=1e-9), name


def test_a_few_items_on_a_line_tell_nothing_of_a_correlation():
    for n, low in ((2, -1.0), (4, -1.0), (5, 1.0)):
        gold = np.arange(1.0, n + 1)
        got = agreement.measure(gold, gold, n_boot=2)
        assert all(got[name][:3] == pytest.approx((1.0, low, 1.0)) for name in CORRELATIONS), n


def test_items_without_a_score_say_nothing_of_correlations():
    gold, scores = noisy(0, SCALES["1-5"], n=12, missing=0)
    more_gold, more_scores = np.append(gold, [3] * 300), np.append(scores, [NAN] * 300)
    groups = [i // 2 for i in range(312)]
    for group, more in ((None, None), (groups[:12], groups)):
        alone = agreement.measure(gold, scores, n_boot=50, group=group)
        beside = agreement.measure(more_gold, more_scores, n_boot=50, group=more)
        assert all(beside[name] == pytest.approx(alone[name]) for name in CORRELATIONS)


def test_degenerate_scores():
    constant = agreement.measure([1, 2, 3, 4, 5], [3] * 5, n_boot=2)
    assert math.isnan(constant["pearson"].value)
    assert constant["qwk"].value == pytest.approx(0, abs=1e-12)
    assert math.isnan(agreement.measure([3] * 5, [3] * 5, n_boot=2)["qwk"].value)
    nothing = agreement.measure([1, 2, 3], [None] * 3, n_boot=2)
    assert nothing["accuracy"].value == nothing["parse_rate"].value == 0
    assert all(math.isnan(nothing[name].value) and nothing[name].n == 0 for name in (*CORRELATIONS, "mae"))
    one_decides = agreement.measure([1, 1, 1, 2], [1, 2, 1, 2], n_boot=2)["pearson"]
    assert one_decides == pytest.approx((1 / 3**0.5, -1, 1, 4))
    rare = agreement.measure([3] * 90 + [1] * 6 + [2] * 4, [3] * 100, n_boot=2)
    assert (rare["accuracy"].value, rare["balanced_accuracy"].value) == (0.9, pytest.approx(1 / 3))


def test_bad_input_says_where():
    for gold, scores, message in (
        ([1, NAN], [1, 2], r"gold\[1\] is nan; it must be a finite number"),
        ([1, 2], [1, math.inf], r"scores\[1\] is inf; it must be a finite number or NaN"),
        ([1, 2, 3], [1, 2], "gold has 3 items, scores has 2 items"),
        ([], [], "0 items"),
    ):
        with pytest.raises(ValueError, match=message):
            agreement.measure(gold, scores)


def test_pairwise_accuracy_pays_nothing_for_silence():
    gold = ["A", "A", "B", "B", "tie", "tie"]
    got = agreement.pairwise_accuracy([5, 1, 3, NAN, NAN, 2], [4, 2, 3, 1, NAN, 2], gold)
    assert (got.value, got.n) == (pytest.approx((1 + 0 + 0.5 + 0 + 0 + 1) / 6), 6)


def test_at_equal_compares_within_strata_only():
    got = agreement.at_equal([1, 2, 1, 2], [0, 1, 5, 6], "aabb", n_boot=50)
    assert (got["slope"].value, got["correlation"].value) == (pytest.approx(0.5), pytest.approx(1))
    assert got["correlation"][1:3] == pytest.approx((1, 1)), "one of a straight line is known"
    flat = agreement.at_equal([1, 2, 1, 2], [0, 0, 5, 5], "aabb", n_boot=50)
    assert (flat["slope"].value, math.isnan(flat["correlation"].value)) == (pytest.approx(0), True)


def test_majority_and_distinct_n():
    assert agreement.majority([1, 1, 4, 4, 5]) == 4  # 1 is as frequent; 4 is nearer to the mean of 3
    assert agreement.majority([4, 4, 2, 2]) == 2  # as near: the lower
    assert agreement.majority([1 / 3, 1, 1, 1 / 3]) == 1 / 3  # as near, up to rounding
    assert agreement.majority([NAN, 5, NAN, 1, 5]) == 5
    assert math.isnan(agreement.majority([NAN, None]))
    assert agreement.distinct_n([[1, 2, 3], [1, 2, 4]], n=2) == 3 / 4


def test_intervals_cover_the_truth():
    """95% intervals of an accuracy of 0.7 miss it in about one of twenty samples."""
    rng = np.random.default_rng(0)
    found = [intervals.mean(rng.random(200) < 0.7, n_boot=500) for _ in range(300)]
    assert 0.90 <= np.mean([low <= 0.7 <= high for _, low, high, _ in found]) <= 0.985


def test_a_group_is_drawn_as_one():
    """Ten copies of each item are no new evidence: grouped, the interval is that of the items alone."""
    values = np.random.default_rng(0).random(60)
    copies, group = np.repeat(values, 10), np.repeat(range(60), 10).tolist()
    cases = ((values, None), (copies, group), (copies, None))
    found = [intervals.mean(v, n_boot=4000, group=g) for v, g in cases]
    alone, grouped, naive = (high - low for _, low, high, _ in found)
    assert grouped == pytest.approx(alone, rel=0.08)
    assert naive < 0.5 * grouped


def test_one_group_says_nothing_of_others():
    value, low, high, n = intervals.mean([1, 0, 1, 0], group=["a"] * 4)
    assert (value, math.isnan(low), math.isnan(high), n) == (0.5, True, True, 4)

    confidence, right = [0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]
    found = agreement.measure([1, 2, 3, 4], [1, 2, 2, 4], group=["a"] * 4) | {
        "ece": calibration.ece(confidence, right, group=["a"] * 4)
    }
    found |= calibration.summary(confidence, right, group=["a"] * 4)
    assert {name for name, i in found.items() if math.isfinite(i.value)} == found.keys()
    known = {name: i for name, i in found.items() if not (math.isnan(i.low) and math.isnan(i.high))}
    assert all((i.low, i.high) == (-1, 1) for i in known.values()), "correlations say that nothing is known"
    assert known.keys() == {"pearson", "spearman", "kendall", "qwk"}


def test_groups_reach_every_interval():
    """Ten answers to each of eight questions, all right or all wrong: eight things to draw from, not eighty."""
    right, group, one = np.repeat([1, 1, 1, 0, 1, 0, 1, 0], 10), np.repeat(range(8), 10).tolist(), np.ones(80)
    for metric in (
        lambda g: comparison.win_rate(right, one, group=g),
        lambda g: agreement.pairwise_accuracy(right, one, ["tie"] * 80, group=g),
        lambda g: agreement.measure(right, one, group=g)["accuracy"],
        lambda g: calibration.ece(one * 0.9, right, group=g),
        lambda g: calibration.at(0.5, one, right, group=g)["selective_risk"],
    ):
        alone, together = metric(None), metric(group)
        assert alone.value == together.value
        assert together.high - together.low > 2 * (alone.high - alone.low)


def test_resamples_serve_any_statistic_and_repeat():
    values, counts = np.random.default_rng(0).random(60), intervals.resamples(60, n_boot=2000, seed=3)
    assert (counts == intervals.resamples(60, n_boot=2000, seed=3)).all()
    assert ((counts[0] == 1).all(), set(counts.sum(1))) == (True, {60})
    assert intervals.interval(counts @ values / 60, 60) == pytest.approx(intervals.mean(values), abs=0.01)
    grouped = intervals.resamples(4, n_boot=200, group=["b", "b", "a", "a"])
    assert (grouped[:, 0] == grouped[:, 1]).all()
    assert set(grouped[1:, 0]) == {0, 1, 2}, "whole groups, with replacement"
    with pytest.raises(ValueError, match="n_boot 0"):
        intervals.mean([1.0, 2.0], n_boot=0)


def test_seeds_is_students_t():
    values = [0.60, 0.62, 0.67]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert intervals.seeds([*values, NAN]) == pytest.approx((np.mean(values), low, high, 3))
    assert intervals.seeds([0.5])[::3] == (0.5, 1)
    assert list(intervals.fields(intervals.seeds([0.1234567])).values()) == [0.123457, None, None, 1]


def test_a_permutation_test_counts_all_exchanges():
    assert comparison.permutation_test([1] * 5, [0] * 5) == 2 / 32
    a, b = np.array([3.0, 1, 2, 5]), np.array([1.0, 2, 2, 1])
    sums = [abs((np.array(signs) * (a - b)).sum()) for signs in itertools.product((-1, 1), repeat=4)]
    assert comparison.permutation_test(a, b) == pytest.approx(np.mean(np.array(sums) >= abs((a - b).sum())))
    mcnemar = comparison.permutation_test([1] * 12 + [0] * 4, [0] * 12 + [1] * 4, n_permutations=2**17)
    assert mcnemar == pytest.approx(stats.binomtest(12, 16).pvalue, abs=1e-9)
    assert comparison.permutation_test([1, 0], [1, 0]) == comparison.permutation_test([1], [0]) == 1.0
    assert comparison.permutation_test(a, b) == comparison.permutation_test(b, a)
    one_of_four, group = np.repeat([1, 1, 1, 0], 10), np.repeat(range(4), 10).tolist()
    assert comparison.permutation_test(one_of_four, np.zeros(40), group=group) == 2 / 8


def test_groups_of_a_permutation_test_may_be_long_texts():
    a, b = np.random.default_rng(0).random((2, 60))
    numbers = np.repeat(range(20), 3).tolist()
    texts = [f"{number:02} " + "long " * 2000 * (number == 7) for number in numbers]
    assert comparison.permutation_test(a, b, group=texts) == comparison.permutation_test(a, b, group=numbers)


def test_holm_steps_down():
    np.testing.assert_allclose(comparison.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(comparison.holm([0.9, 0.5]), [1, 1])
    assert comparison.holm([]).tolist() == []


def test_the_detectable_difference_is_found_eight_times_in_ten():
    """400 items, a fifth of which change: drawn with that true difference, a z test finds it in 80%."""
    a, b = np.repeat([1, 0, 1], [40, 40, 320]), np.repeat([0, 1, 1], [40, 40, 320])
    got = comparison.differences(a, {"b": b})["b"].detectable
    d = np.random.default_rng(0).choice([1, -1, 0], size=(4000, 400), p=[0.1 + got / 2, 0.1 - got / 2, 0.8])
    assert (np.abs(d.mean(1)) > 1.96 * d.std(1) / 20).mean() == pytest.approx(0.8, abs=0.06)


def test_the_table_is_corrected_as_a_whole():
    ours = [1] * 8 + [0] * 2
    others = {"same": ours, "worse": [0] * 10, "little": [0] + [1] * 7 + [0] * 2}
    found = comparison.differences(ours, others, n_boot=200)
    assert {name: d.value for name, d in found.items()} == pytest.approx({"same": 0, "worse": 0.8, "little": 0.1})
    assert (found["worse"].p, found["worse"].p_holm) == (2 / 2**8, 3 * 2 / 2**8)
    assert found["little"].p_holm == found["same"].p_holm == 1
    assert math.isnan(found["same"].detectable)


def test_win_rate_compares_like_a_dictionary():
    a, b = [[3, 0], [3, 1], [1, 9], [2, 2], [2, 2]], [[2, 9], [3, 0], [2, 0], [2, 2], [2, 3]]
    assert (comparison.win_rate(a, b)[::3], comparison.win_rate([1, 2], [0, 2]).value) == ((0.5, 5), 0.75)


def test_bradley_terry_is_the_most_likely_strength():
    wins = np.random.default_rng(0).integers(0, 4, (5, 5)) * (1 - np.eye(5))
    wins[0], wins[:, 1] = 0, 0  # one loses every game, one wins every game

    def loss(log):
        games = (wins * np.logaddexp(0, log - log[:, None])).sum()
        return games + 0.5 * (np.logaddexp(0, log) + np.logaddexp(0, -log)).sum()

    best = optimize.minimize(loss, np.zeros(5), tol=1e-12).x
    np.testing.assert_allclose(np.log(comparison.bradley_terry(wins)), best, atol=1e-3)
    assert comparison.bradley_terry([[0, 1], [1, 0]]).tolist() == [1, 1]


ANSWERS = st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.integers(0, 1)), min_size=1, max_size=12)


def test_ece_is_the_weighted_gap_of_sklearns_calibration_curve():
    rng = np.random.default_rng(0)
    confidence = rng.random(1000).round(1)  # many on the edges of bins
    honest = rng.random(1000) < confidence
    right, claimed = calibration_curve(honest, confidence, n_bins=10)
    n = np.unique(np.searchsorted(np.linspace(0, 1, 11)[1:-1], confidence), return_counts=True)[1]
    assert calibration.ece(confidence, honest, n_boot=50).value == pytest.approx(n @ abs(right - claimed) / 1000)


@pytest.mark.parametrize(("n", "gap"), [(100, 0.0), (400, 0.03), (400, 0.3)])
def test_the_interval_of_an_ece_holds_the_truth_and_the_value(n, gap):
    """Percentiles of resamples would miss a small error nearly always, and now and then the value itself."""
    rng, held = np.random.default_rng(n), []
    for _ in range(60):
        confidence = rng.uniform(0.35, 0.95, n)
        found = calibration.ece(confidence, rng.random(n) < confidence - gap, n_boot=300)
        assert 0 <= found.low <= found.value <= found.high
        held.append(found.low <= gap <= found.high)
    assert np.mean(held) >= 0.9


def test_the_interval_of_an_ece_holds_the_truth_where_the_items_of_a_question_are_right_or_wrong_together():
    rng, held = np.random.default_rng(1), []
    for _ in range(40):
        group, of_group = np.repeat(np.arange(40), 10), rng.uniform(0.35, 0.95, 40)
        right = (rng.random(40) < of_group)[group]
        held.append(calibration.ece(of_group[group], right, n_boot=300, group=list(group)).low == 0)
    assert np.mean(held) >= 0.9
    for n in (3, 8, 40):
        found = calibration.ece([0.95] * 10 * n, [0] * 10 * n, n_boot=300, group=[str(i % n) for i in range(10 * n)])
        assert found.high <= 1
        assert n == 3 or found.low == pytest.approx(found.value), "wrong on all questions is no chance"


def test_a_risk_coverage_curve_by_hand():
    got = calibration.curve([0.5, 0.9, NAN, 0.5, 0.7], [0, 1, 0, 1, 0])
    assert got.threshold.tolist() == [0.9, 0.7, 0.5]
    assert got.coverage.tolist() == [0.2, 0.4, 0.8]  # the NaN is never answered
    assert got.risk.tolist() == [0, 0.5, 0.5]
    assert got.n == 4, "items, of which two have the same confidence"


@settings(deadline=None, max_examples=40)
@given(ANSWERS, st.permutations(range(12)))
def test_auroc_is_sklearns_and_aurc_the_mean_of_the_curve_in_any_order(rows, order):
    confidence, correct = np.array([rows[i] for i in order if i < len(rows)]).T
    got = calibration.summary(confidence, correct, n_boot=3)
    if len(set(correct)) < 2:
        assert math.isnan(got["auroc"].value)
    else:
        assert got["auroc"].value == pytest.approx(roc_auc_score(correct, confidence))
    curve = calibration.curve(confidence, correct)
    assert got["aurc"].value == pytest.approx(np.diff(curve.coverage, prepend=0) @ curve.risk)
    assert calibration.summary([0.5] * len(rows), correct, n_boot=2)["aurc"].value == pytest.approx(
        1 - np.mean(correct)
    )


def test_summary_leaves_out_what_has_no_confidence():
    got = calibration.summary([0.9, 0.8, 0.7, 0.6, NAN], [1, 1, 1, 0, 0], group=["a", "b", "c", "d", "d"])
    assert (got["auroc"].value, got["auroc"].n, got["aurc"].value) == (1, 4, pytest.approx(0.25 / 4))
    assert got["aurc"].low <= got["aurc"].value <= got["aurc"].high
    assert calibration.summary([NAN], [0])["aurc"].n == 0


def test_a_threshold_answers_most_at_the_risk_and_is_measured_elsewhere():
    confidence, correct = [0.9, 0.8, 0.7, 0.6, NAN], [1, 1, 0, 0, 0]
    assert calibration.threshold_for(confidence, correct, risk=0.4) == 0.7
    assert calibration.threshold_for([0.9, 0.8], [0, 0], risk=0.4) == math.inf
    got = calibration.at(0.65, [0.9, 0.7, 0.6, NAN], [1, 0, 1, 1], n_boot=50)
    assert (got["coverage"][::3], got["selective_risk"][::3]) == ((0.5, 4), (0.5, 2))


def test_a_guaranteed_threshold_needs_evidence_and_keeps_its_word():
    assert calibration.threshold_for([0.9] * 50, [1] * 50, risk=0.1, delta=0.05) == math.inf
    assert calibration.threshold_for([0.9] * 51, [1] * 51, risk=0.1, delta=0.05) == 0.9  # (0.05 / 10) ** (1 / 51) > 0.9
    rng, exceeded = np.random.default_rng(0), []
    for _ in range(200):
        sure = rng.random(200)
        threshold = calibration.threshold_for(sure, rng.random(200) < sure, risk=0.2, delta=0.1)
        exceeded.append(threshold < 0.6)  # the risk above a threshold t is (1 - t) / 2
    assert np.mean(exceeded) <= 0.1


def test_a_temperature_is_found_again():
    rng = np.random.default_rng(0)
    true = rng.dirichlet([1, 1, 1], 4000)
    gold = (true.cumsum(1) < rng.random((4000, 1))).sum(1).clip(max=2)
    assert calibration.temperature(calibration.tempered(true, 0.5), gold) == pytest.approx(2, rel=0.1)
    got = calibration.tempered([[0.8, 0.2, NAN], [NAN, NAN, NAN]], 2)
    np.testing.assert_allclose(got, [[2 / 3, 1 / 3, NAN], [NAN] * 3])
    for probabilities, gold in (([[0.5, 0.5, NAN]], [2]), ([[NAN, NAN]], [0])):
        with pytest.raises(ValueError, match="a temperature needs"):
            calibration.temperature(probabilities, gold)


def test_ppi_by_hand():
    got = ppi.debiased_mean([1, 2, 3, 4], [1, 2, 3, 4], [2, 4])
    weight = (5 / 3) / (3 * 22 / 15)
    variance = (1 - weight) ** 2 * (5 / 3) / 4 + weight**2 * (22 / 15) / 2
    assert (got.weight, got.mean.value) == (pytest.approx(weight), pytest.approx(2.5 + weight / 2))
    assert got.mean.high - got.mean.value == pytest.approx(stats.t.ppf(0.975, 3) * variance**0.5)
    assert got.effective_n == pytest.approx(4 * (5 / 12) / variance)
    assert (got.mean.n, got.rows) == (4, 6)
    silent = ppi.debiased_mean([1, 2, 3, 4], [3, 3, 3, 3], [3, 3])
    low, high = stats.t.interval(0.95, 3, 2.5, stats.sem([1, 2, 3, 4]))
    assert silent.mean == silent.classical == pytest.approx((2.5, low, high, 4))
    assert (silent.weight, silent.effective_n) == (0, pytest.approx(4))


JUDGED = [
    {"id": "a", "score": 4, "expected_score": 3.8, "failure": None, "text": "[RESULT] 4"},
    {"id": "b", "score": 2, "expected_score": None},
    {"id": "c", "score": None, "expected_score": None, "failure": "no_verdict"},
    {"id": "d", "score": 1.0},
    {"id": None, "score": None, "failure": "bad_row"},
    {"id": "a", "score": None, "failure": "bad_row", "reason": "id 'a' is already in line 1"},
    {"id": None, "score": None, "failure": "bad_row"},
    {"id": "e", "score": None},
]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_meet_judgments_by_id_and_what_is_missing_has_a_name(tmp_path):
    judged = lines(tmp_path / "judged.jsonl", JUDGED)
    labels = lines(tmp_path / "labels.jsonl", [{"id": i, "score": s} for i, s in (("c", 3), ("a", 5), ("b", None))])
    estimate, missing = ppi.of_files(judged, labels, level=0.9)
    mean = (3.8 + 2 + 1) / 3  # what a judgment without a score predicts
    assert estimate == ppi.debiased_mean([5, 3], [3.8, mean], [2, 1, mean, mean, mean, mean], level=0.9)
    assert missing == {"no_verdict": 1, "bad_row": 3, "no_score": 1, "label_null": 1}
    compared = [{"id": f"pair-{i}", "score": None, "preference": "A", "failure": None} for i in range(50)]
    mixed, counted = ppi.of_files(lines(judged, [*JUDGED, *compared]), labels, level=0.9)
    assert (mixed, counted) == (estimate, missing | {"comparison": 50}), "a comparison is no part of the mean"
    text = ppi.told(estimate, missing, 0.9)
    assert "90%, 2 labels, 8 rows" in text
    assert "without a score: bad_row 3, label_null 1, no_score 1, no_verdict 1" in text


def test_a_label_of_a_row_that_could_not_be_read_counts_if_its_id_is_clear(tmp_path):
    bad = {"id": "a", "score": None, "failure": "bad_row"}
    judged = [{"id": name, "score": 2} for name in "bcd"] + [bad]
    labels = lines(tmp_path / "labels.jsonl", [{"id": i, "score": 5} for i in "abc"])
    for rows, n in ((judged, 3), ([*judged, bad], 2)):
        estimate, _ = ppi.of_files(lines(tmp_path / "judged.jsonl", rows), labels)
        assert estimate.mean.n == n


def test_ids_may_be_integers(tmp_path):
    judged = lines(tmp_path / "judged.jsonl", [{"id": str(i), "score": i} for i in range(4)])
    labels = lines(tmp_path / "labels.jsonl", [{"id": 1, "score": 1}, {"id": "2", "score": 3}])
    assert ppi.of_files(judged, labels)[0].mean.n == 2
    with pytest.raises(SrlibError, match="id '1' is already in line 1"):
        ppi.of_files(judged, lines(labels, [{"id": 1, "score": 1}, {"id": "1", "score": 3}]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "x", "score": 1}], "1 labels are for ids that were not judged, such as 'x'"),
        ([{"id": "a", "score": "4"}], "line 1: field score"),
        ([{"id": "a", "score": 1}, {"id": "a", "score": 2}], "line 2: id 'a' is already in line 1"),
        ([{"id": "a", "score": 1}], "1 labels and 7 rows without one"),
    ],
)
def test_bad_labels_are_refused(rows, message, tmp_path):
    judged, labels = lines(tmp_path / "judged.jsonl", JUDGED), lines(tmp_path / "labels.jsonl", rows)
    with pytest.raises(SrlibError, match=message):
        ppi.of_files(judged, labels)
    with pytest.raises(SrlibError, match="no judgment has a score"):
        ppi.of_files(lines(judged, JUDGED[2:3]), lines(labels, []))
