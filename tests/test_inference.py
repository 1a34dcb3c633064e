"""Paired tests between arms against counting by hand and against the libraries."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from srlib.stats import inference


def test_a_permutation_test_counts_all_exchanges():
    """Five items, all better: of 32 sign patterns two are as extreme."""
    assert inference.permutation_test([1] * 5, [0] * 5) == 2 / 32
    a, b = np.array([3.0, 1, 2, 5]), np.array([1.0, 2, 2, 1])
    sums = [abs((np.array(signs) * (a - b)).sum()) for signs in itertools.product((-1, 1), repeat=4)]
    assert inference.permutation_test(a, b) == pytest.approx(np.mean(np.array(sums) >= abs((a - b).sum())))


def test_of_wrong_and_right_it_is_mcnemars_exact_test():
    a, b = np.repeat([1, 0, 1], [12, 4, 60]), np.repeat([0, 1, 1], [12, 4, 60])
    got = inference.permutation_test(a, b, n_permutations=2**17)
    assert got == pytest.approx(stats.binomtest(12, 16).pvalue, abs=1e-9)


def test_groups_are_exchanged_as_a_whole():
    a, group = np.repeat([1, 1, 1, 0], 10), np.repeat(range(4), 10).tolist()
    assert inference.permutation_test(a, np.zeros(40)) < 0.001
    assert inference.permutation_test(a, np.zeros(40), group=group) == 2 / 8


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=8), st.integers(0, 3))
def test_swapping_the_arms_changes_no_p_value(differences, seed):
    a, b = np.array(differences), np.zeros(len(differences))
    p = inference.permutation_test(a, b, seed=seed)
    assert 0 < p <= 1
    assert p == inference.permutation_test(b, a, seed=seed)


def test_arms_that_never_differ_have_a_p_of_one():
    assert inference.permutation_test([1, 0], [1, 0]) == 1.0
    assert inference.permutation_test([1], [0]) == 1.0  # one item shows nothing


def test_holm_steps_down():
    np.testing.assert_allclose(inference.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(inference.holm([0.5, 0.9]), [1, 1])
    assert inference.holm([]).tolist() == []
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        inference.holm([0.5, float("nan")])


def test_the_detectable_difference_is_found_eight_times_in_ten():
    """400 items, a fifth of which change: drawn with that true difference, a z test finds it in 80%."""
    a = np.repeat([1, 0, 1], [40, 40, 320])
    b = np.repeat([0, 1, 1], [40, 40, 320])
    got = inference.minimum_detectable(a, b)
    assert got == pytest.approx(2.8016 * (0.2 / 399) ** 0.5, abs=1e-4)
    rng = np.random.default_rng(0)
    d = rng.choice([1, -1, 0], size=(4000, 400), p=[0.1 + got / 2, 0.1 - got / 2, 0.8])
    found = np.abs(d.mean(1)) > 1.96 * d.std(1) / 20
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_fewer_groups_detect_less():
    rng = np.random.default_rng(1)
    a = np.repeat(rng.integers(0, 2, 20), 10)
    alone = inference.minimum_detectable(a, 1 - a)
    together = inference.minimum_detectable(a, 1 - a, group=np.repeat(range(20), 10).tolist())
    assert together == pytest.approx(alone * 10**0.5, rel=0.05)
    assert np.isnan(inference.minimum_detectable([1, 0], [1, 0]))
    assert np.isnan(inference.minimum_detectable([1, 0], [0, 0], group=["x", "x"]))


def test_the_table_is_corrected_as_a_whole():
    ours = [1] * 8 + [0] * 2
    found = inference.differences(
        ours, {"same": ours, "worse": [0] * 10, "little": [0] + [1] * 7 + [0] * 2}, n_boot=200
    )
    assert {name: d.value for name, d in found.items()} == pytest.approx({"same": 0, "worse": 0.8, "little": 0.1})
    assert found["worse"].p == 2 / 2**8
    assert found["worse"].p_holm == 3 * 2 / 2**8
    assert found["little"].p_holm == found["same"].p_holm == 1
    assert found["worse"].n == 10
    assert inference.differences(ours, {}) == {}
    with pytest.raises(ValueError, match=r"b\[1\] is nan"):
        inference.differences([1, 0], {"x": [1, float("nan")]})
