"""Each alarm on numbers made by hand: when it fires, when it does not, and when there is nothing to say."""

import pytest

from srlib.evaluate.alarms import AlarmError
from srlib.evaluate import alarms
from srlib.schema import Comparison, Example, Judgment, Pair, Rubric

THREE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
TEN = Rubric(criterion="Is it polite?", levels={1: "rude", 10: "kind"}, step=1)


def example(name, rubric=THREE):
    return Example(id=name, instruction="Greet.", response="Hello", rubric=rubric, score=1)


def comparison(name):
    return Comparison(id=name, instruction="Greet.", response_a="Hello", response_b="Hi", rubric=THREE, preference="A")


def draws(name, *verdicts, tokens=10, text="one two three"):
    """The draws of one item: a score, a preference, or None for a failed parse."""
    kind = {float: "score", int: "score", str: "preference", type(None): "failure"}
    return [
        Judgment(example_id=name, index=i, text=text, tokens=tokens, **{kind[type(v)]: v or "no_verdict"})
        for i, v in enumerate(verdicts)
    ]


def value(alarm, items, before, after, threshold=0.1):
    [row] = alarms.of_draws(items, before, after, iteration=1, protocol="by hand", thresholds={alarm: threshold})
    assert (row["alarm"], row["threshold"], row["iteration"], row["protocol"]) == (alarm, threshold, 1, "by hand")
    return row


def test_score_drift_is_the_total_variation_of_the_histograms():
    items = [example("a"), example("b")]
    before, after = draws("a", 1, 2) + draws("b", 2, 3), draws("a", 2, 2) + draws("b", 3, 3)
    row = value("score_drift", items, before, after)  # 1/4 2/4 1/4 -> 0 2/4 2/4
    assert (row["value"], row["fired"], row["n"]) == (0.25, True, 2)
    assert value("score_drift", items, before, before)["value"] == 0
    assert not value("score_drift", items, before, after, threshold=0.25)["fired"]  # at its threshold it is quiet


def test_a_score_of_another_scale_is_another_outcome():
    items = [example("a"), example("b", TEN)]
    before, after = draws("a", 3) + draws("b", 1), draws("a", 1) + draws("b", 3)
    assert value("score_drift", items, before, after)["value"] == 1.0


def test_preferences_drift_as_well():
    assert value("score_drift", [comparison("c")], draws("c", "A", "B"), draws("c", "A", "A"))["value"] == 0.5


def test_saturation_is_the_rise_of_the_share_at_the_top_of_each_scale():
    items = [example("a"), example("b", TEN), comparison("c")]
    before = draws("a", 3, 1) + draws("b", 3, 3) + draws("c", "A", "A")
    after = draws("a", 3, 3) + draws("b", 10, 3) + draws("c", "A", "A")
    row = value("saturation", items, before, after)
    assert (row["value"], row["fired"]) == (0.5, True)  # 1 of 4 -> 3 of 4; a comparison has no top
    assert value("saturation", items, after, before)["value"] == -0.5
    assert not value("saturation", items, after, before)["fired"]


def test_parse_fall_counts_what_cannot_be_read():
    items = [example("a"), example("b")]
    before, after = draws("a", 1, 1) + draws("b", 1, 1), draws("a", 1, None) + draws("b", None, 1)
    assert value("parse_fall", items, before, after)["value"] == 0.5
    assert not value("parse_fall", items, after, before)["fired"]


def test_length_growth_is_relative():
    items = [example("a")]
    row = value("length_growth", items, draws("a", 1, 2, tokens=20), draws("a", 1, 2, tokens=30), threshold=0.4)
    assert (row["value"], row["fired"]) == (0.5, True)


def test_distinct_fall_is_within_the_draws_of_a_prompt():
    varied = draws("a", 1, text="one two three") + draws("a", 1, text="four five six")
    same = draws("a", 1, 1)  # two of four pairs of words are distinct
    assert value("distinct_fall", [example("a")], varied, same)["value"] == 0.5


def test_entropy_fall_is_relative_and_failures_have_none():
    items = [example("a"), example("b")]
    before = draws("a", 1, 2) + draws("b", 1, 2, None)  # ln 2 each
    assert value("entropy_fall", items, before, draws("a", 1, 1) + draws("b", 1, 2))["value"] == 0.5
    assert value("entropy_fall", [comparison("c")], draws("c", "A", "tie"), draws("c", "B", "B"))["value"] == 1.0


def test_only_items_that_both_judged_count():
    items = [example("a"), example("b"), example("c")]
    before, after = draws("a", 1) + draws("b", 1), draws("b", 1) + draws("c", 3)
    row = value("score_drift", items, before, after)
    assert (row["value"], row["n"]) == (0.0, 1)


@pytest.mark.parametrize(
    ("alarm", "before", "after"),
    [
        ("score_drift", [], draws("a", 1)),
        ("score_drift", draws("a", None), draws("a", 1)),
        ("saturation", draws("a", None), draws("a", 3)),
        ("length_growth", draws("a", 1, tokens=0), draws("a", 1, tokens=9)),
        ("entropy_fall", draws("a", 1, 1), draws("a", 1, 2)),
        ("distinct_fall", draws("a", 1, text="one"), draws("a", 1, text="one")),
    ],
)
def test_the_undefined_is_no_number_and_no_alarm(alarm, before, after):
    row = value(alarm, [example("a")], before, after, threshold=-9)
    assert (row["value"], row["fired"]) == (None, False)


def pair(chosen, rejected, strategy="meta_judge"):
    return Pair(
        id="p", example_id="e", chosen="a", rejected="b", chosen_id="e#0", rejected_id="e#1", chosen_score=chosen,
        rejected_score=rejected, target=None, margin=None, strategy=strategy, iteration=2,
    )  # fmt: skip


def training(log=(), pairs=(), **thresholds):
    return alarms.of_training(log, pairs, beta=0.1, chosen_tokens=20, iteration=2, thresholds=thresholds)


def test_logp_fall_is_in_nats_a_token_at_the_end_of_training():
    log = [{"rewards/chosen": r, "step": i} for i, r in enumerate([0.0] * 6 + [-0.6, -1.0])] + [{"train_loss": 0.1}]
    [row] = training(log, logp_fall=0.3)  # the last two of eight: 0.8 / 0.1 / 20
    assert (row["value"], row["fired"], row["n"], row["iteration"]) == (0.4, True, 2, 2)
    assert not training(log, logp_fall=0.4)[0]["fired"]
    [rising] = training([{"rewards/chosen": 1.0}], logp_fall=0.0)
    assert (rising["value"], rising["fired"]) == (-0.5, False)
    [silent] = training([{"loss": 1.0}], logp_fall=0.0)
    assert (silent["value"], silent["fired"]) == (None, False)


def test_meta_higher_is_about_meta_judged_pairs_with_two_scores():
    pairs = [pair(4, 2), pair(5, 1), pair(1, 3), pair(3, 3), pair("A", "B"), pair(4, None)]
    [row] = training(pairs=[*pairs, pair(1, 5, "correct_answer")], meta_higher=0.6)
    assert (row["value"], row["n"], row["fired"]) == (0.666667, 3, True)
    assert "6 meta-judged pairs" in row["protocol"]
    [equal] = training(pairs=[pair(3, 3)], meta_higher=0.0)
    assert (equal["value"], equal["fired"]) == (None, False)
    assert training(pairs=[pair(4, 2, "correct_answer")], meta_higher=0.0) == []  # there was no meta-judge


def test_the_message_says_what_fired_and_how_to_go_on():
    rows = training([{"rewards/chosen": -1.0}], [pair(4, 2)], logp_fall=0.3, meta_higher=1.0)
    with pytest.raises(
        AlarmError, match=r"iteration 2: logp_fall is 0\.5, above 0\.3 .*alarm_logp_fall higher"
    ) as error:
        alarms.stop(rows)
    assert "meta_higher" not in str(error.value)
    alarms.stop(alarms.renewed(rows, {"logp_fall": 0.6}))  # the same value, a higher threshold
    assert [row["fired"] for row in alarms.renewed(rows, {"meta_higher": 0.9})] == [True, True]
    alarms.stop([])
