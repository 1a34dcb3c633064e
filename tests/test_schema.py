"""Rows: a bad value is refused and its field named; scales are exact."""

import pytest
from pydantic import ValidationError

from srlib.schema import Comparison, Example, Judgment, Rubric, format_score

POLITE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
PARTIAL = Rubric(criterion="Is it complete?", levels={0: "wrong", 3.5: "complete"}, step=0.25)
SIGNED = Rubric(criterion="Which way?", levels={2: "for", -2: "against", 0: "neither"})
ROW = dict(id="a", instruction="Greet me.", response="Hello", rubric=POLITE, score=3)
PAIR = dict(id="c", instruction="Greet me.", response_a="Hello", response_b="Go", rubric=POLITE, preference="A")
CASES = [
    (Example, ROW, {"response": " \n\t"}, "response\n  Value error, is empty"),
    (Example, ROW, {"response": "x" * 100_001}, "response\n"),
    (Example, ROW, {"respons": "Hello"}, "respons\n"),
    (Example, ROW, {"score": 2.5}, "score 2.5 is not on the rubric's scale (1, 2, 3)"),
    (Example, ROW, {"score": float("nan")}, "score\n"),
    (Example, ROW, {"rubric": {"criterion": "P?", "levels": {"low": "a", "high": "b"}}}, "rubric.levels.low"),
    (Rubric, {"criterion": " "}, {"levels": ["a", "b"]}, "criterion\n"),
    (Rubric, {"criterion": "P?"}, {"levels": {"1": "a", "1.0": "b", "2": "c"}}, "scores 1, 1.0, 2 are equal"),
    (Rubric, {"criterion": "P?"}, {"levels": {1: "a", 1.0000001: "b"}}, "are equal"),  # files spell both "1"
    (Rubric, {"criterion": "P?"}, {"levels": {"0": "a", "-0": "b", "1": "c"}}, "are equal"),
    (Rubric, {"criterion": "P?"}, {"levels": ["a"]}, "at least two levels"),
    (Rubric, {"criterion": "P?"}, {"levels": {0: "a", float("inf"): "b"}}, "finite"),
    (Rubric, {"criterion": "P?"}, {"levels": {0: "a", 1: "b"}, "step": 0.3}, "level 1.0 is not on the scale"),
    (Rubric, {"criterion": "P?"}, {"levels": {0: "a", 1e300: "b"}, "step": 1e-300}, "more than 1000 scores"),
    (Rubric, {"criterion": "P?"}, {"levels": {0: "a", 2e5: "b"}, "step": 0.01}, "more than 1000 scores"),
    (Comparison, PAIR, {"preference": "C"}, "preference\n"),
    (Judgment, {"example_id": "a", "text": "x"}, {}, "either a score or a preference or a named failure"),
    (Judgment, {"example_id": "a", "text": "x"}, {"score": 1, "failure": "cut_off"}, "either a score or a preference"),
    (Judgment, {"example_id": "a", "text": "x"}, {"score": 1, "logprob": float("nan")}, "logprob\n"),
]


@pytest.mark.parametrize(("row_type", "good", "bad", "message"), CASES)
def test_a_bad_value_is_refused_and_its_field_named(row_type, good, bad, message):
    with pytest.raises(ValidationError) as error:
        row_type(**(good | bad))
    assert message in str(error.value)


def test_scales_hold_every_score_exactly():
    assert PARTIAL.scale == tuple(i / 4 for i in range(15))
    assert SIGNED.scale == (-2.0, 0.0, 2.0)
    assert 0.3 in Rubric(criterion="c", levels={0: "a", 1: "b"}, step=0.1).scale  # 3 * 0.1 != 0.3 in floating point
    for third in (1 / 3, 0.333333):
        assert Rubric(criterion="c", levels={0: "a", 1: "b"}, step=third).scale == (0, 0.333333, 0.666667, 1)
    assert Example(**ROW | {"rubric": SIGNED, "score": -0.0000001}).score == 0
    assert list(map(format_score, (1 / 3, -0.0))) == ["0.333333", "0"]
    assert list(map(format_score, (10, 100.0, 2.5, 0.25, 0, -1.5))) == ["10", "100", "2.5", "0.25", "0", "-1.5"]
    assert SIGNED.text.splitlines() == ["[Which way?]", "Score -2: against", "Score 0: neither", "Score 2: for"]
    assert PARTIAL.text.splitlines()[-2:] == ["Score 3.5: complete", "Scores go in steps of 0.25."]


def test_verdicts_and_the_two_orders_of_a_comparison():
    example, row = Example(**ROW, group="g"), Comparison(**PAIR, rationale="A greets.", meta={"scores": [3, 1]})
    assert (example.gold, example.verdicts, example.cluster) == (3.0, (1.0, 2.0, 3.0), "g")
    assert (row.gold, row.verdicts, row.cluster) == ("A", ("A", "B", "tie"), "Greet me.")
    swapped = row.swapped()
    assert (swapped.response_a, swapped.response_b, swapped.preference, swapped.meta) == ("Go", "Hello", "B", {})
    assert swapped.swapped() == row.model_copy(update={"id": "c#swapped#swapped", "rationale": None, "meta": {}})
    assert [(side.id, side.response, side.gold) for side in row.sides()] == [
        ("c#A", "Hello", None),
        ("c#B", "Go", None),
    ]
    judgment = Judgment(example_id="a", text="x", score=3, distribution={1: 0.25, 2: 0.125, 3: 0.625})
    assert (judgment.expected_score, judgment.verdict) == (2.375, 3)
