"""The rows: what is refused, by which field, and that nothing changes on its way through a file."""

import json

import pytest
from pydantic import ValidationError

from srlib import files as store
from srlib.schema import MAX_CHARACTERS, Comparison, Example, Judgment, Pair, Rubric, format_score

POLITE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
PARTIAL = Rubric(criterion="Is it complete?", levels={0: "wrong", 3.5: "complete"}, step=0.25)
SIGNED = Rubric(criterion="Which way?", levels={-2: "against", 0: "neither", 2: "for"})
ROW = dict(id="a", instruction="Greet me.", response="Hello", rubric=POLITE, score=3)
PAIRWISE = dict(id="c", instruction="Greet me.", response_a="Hello", response_b="Go", rubric=POLITE, preference="A")


def refused(row_type, values) -> str:
    with pytest.raises(ValidationError) as error:
        row_type(**values)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": ""}, "response\n"),
        ({"response": " \n\t"}, "response\n  Value error, is empty"),
        ({"instruction": ""}, "instruction\n"),
        ({"id": ""}, "id\n"),
        ({"score": 4}, "score 4 is not on the rubric's scale (1, 2, 3)"),
        ({"score": 2.5}, "score 2.5 is not on the rubric's scale"),
        ({"score": -1}, "score -1 is not on the rubric's scale"),
        ({"score": float("nan")}, "score\n"),
        ({"score": float("inf")}, "score\n"),
        ({"score": "high"}, "score\n"),
        ({"response": "x" * 2**20}, "response\n"),
        ({"rationale": "x" * (MAX_CHARACTERS + 1)}, "rationale\n"),
        ({"respons": "Hello"}, "respons\n"),
        ({"rubric": {"criterion": "Polite?"}}, "rubric.levels\n"),
        (
            {"rubric": {"criterion": "Polite?", "levels": {"1": "a", "1.0": "b", "2": "c"}}},
            "score 1 has two levels; keep one",
        ),
        ({"rubric": {"criterion": "Polite?", "levels": []}}, "at least two levels"),
        ({"rubric": {"criterion": "Polite?", "levels": {"1": "rude"}}}, "at least two levels"),
        ({"rubric": {"criterion": "", "levels": ["a", "b"]}}, "rubric.criterion\n"),
        ({"rubric": {"criterion": "Polite?", "levels": {"low": "a", "high": "b"}}}, "rubric.levels.low"),
        ({"rubric": None}, "rubric\n"),
    ],
)
def test_a_bad_example_is_refused_and_its_field_named(change, message):
    assert message in refused(Example, ROW | change)


def test_a_good_example_is_not():
    assert Example(**ROW).score == 3.0
    assert Example(**(ROW | {"score": None})).score is None
    assert Example(**(ROW | {"response": "x" * MAX_CHARACTERS})).response[-1] == "x"


@pytest.mark.parametrize("name", sorted(ROW.keys() - {"score"}))
def test_a_missing_field_is_named(name):
    assert f"{name}\n  Field required" in refused(Example, {k: v for k, v in ROW.items() if k != name})


@pytest.mark.parametrize(
    ("levels", "step", "message"),
    [
        ({0: "a", 1: "b"}, 0, "step"),
        ({0: "a", 1: "b"}, -0.5, "step"),
        ({0: "a", 1: "b"}, float("nan"), "step"),
        ({0: "a", 1: "b"}, 0.3, "level 1.0 is not on the scale that step 0.3 makes"),
        ({0: "a", 1: "b"}, 0.0001, "more than 1000 scores"),
        ({0: "a", float("inf"): "b"}, None, "finite"),
        ({float("nan"): "a", 1: "b"}, None, "finite"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(levels, step, message):
    assert message in refused(Rubric, dict(criterion="Complete?", levels=levels, step=step))


@pytest.mark.parametrize(("high", "step"), [(2e5, 0.01), (1e300, 1e-300)])
def test_a_scale_is_not_made_before_it_is_refused(high, step):
    """A maximum of 1e9 in somebody's file must cost neither minutes nor the memory, nor leave as another exception."""
    assert "more than 1000 scores" in refused(Rubric, dict(criterion="c", levels={0: "a", high: "b"}, step=step))


def test_scales():
    assert PARTIAL.scale == tuple(i / 4 for i in range(15))
    assert SIGNED.scale == (-2.0, 0.0, 2.0)
    assert Rubric(criterion="c", levels={10: "best", 1: "worst"}, step=1).scale == tuple(map(float, range(1, 11)))
    tenths = Rubric(criterion="c", levels={0: "a", 1: "b"}, step=0.1).scale
    assert len(tenths) == 11
    assert 0.3 in tenths  # three times 0.1 is not 0.3 in floating point
    assert all(Example(**(ROW | {"rubric": PARTIAL, "score": s})).score == s for s in PARTIAL.scale)


def test_rubric_text_names_scores_in_order_and_the_step():
    assert SIGNED.text.splitlines() == ["[Which way?]", "Score -2: against", "Score 0: neither", "Score 2: for"]
    assert PARTIAL.text.splitlines()[-2:] == ["Score 3.5: complete", "Scores go in steps of 0.25."]


@pytest.mark.parametrize(
    ("score", "text"), [(4, "4"), (10, "10"), (100.0, "100"), (2.5, "2.5"), (0.25, "0.25"), (0, "0"), (-1.5, "-1.5")]
)
def test_format_score(score, text):
    assert format_score(score) == text
    assert float(text) == score


ROWS = [
    POLITE,
    PARTIAL,
    SIGNED,
    Example(**ROW),
    Example(**(ROW | {"rubric": PARTIAL, "score": 2.75, "reference_answer": "Hé\u2028 \"llo\"\n", "group": "g"})),
    Example(**(ROW | {"score": None, "rationale": "ok", "meta": {"checks": [{"ok": True, "found": None}], "n": 1.5}})),
    Comparison(**PAIRWISE),
    Comparison(**(PAIRWISE | {"preference": "tie", "rationale": "Both greet.", "meta": {"scores": [3, 1]}})),
    Comparison(**(PAIRWISE | {"preference": None})),
    Judgment(example_id="c", text="[RESULT] B", preference="B", preference_probability={"A": 0.25, "B": 0.5, "tie": 0.25}),
    Pair(
        id="c#0>1", example_id="c", chosen="[RESULT] A", rejected="[RESULT] tie", chosen_id="c#0", rejected_id="c#1",
        chosen_score="A", rejected_score="tie", target="A", margin=None, strategy="correct_answer", iteration=1,
    ),
    Judgment(example_id="a", index=3, text="Kind. [RESULT] 3", rationale="Kind.", score=3, tokens=5, logprob=-0.25),
    Judgment(example_id="a", text="Kind.", rationale="Kind.", failure="cut_off"),
    Judgment(example_id="a", text="[RESULT] 3", score=3, distribution={1: 0.25, 2: 0.125, 3: 0.625}),
    Pair(
        id="a#0>1", example_id="a", chosen="[RESULT] 3", rejected="[RESULT] 1", chosen_id="a#0", rejected_id="a#1",
        chosen_score=3, rejected_score=1, target=3, margin=2, strategy="correct_answer", iteration=1,
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_every_row_comes_back_from_json_as_it_was(row, tmp_path):
    assert type(row).model_validate_json(row.model_dump_json()) == row
    assert type(row)(**json.loads(json.dumps(row.model_dump(mode="json")))) == row
    store.write_rows(tmp_path / "rows.jsonl", [row])
    assert len((tmp_path / "rows.jsonl").read_bytes().splitlines()) == 1
    assert store.read_rows(tmp_path / "rows.jsonl", type(row)) == [row]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_rows_do_not_change(row):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(row, next(iter(type(row).model_fields)), "other")


def test_a_judgment_has_one_outcome_and_never_two():
    either = "either a score or a preference or a named failure"
    assert either in refused(Judgment, dict(example_id="a", text="x"))
    for two in (
        dict(score=1, failure="cut_off"),
        dict(score=1, preference="A"),
        dict(preference="A", failure="cut_off"),
    ):
        assert either in refused(Judgment, dict(example_id="a", text="x", **two))
    assert Judgment(example_id="a", text="x", score=0).verdict == 0
    assert Judgment(example_id="a", text="x", preference="tie").verdict == "tie"
    assert Judgment(example_id="a", text="x", failure="cut_off").verdict is None
    assert "preference\n" in refused(Judgment, dict(example_id="a", text="x", preference="C"))
    assert "failure\n" in refused(Judgment, dict(example_id="a", text="x", failure="gave_up"))
    assert "logprob\n" in refused(Judgment, dict(example_id="a", text="x", score=1, logprob=float("nan")))


def test_expected_score_is_the_mean_of_the_distribution():
    judgment = ROWS[-2]
    assert judgment.expected_score == pytest.approx(0.25 + 0.25 + 3 * 0.625)
    assert ROWS[-4].expected_score == 3.0
    assert ROWS[-3].expected_score is None


def test_a_comparison_is_two_examples():
    a, b = Comparison(**(PAIRWISE | {"reference_answer": "Hello there"})).sides()
    assert (a.id, b.id, a.response, b.response) == ("c#A", "c#B", "Hello", "Go")
    assert a.instruction == b.instruction == "Greet me."
    assert a.reference_answer == b.reference_answer == "Hello there"
    assert a.score is None
    assert "preference\n" in refused(Comparison, PAIRWISE | {"preference": "C"})
    assert "response_b\n" in refused(Comparison, PAIRWISE | {"response_b": ""})
    assert "preference\n  Field required" in refused(
        Comparison, {k: v for k, v in PAIRWISE.items() if k != "preference"}
    )


@pytest.mark.parametrize(("preference", "other"), [("A", "B"), ("B", "A"), ("tie", "tie"), (None, None)])
def test_a_swapped_comparison_says_the_same_of_the_other_order(preference, other):
    given = dict(reference_answer="Hello there", rationale="A greets.", group="g", meta={"scores": [3, 1]})
    row = Comparison(**(PAIRWISE | given | {"preference": preference}))
    swapped = row.swapped()
    assert (swapped.id, swapped.response_a, swapped.response_b, swapped.preference) == (
        "c#swapped",
        "Go",
        "Hello",
        other,
    )
    assert (swapped.rationale, swapped.meta) == (None, {})  # they speak of the given order
    assert swapped.swapped() == row.model_copy(update={"id": "c#swapped#swapped", "rationale": None, "meta": {}})
