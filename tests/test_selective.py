"""Risk, coverage, thresholds, temperature and boundaries, by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from srlib.stats import selective

NAN = float("nan")
answers = st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.integers(0, 1)), min_size=1, max_size=12)


def test_a_curve_by_hand():
    got = selective.curve([0.5, 0.9, NAN, 0.5, 0.7], [0, 1, 0, 1, 0])
    assert got.threshold.tolist() == [0.9, 0.7, 0.5]
    assert got.coverage.tolist() == [0.2, 0.4, 0.8]  # the NaN is never answered
    assert got.risk.tolist() == [0, 0.5, 0.5]
    assert selective.curve([NAN], [0]).coverage.tolist() == []


@settings(deadline=None)  # the first call imports scipy
@given(answers)
def test_auroc_is_sklearns(rows):
    confidence, correct = zip(*rows, strict=True)
    got = selective.summary(confidence, correct, n_boot=3)["auroc"]
    if len(set(correct)) < 2:
        assert math.isnan(got.value)
    else:
        assert got.value == pytest.approx(roc_auc_score(correct, confidence))


@settings(deadline=None)  # the first call imports scipy
@given(answers, st.permutations(range(12)))
def test_order_changes_nothing_and_a_constant_has_the_overall_risk(rows, order):
    shuffled = [rows[i] for i in order if i < len(rows)]
    (a, b), (c, d) = zip(*rows, strict=True), zip(*shuffled, strict=True)
    assert selective.summary(a, b, n_boot=2)["aurc"].value == pytest.approx(
        selective.summary(c, d, n_boot=2)["aurc"].value
    )
    assert selective.summary([0.5] * len(b), b, n_boot=2)["aurc"].value == pytest.approx(1 - np.mean(b))


def test_summary_leaves_out_who_abstains_and_has_intervals():
    got = selective.summary([0.9, 0.8, 0.7, 0.6, NAN], [1, 1, 1, 0, 0], group=["a", "b", "c", "d", "d"])
    assert (got["auroc"].value, got["auroc"].n) == (1, 4)
    assert got["aurc"].value == pytest.approx(0.25 / 4)
    assert got["aurc"].low <= got["aurc"].value <= got["aurc"].high
    assert selective.summary([NAN], [0])["aurc"].n == 0


def test_a_threshold_answers_most_at_the_risk():
    confidence, correct = [0.9, 0.8, 0.7, 0.6, NAN], [1, 1, 0, 0, 0]
    got = selective.threshold_for(confidence, correct, risk=0.4)
    assert (got.value, got.coverage, got.n) == (0.7, 0.6, 5)
    assert got.risk == pytest.approx(1 / 3)
    assert math.isnan(got.bound)
    never = selective.threshold_for([0.9], [0], risk=0.4)
    assert (never.value, never.coverage) == (math.inf, 0)
    found = selective.at(never.value, confidence, correct, n_boot=9)
    assert found["coverage"].value == 0
    assert (math.isnan(found["selective_risk"].value), found["selective_risk"].n) == (True, 0)


def test_a_guarantee_takes_items():
    for n, granted in ((50, False), (60, True)):
        got = selective.threshold_for(np.linspace(0.5, 0.9, n), [1] * n, risk=0.1, delta=0.05)
        assert (got.coverage == 1.0) is granted
    with pytest.raises(ValueError, match="between 0 and 1"):
        selective.threshold_for([0.5], [1], risk=0)


def test_the_guarantee_holds_on_new_items():
    """The true risk of items with confidence c is 1 - c; a threshold whose risk is above 0.3 is chosen in under 5%."""
    rng, broken, answered = np.random.default_rng(0), 0, 0
    for _ in range(300):
        confidence = rng.random(600)
        got = selective.threshold_for(confidence, (rng.random(600) < confidence).astype(float), risk=0.3, delta=0.05)
        broken += got.coverage > 0 and (1 - got.value) / 2 > 0.3
        answered += got.coverage > 0
    assert answered > 250
    assert broken / 300 <= 0.05


def test_what_a_threshold_does_elsewhere():
    got = selective.at(0.7, [0.9, 0.7, 0.6, NAN], [1, 0, 1, 1], n_boot=50)
    assert (got["coverage"].value, got["coverage"].n) == (0.5, 4)
    assert (got["selective_risk"].value, got["selective_risk"].n) == (0.5, 2)


def test_a_temperature_is_found_again():
    rng = np.random.default_rng(0)
    true = rng.dirichlet([1, 1, 1], 4000)
    gold = (true.cumsum(1) < rng.random((4000, 1))).sum(1).clip(max=2)
    assert selective.temperature(selective.tempered(true, 0.5), gold) == pytest.approx(2, rel=0.1)
    assert selective.temperature(true, gold) == pytest.approx(1, rel=0.1)


def test_tempered_by_hand():
    got = selective.tempered([[0.8, 0.2, NAN], [NAN, NAN, NAN]], 2)
    np.testing.assert_allclose(got[0], [2 / 3, 1 / 3, NAN])
    assert np.isnan(got[1]).all()
    np.testing.assert_allclose(selective.tempered([[1.0, 0.0]], 1), [[1, 0]], atol=1e-6)


def test_a_temperature_wants_gold_on_the_scale():
    with pytest.raises(ValueError, match=r"gold\[1\] is column 2, which is not on that item's scale"):
        selective.temperature([[NAN] * 3, [0.5, 0.5, NAN]], [0, 2])
    with pytest.raises(ValueError, match="no row has probabilities"):
        selective.temperature([[NAN, NAN]], [0])


def test_a_boundary_uses_uncertainty_where_it_tells_something():
    """Sure scores above a half pass; unsure ones only above 0.8."""
    rng = np.random.default_rng(0)
    score, unsure = rng.random(800), rng.integers(0, 2, 800).astype(float)
    passed = (score > np.where(unsure == 1, 0.8, 0.5)).astype(float)
    alone, both = (selective.fit_boundary(score[:400], u, passed[:400]) for u in (None, unsure[:400]))
    right = [(b.passes(score[400:], unsure[400:]) == passed[400:]).mean() for b in (alone, both)]
    assert right[0] < 0.9 < 0.95 < right[1]
    assert both.passes([0.9, NAN], [0, 0]).tolist() == [True, False]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="all pass or all fail"):
        selective.fit_boundary([1, 2], None, [1, 1])
    with pytest.raises(ValueError, match=r"correct\[1\] is neither 0 nor 1"):
        selective.curve([0.5, 0.5], [1, 0.5])
    with pytest.raises(ValueError, match="no items"):
        selective.curve([], [])
