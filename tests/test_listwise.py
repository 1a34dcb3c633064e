"""RM-Bench's matrix, and RewardBench 2 with its ties, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scoring import rule, several, value

from srlib.benchmarks import listwise
from srlib.benchmarks.scoring import Judged


def test_rm_bench_counts_the_triangles_of_its_matrix():
    """chosen 3, 5, 7 against rejected 4, 5, 6: row by row 0 0 0 / 1 0 0 / 1 1 1."""
    row = several("1", [3, 5, 7, 4, 5, 6], right=3, subset="chat")
    got = {name: read(row) for name, read in listwise.STYLES.items()}
    assert got == {"hard": 0.0, "normal": pytest.approx(1 / 3), "easy": 1.0, "average": pytest.approx(4 / 9)}
    assert listwise.styles(several("1", [3, 5, None, 4, 5, 6], right=3), "easy") == pytest.approx(1 / 3)
    found = rule("rm_bench", [row] + [several(d, [9, 9, 9, 1, 1, 1], 3, d) for d in ("code", "math", "safety")])
    assert value(found, "hard", "mean of four") == 0.75
    assert value(found, "average", "mean of four") == pytest.approx((4 / 9 + 3) / 4, abs=1e-6)
    with pytest.raises(ValueError, match="item 1 has 4 responses"):
        listwise.styles(several("1", [3, 5, 4, 5], right=2), "hard")


@pytest.mark.parametrize(
    ("scores", "credit"),
    [
        ([9, 1, 2, 3], 1.0), ([9, 9, 2, 3], 0.5), ([9, 9, 9, 9], 0.25), ([1, 9, 9, 2], 0.0),
        ([None, 9, 2, 3], 0.0), ([5, None, 2, 3], 1.0), ([None] * 4, 0.25),
    ],
)  # fmt: skip
def test_reward_bench_2_splits_the_point_among_tied_highest_scores(scores, credit):
    assert listwise.best_of(several("1", scores)) == credit


def test_reward_bench_2_four_way_choice():
    choice = [Judged("1", 1, {"": "1"}), Judged("1", 1, {"": "3"}), Judged("1", 1, {}, {"": "unreadable"})]
    assert [listwise.best_of(row) for row in choice] == [1.0, 0.0, 0.25]


def official_ties(rows):
    """The subset's score as its authors' code computes it, with numpy, item by item."""
    stats_of = {}
    for row in rows:
        scores = [row.said[str(k)] for k in range(1, len(row.said) + 1)]
        right, wrong = scores[: row.gold], scores[row.gold :]
        stats_of[row.gold > 1, row.group] = (min(right) > max(wrong), max(right) - min(right), min(right) - max(wrong))
    tied = {g: s for (many, g), s in stats_of.items() if many}
    ref = {g: s for (many, g), s in stats_of.items() if not many}
    spread, gap, gap_ref = (np.array([x[g][i] for g in tied]) for x, i in ((tied, 1), (tied, 2), (ref, 2)))
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(np.minimum(gap_ref, gap) / spread - 1), nan=0.0)
    return (
        0.3 * np.mean([s[0] for s in tied.values()]) + 0.3 * np.mean([s[0] for s in ref.values()])
        + 0.2 * np.mean(gap > spread) + 0.2 * np.mean(np.minimum(gap_ref, gap) > spread) + 0.01 * np.mean(margin)
    )  # fmt: skip


def test_the_ties_subset_by_hand():
    """Tied: right 8 and 7, wrong 4: accurate, gap 3, spread 1. Its reference: right 9, wrong 8.5: gap 0.5, not wider than 1."""
    rows = [several("tied:1", [8, 7, 4], 2, "Ties", "1"), several("ref:1", [9, 8.5], 1, "Ties", "1")]
    expected = 0.3 + 0.3 + 0.2 + 0.0 + 0.01 * math.tanh(0.5 - 1)
    assert listwise.ties_score(rows, np.ones((1, 2)))[0] == pytest.approx(expected)
    unread = [rows[0], several("ref:1", [9, None], 1, "Ties", "1")]
    assert listwise.ties_score(unread, np.ones((1, 2)))[0] == pytest.approx(0.3 + 0.0 + 0.2 + 0.0 - 0.01)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(1, 5)] * 5), min_size=1, max_size=6))
def test_the_ties_subset_is_that_of_its_authors(prompts):
    rows = []
    for i, (a, b, c, d, e) in enumerate(prompts):
        rows += [several(f"tied:{i}", [a, b, c], 2, "Ties", str(i)), several(f"ref:{i}", [d, e], 1, "Ties", str(i))]
    assert listwise.ties_score(rows, np.ones((1, len(rows))))[0] == pytest.approx(official_ties(rows))


def test_reward_bench_2_is_the_mean_of_six():
    rows = [several(f"{s}/1", [9, 1, 1, 1], 1, s) for s in listwise.RB2_SUBSETS[:4]] + [
        several("Focus/1", [1, 1, 1, 1], 1, "Focus")
    ]
    ties = [several("tied:1", [8, 7, 4], 2, "Ties", "1"), several("ref:1", [9, 2], 1, "Ties", "1")]
    found = rule("reward_bench_2", rows + ties)
    score = value(found, "score", "Ties")
    assert score == pytest.approx(1.0 + 0.01 * math.tanh(2), abs=1e-6)
    assert value(found, "score", "mean of six") == pytest.approx((4 + 0.25 + score) / 6, abs=1e-6)
    assert value(rule("reward_bench_2", rows), "score", "mean of six") is None, "not without Ties"
