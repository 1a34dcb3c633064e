"""Rows: a bad value is refused and its field named; scales are exact."""

import pytest
from pydantic import ValidationError

from srlib.schema import Comparison, Example, Judgment, Rubric, format_score

POLITE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
PARTIAL = Rubric(criterion="Is it complete?", levels={0: "wrong", 3.5: "complete"}, step=0.25)
SIGNED = Rubric(criterion="Which way?", levels={2: "for", -2: "against", 0: "neither"})
ROW = dict(id="a", instruction="Greet me.", response="Hello", rubric=POLITE, score=3)
PAIR = dict(id="c", instruction="Greet me.", response_a="Hello", response_b="Go", rubric=POLITE, preference="A")
SAID = dict(example_id="a", text="x")


@pytest.mark.parametrize(
    ("row_type", "values", "message"),
    [
        (Example, ROW | {"response": " \n\t"}, "response\n  Value error, is empty"),
        (Example, ROW | {"response": "x" * 100_001}, "response\n"),
        (Example, ROW | {"respons": "Hello"}, "respons\n"),
        (Example, ROW | {"id": ""}, "id\n"),
        (Example, ROW | {"score": 2.5}, "score 2.5 is not on the rubric's scale (1, 2, 3)"),
        (Example, ROW | {"score": float("nan")}, "score\n"),
        (Example, ROW | {"rubric": {"criterion": "Polite?"}}, "rubric.levels\n"),
        (Example, ROW | {"rubric": {"criterion": "P?", "levels": {"low": "a", "high": "b"}}}, "rubric.levels.low"),
        (Rubric, dict(criterion=" ", levels=["a", "b"]), "criterion\n"),
        (Rubric, dict(criterion="P?", levels={"1": "a", "1.0": "b", "2": "c"}), "scores 1, 1.0, 2 are equal"),
        (Rubric, dict(criterion="P?", levels={"1": "a", "1.0000001": "b"}), "are equal"),  # both are spelled "1"
        (Rubric, dict(criterion="P?", levels=["a"]), "at least two levels"),
        (Rubric, dict(criterion="P?", levels={0: "a", float("inf"): "b"}), "finite"),
        (Rubric, dict(criterion="P?", levels={float("nan"): "a", 1: "b"}), "finite"),
        (Rubric, dict(criterion="P?", levels=["a", "b"], step=-0.5), "step\n"),
        (Rubric, dict(criterion="P?", levels={0: "a", 1: "b"}, step=0.3), "level 1.0 is not on the scale"),
        (Rubric, dict(criterion="P?", levels={0: "a", 1e300: "b"}, step=1e-300), "more than 1000 scores"),
        (Comparison, PAIR | {"preference": "C"}, "preference\n"),
        (Comparison, PAIR | {"response_b": ""}, "response_b\n"),
        (Judgment, SAID, "either a score or a preference or a named failure"),
        (Judgment, SAID | {"score": 1, "failure": "cut_off"}, "either a score or a preference or a named failure"),
        (Judgment, SAID | {"score": 1, "preference": "A"}, "either a score or a preference or a named failure"),
        (Judgment, SAID | {"failure": "gave_up"}, "failure\n"),
        (Judgment, SAID | {"score": 1, "logprob": float("nan")}, "logprob\n"),
    ],
)
def test_a_bad_value_is_refused_and_its_field_named(row_type, values, message):
    with pytest.raises(ValidationError) as error:
        row_type(**values)
    assert message in str(error.value)


def test_scales_hold_every_score_exactly():
    assert PARTIAL.scale == tuple(i / 4 for i in range(15))
    assert SIGNED.scale == (-2.0, 0.0, 2.0)
    assert 0.3 in Rubric(criterion="c", levels={0: "a", 1: "b"}, step=0.1).scale  # 3 * 0.1 != 0.3 in floating point
    assert [format_score(s) for s in (4, 10, 100.0, 2.5, 0.25, 0, -1.5)] == [
        "4",
        "10",
        "100",
        "2.5",
        "0.25",
        "0",
        "-1.5",
    ]
    assert SIGNED.text.splitlines() == ["[Which way?]", "Score -2: against", "Score 0: neither", "Score 2: for"]
    assert PARTIAL.text.splitlines()[-2:] == ["Score 3.5: complete", "Scores go in steps of 0.25."]


def test_verdicts_of_items_and_judgments():
    example, comparison = Example(**ROW), Comparison(**PAIR)
    assert (example.gold, example.verdicts) == (3.0, (1.0, 2.0, 3.0))
    assert (comparison.gold, comparison.verdicts) == ("A", ("A", "B", "tie"))
    assert (example.cluster, Example(**ROW, group="g").cluster) == ("Greet me.", "g")
    assert Judgment(**SAID, score=0).verdict == 0
    assert Judgment(**SAID, preference="tie").verdict == "tie"
    assert Judgment(**SAID, score=3, distribution={1: 0.25, 2: 0.125, 3: 0.625}).expected_score == pytest.approx(2.375)
    assert Judgment(**SAID, failure="cut_off").expected_score is None


@pytest.mark.parametrize(("preference", "other"), [("A", "B"), ("B", "A"), ("tie", "tie"), (None, None)])
def test_a_swapped_comparison_means_the_same(preference, other):
    extras = dict(reference_answer="Hello there", rationale="A greets.", group="g", meta={"scores": [3, 1]})
    row = Comparison(**(PAIR | extras | {"preference": preference}))
    swapped = row.swapped()
    assert (swapped.response_a, swapped.response_b, swapped.preference) == ("Go", "Hello", other)
    assert (swapped.rationale, swapped.meta) == (None, {})  # both refer to the original order
    assert swapped.swapped() == row.model_copy(update={"id": "c#swapped#swapped", "rationale": None, "meta": {}})
    a, b = row.sides()
    assert [(e.id, e.response, e.reference_answer, e.score) for e in (a, b)] == [
        ("c#A", "Hello", "Hello there", None),
        ("c#B", "Go", "Hello there", None),
    ]
