"""Files -> examples and comparisons in splits: every bad row by line and field, and nothing lost."""

import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from srlib.data.load import DataError, RowFailure, load, load_splits, read_rows, splits
from srlib.data import load as data
from srlib.schema import Comparison, Example, Rubric

OURS = {
    "id": "a", "instruction": "Greet me.", "response": "Hello", "score": 3,
    "rubric": {"criterion": "Polite?", "levels": {"1": "rude", "2": "cool", "3": "kind"}},
}  # fmt: skip
FLAT = {
    "id": "f", "instruction": "Greet me.", "response": "Hello", "score": 2, "rationale": "Short.", "source": "s",
    "reference_answer": "Good morning", "rubric": "[Polite?]\nScore 1: rude\nScore 2: cool\nScore 3: kind",
}  # fmt: skip
RANGE = FLAT | {"id": "r", "rubric": "[Complete?]\nAward points.", "score_min": 0, "score_max": 2.5, "score": 1.25}
REAL = Path(os.environ.get("SRLIB_DATA") or Path(__file__).parents[2] / "shared" / "data")


def write(path, rows) -> Path:
    """Rows that are dicts become JSON; str and bytes stand as they are."""
    lines = [r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def read_any(path, score_step=0.25):
    """Every row of a source that one response is to be scored in, as (line, example), or as a named failure."""
    examples, failures = [], []
    for number, where, row, form, _ in read_rows(path, score_step=score_step):
        if form is not None and form.makes is Comparison:
            reason = f"{where}: two responses to compare; this reads rows with one response to score"
            failures.append(RowFailure(number, row.id, reason))
        elif isinstance(row, Example):
            examples.append((number, row))
        else:
            failures.append(row)
    return examples, failures


def test_our_own_form(tmp_path):
    rich = OURS | {"id": "b", "meta": {"x": 1}, "group": "g", "split_hint": "dev", "rationale": "Kind."}
    found, failures = read_any(write(tmp_path / "rows.jsonl", [OURS, "", rich]))
    assert failures == []
    assert [line for line, _ in found] == [1, 3]
    assert found[0][1] == Example(**OURS)
    assert found[1][1] == Example(**without(rich, "split_hint") | {"meta": {"x": 1, "split_hint": "dev"}})


def test_the_flat_form_with_levels(tmp_path):
    [(_, e)], failures = read_any(write(tmp_path / "rows.jsonl", [FLAT]))
    assert failures == []
    assert e.rubric == Rubric(criterion="Polite?", levels=["rude", "cool", "kind"])
    assert (e.id, e.score, e.rationale, e.reference_answer, e.group) == (
        "f",
        2.0,
        "Short.",
        "Good morning",
        "Greet me.",
    )
    assert e.rubric.text == FLAT["rubric"]


def test_a_description_may_go_on_in_the_next_line(tmp_path):
    row = FLAT | {"rubric": "[Polite?]\nScore 1: rude\nor worse\nScore 2: cool\n\nScore 3: kind\n"}
    [(_, e)], _ = read_any(write(tmp_path / "rows.jsonl", [row]))
    assert e.rubric == Rubric(criterion="Polite?", levels=["rude or worse", "cool", "kind"])


def test_a_gold_score_in_the_middle_moves_up(tmp_path):
    scores = [0.125, 0.375, 0.625, 2.375]
    found, _ = read_any(write(tmp_path / "rows.jsonl", [RANGE | {"id": str(s), "score": s} for s in scores]))
    assert [e.score for _, e in found] == [0.25, 0.5, 0.75, 2.5]


def test_the_flat_form_with_a_range(tmp_path):
    rows = [RANGE, RANGE | {"id": "s", "score": 0.7}, RANGE | {"id": "t", "score": 2.5}]
    found, failures = read_any(write(tmp_path / "rows.jsonl", rows))
    assert failures == []
    assert [e.score for _, e in found] == [1.25, 0.75, 2.5]
    assert [e.meta.get("score_given") for _, e in found] == [None, 0.7, None]  # a gold score never moves in silence
    assert found[0][1].rubric.scale == tuple(i / 4 for i in range(11))
    found, _ = read_any(tmp_path / "rows.jsonl", score_step=0.5)
    assert found[0][1].rubric.scale == (0, 0.5, 1, 1.5, 2, 2.5)
    assert found[1][1].score == 0.5


def test_gzip_and_a_byte_order_mark(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(OURS).encode()))
    assert read_any(tmp_path / "rows.jsonl.gz")[0][0][1].id == "a"


BAD = {
    "malformed JSON": ('{"id": "x", ', "malformed JSON"),
    "not an object": ("[1, 2]", "a row is a JSON object"),
    "missing instruction": (without(OURS, "instruction"), "field instruction is missing"),
    "missing id": (without(OURS, "id"), "field id is missing"),
    "missing rubric": (without(OURS, "rubric"), "field rubric is missing"),
    "missing response, flat": (without(FLAT, "response"), "field response"),
    "empty response": (OURS | {"id": "x", "response": ""}, "field response"),
    "blank response": (OURS | {"id": "x", "response": "  \n "}, "field response: is empty"),
    "empty response, flat": (FLAT | {"id": "x", "response": ""}, "field response"),
    "off scale": (OURS | {"id": "x", "score": 7}, "score 7 is not on the rubric's scale (1, 2, 3)"),
    "off scale, flat": (FLAT | {"id": "x", "score": 2.5}, "score 2.5 is not on the rubric's scale (1, 2, 3)"),
    "beyond the range": (RANGE | {"id": "x", "score": 2.75}, "score 2.75 is not on the rubric's scale"),
    "duplicate id": (OURS | {"id": "good"}, "id 'good' is already in line 1"),
    "one level": (OURS | {"id": "x", "rubric": {"criterion": "P?", "levels": {"1": "a"}}}, "field rubric: a rubric needs"),
    "no levels": (OURS | {"id": "x", "rubric": {"criterion": "P?"}}, "field rubric.levels is missing"),
    "no levels, flat": (FLAT | {"id": "x", "rubric": "[Polite?]"}, "no levels (`Score 1: ...`) and no score_min"),
    "range upside down": (RANGE | {"id": "x", "score_min": 3}, "no score_min, score_max"),
    "range in words": (RANGE | {"id": "x", "score_max": "ten"}, "field score_max: 'ten' is not a number"),
    "score that is true": (OURS | {"id": "x", "score": True}, "field score: True is not a number"),
    "range of ages": (RANGE | {"id": "x", "score_max": 1e12}, "more than 1000 scores"),
    "range off the steps": (RANGE | {"id": "x", "score_max": 2.6}, "level 2.6 is not on the scale"),
    "NaN": ('{"id": "x", "score": NaN}', "field score is nan"),
    "infinite": ('{"id": "x", "meta": {"weights": [1, Infinity]}}', "field meta.weights.1 is inf"),
    "a megabyte": (OURS | {"id": "x", "response": "long " * 2**18}, "field response"),
    "not UTF-8": (json.dumps(OURS).encode().replace(b"Hello", b"H\xe9llo"), "byte 0xe9 at position"),
    "pairwise": (OURS | {"id": "x", "response_a": "a", "response_b": "b", "rubric": "r"}, "two responses to compare"),
    "unknown field": (OURS | {"id": "x", "respons": "Hello"}, "unknown field 'respons'"),
    "score in words": (OURS | {"id": "x", "score": "good"}, "field score"),
    "score that is a list": (RANGE | {"id": "x", "score": [1]}, "field score"),
    "score that is a rubric": (RANGE | {"id": "x", "score": {"a": 1}}, "field score"),
    "huge score": (RANGE | {"id": "x", "score": 10**400}, "field score"),
    "huge range": (RANGE | {"id": "x", "score_max": 10**400, "score": 10**399}, "field"),
    "id that is a number": (OURS | {"id": 5}, "field id"),
    "meta that is text": (OURS | {"id": "x", "meta": "none", "split_hint": "train"}, "field meta"),
    "meta that is null": (OURS | {"id": "x", "meta": None}, "field meta"),
    "level of many digits": (FLAT | {"id": "x", "rubric": f"[P?]\nScore {'9' * 400}: a\nScore 1: b"}, "rubric.levels"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_and_the_others_are_kept(tmp_path, row, message):
    path = write(tmp_path / "rows.jsonl", [OURS | {"id": "good"}, row, FLAT])
    found, failures = read_any(path)
    assert [(line, e.id) for line, e in found] == [(1, "good"), (3, "f")]
    [failure] = failures
    assert failure.line == 2
    assert failure.reason.startswith("line 2: ")
    assert message in failure.reason
    assert len(failure.reason) < 1000  # a megabyte is not shown
    assert failure.reason.isprintable()
    with pytest.raises(DataError) as error:
        load_splits(path, n_validation=1)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert "Correct the file, or set bad_rows to drop" in str(error.value)


def test_the_name_of_a_field_is_shown_escaped_and_shortened(tmp_path):
    levels = {"\x1b[2J" + "x" * 2000: "a", "1": "b"}
    row = OURS | {"rubric": {"criterion": "Polite?", "levels": levels}}
    _, [failure] = read_any(write(tmp_path / "rows.jsonl", [row]))
    assert failure.reason.isprintable()
    assert len(failure.reason) < 1000


def test_every_row_is_an_example_or_a_failure(tmp_path):
    rows = [OURS | {"id": f"good {i}"} for i in range(9)] + [row for row, _ in BAD.values()]
    found, failures = read_any(write(tmp_path / "rows.jsonl", [OURS | {"id": "good"}, *rows]))
    assert len(found) + len(failures) == len(rows) + 1
    assert sorted([line for line, _ in found] + [f.line for f in failures]) == list(range(1, len(rows) + 2))
    assert len(found) == 10


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read"):
        read_any(tmp_path / "none.jsonl")
    (tmp_path / "rows.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: cannot be read"):
        read_any(tmp_path / "rows.jsonl.gz")


def many(n, **changes):
    """`n` rows, three to each instruction."""
    return [OURS | {"id": f"{changes}{i}", "instruction": f"Greet person {i // 3}."} | changes for i in range(n)]


@pytest.mark.parametrize(
    ("hint", "split"),
    [
        ("train", "train"),
        ("validation", "validation"),
        ("valid", "validation"),
        ("dev", "validation"),
        ("test", "test"),
        ("bench", "test"),
        ("bench_unseen_answers", "test"),
        ("test_unseen_questions", "ood"),
        ("ood", "ood"),
        ("held-out", "test"),
        ("training", "train"),
    ],
)
def test_hints_decide(tmp_path, hint, split):
    rows = many(10, split_hint="train") + many(3, split_hint=hint)
    found = load_splits(
        write(tmp_path / "rows.jsonl", [r | {"id": str(i)} for i, r in enumerate(rows)]), n_validation=0
    )
    assert {name: len(own) for name, own in found.items() if own} == dict(Counter(["train"] * 10 + [split] * 3))


@pytest.mark.parametrize("hint", ["food", "latest", "unseen"])
def test_a_hint_that_says_nothing_is_refused(tmp_path, hint):
    """It would be a guess, and `food` is no `ood`."""
    rows = [*many(10, split_hint="train"), OURS | {"id": "x", "split_hint": hint}]
    with pytest.raises(DataError, match=rf"line 11: field split_hint: '{hint}' is none of ood, .*; correct it"):
        load_splits(write(tmp_path / "rows.jsonl", rows), n_validation=0)


def test_a_folders_name_that_says_nothing_is_no_hint(tmp_path):
    """Its rows are split by instruction; a row's own empty field changes nothing in that."""
    for name in ("train", "filtered"):
        rows = [r | {"id": f"{name}{i}", "split_hint": None} for i, r in enumerate(many(40))]
        (tmp_path / "data" / name).mkdir(parents=True)
        write(tmp_path / "data" / name / "rows.jsonl", rows)
    (tmp_path / "data" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train/*\n"
        "  - split: filtered\n    path: filtered/*\n---\n"
    )
    found = load_splits(tmp_path / "data", n_validation=0)
    assert sum(map(len, found.values())) == 80


@pytest.mark.parametrize("mixed", [False, True])
def test_comparisons_go_where_the_examples_of_their_instruction_are(tmp_path, mixed):
    """Whether those are hinted, or placed by a group that the comparisons do not name; before or behind them in one file."""
    hints = ["train", "test", "validation", "ood", None]
    rows = [
        without(OURS, "id")
        | {"id": str(i), "instruction": f"Greet {i}."}
        | ({"split_hint": h} if h else {"group": f"g{i}"})
        for i, h in enumerate(hints * 20)
    ]
    pair = without(
        OURS | {"response_a": "Hi", "response_b": "Yo", "preference": "tie"}, "response", "score", "rationale"
    )
    pairs = [pair | {"id": f"p{i}", "instruction": f"Greet {i}."} for i in range(100)]
    if mixed:
        found = load_splits(write(tmp_path / "rows.jsonl", pairs + rows), n_validation=0)
    else:
        beside = write(tmp_path / "pairs.jsonl", pairs)
        found = load_splits(write(tmp_path / "rows.jsonl", rows), n_validation=0, pairwise=beside)
    of_training = {e.instruction for e in found["train"]}
    assert {c.instruction for c in found["train_pairwise"]} == of_training
    assert len(of_training) > 20
    assert len(found["pairwise"]) == 100 - len(of_training)


def test_validation_is_carved_from_train_where_there_is_none(tmp_path):
    path = write(tmp_path / "rows.jsonl", many(39, split_hint="train") + many(5, split_hint="test"))
    first = load_splits(path, n_validation=6, seed=0)
    assert {name: len(own) for name, own in first.items() if own} == {"train": 33, "validation": 6, "test": 5}
    assert not {e.instruction for e in first["train"]} & {e.instruction for e in first["validation"]}
    assert load_splits(path, n_validation=6, seed=0) == first
    assert load_splits(path, n_validation=6, seed=1)["validation"] != first["validation"]
    assert (
        len(load_splits(path, n_validation=1000)["validation"]) == 6
    )  # a fifth at most: two instructions of three rows


def test_where_every_instruction_is_larger_than_the_validation_split_single_rows_move(tmp_path):
    rows = [OURS | {"id": str(i), "instruction": f"Greet {i % 2}.", "split_hint": "train"} for i in range(40)]
    found = load_splits(write(tmp_path / "rows.jsonl", rows), n_validation=5)
    assert (len(found["train"]), len(found["validation"])) == (35, 5)


@pytest.mark.parametrize("n_train", [1, 7, 50])
def test_a_limit_is_a_sample_by_seed_and_id_in_the_order_of_the_file(tmp_path, n_train):
    rows = many(300)
    path = write(tmp_path / "rows.jsonl", rows)
    limits = {"train": n_train, "validation": 5, "test": 3}
    one = load(path, n_validation=5, limits=limits, seed=0)
    assert {name: len(own) for name, own in one.splits.items() if own} == limits
    assert one.counts == {
        "rows": 300, "bad rows": 0, "over a limit": 300 - sum(limits.values()), "left out for balance": 0,
    }  # fmt: skip
    place = {row["id"]: i for i, row in enumerate(rows)}
    order = [place[e.id] for e in one.splits["train"]]
    assert order == sorted(order)
    assert load(path, n_validation=5, limits=limits, seed=1).splits["train"] != one.splits["train"]
    turned = load(write(tmp_path / "turned.jsonl", rows[::-1]), n_validation=5, limits=limits, seed=0)
    assert turned.splits["train"] == one.splits["train"][::-1]
    larger = load(path, n_validation=5, limits=limits | {"train": n_train + 1}, seed=0)
    assert {e.id for e in one.splits["train"]} < {e.id for e in larger.splits["train"]}


def test_limits_with_hints_leave_room_for_the_validation_split(tmp_path):
    path = write(tmp_path / "rows.jsonl", many(300, split_hint="train"))
    found = load(path, n_validation=20, limits={"train": 100, "validation": 20}, seed=0).splits
    assert len(found["train"]) == 100
    assert 15 <= len(found["validation"]) <= 20
    assert not {e.instruction for e in found["train"]} & {e.instruction for e in found["validation"]}


def test_classes_are_balanced_within_source_and_scale(tmp_path):
    wide = {"criterion": "Polite?", "levels": {"0": "rude", "1": "kind"}}
    rows = [OURS | {"id": f"a{i}", "score": 1 + (i % 6 > 0) + (i % 6 > 2), "meta": {"source": "a"}} for i in range(60)]
    rows += [OURS | {"id": f"b{i}", "score": i % 4 > 0, "rubric": wide, "meta": {"source": "b"}} for i in range(40)]
    rows = [row | {"split_hint": "train", "score": int(row["score"])} for row in rows]
    path = write(tmp_path / "rows.jsonl", rows + many(9, split_hint="dev"))
    natural = load(path, n_validation=0)
    assert splits.class_balance(natural.splits["train"]) == [
        {"source": "a", "scale": "1, 2, 3", "rows": 60, "1": 10, "2": 20, "3": 30},
        {"source": "b", "scale": "0, 1", "rows": 40, "0": 10, "1": 30},
    ]
    even = load(path, n_validation=0, balance_classes=True, seed=3)
    assert [list(line.values())[2:] for line in splits.class_balance(even.splits["train"])] == [
        [30, 10, 10, 10],
        [20, 10, 10],
    ]
    assert even.counts["left out for balance"] == 50
    assert len(even.splits["validation"]) == 9  # only training is evened out
    few = load(path, n_validation=0, balance_classes=True, limits={"train": 25}, seed=3)
    assert [list(line.values())[2:] for line in splits.class_balance(few.splits["train"])] == [
        [15, 5, 5, 5],
        [10, 5, 5],
    ]
    assert few.counts == {"rows": 109, "bad rows": 0, "over a limit": 25, "left out for balance": 50}


def test_without_hints_no_instruction_crosses(tmp_path):
    path = write(tmp_path / "rows.jsonl", many(300))
    found = load_splits(path, n_validation=10)
    assert sum(map(len, found.values())) == 300
    assert min(len(found[name]) for name in ("train", "validation", "test")) > 9
    assert len(found["train"]) > 180
    asked = [{e.instruction for e in own} for own in found.values()]
    assert sum(map(len, asked)) == len(set().union(*asked)) == 100


def test_bad_rows_are_refused_or_dropped(tmp_path):
    rows = [*many(20, split_hint="train"), OURS | {"id": "x", "response": ""}, without(OURS, "score") | {"id": "y"}]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"line 21: field response: .* \(and 1 more bad rows\)"):
        load_splits(path, n_validation=2)
    found = load_splits(path, n_validation=2, bad_rows="drop")
    assert sum(map(len, found.values())) == 20
    assert len(read_any(path)[0]) == 21  # without a score it can be judged, though not learned from
    with pytest.raises(DataError, match="line 1: field score is missing"):
        load_splits(write(tmp_path / "one.jsonl", [without(OURS, "score")]), n_validation=2)


def test_a_comparison_to_learn_from_needs_a_preference(tmp_path):
    pair = OURS | {"id": "p", "response_a": "Hi", "response_b": "Yo", "preference": None}
    rows = [*many(20, split_hint="train"), without(pair, "response", "score", "rationale")]
    with pytest.raises(DataError, match="line 21: field preference is missing"):
        load_splits(write(tmp_path / "rows.jsonl", rows), n_validation=2)


def test_comparisons_have_splits_of_their_own(tmp_path):
    pair = without(FLAT, "response", "score") | {
        "type": "pairwise",
        "response_a": "Hi",
        "response_b": "Yo",
        "preference": "A",
    }
    pairs = [pair | {"id": f"p{i}", "instruction": f"Greet person {i % 100}."} for i in range(200)]
    path = write(tmp_path / "rows.jsonl", [*many(300), *pairs])
    found = load_splits(path, n_validation=10)
    assert len(found["train_pairwise"]) + len(found["pairwise"]) == 200
    assert {type(c) for c in found["train_pairwise"] + found["pairwise"]} == {Comparison}
    trained = {row.instruction for row in found["train"] + found["train_pairwise"]}
    measured = {row.instruction for name in ("validation", "test", "pairwise") for row in found[name]}
    assert not trained & measured
    beside = load(
        write(tmp_path / "a.jsonl", many(300)), n_validation=10, pairwise=write(tmp_path / "b.jsonl", pairs),
        limits={"train_pairwise": 7, "pairwise": 3},
    ).splits  # fmt: skip
    assert beside["train"] == found["train"]
    assert (len(beside["train_pairwise"]), len(beside["pairwise"])) == (7, 3)
    assert {c.id for c in beside["train_pairwise"]} < {c.id for c in found["train_pairwise"]}
    with pytest.raises(DataError, match=r"b\.jsonl: id 'p\d+' is in .*rows\.jsonl too"):
        load(path, n_validation=10, pairwise=tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="comparisons alone make no judge"):
        load("", n_validation=10, pairwise=tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="comparisons alone make no judge"):
        load(tmp_path / "b.jsonl", n_validation=10)


def test_comparisons_of_a_carved_instruction_are_not_trained_on(tmp_path):
    pair = OURS | {"response_a": "Hi", "response_b": "Yo", "preference": "tie", "split_hint": "train"}
    pairs = [
        without(pair, "response", "score") | {"id": f"p{i}", "instruction": f"Greet person {i}."} for i in range(20)
    ]
    found = load_splits(write(tmp_path / "rows.jsonl", many(60, split_hint="train") + pairs), n_validation=6)
    carved = {e.instruction for e in found["validation"]}
    assert len(carved) == 2
    assert {c.instruction for c in found["pairwise"]} == carved
    assert len(found["train_pairwise"]) == 18


def test_no_training_rows_is_said(tmp_path):
    path = write(tmp_path / "rows.jsonl", many(5, split_hint="test"))
    with pytest.raises(DataError, match="no training rows; `split_hint` of at least some rows must be train"):
        load_splits(path, n_validation=2)


def test_baselines_by_hand():
    half = Rubric(criterion="Complete?", levels={0: "no", 1: "yes"}, step=0.25)
    four = Rubric(criterion="Complete?", levels={0: "no", 4: "yes"}, step=1)

    def row(i, instruction, score, rubric=half, response="nothing", reference="red green blue black"):
        return Example(
            id=str(i),
            instruction=instruction,
            response=response,
            score=score,
            rubric=rubric,
            reference_answer=reference,
        )

    train = [row(0, "A", 1), row(1, "A", 0.5), row(2, "B", 4, four), row(3, "C", 0, four)]
    test = [
        row(4, "A", 0, response="Red, and BLUE!"),
        row(5, "B", 0, four, response="red green black white"),
        row(6, "new", 0, four, response="green"),
        row(7, "new", 0, reference=None),
    ]
    found = dict(data.baselines(train, test))
    assert found["question_mean"] == [
        0.75,
        4,
        2,
        0.5,
    ]  # new: the mean of all, (1 + .5 + 1 + 0) / 4, nearest: 2.5 of 4 -> 2
    assert found["word_overlap"] == [0.5, 3, 1, 0]
    assert all(v in e.rubric.scale for values in found.values() for v, e in zip(values, test, strict=True))


def test_describe_scale():
    rows = [Example(**OURS), Example(**OURS)]
    rows += [Example(**OURS | {"score": 1.0, "rubric": Rubric(criterion="c", levels={0: "a", 2: "b"}, step=0.25)})]
    assert data.describe_scale(rows) == "1, 2, 3 (2 rows); 0 .. 2 by 0.25 (1 rows)"


def real(name) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not there; set SRLIB_DATA to the folder that holds it")
    return REAL / name


def test_saf_is_read_whole():
    found, failures = read_any(real("saf_v2_en.jsonl.gz"))
    assert failures == []
    assert len(found) == 2981
    found_splits = load_splits(real("saf_v2_en.jsonl.gz"), n_validation=200)
    assert (len(found_splits["test"]), len(found_splits["ood"])) == (375, 479)
    assert len(found_splits["train"]) + len(found_splits["validation"]) == 2127
    assert 100 <= len(found_splits["validation"]) <= 200
    assert not {e.instruction for e in found_splits["validation"]} & {e.instruction for e in found_splits["train"]}
    assert {e.rubric.scale[-1] for _, e in found} == {0.5, 1.0, 1.5, 2.0, 2.5, 3.5}
    assert not {e.instruction for e in found_splits["ood"]} & {e.instruction for e in found_splits["train"]}
    assert all(e.rationale for e in found_splits["train"])
    moved = [(e.meta["score_given"], e.score) for _, e in found if "score_given" in e.meta]
    assert len(moved) == 172  # two graders' means and others: .125, .38, .7
    assert max(abs(given - score) for given, score in moved) <= 0.125


def test_mt_bench_is_read_whole():
    found, failures = read_any(real("prometheus_mt_bench.jsonl.gz"))
    assert (len(found), failures) == (320, [])
    assert {e.rubric.scale for _, e in found} == {(1.0, 2.0, 3.0, 4.0, 5.0)}
    assert all(e.reference_answer and all(e.rubric.levels.values()) for _, e in found)


PAIRS = {"finegrained_qa_dev": 973, "hhh_alignment": 221, "vicuna80_gpt4_reviews": 319}
NO_RUBRIC = {"evalbiasbench": 80, "llmbar_processed_and_casestudy": 781, "pandalm_human": 999}


@pytest.mark.parametrize("name", PAIRS)
def test_real_pairs_are_read(name):
    rows = [found.row for found in data.read_rows(real(f"{name}.jsonl.gz"))]
    pairs = [row for row in rows if isinstance(row, Comparison)]
    failures = [row.reason for row in rows if isinstance(row, RowFailure)]
    assert len(pairs) == PAIRS[name]
    assert [re.sub(r"line \d+", "", reason) for reason in failures] == (
        [": field response_a: String should have at least 1 character; it is ''; correct it"] * (name[:6] == "vicuna")
    )
    if name == "vicuna80_gpt4_reviews":
        assert all(c.rationale for c in pairs)
        assert {c.preference for c in pairs} == {"A", "B", "tie"}
    else:
        assert {c.meta["split_hint"] for c in pairs} <= {"train", "bench"}


@pytest.mark.parametrize("name", NO_RUBRIC)
def test_real_pairs_without_a_rubric_say_so_row_by_row(name):
    rows = [found.row for found in data.read_rows(real(f"{name}.jsonl.gz"))]
    assert len(rows) == NO_RUBRIC[name]
    assert all("field rubric is missing" in row.reason and row.id for row in rows)


def test_a_real_bank_of_rubrics_has_nothing_to_judge():
    rows = [found.row for found in data.read_rows(real("biggen_bench_items.jsonl.gz"))]
    assert len(rows) == 765
    assert all("field response: " in row.reason for row in rows)


def test_every_row_of_a_mixed_file_is_an_example_or_a_named_failure():
    path = real("fixture_small.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    found, failures = read_any(path)
    assert len(found) + len(failures) == len(rows)
    pairwise = {i for i, row in enumerate(rows, start=1) if row.get("type") == "pairwise"}
    assert pairwise <= {f.line for f in failures}
    assert found
