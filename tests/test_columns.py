"""Every form a row comes in: what becomes of it, and what is said of a row that does not fit."""

import judged
import pytest

from srlib import files as store
from srlib.data import columns
from srlib.data import load as data
from srlib.schema import Comparison, Example, Rubric

[FEEDBACK] = judged.feedback(1)
[PREFERENCE] = judged.preference(1)
PROMPT = judged.prompt(FEEDBACK)


def convert(row, **options):
    return columns.convert(row, "row 3", 3, source="set", **options)


def test_a_row_of_the_feedback_collection():
    e = convert(FEEDBACK)
    assert isinstance(e, Example)
    assert (e.instruction, e.group, e.response) == (FEEDBACK["orig_instruction"],) * 2 + (FEEDBACK["orig_response"],)
    assert (e.reference_answer, e.rationale) == (FEEDBACK["orig_reference_answer"], FEEDBACK["orig_feedback"])
    assert (e.id, e.score, e.meta) == ("feedback-3", 1.0, {"split_hint": None, "source": "set"})
    assert e.rubric == Rubric(criterion="Is it complete (0)?", levels=[f"{s} of five things, 0" for s in range(1, 6)])
    assert convert(FEEDBACK | {"id": "own", "split_hint": "dev"}).id == "own"
    assert convert(FEEDBACK | {"orig_score": 4}).score == 4.0


def test_a_rubric_of_two_criteria_is_refused():
    """The later texts would stand under the first criterion."""
    text = "[Polite?]\nScore 1: rude\nScore 5: kind\n[Complete?]\nScore 1: nothing\nScore 5: all"
    with pytest.raises(store.RowError, match="row 3: field rubric describes score 1 twice; a rubric has one criterion"):
        convert({"id": "1", "instruction": "Greet.", "response": "Hi.", "score": 1, "rubric": text})


def test_the_prompt_in_one_field_gives_the_same_row():
    one, other = convert(FEEDBACK), convert(PROMPT)
    assert other == one.model_copy(update={"id": "feedback-3"})
    assert convert(FEEDBACK | PROMPT) == one  # orig_* fields decide where both are there
    assert convert(FEEDBACK | {"instruction": "something else", "output": "nothing"}) == one


def test_a_prompt_may_lack_the_reference_and_the_feedback_prefix():
    text = PROMPT["instruction"]
    start, end = text.index("###Reference"), text.index("###Score Rubrics")
    e = convert({"instruction": text[:start] + text[end:], "output": "Good. [RESULT] 5"})
    assert (e.reference_answer, e.rationale, e.score) == (None, "Good.", 5.0)
    assert e.response == FEEDBACK["orig_response"]


def test_a_row_of_the_preference_collection():
    c = convert(PREFERENCE)
    assert isinstance(c, Comparison)
    assert (c.response_a, c.response_b) == (PREFERENCE["orig_response_A"], PREFERENCE["orig_response_B"])
    assert (c.id, c.preference, c.rationale) == ("preference-3", "B", PREFERENCE["orig_feedback"])
    assert (c.group, c.reference_answer) == (PREFERENCE["orig_instruction"], PREFERENCE["orig_reference_answer"])
    assert c.meta == {"split_hint": None, "source": "set", "scores": [1.0, 3.0]}
    assert c.rubric.criterion == "Is it complete?"
    assert c.rubric.scale == (1, 2, 3, 4, 5)  # the collection describes no scores; a pointwise judge needs some
    levels = {f"orig_score{s}_description": f"{s} things" for s in range(1, 6)}
    assert convert(PREFERENCE | levels).rubric.levels[3] == "3 things"
    assert convert(PREFERENCE | {"orig_preference": " tie "}).preference == "tie"
    assert convert(PREFERENCE | {"orig_preference": "a"}).preference == "A"


def test_our_own_comparisons_and_flat_ones():
    rubric = {"criterion": "Polite?", "levels": {"1": "rude", "2": "kind"}}
    own = {
        "id": "p",
        "instruction": "Greet.",
        "response_a": "Hi",
        "response_b": "Yo",
        "preference": "A",
        "rubric": rubric,
    }
    assert convert(own | {"split_hint": "dev"}) == Comparison(**own, meta={"split_hint": "dev"})
    flat = own | {"type": "pairwise", "rubric": "[Polite?]\nScore 1: rude\nScore 2: kind", "rationale": "Warm."}
    c = convert(flat)
    assert c.rubric == Rubric(criterion="Polite?", levels=["rude", "kind"])
    assert (c.rationale, c.group) == ("Warm.", "Greet.")
    assert convert(flat | {"rubric": "[Polite?]"}).rubric.scale == (1, 2, 3, 4, 5)
    assert convert(flat | {"rubric": "[Polite?]", "score_min": 1, "score_max": 10}, score_step=1).rubric.scale[-1] == 10


def test_equal_rubrics_are_one_object():
    first, second = (columns.convert(row, "row 1", i) for i, row in enumerate(judged.feedback(2)))
    assert first.rubric is second.rubric


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def swap(old, new):
    return PROMPT | {"instruction": PROMPT["instruction"].replace(old, new)}


BAD = {
    "score in words": (FEEDBACK | {"orig_score": "four"}, "field orig_score: 'four' is not a number"),
    "score with an underscore": (FEEDBACK | {"orig_score": "1_0"}, "field orig_score: '1_0' is not a number"),
    "score that is nan": (FEEDBACK | {"orig_score": "nan"}, "field orig_score: 'nan' is not a number"),
    "score that is true": (FEEDBACK | {"orig_score": True}, "field orig_score: True is not a number"),
    "score off the scale": (FEEDBACK | {"orig_score": "6"}, "field orig_score: 6.0 is not on the scale (1, 2, 3, 4, 5)"),
    "huge score": (FEEDBACK | {"orig_score": 10**400}, "field orig_score"),
    "no level": (without(FEEDBACK, "orig_score3_description"), "field orig_score3_description is missing"),
    "no criterion": (without(FEEDBACK, "orig_criteria"), "field orig_criteria"),
    "no response": (without(FEEDBACK, "orig_response"), "field orig_response"),
    "blank response": (FEEDBACK | {"orig_response": " "}, "field orig_response: is empty"),
    "list": (FEEDBACK | {"orig_instruction": ["a"]}, "field orig_instruction"),
    "no instruction": (without(FEEDBACK, "orig_instruction"), "field orig_instruction"),
    "no verdict": (PROMPT | {"output": "Good."}, "field output: 'Good.' has no '[RESULT]'"),
    "verdict in words": (PROMPT | {"output": "Good. [RESULT] five"}, "field output: ' five' is not a number"),
    "verdict off the scale": (PROMPT | {"output": "[RESULT] 7"}, "field output: score 7 is not in the prompt's rubric"),
    "heading twice": (swap("###Feedback:", "###Response to evaluate:"), "heading '###Response to evaluate:' twice"),
    "no heading": (swap("###Score Rubrics", "###Rubbish"), "no heading '###Score Rubric:'"),
    "no prompt": (PROMPT | {"instruction": None}, "field instruction is missing"),
    "preference": (PREFERENCE | {"orig_preference": "C"}, "field orig_preference: Input should be 'A', 'B' or 'tie'"),
    "score of a side": (PREFERENCE | {"orig_score_B": "x"}, "field orig_score_B: 'x' is not a number"),
    "no response B": (PREFERENCE | {"orig_response_B": ""}, "field orig_response_B"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_said_with_the_names_of_the_file(row, message):
    with pytest.raises(store.RowError) as error:
        convert(row)
    assert str(error.value).startswith("row 3: ")
    assert message in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("kind", judged.FORMATS)
def test_the_collections_in_every_format(tmp_path, kind):
    rows = judged.feedback(300)
    path = judged.write(tmp_path / f"rows.{kind}", rows)
    pairs = judged.write(tmp_path / f"pairs.{kind}", judged.preference(40))
    loaded = data.load(path, n_validation=20, pairwise=pairs)
    assert loaded.counts == {"rows": 340, "bad rows": 0, "over a limit": 0, "left out for balance": 0}
    assert sum(map(len, loaded.examples.values())) == 300
    assert len(loaded.train_pairwise) + len(loaded.pairwise) == 40
    number = {e.id: e for rows in loaded.examples.values() for e in rows}
    for i, row in enumerate(rows, start=1):
        e = number[f"feedback-{i}"]
        assert (e.response, e.score) == (row["orig_response"], float(row["orig_score"]))
        assert (e.rationale, e.meta["source"]) == (row["orig_feedback"], f"rows.{kind}")
    trained = {row.instruction for row in [*loaded.splits["train"], *loaded.train_pairwise]}
    assert not trained & {e.instruction for name in ("validation", "test") for e in loaded.splits[name]}
    lines = {(line["form"], line["column"]): line for line in loaded.columns}
    assert lines["Feedback Collection", "orig_score"]["our field"] == "score"
    assert lines["Feedback Collection", "orig_score2_description"]["our field"] == "rubric.levels.2"
    assert lines["Preference Collection", "orig_preference"]["rows"] == 40
    assert len(lines) == len(rows[0]) + len(judged.preference(1)[0])


@pytest.mark.parametrize("kind", judged.FORMATS)
def test_the_one_field_form_and_our_own_in_every_format(tmp_path, kind):
    prompts = [judged.prompt(row) for row in judged.feedback(6)]
    found = [f.row for f in data.read_rows(judged.write(tmp_path / f"prompts.{kind}", prompts))]
    assert [e.score for e in found] == [1, 2, 3, 4, 5, 1]
    rubric = {"criterion": "Polite?", "levels": {"0": "rude", "3": "kind"}, "step": 1.5}
    ours = [
        {
            "id": str(i),
            "instruction": "Greet.",
            "response": "Hi,\nyou",
            "rubric": rubric,
            "score": 1.5,
            "rationale": None,
        }
        for i in range(3)
    ]
    found = [f.row for f in data.read_rows(judged.write(tmp_path / f"ours.{kind}", ours))]
    assert found == [Example(**row) for row in ours]


@pytest.mark.parametrize("kind", judged.FORMATS)
def test_a_bad_value_is_named_by_file_row_and_field_in_every_format(tmp_path, kind):
    rows = judged.feedback(20)
    rows[3] = rows[3] | {"orig_score": "four"}
    rows[11] = without(rows[11], "orig_response")
    path = judged.write(tmp_path / f"rows.{kind}", rows)
    place = "line" if kind.startswith("jsonl") else "row"
    with pytest.raises(data.DataError) as error:
        data.load(path, n_validation=2)
    assert str(error.value).startswith(f"{path}, {place} 4: field orig_score: 'four' is not a number")
    assert "(and 1 more bad rows)" in str(error.value)
    loaded = data.load(path, n_validation=2, bad_rows="drop")
    assert (loaded.counts["rows"], loaded.counts["bad rows"]) == (20, 2)
    assert [f.line for f in loaded.failures] == [4, 12]
    assert loaded.failures[1].reason.startswith(f"{place} 12: field orig_response")


def test_columns_that_nobody_reads_are_said(tmp_path):
    path = judged.write(tmp_path / "rows.csv", [row | {"price": "3", "idx": "7"} for row in judged.feedback(10)])
    unused = [line["column"] for line in data.load(path, n_validation=1).columns if line["our field"] == "(not used)"]
    assert unused == ["idx", "price"]
