"""Resamples and intervals by themselves; tests/test_metrics.py has the statistics made of them. No torch."""

import numpy as np
import pytest

from srlib.stats import intervals, metrics


def test_resamples_serve_any_statistic():
    values = np.random.default_rng(0).random(60)
    counts = intervals.resamples(60, n_boot=2000)
    got, plain_mean = intervals.interval(counts @ values / counts.sum(1), 60), metrics.mean(values)
    assert got.value == pytest.approx(plain_mean.value)
    assert (got.low, got.high) == pytest.approx((plain_mean.low, plain_mean.high), abs=0.01)
    grouped = intervals.resamples(4, n_boot=200, group=["a", "a", "b", "b"])
    assert (grouped[0] == 1).all()
    assert (grouped[:, 0] == grouped[:, 1]).all()
    assert set(grouped[1:, 0]) == {0, 1, 2}, "whole groups, with replacement"
    with pytest.raises(ValueError, match="no items"):
        intervals.resamples(0)
