"""Slices that were planted are found, and noise is called noise."""

import json
import random

import numpy as np
import pytest

from srlib.evaluate import slices
from srlib.evaluate.slices import Condition, Slice
from srlib.schema import Comparison, Example, Judgment, Rubric

THREE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])


def example(name="a", score=2, response="Hello there friend", **meta):
    return Example(id=name, instruction="Greet.", response=response, rubric=THREE, score=score, meta=meta)


def rows(n, seed=0):
    """Three features that are there for no reason."""
    rng = random.Random(seed)
    return [
        {
            "topic": rng.choice(["tea", "rain", "chess"]),
            "gold": float(rng.randint(1, 5)),
            "words": float(rng.randint(5, 90)),
        }
        for _ in range(n)
    ]


def coins(n, p, seed):
    return (np.random.default_rng(seed).random(n) < p).astype(float)


def planted(table, seed):
    """Wrong in a tenth of all, and in nine tenths where the topic is rain and the gold above 3."""
    hard = np.array([row["topic"] == "rain" and row["gold"] > 3 for row in table])
    return hard, np.where(hard, coins(len(table), 0.9, seed), coins(len(table), 0.1, seed + 1))


def test_features_are_what_the_row_and_its_source_say():
    found = slices.features(example(topic="tea", year=1999, key=None, good=True, checks=[1], essay="x" * 99, gold="no"))
    assert found == {
        "criterion": "Is it polite?", "gold": 2.0, "scale": "1 to 3", "response_words": 3.0,
    }  # fmt: skip
    found = slices.features((e := example(topic="tea", year=1999, key=None, good=True, checks=[1], gold="no")), e.meta)
    assert {name: found[name] for name in ("topic", "year", "key", "good", "gold")} == {
        "topic": "tea", "year": 1999.0, "key": "none", "good": "True", "gold": 2.0,
    }  # fmt: skip
    assert "checks" not in found
    two = Comparison(id="c", instruction="i", response_a="a b", response_b="c", rubric=THREE, preference=None)
    found = slices.features(two)
    assert (found["gold"], found["scale"], found["response_words"]) == ("none", "A to tie", 3.0)


def test_error_rates_are_shares_of_draws_and_silence_is_an_error():
    def draw(name, i, score):
        return Judgment(example_id=name, index=i, text="t", score=score, failure=None if score else "no_verdict")

    items = [example("a"), example("b"), example("unjudged")]
    judged = [draw("a", i, s) for i, s in enumerate([2, 2, 1, None])] + [draw("b", 0, 2), draw("stranger", 0, 1)]
    assert slices.error_rates(items, judged) == {"a": 0.5, "b": 0.0}
    with pytest.raises(ValueError, match="item a has no gold"):
        slices.error_rates([example("a", score=None)], judged)


def test_named_slices_are_values_or_thirds():
    table = [{"topic": t, "words": float(w), "same": "x", "id": f"i{w}"} for w in range(60) for t in ("tea", "rain")]
    names = [part.name for part in slices.named(table)]
    assert names == ["topic is rain", "topic is tea", "words <= 19", "words > 19 and words <= 39", "words > 39"]
    assert sum(part.members(table).sum() for part in slices.named(table)[2:]) == len(table)


def test_a_number_that_hardly_varies_has_fewer_parts():
    table = [{"words": float(max(0, i - 80))} for i in range(100)]
    assert [part.name for part in slices.named(table)] == ["words <= 0", "words > 0"]


def test_a_feature_that_a_row_lacks_is_none_there():
    table = [{"key": 1.0}, {"key": "none"}, {}]
    assert [part.name for part in slices.named(table)] == ["key is 1", "key is none"]
    assert list(slices.named(table)[1].members(table)) == [False, True, True]


def test_the_tree_finds_what_was_planted_and_the_other_split_confirms_it():
    grown_on, measured_on = rows(400, 1), rows(400, 2)
    _, errors = planted(grown_on, 10)
    leaves = slices.grow(grown_on, errors, depth=2)
    hard, errors = planted(measured_on, 20)
    assert sum(leaf.members(measured_on).astype(int) for leaf in leaves).tolist() == [1] * 400  # they part the items
    worst, *others = slices.measure(leaves, measured_on, errors, n_boot=200)
    [leaf] = [leaf for leaf in leaves if leaf.name == worst["slice"]]
    assert np.array_equal(leaf.members(measured_on), hard)
    assert worst["n"] == hard.sum()
    assert worst["ci_low"] <= 0.9 <= worst["ci_high"]
    assert worst["p_corrected"] < 1e-6
    assert all(row["error"] < 0.3 for row in others if row["error"] is not None)


@pytest.mark.parametrize("grouped", [False, True])
def test_noise_is_called_noise(grouped):
    """Of 30 judges without any slice a twentieth may seem to have one: one or two, and chance allows some more."""
    grown_on, measured_on, claims = rows(200, 3), rows(200, 4), 0
    group = [i // 2 for i in range(200)] if grouped else None
    for seed in range(30):
        found = slices.named(measured_on) + slices.grow(grown_on, coins(200, 0.4, seed))
        errors = coins(100, 0.4, 1000 + seed).repeat(2) if grouped else coins(200, 0.4, 1000 + seed)
        table = slices.measure(found, measured_on, errors, group=group, n_boot=1)
        lines = slices.summary(table, "sft", "test")
        claims += any(line.startswith("It is wrong") for line in lines)
        assert len(lines) > 1
    assert claims <= 4


def test_groups_that_stand_or_fall_together_are_not_many_items():
    table = [{"topic": "rain" if i < 60 else "tea"} for i in range(240)]
    errors = np.array([1.0] * 60 + [1.0] * 60 + [0.0] * 120)
    alone = slices.measure(slices.named(table), table, errors, n_boot=50)[0]
    tied = slices.measure(slices.named(table), table, errors, group=[i // 30 for i in range(240)], n_boot=50)[0]
    assert alone["slice"] == tied["slice"] == "topic is rain"
    assert alone["p"] < 1e-9
    assert tied["p"] > 0.05  # two questions against six


def test_a_small_slice_has_no_number_and_is_counted():
    table = [{"topic": "rare" if i < 5 else "common" if i < 50 else "third"} for i in range(100)]
    found = slices.measure(slices.named(table), table, np.ones(100), support=20, n_boot=10)
    assert [(row["slice"], row["n"], row["error"], row["p"]) for row in found if row["n"] == 5] == [
        ("topic is rare", 5, None, None)
    ]
    assert found[-1]["n"] == 5
    assert "1 more are too small" in slices.summary(found, "sft", "test")[0]


def test_slices_of_the_same_items_count_once():
    table = [{"gold": float(i % 2)} for i in range(80)]
    twice = [Slice((Condition("gold", "is", 1.0),), "feature"), Slice((Condition("gold", ">", 0.5),), "tree")]
    found = slices.measure(twice, table, [row["gold"] for row in table], n_boot=10)
    assert [(row["slice"], row["found_by"], row["error"], row["rest"]) for row in found] == [
        ("gold is 1", "feature", 1, 0)
    ]


def test_the_summary_speaks_in_figures():
    table = [{"topic": "rain" if i < 40 else "tea"} for i in range(100)]
    found = slices.measure(slices.named(table), table, [1.0] * 30 + [0.0] * 70, n_boot=200)
    first, second, third = slices.summary(found, "sre_2", "test")
    assert first == "sre_2 on test: 2 slices were tested."
    assert second.startswith("It is wrong more often where topic is rain: 75% [")
    assert second.endswith("] of 40 items, and 0% of the rest (corrected p < 0.001).")
    assert third.startswith("It is wrong less often where topic is tea: 0% [0, 0] of 60 items")
    assert len(slices.summary(found, "sre_2", "test", most=0)) == 2


def test_focus_weighs_by_the_error_of_the_leaf():
    table = [{"topic": topic} for topic in ["tea", "tea", "rain", "rain", "snow"]]
    leaves = [Slice((Condition("topic", "is", topic),), "tree") for topic in ("tea", "rain", "snow")]
    weights = slices.focus(leaves, table, {0: 0.0, 2: 1.0, 3: 0.5})
    assert weights.tolist() == pytest.approx(
        [0.05, 0.05, 0.75, 0.75, 0.5]
    )  # a floor; what no one judged is as the mean
    assert slices.focus(leaves, table, {0: 0.0}).tolist() == [1.0] * 5
    assert slices.focus(leaves, table, {}).tolist() == [1.0] * 5


def test_too_few_items_or_nothing_to_ask_is_one_leaf():
    assert slices.grow(rows(30), np.ones(30), support=20) == [Slice((), "tree")]
    assert slices.grow([{"topic": "tea"}] * 90, np.ones(90)) == [Slice((), "tree")]
    assert Slice((), "tree").name == "all items"


def test_slices_survive_json():
    leaves = slices.grow(rows(200, 5), planted(rows(200, 5), 6)[1])
    assert len(leaves) > 2
    assert slices.from_json(json.loads(json.dumps(slices.to_json(leaves)))) == leaves


def test_one_sentence_names_the_slice_that_stands_out_most():
    def row(name, error, rest, p, n=40):
        return dict(
            slice=name, error=error, rest=rest, p=p, p_corrected=p, n=n, ci_low=error - 0.1, ci_high=error + 0.1
        )

    small = dict(slice="tiny", error=None, rest=None, p=None, p_corrected=None, n=3)
    table = [row("long", 0.8, 0.3, 0.001), row("short", 0.6, 0.3, 0.01), row("plain", 0.31, 0.3, 0.9), small]
    said = slices.sentence(table)
    assert said == (
        "Of 3 slices 2 differ from the rest by more than chance explains; of these it is wrong most often where long: "
        "80% [70, 90] of 40 items, 30% of the rest."
    )
    assert slices.sentence(table[2:]).startswith("Of 1 slices none differs")
    assert "least often where easy: 10% [0, 20] of 40 items" in slices.sentence([row("easy", 0.1, 0.5, 0.001)])
