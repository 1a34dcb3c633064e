"""The debiased mean against its formula and against plain means; files matched by id, and nothing lost in silence."""

import json

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from srlib import files as store
from srlib.cli import app
from srlib.stats import ppi


def test_by_hand():
    got = ppi.debiased_mean([1, 2, 3, 4], [1, 2, 3, 4], [2, 4])
    weight = (5 / 3) / (3 * 22 / 15)
    variance = (1 - weight) ** 2 * (5 / 3) / 4 + weight**2 * (22 / 15) / 2
    assert got.weight == pytest.approx(weight)
    assert got.mean.value == pytest.approx(2.5 + weight / 2)
    assert got.mean.high - got.mean.value == pytest.approx(stats.t.ppf(0.975, 3) * variance**0.5)
    assert got.effective_n == pytest.approx(4 * (5 / 12) / variance)
    assert (got.mean.n, got.rows) == (4, 6)


def test_a_judge_that_says_nothing_leaves_the_classical_interval():
    got = ppi.debiased_mean([1, 2, 3, 4], [3, 3, 3, 3], [3, 3])
    assert got.weight == 0
    assert got.mean == got.classical == pytest.approx(got.mean)
    assert got.saved == 0
    low, high = stats.t.interval(0.95, 3, 2.5, stats.sem([1, 2, 3, 4]))
    assert (got.classical.low, got.classical.high) == pytest.approx((low, high))


def test_a_biased_judge_is_corrected_and_a_good_one_saves_labels():
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 6, 4000).astype(float)
    judge = truth + 0.7 + rng.normal(0, 0.4, 4000)
    got = ppi.debiased_mean(truth[:200], judge[:200], judge[200:])
    assert abs(got.mean.value - truth.mean()) < 0.1 < abs(judge.mean() - truth.mean())
    assert got.saved > 0.8
    assert ppi.debiased_mean(truth[:200], -judge[:200], -judge[200:]).weight == 0  # it is never turned around


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="1 labels and 1 rows without one"):
        ppi.debiased_mean([1], [1], [1])
    with pytest.raises(ValueError, match=r"labels has 2 items, predictions has 1 items"):
        ppi.debiased_mean([1, 2], [1], [1])


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


JUDGED = [
    {"id": "a", "score": 4, "expected_score": 3.8, "failure": None, "text": "[RESULT] 4"},
    {"id": "b", "score": 2, "expected_score": None},
    {"id": "c", "score": None, "expected_score": None, "failure": "no_verdict"},
    {"id": "d", "score": 1.0},
    {"id": None, "score": None, "failure": "bad_row"},
    {"id": "e", "score": None},
]


def test_rows_meet_by_id_and_what_is_missing_has_a_name(tmp_path):
    judged = lines(tmp_path / "judged.jsonl", JUDGED)
    labels = lines(tmp_path / "labels.jsonl", [{"id": i, "score": s} for i, s in (("c", 3), ("a", 5), ("b", None))])
    found = ppi.match(store.read_rows(judged, ppi.Judged), store.read_rows(labels, ppi.Label))
    mean = (3.8 + 2 + 1) / 3  # what a judgment without a score predicts
    assert (found.labels, found.predictions) == ([5, 3], pytest.approx([3.8, mean]))
    assert found.unlabeled == pytest.approx([2, 1, mean, mean])
    assert found.missing == {"no_verdict": 1, "bad_row": 1, "no_score": 1, "label_null": 1}
    estimate, missing = ppi.of_files(judged, labels)
    assert (estimate.mean.n, estimate.rows, missing) == (2, 6, found.missing)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([{"id": "x", "score": 1}], "1 labels are for ids that were not judged, such as 'x'"),
        ([{"id": "a", "score": "4"}], "line 1: field score"),
        ([{"id": "a", "score": True}], "line 1: field score"),
        ([{"id": "a"}], "line 1: field score"),
        ([{"id": "a", "score": 1}, {"id": "a", "score": 2}], "line 2: id 'a' is already in line 1"),
    ],
)
def test_bad_labels_are_refused(labels, said, tmp_path):
    judged, given = lines(tmp_path / "judged.jsonl", JUDGED), lines(tmp_path / "labels.jsonl", labels)
    with pytest.raises(ValueError, match=said):
        ppi.of_files(judged, given)


def test_no_score_at_all_is_refused():
    with pytest.raises(ValueError, match="none of 1 judgments has a score"):
        ppi.match([ppi.Judged(id="a", score=None)], [])


def test_the_command_prints_both_intervals_and_the_counts(tmp_path):
    rows = [{"id": f"r{i}", "score": i % 5 + 1} for i in range(60)] + [{"id": "z", "score": None, "failure": "cut_off"}]
    judged = lines(tmp_path / "judged.jsonl", rows)
    labels = lines(tmp_path / "labels.jsonl", [{"id": f"r{i}", "score": i % 5 + (i % 3 == 0)} for i in range(20)])
    got = CliRunner().invoke(app, ["ppi", str(judged), str(labels), "--level", "0.9"])
    assert got.exit_code == 0, got.output
    assert "90%, 20 labels, 41 rows without one" in got.output
    assert "labels alone:" in got.output
    assert "without a score: cut_off 1" in got.output
    refused = CliRunner().invoke(app, ["ppi", str(judged), str(tmp_path / "none.jsonl")])
    assert refused.exit_code == 2
    assert "cannot be read" in refused.output
