"""Answers of any judge: read, refused, counted, and what our own judgments mean as answers."""

import json

import pytest

from srlib.benchmarks import answers, questions, scoring, suite
from srlib.files import RowError
from srlib.schema import Judgment

PAIR = {"input": "Name a prime.", "output_1": "3", "output_2": "4", "label": 1}
FEEDBACK = {
    "orig_instruction": "Greet.", "orig_response": "Hi.", "orig_criteria": "Polite?", "orig_score": "4",
    "orig_reference_answer": "Hello!", **{f"orig_score{n}_description": str(n) for n in range(1, 6)},
}  # fmt: skip
RB2 = {"id": "7", "prompt": "Name a prime.", "chosen": ["3"], "rejected": ["4", "6", "8"], "subset": "Math"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path):
    rows = [PAIR | {"id": "1", "subset": "Natural"}, PAIR | {"id": "2", "subset": "Natural", "label": 2}]
    return questions.load(suite.LLMBAR, write(tmp_path / "rows.jsonl", rows))


def read(source, tmp_path, *lines):
    return answers.read(source, write(tmp_path / "said.jsonl", lines))


def test_letters_name_responses_in_either_order(pairs, tmp_path):
    given = read(
        pairs, tmp_path, {"id": "1", "order": "AB", "verdict": "A"}, {"id": "1", "order": "BA", "verdict": "A"},
        {"id": 2, "order": "AB", "verdict": None}, {"id": "2", "order": "BA", "verdict": "tie"},
    )  # fmt: skip
    one, two = answers.judged(pairs, given)
    assert (one.said, one.failed, one.gold, one.subset) == ({"AB": "A", "BA": "A"}, {}, "A", "Natural")
    assert (two.said, two.failed, two.gold) == ({"BA": "tie"}, {"AB": "unreadable"}, "B")


def test_our_judgments_of_swapped_responses_speak_of_places(pairs):
    """The preference is the response that was shown first; shown second first, that is B."""
    asked = questions.ask(pairs, compare=True)
    assert [item.id for item in asked] == ["1", "1#swapped", "2", "2#swapped"]
    said = [Judgment(example_id=item.id, text="", preference="A") for item in asked]
    assert answers.of_judgments(pairs, said)["1"] == {"AB": ("A", ""), "BA": ("B", "")}


def test_two_responses_scored_alone_compare_by_expected_score(pairs):
    a, b = questions.ask(pairs)[:2]
    said = [
        Judgment(example_id=a.id, text="", score=3, distribution={3: 0.6, 5: 0.4}),
        Judgment(example_id=b.id, text="", failure="cut_off"),
    ]
    one, two = answers.judged(pairs, answers.of_judgments(pairs, said))
    assert (one.said, one.failed) == ({"A": pytest.approx(3.8)}, {"B": "cut_off"})
    assert (two.said, two.failed) == ({}, {"": "missing"})


def test_one_response_keeps_its_parsed_score(tmp_path):
    source = questions.load(suite.FEEDBACK_BENCH, write(tmp_path / "rows.jsonl", [FEEDBACK]))
    [item] = questions.ask(source)
    said = [Judgment(example_id=item.id, text="", score=3, distribution={3: 0.6, 5: 0.4})]
    assert answers.judged(source, answers.of_judgments(source, said))[0].said == {"": 3.0}


def test_an_order_that_is_missing_is_counted_only_where_both_were_asked(pairs, tmp_path):
    one = read(pairs, tmp_path, {"id": "1", "order": "AB", "verdict": "A"}, {"id": "2", "order": "BA", "verdict": "A"})
    assert [row.failed for row in answers.judged(pairs, one)] == [{}, {}]
    both = read(
        pairs,
        tmp_path,
        *[{"id": "1", "order": o, "verdict": "A"} for o in ("AB", "BA")],
        {"id": "2", "order": "AB", "verdict": "A"},
    )
    assert answers.judged(pairs, both)[1].failed == {"BA": "missing"}
    alone = read(pairs, tmp_path, *[{"id": "1", "order": o, "verdict": "A"} for o in ("AB", "BA")])
    silent = answers.judged(pairs, alone)[1]
    assert silent.failed == {"AB": "missing", "BA": "missing"}
    assert scoring.both_correct(silent) == scoring.consistency(silent) == 0.0, (
        "an item without an answer is one that counts"
    )
    side = read(pairs, tmp_path, {"id": "1", "order": "A", "score": 2})
    assert [row.failed for row in answers.judged(pairs, side)] == [{"B": "missing"}, {"": "missing"}]


def test_scores_and_choices_among_several(tmp_path):
    source = questions.load(suite.REWARD_BENCH_2, write(tmp_path / "rows.jsonl", [RB2]))
    given = read(source, tmp_path, *[{"id": "Math/7", "order": str(k), "score": k} for k in (1, 2, 3)])
    [row] = answers.judged(source, given)
    assert (row.said, row.failed, row.gold) == ({"1": 1.0, "2": 2.0, "3": 3.0}, {"4": "missing"}, 1)
    assert answers.judged(source, read(source, tmp_path, {"id": "Math/7", "verdict": "2"}))[0].said == {"": "2"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"id": "9", "order": "AB", "verdict": "A"}, "id '9' is of no item"),
        ({"id": "1", "order": "AB"}, "either a verdict or a score"),
        ({"id": "1", "order": "AB", "verdict": "A", "score": 1}, "either a verdict or a score"),
        ({"id": "1", "order": "AB", "verdict": "first"}, "verdict 'first' is not one of A, B, tie"),
        ({"id": "1", "order": "AB", "score": 3}, "a score with order 'AB'"),
        ({"id": "1", "order": "A", "verdict": "A"}, "a verdict with order 'A'"),
        ({"id": "1", "order": "AB", "verdict": "A", "why": "x"}, "unknown field 'why'"),
        ({"id": True, "order": "AB", "verdict": "A"}, "field id"),
        ({"example_id": "9", "text": "", "score": 1}, "'9': the benchmark has no such item"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(pairs, tmp_path, line, words):
    with pytest.raises(RowError, match=words):
        read(pairs, tmp_path, line)


def test_an_answer_that_is_there_twice_is_refused(pairs, tmp_path):
    with pytest.raises(RowError, match=r"line 2: id '1', order 'AB' is there twice"):
        read(pairs, tmp_path, *[{"id": "1", "order": "AB", "verdict": "A"}] * 2)
    again = Judgment(example_id="1#A", text="", score=3).model_dump(mode="json")
    with pytest.raises(RowError, match="'1#A' is there twice"):
        read(pairs, tmp_path, again, again | {"index": 1})
    mixed = read(pairs, tmp_path, {"id": "1", "order": "AB", "verdict": "A"}, {"id": "1", "order": "A", "score": 1})
    with pytest.raises(RowError, match="both scores and verdicts"):
        answers.judged(pairs, mixed)


def test_a_score_outside_of_the_scale_is_no_score(tmp_path):
    source = questions.load(suite.FEEDBACK_BENCH, write(tmp_path / "rows.jsonl", [FEEDBACK | {"id": "f"}]))
    assert read(source, tmp_path, {"id": "f", "score": 3.4})["f"][""] == (3.4, ""), "a mean of several samples"
    with pytest.raises(RowError, match="score 7 is outside of the item's scale, 1 to 5"):
        read(source, tmp_path, {"id": "f", "score": 7})
