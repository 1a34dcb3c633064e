"""Every statistic against an independent implementation, every interval against a plain bootstrap."""

import math
import random

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from srlib.stats import metrics

NAN = float("nan")
SCALES = {"1-5": [1, 2, 3, 4, 5], "quarters": [i / 4 for i in range(11)], "uneven": [0, 1, 2.5, 7]}


def noisy(seed: int, scale: list[float], n: int = 120, missing: float = 0.1):
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
@pytest.mark.parametrize("seed", range(5))
def test_values_equal_the_libraries(scale, seed):
    gold, scores = noisy(seed, scale)
    got = metrics.agreement(gold, scores, scale, n_boot=2)
    assert set(got) == {"accuracy", "balanced_accuracy", "pearson", "spearman", "kendall", "qwk", "mae", "parse_rate"}
    for name, interval in got.items():
        assert interval.value == pytest.approx(plain(gold, scores, name), abs=1e-12), name
    assert got["accuracy"].n == 120
    assert got["pearson"].n == got["mae"].n == (~np.isnan(scores)).sum() < 120


@pytest.mark.parametrize("scale", [SCALES["1-5"], SCALES["quarters"]])
def test_qwk_is_sklearns_on_an_even_scale(scale):
    gold, scores = noisy(1, scale, missing=0)
    labels = range(len(scale))
    at = {value: i for i, value in enumerate(scale)}
    expected = cohen_kappa_score([at[g] for g in gold], [at[s] for s in scores], labels=labels, weights="quadratic")
    assert metrics.agreement(gold, scores, scale)["qwk"].value == pytest.approx(expected, abs=1e-12)


def test_bootstrap_agrees_with_resampling_items_one_by_one():
    gold, scores = noisy(2, SCALES["1-5"], n=80)
    got = metrics.agreement(gold, scores, SCALES["1-5"], n_boot=4000)
    for name in ("accuracy", "balanced_accuracy", "parse_rate", "mae"):
        interval = got[name]
        own = stats.bootstrap(
            (np.arange(len(gold)),), lambda pick, name=name: plain(gold[pick], scores[pick], name), method="BCa",
            n_resamples=1500, vectorized=False, rng=7,
        )  # fmt: skip
        # A 2.5% quantile of 1,500 draws has a standard error of about 0.07 deviations; shares go in steps of 1/80.
        tolerance = 1.01 / 80 if name in ("accuracy", "parse_rate") else 0.25 * own.standard_error
        assert interval.low == pytest.approx(own.confidence_interval.low, abs=tolerance), name
        assert interval.high == pytest.approx(own.confidence_interval.high, abs=tolerance), name


CORRELATIONS = ("pearson", "spearman", "kendall", "qwk")


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("size", [1, 4])
def test_a_correlations_interval_is_that_of_its_z_and_a_jackknife(name, size):
    gold, scores = noisy(2, SCALES["1-5"], n=80, missing=0)
    group = np.arange(80) // size
    got = metrics.agreement(gold, scores, SCALES["1-5"], n_boot=2, group=None if size == 1 else group.tolist())[name]
    without = [plain(gold[group != g], scores[group != g], name) for g in np.unique(group)]
    error = stats.tstd(without) * (len(without) - 1) / len(without) ** 0.5
    half = stats.t.ppf(0.975, len(without) - 1) * error / (1 - got.value**2)
    wanted = np.tanh([np.arctanh(got.value) - half, np.arctanh(got.value) + half])
    assert (got.low, got.high) == pytest.approx(wanted, abs=1e-9)


def test_where_one_item_decides_a_correlation_nothing_is_known_of_it():
    got = metrics.agreement([1, 1, 1, 2], [1, 2, 1, 2], [1, 2], n_boot=2)
    assert got["pearson"] == pytest.approx((1 / 3**0.5, -1, 1, 4))
    got = metrics.agreement([1, 1, 2, 3], [1, 1, 2, 3], [1, 2, 3], n_boot=2)
    assert got["qwk"] == (1, 1, 1, 4)


def test_balanced_accuracy_gives_a_constant_its_share_of_the_scale():
    got = metrics.agreement([3] * 90 + [1] * 6 + [2] * 4, [3] * 100, [1, 2, 3])
    assert got["accuracy"].value == 0.9
    assert got["balanced_accuracy"].value == pytest.approx(1 / 3)


def test_groups_reach_every_interval():
    """Ten answers to each of eight questions, all right or all wrong: eight things to draw from, not eighty."""
    right, group = np.repeat([1, 1, 1, 0, 1, 0, 1, 0], 10), np.repeat(range(8), 10).tolist()
    one = np.ones(80)
    for metric in (
        lambda g: metrics.mean(right, group=g),
        lambda g: metrics.win_rate(right, one, group=g),
        lambda g: metrics.pairwise_accuracy(right, one, ["tie"] * 80, group=g),
        lambda g: metrics.ece(one * 0.9, right, group=g),
    ):
        alone, together = metric(None), metric(group)
        assert alone.value == together.value
        assert together.high - together.low > 2 * (alone.high - alone.low)


def test_intervals_cover_the_truth():
    """95% intervals of an accuracy of 0.7 miss it in about one of twenty samples."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        right = (rng.random(200) < 0.7).astype(float)
        interval = metrics.mean(right, n_boot=500)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.90 <= covered / 300 <= 0.985


def test_same_seed_same_interval():
    gold, scores = noisy(3, SCALES["1-5"])
    run = lambda seed: metrics.agreement(gold, scores, SCALES["1-5"], n_boot=200, seed=seed)  # noqa: E731
    assert run(0) == run(0)
    assert run(0)["mae"] != run(1)["mae"]
    assert run(0)["pearson"] == run(1)["pearson"]  # nothing is drawn for it


def test_a_group_is_drawn_as_one():
    """Ten copies of each item are no new evidence: grouped, the interval is that of the items alone."""
    rng = np.random.default_rng(0)
    values = rng.random(60)
    alone = metrics.mean(values, n_boot=4000)
    copies, group = np.repeat(values, 10), np.repeat(np.arange(60), 10)
    grouped, naive = metrics.mean(copies, n_boot=4000, group=group), metrics.mean(copies, n_boot=4000)
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.08)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


@pytest.mark.parametrize("name", ["pearson", "spearman", "kendall"])
def test_correlation_with_a_constant_is_undefined(name):
    got = metrics.agreement([1, 2, 3, 4, 5], [0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 1, 2, 3, 4, 5])[name]
    assert math.isnan(got.value)
    assert math.isnan(got.low)
    assert math.isnan(got.high)


def test_qwk_of_a_constant_judge_is_chance_and_of_two_equal_constants_nothing():
    assert metrics.agreement([1, 2, 3, 4, 5], [3] * 5, range(1, 6))["qwk"].value == pytest.approx(0, abs=1e-12)
    assert math.isnan(metrics.agreement([3] * 5, [3] * 5, range(1, 6))["qwk"].value)


def test_no_score_at_all():
    got = metrics.agreement([1, 2, 3], [NAN] * 3, [1, 2, 3])
    assert got["accuracy"].value == got["parse_rate"].value == 0
    for name in ("pearson", "spearman", "kendall", "qwk", "mae"):
        assert math.isnan(got[name].value), name
        assert got[name].n == 0


def test_a_missing_score_may_be_none():
    assert metrics.agreement([1, 2], [1, None], [1, 2])["parse_rate"].value == 0.5


@pytest.mark.parametrize(
    ("gold", "scores", "message"),
    [
        ([1, 2], [1, 6], r"scores\[1\] is 6, which is not on the scale \(1, 2, 3\)"),
        ([0.5, 2], [1, 2], r"gold\[0\] is 0.5"),
        ([1, NAN], [1, 2], r"gold\[1\] is nan; it must be a finite number"),
        ([1, 2], [1, float("inf")], r"scores\[1\] is inf"),
        ([1, 2, 3], [1, 2], "gold has 3 items, scores has 2 items"),
        ([], [], "no items"),
    ],
)
def test_bad_input_says_where(gold, scores, message):
    with pytest.raises(ValueError, match=message):
        metrics.agreement(gold, scores, [1, 2, 3])


def test_no_resamples_is_refused():
    with pytest.raises(ValueError, match="n_boot is 0"):
        metrics.mean([1.0, 2.0], n_boot=0)


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    a, b = (hard < 0.65).astype(float), (hard < 0.55).astype(float)  # the same items, b fails a few more
    got = metrics.paired_difference(a, b)
    assert got.value == pytest.approx(a.mean() - b.mean())
    assert 0 < got.low < got.value < got.high
    apart = metrics.mean(a)
    assert got.high - got.low < 0.75 * (apart.high - apart.low)


def test_win_rate_compares_like_a_dictionary():
    a = [[3, 0], [3, 1], [1, 9], [2, 2], [2, 2]]
    b = [[2, 9], [3, 0], [2, 0], [2, 2], [2, 3]]
    got = metrics.win_rate(a, b)
    assert (got.wins, got.ties, got.losses, got.n) == (2, 1, 2, 5)
    assert got.value == 0.5
    assert metrics.win_rate([1.0, 2.0], [0.0, 2.0]).value == 0.75
    assert metrics.win_rate(b, a).wins == got.losses


def test_win_rate_wants_the_same_items():
    with pytest.raises(ValueError, match=r"quality_a has shape \(2, 1\) and quality_b \(3, 1\)"):
        metrics.win_rate([1, 2], [1, 2, 3])


def test_pairwise_accuracy_pays_nothing_for_silence():
    got = metrics.pairwise_accuracy([5, 1, 3, NAN, NAN, 2], [4, 2, 3, 1, NAN, 2], ["A", "A", "B", "B", "tie", "tie"])
    assert got.value == pytest.approx((1 + 0 + 0.5 + 0 + 0 + 1) / 6)
    assert got.n == 6
    with pytest.raises(ValueError, match=r"preference\[0\] is 'a'"):
        metrics.pairwise_accuracy([1], [2], ["a"])


def test_seeds_is_students_t():
    values = [0.60, 0.62, 0.67]
    got = metrics.seeds(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (got.value, got.low, got.high, got.n) == pytest.approx((np.mean(values), low, high, 3))


def test_seeds_of_one_or_none():
    one = metrics.seeds([0.5])
    assert (one.value, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    assert metrics.seeds([0.5, NAN, 0.7]).n == 2
    assert math.isnan(metrics.seeds([NAN]).value)


def test_reliability_and_ece():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    honest, boaster = rng.random(20_000) < confidence, rng.random(20_000) < confidence / 2
    table = metrics.reliability(confidence, honest)
    assert sum(row.n for row in table) == 20_000
    assert all(row.low <= row.confidence <= row.high and abs(row.confidence - row.correct) < 0.05 for row in table)
    assert metrics.ece(confidence[:1000], boaster[:1000], n_boot=50).value == pytest.approx(0.25, abs=0.05)
    got = metrics.ece(confidence[:1000], honest[:1000], n_boot=50)
    table = metrics.reliability(confidence[:1000], honest[:1000])
    assert got.value == pytest.approx(sum(r.n * abs(r.confidence - r.correct) for r in table) / 1000)


@pytest.mark.parametrize(("n", "gap"), [(100, 0.0), (400, 0.0), (400, 0.03), (400, 0.1), (400, 0.3)])
def test_the_interval_of_an_ece_holds_the_truth_and_the_value(n, gap):
    """Percentiles of resamples would miss a small error nearly always, and now and then the value itself."""
    rng, held = np.random.default_rng(n), []
    for _ in range(60):
        confidence = rng.uniform(0.35, 0.95, n)
        found = metrics.ece(confidence, rng.random(n) < confidence - gap, n_boot=300)
        assert 0 <= found.low <= found.value <= found.high
        held.append(found.low <= gap <= found.high)
    assert np.mean(held) >= 0.9


def test_what_was_not_scored_says_nothing_of_correlations():
    rng = np.random.default_rng(0)
    gold = rng.integers(1, 6, 12)
    scores = np.clip(gold + rng.integers(-1, 2, 12), 1, 5)
    names = [f"g{i // 2}" for i in range(12)]
    alone = metrics.agreement(gold, scores, range(1, 6), n_boot=50)
    alone_grouped = metrics.agreement(gold, scores, range(1, 6), n_boot=50, group=names)
    more = rng.integers(1, 6, 300)
    unread = np.full(300, NAN)
    beside = metrics.agreement(np.append(gold, more), np.append(scores, unread), range(1, 6), n_boot=50)
    grouped = metrics.agreement(
        np.append(gold, more),
        np.append(scores, unread),
        range(1, 6),
        n_boot=50,
        group=names + [f"h{i}" for i in range(300)],
    )
    for name in ("pearson", "spearman", "kendall", "qwk"):
        assert beside[name] == pytest.approx(alone[name])
        assert grouped[name] == pytest.approx(alone_grouped[name])


def test_reliability_has_its_ends_and_empty_bins():
    table = metrics.reliability([0, 1, 1.0000001], [0, 1, 1], bins=4)
    assert [row.n for row in table] == [1, 0, 0, 2]
    assert math.isnan(table[1].correct)
    scores = metrics.reliability([1.5, 4.5], [1, 5], bins=4, span=(1, 5))
    assert [(row.low, row.correct) for row in scores if row.n] == [(1, 1), (4, 5)]
    with pytest.raises(ValueError, match=r"confidence\[0\] is 1.5, outside of 0 to 1"):
        metrics.reliability([1.5], [1])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3, 3, 1, 5], 3),
        ([1, 1, 4, 4, 5], 4),  # 1 and 4 are as frequent; 4 is nearer to the mean of 3
        ([2, 2, 4, 4], 2),  # as near: the lower
        ([1, 2, 3], 2),
        ([1 / 3, 1, 1, 1 / 3], 1 / 3),  # as near, up to rounding
        ([NAN, 5, NAN, 1, 5], 5),
    ],
)
def test_majority(scores, expected):
    assert metrics.majority([scores])[0] == expected
    shuffled = random.Random(0).sample(scores, len(scores))
    assert metrics.majority([shuffled])[0] == expected


def test_majority_of_nothing_is_nothing():
    assert np.isnan(metrics.majority([[NAN, NAN], [NAN, 2]])).tolist() == [True, False]
    assert np.isnan(metrics.majority([[NAN, NAN]])).all()


def test_entropy():
    got = metrics.entropy([[2, 2, 2, 2], [1, 2, 3, 4], [1, 1, 2, NAN], [NAN] * 4])
    assert got[0] == 0
    assert got[1] == pytest.approx(math.log(4))
    assert got[2] == pytest.approx(stats.entropy([2, 1]))
    assert math.isnan(got[3])


def test_distinct_n():
    assert metrics.distinct_n([[1, 2, 3], [1, 2, 4]], n=2) == 3 / 4
    assert metrics.distinct_n([["a", "a", "a"]], n=1) == 1 / 3
    assert math.isnan(metrics.distinct_n([[1]], n=2))


def test_two_thousand_resamples_take_a_moment():
    import time

    gold, scores = noisy(0, [i / 4 for i in range(15)], n=500)
    start = time.perf_counter()
    metrics.agreement(gold, scores, [i / 4 for i in range(15)])
    assert time.perf_counter() - start < 5
