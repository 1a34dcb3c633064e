"""The coupling of rationale and score: by hand on made-up distributions, and with the shipped model."""

import math

import numpy as np
import pytest

from srlib.sample import probe
from srlib.schema import Judgment


def judgment(score=4.0, distribution=None, name="e", index=0):
    return Judgment(
        example_id=name, index=index, text=f"Reason. [RESULT] {score}", rationale="Reason.", score=score,
        failure="no_verdict" if score is None else None, distribution=distribution,
    )  # fmt: skip


def test_entropy_and_flip_rate_come_from_the_distribution():
    [even, sure] = probe.redraw([judgment(4, {3: 0.5, 4: 0.5}), judgment(5, {4: 0.0, 5: 1.0}, index=1)], k=10, seed=0)
    assert even.entropy == pytest.approx(math.log(2))
    assert even.flip_rate == 0.5
    assert (sure.entropy, sure.flip_rate, sure.flips, set(sure.redraws)) == (0, 0, False, {5})


def test_redraws_follow_the_distribution_and_depend_on_seed_and_judgment_alone():
    rows = [judgment(1, {1: 0.1, 2: 0.7, 3: 0.2}, index=i) for i in range(50)]
    found = probe.redraw(rows, k=200, seed=3)
    drawn = np.array([r.redraws for r in found])
    for score, p in {1: 0.1, 2: 0.7, 3: 0.2}.items():
        assert np.mean(drawn == score) == pytest.approx(p, abs=0.015)  # 10,000 draws: three standard errors
    assert probe.redraw(rows[7:8], k=200, seed=3) == found[7:8]
    assert probe.redraw(rows[7:8], k=200, seed=4) != found[7:8]
    assert probe.redraw(rows[7:8], k=5, seed=3)[0].redraws == found[7].redraws[:5]


@pytest.mark.parametrize(("redraws", "flips"), [((4, 4), False), ((3, 4), False), ((3, 3, 4), True), ((5,), True)])
def test_a_score_flips_when_most_redraws_leave_it(redraws, flips):
    assert probe.Redrawn("e#0", "e", 4, {4: 1.0}, redraws).flips == flips


def test_what_has_no_score_is_left_out_and_what_has_no_distribution_is_refused():
    assert probe.redraw([judgment(None)], k=3, seed=0) == []
    with pytest.raises(ValueError, match="judgment e#0 holds no distribution of its verdict"):
        probe.redraw([judgment(4)], k=3, seed=0)
    with pytest.raises(ValueError, match="k is 0"):
        probe.redraw([], k=0, seed=0)


def test_summary_counts_each_example_once():
    stays, flips = {3: 0.0, 4: 1.0}, {3: 1.0, 4: 0.0}
    rows = [
        judgment(4, flips if name == "a" else stays, name, i) for name in "abcd" for i in range(5 if name == "a" else 2)
    ]
    found = probe.summary(probe.redraw(rows, k=4, seed=0))
    assert set(found) == {"entropy", "flip_rate", "redrawn_flip_rate", "flips"}
    assert {found[name].value for name in ("flip_rate", "redrawn_flip_rate", "flips")} == {0.25}
    assert found["flips"].n == 4
    assert found["flips"].high >= 0.75  # four prompts, not eleven judgments, are what is resampled


@pytest.mark.torch
def test_the_model_gives_the_distribution_that_sampling_gives(tiny, rows):
    """Judgments that were drawn with their distributions, and the same ones drawn without and filled in afterwards."""
    from srlib.sample import decode as sample

    how = dict(n=2, temperature=1.0, max_new_tokens=90, seed=0)
    model, tokenizer = tiny
    with_them = sample.judgments(model, tokenizer, rows[:8], **how)
    without = sample.judgments(model, tokenizer, rows[:8], distributions=False, **how)
    assert sum(j.score is not None for j in with_them) >= 8
    assert all(j.distribution is None for j in without)
    found = probe.filled(model, tokenizer, {row.id: row for row in rows[:8]}, without, "brief")
    for one, other in zip(with_them, found, strict=True):
        assert (one.text, one.score) == (other.text, other.score)
        if one.score is None:
            assert other.distribution is None
        else:
            assert one.distribution == pytest.approx(other.distribution, abs=1e-3)


@pytest.mark.torch
def test_what_holds_a_distribution_is_not_read_again(tiny, rows):
    kept = judgment(4, {3: 0.25, 4: 0.75}, rows[0].id)
    assert probe.filled(*tiny, {rows[0].id: rows[0]}, [kept], "brief") == [kept]
