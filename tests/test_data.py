"""Files -> examples and comparisons in splits: every layout, every bad row by place and field, and nothing lost."""

import json
import os
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import judged
import pytest

from srlib import data, files, prompts, sft
from srlib.data import columns
from srlib.data.splits import hinted
from srlib.files import RowError
from srlib.schema import Comparison, Example, Rubric

OURS = {
    "id": "a", "instruction": "Greet me.", "response": "Hello", "score": 3,
    "rubric": {"criterion": "Polite?", "levels": {"1": "rude", "2": "cool", "3": "kind"}},
}  # fmt: skip
TEXT = OURS | {"id": "f", "score": 2, "rubric": "[Polite?]\nScore 1: rude\nor worse\nScore 2: cool\n\nScore 3: kind\n"}
RANGE = OURS | {"id": "r", "rubric": "[Complete?]\nAward points.", "score_min": 0, "score_max": 2.5, "score": 1.25}
PAIR = {k: v for k, v in OURS.items() if k not in ("response", "score")}
PAIR |= {"id": "p", "response_a": "Hi", "response_b": "Yo", "preference": "A"}
[FEEDBACK], [PREFERENCE] = judged.feedback(1), judged.preference(1)
COUNTS = {"rows": 0, "bad rows": 0, "over a limit": 0, "left out for balance": 0}
COUNTS |= {"moved to test": 0, "moved to validation": 0}
CASES = Path(__file__).parents[2] / "shared" / "cases"
REAL = Path(os.environ.get("SRLIB_DATA") or Path(__file__).parents[2] / "shared" / "data")


def write(path, rows) -> Path:
    """Rows that are dicts become JSON; bytes stand as they are."""
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def convert(row, **options):
    return columns.convert(row, "row 3", 3, source="set", **options)


def many(n, **changes):
    """`n` rows, three to each instruction."""
    return [OURS | {"id": f"{changes}{i}", "instruction": f"Greet person {i // 3}."} | changes for i in range(n)]


def sizes(splits):
    return {name: len(rows) for name, rows in splits.items() if rows}


def test_rows_of_the_collections():
    own = {name: FEEDBACK[f"orig_{name}"] for name in ("instruction", "response", "reference_answer")}
    own |= {"rationale": FEEDBACK["orig_feedback"], "meta": {"source": "set"}}
    rubric = Rubric(criterion="Is it complete (0)?", levels=[f"{s} of five things, 0" for s in range(1, 6)])
    assert convert(FEEDBACK) == Example(id="row-3", rubric=rubric, score=1, **own)
    assert convert(FEEDBACK | {"id": 7, "split_hint": "dev"}, split="train").meta["split_hint"] == "dev"
    c = convert(PREFERENCE)
    assert (c.response_a, c.response_b) == (PREFERENCE["orig_response_A"], PREFERENCE["orig_response_B"])
    assert (c.id, c.preference, c.meta) == ("pair-3", "B", {"source": "set"})
    assert c.rubric.scale == (1, 2, 3, 4, 5)  # the collection describes no scores; a pointwise judge needs some
    levels = {f"orig_score{s}_description": f"{s} things" for s in range(1, 6)}
    assert convert(PREFERENCE | levels | {"orig_preference": " Tie "}).rubric.levels[3] == "3 things"
    whole = {"instruction": "###The instruction to evaluate:\n...", "output": "Good. [RESULT] 1", "input": ""}
    assert convert(FEEDBACK | whole) == convert(FEEDBACK), "the prompt as a whole, which the hub has beside the fields"


def test_our_own_rows_with_rubrics_as_objects_text_and_ranges():
    meta = {"x": 1, "source": "set"}
    assert convert(OURS | {"meta": {"x": 1}}) == Example(**OURS, meta=meta)
    assert convert(PAIR | {"meta": json.dumps({"x": 1})}) == Comparison(**PAIR, meta=meta)
    assert convert(TEXT).rubric == Rubric(criterion="Polite?", levels=["rude or worse", "cool", "kind"])
    assert convert(OURS | {"rubric": json.dumps(OURS["rubric"])}).rubric is convert(OURS).rubric  # one object
    assert convert(RANGE).rubric.scale == tuple(i / 4 for i in range(11))
    assert convert(RANGE).rubric.criterion == "Complete?\nAward points."
    for text in ("Does it cite, as in [1]", "[A] and [B]", "[A] is good\n[B]\nis better"):
        assert convert(RANGE | {"rubric": text}).rubric.criterion == text
    assert convert(RANGE | {"rubric": "[Is it [really] so?]\nAward"}).rubric.criterion == "Is it [really] so?\nAward"
    moved = [convert(RANGE | {"score": s}) for s in (0.7, 0.125, 0.375, 0.625, 2.5)]
    assert [e.score for e in moved] == [0.75, 0.25, 0.5, 0.75, 2.5]  # the middle moves up
    assert [e.meta.get("score_given") for e in moved] == [0.7, 0.125, 0.375, 0.625, None]  # never in silence
    assert convert(RANGE | {"score": 0.7}, score_step=0.5).score == 0.5
    assert [convert(RANGE | {"score": s}).score for s in (" 2,25 ", ".5", "1.")] == [2.25, 0.5, 1]
    hinted = convert(OURS | {"split_hint": "test", "group": 7, "meta": {"split_hint": None, "note": None}})
    assert (hinted.meta["split_hint"], hinted.meta["note"], hinted.group) == ("test", None, "7")
    graded = {"instruction": "Greet.", "output": "Hi [RESULT] x", "score": 1, "rubric": OURS["rubric"]}
    assert convert(graded | {"response": "Hi"}).score == 1


BAD = {
    "score in words": (FEEDBACK | {"orig_score": "four"}, "field orig_score: 'four' is not a number"),
    "thousands": (RANGE | {"score": "1,000"}, "field score: '1,000' is not a number"),
    "off the scale": (FEEDBACK | {"orig_score": "6"}, "score 6 is not on the rubric's scale (1, 2, 3, 4, 5)"),
    "huge score": (FEEDBACK | {"orig_score": 10**400}, "field orig_score"),
    "no level": (FEEDBACK | {"orig_score3_description": None}, "field orig_criteria.levels.3"),
    "whole prompt": ({"instruction": "###Score Rubrics: ...", "output": "Good. [RESULT] 1"}, "field rubric is missing"),
    "preference": (PREFERENCE | {"orig_preference": "C"}, "field orig_preference: Input should be 'A', 'B' or 'tie'"),
    "no response B": (PREFERENCE | {"orig_response_B": ""}, "field orig_response_B is missing"),
    "malformed JSON": (b'{"id": "x", ', "malformed JSON"),
    "no columns": (b"{}", "field instruction, response, rubric are missing. The columns are none"),
    "blank response": (OURS | {"id": "x", "response": "  \n "}, "field response: is empty"),
    "same id": (PAIR | {"id": "good"}, "id 'good' is already in line 1"),  # of an example: judgments go by id
    "one level": (OURS | {"rubric": {"criterion": "P?", "levels": {"1": "a"}}}, "field rubric: a rubric needs"),
    "level twice": (TEXT | {"rubric": f"{TEXT['rubric']}[B?]\nScore 1: a"}, "field rubric describes a score twice"),
    "huge level": (TEXT | {"rubric": f"[P?]\nScore {'9' * 400}: a\nScore 1: b"}, "rubric.levels"),
    "no levels": (TEXT | {"rubric": "[Polite?]"}, "no levels (`Score 1: ...`) or score_min, score_max"),
    "range of ages": (RANGE | {"score_max": 1e12}, "more than 1000 scores"),
    "NaN": (b'{"id": "x", "meta": {"weights": [1, NaN]}}', "null for NaN"),
    "meta that is text": (OURS | {"meta": "none"}, "field meta"),
    "a megabyte": (OURS | {"response": "long " * 2**18}, "field response"),
    "not UTF-8": (json.dumps(OURS).encode().replace(b"Hello", b"H\xe9llo"), "UTF-8"),
    "control characters": (OURS | {"rubric": {"criterion": "P?", "levels": {"\x1b[2J" * 500: "a"}}}, "field rubric"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_and_the_others_are_kept(tmp_path, row, message):
    path = write(tmp_path / "rows.jsonl", [OURS | {"id": "good"}, row, TEXT])
    good, failure, last = [row for _, _, row, _ in data.read_rows(path)]
    assert (good.id, last.id) == ("good", "f")
    assert failure.reason.startswith("line 2: ")
    assert message in failure.reason
    assert (len(failure.reason) < 1000, failure.reason.isprintable()) == (True, True)  # a megabyte is not shown


def test_one_bad_row_in_twenty_is_left_out_and_more_stop_the_run(tmp_path):
    for n, most in ((2, True), (3, False)):
        bad = [OURS | {"id": f"x{i}", "response": ""} for i in range(n)]
        path = write(tmp_path / "rows.jsonl", many(40 - n, split_hint="train") + bad)
        if most:
            assert data.load(path, n_validation=2, bad_rows="few").counts["bad rows"] == 2
        else:
            with pytest.raises(RowError, match=r"^3 of 40 rows cannot be used"):
                data.load(path, n_validation=2, bad_rows="few")


def test_bad_rows_are_refused_or_dropped_and_counted(tmp_path):
    bad = [OURS | {"id": "x", "response": ""}, OURS | {"score": None}, PAIR | {"preference": None}]
    bad += [OURS | {"id": "z", "split_hint": "food"}]
    path = write(tmp_path / "rows.jsonl", many(20, split_hint="train") + bad)
    with pytest.raises(RowError, match=r"(?s)^4 of 24 rows .*line 21: field response is missing.*, line 24: field"):
        data.load(path, n_validation=2)
    loaded = data.load(path, n_validation=2, bad_rows="drop")
    assert loaded.counts == COUNTS | {"rows": 24, "bad rows": 4, "moved to test": 3, "moved to validation": 2}
    reasons = [failure.reason.partition("line ")[2][:27] for failure in loaded.failures]
    assert reasons[1:] == ["22: field score is missing;", "23: field preference is mis", "24: field split_hint: 'food"]
    bad = [line for line, _, row, _ in data.read_rows(path) if isinstance(row, data.RowFailure)]
    assert bad == [21]  # a row to judge needs neither a gold verdict nor a split


@pytest.mark.parametrize("kind", judged.FORMATS)
def test_every_layout_in_every_format(tmp_path, kind):
    rows = [row | {"price": "3"} for row in judged.feedback(300)]
    rows[3] |= {"orig_score": "four"}
    path = judged.write(tmp_path / f"a.{kind}", rows)
    pairs = judged.write(tmp_path / f"b.{kind}", judged.preference(40))
    loaded = data.load(path, n_validation=20, pairwise=pairs, bad_rows="drop")
    assert loaded.counts == COUNTS | {"rows": 340, "bad rows": 1}
    place, header = "line" if kind.startswith("jsonl") else "row", kind == "csv"  # as a spreadsheet counts
    assert loaded.failures[0].reason.startswith(
        f"{path}, {place} {4 + header}: field orig_score: 'four' is not a number"
    )
    examples = [e for name in ("train", "validation", "test") for e in loaded.splits[name]]
    assert (len(examples), len(loaded.splits["train_pairwise"] + loaded.splits["pairwise"])) == (299, 40)
    for e in examples:
        row = rows[int(e.id.removeprefix("row-")) - 1 - header]
        assert [e.response, f"{e.score:g}"] == [row["orig_response"], row["orig_score"]]
    lines = {line["column"]: (line["our field"], line["rows"]) for line in loaded.columns}
    assert (lines["orig_score"], lines["orig_preference"]) == (("score", 300), ("preference", 40))
    assert (lines["orig_score2_description"][0], lines["price"][0]) == ("rubric.levels.2", "(not used)")
    rubrics = [{"criterion": "Polite?", "levels": {"0": "rude", str(top): "kind"}, "step": 1.5} for top in (3, 6)]
    ours = [OURS | {"id": str(i), "rubric": rubric, "score": 1.5} for i, rubric in enumerate(rubrics)]
    found = [row for _, _, row, _ in data.read_rows(judged.write(tmp_path / f"ours.{kind}", ours))]
    assert found == [Example(**row, meta={"source": f"ours.{kind}"}) for row in ours]


def test_hints():
    hints = ["training", "dev", "test_unseen_questions", "bench_unseen_answers", "held-out", "food", "latest", None]
    assert list(map(hinted, hints)) == ["train", "validation", "ood", "test", "test", "", "", ""]


@pytest.mark.parametrize("hint", ["train", "test"])
@pytest.mark.parametrize("hinted_first", [False, True])
def test_rows_without_a_hint_follow_those_of_their_instruction(tmp_path, hint, hinted_first):
    asked = [{"id": f"{i}", "instruction": f"Greet {i % 40}."} for i in range(80)]
    rows = [OURS | row | ({"split_hint": hint} if i < 40 else {}) for i, row in enumerate(asked)]
    pairs = [PAIR | {"id": f"p{i}", "instruction": f"Greet {i}."} for i in range(40)]
    path = write(tmp_path / "rows.jsonl", (rows if hinted_first else rows[::-1]) + many(300))
    found = data.load(path, n_validation=0, pairwise=write(tmp_path / "pairs.jsonl", pairs)).splits
    asked = {name: {row.instruction for row in of} for name, of in found.items()}
    assert {row["instruction"] for row in rows} <= asked[hint]
    assert not asked["train"] & (asked["test"] | asked["validation"] | asked["pairwise"])
    assert len(found["train_pairwise" if hint == "train" else "pairwise"]) == 40


@pytest.mark.parametrize("mixed", [False, True])
def test_no_instruction_crosses_and_comparisons_follow_the_examples(tmp_path, mixed):
    """Whether those are hinted, or placed by a group that the comparisons do not name; before or behind them in one file."""
    hints = [{"split_hint": hint} for hint in ("train", "test", "validation", "ood")] + [{}]
    texts = [{"id": f"p{i}", "instruction": f"Greet {i}."} for i in range(100)]
    rows = [OURS | texts[i] | {"id": f"{i}"} | (hints[i % 5] or {"group": f"g{i}"}) for i in range(100)]
    pairs = [PAIR | text for text in texts]
    path = write(tmp_path / "rows.jsonl", pairs + rows + many(300) if mixed else rows + many(300))
    beside = "" if mixed else write(tmp_path / "pairs.jsonl", pairs)
    found = data.load(path, n_validation=0, pairwise=beside).splits
    asked = {name: {row.instruction for row in rows} for name, rows in found.items()}
    assert not asked["train"] & (asked["validation"] | asked["test"] | asked["ood"])
    assert asked["train_pairwise"] == asked["train"] & {c["instruction"] for c in pairs}
    assert len(asked["pairwise"]) == 100 - len(asked["train_pairwise"])
    assert min(len(found[name]) for name in ("train", "validation", "test")) > 30
    few = data.load(path, n_validation=0, pairwise=beside, limits={"train_pairwise": 7, "pairwise": 3}).splits
    assert (len(few["train_pairwise"]), len(few["pairwise"])) == (7, 3)


def test_refusals_of_whole_sources(tmp_path):
    pairs = write(tmp_path / "b.jsonl", [PAIR | {"id": f"{{}}{i}", "instruction": f"Greet {i}."} for i in range(20)])
    with pytest.raises(RowError, match="comparisons cannot train a judge alone"):
        data.load("", n_validation=2, pairwise=pairs)
    with pytest.raises(RowError, match=r"no training rows; .*; comparisons cannot train a judge alone"):
        data.load(pairs, n_validation=2)
    with pytest.raises(RowError, match=r"b\.jsonl: id '{}\d+' is in .*a\.jsonl too"):
        data.load(write(tmp_path / "a.jsonl", many(20)), n_validation=2, pairwise=pairs)


def test_validation_is_carved_from_train_with_its_comparisons(tmp_path):
    pairs = [PAIR | {"id": f"p{i}", "instruction": f"Greet person {i}.", "split_hint": "train"} for i in range(13)]
    path = write(tmp_path / "rows.jsonl", many(39, split_hint="train") + many(5, split_hint="test") + pairs)
    first = data.load(path, n_validation=6).splits
    assert sizes(first) == {"train": 33, "validation": 6, "test": 5, "train_pairwise": 11, "pairwise": 2}
    carved = {e.instruction for e in first["validation"]}
    assert not carved & {e.instruction for e in first["train"]}
    assert {c.instruction for c in first["pairwise"]} == carved
    assert data.load(path, n_validation=6, seed=1).splits["validation"] != first["validation"]
    assert len(data.load(path, n_validation=1000).splits["validation"]) == 6  # a fifth at most: two instructions
    two = [OURS | {"id": str(i), "instruction": f"Greet {i % 2}.", "split_hint": "train"} for i in range(40)]
    found = data.load(write(tmp_path / "two.jsonl", [*two, *many(3, split_hint="test")]), n_validation=5).splits
    assert sizes(found) == {"train": 35, "validation": 5, "test": 3}  # each instruction is larger


def test_a_limit_is_a_sample_by_seed_and_id_in_the_order_of_the_file(tmp_path):
    rows, limits = many(3000), {"train": 50, "validation": 5, "test": 3}
    (tmp_path / "turned").mkdir()
    path, turned = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "turned" / "rows.jsonl", rows[::-1])
    one = data.load(path, n_validation=5, limits=limits)
    assert sizes(one.splits) == limits
    assert one.counts["over a limit"] == 3000 - sum(limits.values())
    order = [int(e.id[2:]) for e in one.splits["train"]]
    assert order == sorted(order)
    assert data.load(path, n_validation=5, limits=limits, seed=1).splits["train"] != one.splits["train"]
    assert data.load(turned, n_validation=5, limits=limits).splits["train"] == one.splits["train"][::-1]
    first = [{k: v for k, v in row.items() if k not in ("response", "score")} for row in many(6000)]
    first = [
        row | {"id": f"c{i}", "response_a": "Hi", "response_b": "Yo", "preference": "A"} for i, row in enumerate(first)
    ]
    mixed, room = [*first, *many(6000, split_hint="train")], {"train_pairwise": 5500, "pairwise": 10, "test": 3}
    before, after = (data.load(write(path, order), n_validation=5, limits=room) for order in (mixed, mixed[::-1]))
    assert sizes(before.splits)["train_pairwise"] == 5500, "comparisons before their examples are no fewer"
    for name in ("train_pairwise", "pairwise"):
        assert {c.id for c in before.splits[name]} == {c.id for c in after.splits[name]}, name
    hinted = data.load(write(path, many(300, split_hint="train")), n_validation=20, limits={"train": 100}).splits
    assert len(hinted["train"]) == 100  # though validation rows come out of train
    assert 15 <= len(hinted["validation"]) <= 20


def class_sizes(rows):
    return Counter((row.meta["source"], row.score) for row in rows)


def test_classes_are_balanced_within_source_and_scale(tmp_path):
    wide = {"criterion": "Polite?", "levels": {"0": "rude", "1": "kind"}}
    rows = [
        OURS | {"id": f"a{i}", "instruction": f"Greet {i}.", "score": 1 + (i % 6 > 0) + (i % 6 > 2), "source": "a"}
        for i in range(60)
    ]
    rows += [OURS | {"id": f"b{i}", "score": int(i % 4 > 0), "rubric": wide, "source": "b"} for i in range(40)]
    path = write(
        tmp_path / "r.jsonl",
        [row | {"split_hint": "train"} for row in rows] + many(9, split_hint="dev") + many(3, split_hint="test"),
    )
    natural = data.load(path, n_validation=0).splits["train"]
    assert class_sizes(natural) == {("a", 1): 10, ("a", 2): 20, ("a", 3): 30, ("b", 0): 10, ("b", 1): 30}
    few = data.load(path, n_validation=0, balance_classes=True, limits={"train": 25})
    assert set(class_sizes(few.splits["train"]).values()) == {5}
    assert len(few.splits["train"]) == 25
    assert few.counts == COUNTS | {"rows": 112, "over a limit": 25, "left out for balance": 50}
    assert len(few.splits["validation"]) == 9  # only training is evened out


def test_baselines_by_hand():
    half = Rubric(criterion="Complete?", levels={0: "no", 1: "yes"}, step=0.25)
    four = Rubric(criterion="Complete?", levels={0: "no", 4: "yes"}, step=1)

    def row(instruction, score, rubric=half, response="nothing", reference="red green blue black"):
        values = dict(instruction=instruction, response=response, score=score, rubric=rubric)
        return Example(id="x", reference_answer=reference, **values)

    train = [row("A", 1), row("A", 0.5), row("B", 4, four), row("C", 0, four)]
    test = [row("A", 0, response="Red, and BLUE!"), row("B", 0, four, response="red green black white")]
    test += [row("new", 0, four, response="green"), row("new", 0, reference=None)]
    found = dict(data.baselines(train, test))
    assert found["question_mean"] == [0.75, 4, 2, 0.5]  # new: the mean of all, (1 + .5 + 1 + 0) / 4, of 4: 2.5 -> 2
    assert found["word_overlap"] == [0.5, 3, 1, 0]


GRADED = {"Question": "Where?", "Answer": "Here", "Grade": "2 ", "Comment": "Vague."}
POLITE = {"criterion": "Polite?", "levels": {"1": "rude", "2": "cool", "3": "kind"}}


def read(path, rows, **options):
    return [row for _, _, row, _ in data.read_rows(write(path, rows), **options)]


def reasons(path, rows, **options):
    return [row.reason for row in read(path, rows, **options)]


@pytest.fixture
def rubric(tmp_path):
    path = tmp_path / "rubric.yaml"
    path.write_text("criterion: Polite?\nlevels:\n  1: no\n  2: cool\n  3: yes\n")
    return path


def test_columns_are_found_by_synonyms_and_by_hand(tmp_path, rubric):
    path = tmp_path / "a.jsonl"
    [e] = read(path, [GRADED | {"Reference answer": "Left", "ID": 7, "Split Hint": "dev"}], rubric=rubric)
    assert (e.id, e.instruction, e.response, e.score, e.rationale) == ("7", "Where?", "Here", 2, "Vague.")
    assert (e.reference_answer, e.meta["split_hint"], e.rubric.levels) == (
        "Left",
        "dev",
        {1: "no", 2: "cool", 3: "yes"},
    )
    row = {"Frage": "Where?", "OUTPUT": "Here", "Note": "2", "Criterion": "Polite?", "score_min": 1, "Max score": 3}
    by_hand = ["instruction:Frage", "score:Note"]
    [e] = read(path, [row], columns=by_hand)
    assert (e.instruction, e.response, e.score, e.rubric.scale) == (
        "Where?",
        "Here",
        2,
        tuple(i / 4 for i in range(4, 13)),
    )
    row = {
        "query": "Where?",
        "completion": "Here",
        "rating": 1,
        "criteria": "Polite?",
        "Level 1": "rude",
        "level_2": "kind",
    }
    assert read(path, [row])[0].rubric == Rubric(criterion="Polite?", levels=["rude", "kind"])
    [c] = read(path, [{"Question": "Where?", "Answer A": "Here", "Answer B": "There", "Winner": "b"}], rubric=rubric)
    assert (c.response_a, c.response_b, c.preference) == ("Here", "There", "B")
    own = OURS | {"label": 1, "output": "No", "prompt": "No", "feedback": "No", "gold": "No"}
    assert read(path, [own])[0] == Example(**OURS, reference_answer="No", rationale="No", meta={"source": "a.jsonl"})
    assert read(path, [OURS | {"gold": "4"}], columns=["reference_answer:gold"])[0].reference_answer == "4"
    assert read(path, [OURS | {"input": ""}])[0].instruction == "Greet me."
    [e] = read(path, [FEEDBACK | {"answer": "No", "Grade": 5}])
    assert (e.response, e.score) == (FEEDBACK["orig_response"], 1)


ASKED = {
    "two answers": (GRADED | {"Output": "x"}, "columns 'Answer', 'Output' all fit response.*columns response:Answer"),
    "Alpaca": (OURS | {"input": "Say why."}, "columns 'instruction', 'input' all fit instruction"),
    "gold": (
        OURS | {"gold": "4"},
        "field gold is '4': name its field in `columns`: score:gold, or reference_answer:gold",
    ),
    "gold tie": (PAIR | {"gold": " tie "}, "field gold is ' tie '"),
    "messages": (
        GRADED | {"Question": [{"role": "user", "content": "Hi"}]},
        "field Question: a list .of chat messages",
    ),
    "a character in meta": (OURS | {"meta": {"x": "\ud83d"}}, "field meta: 'utf-8' codec can't encode"),
    "surrogate": (OURS | {"source": "cut \ud83d"}, "field source: 'utf-8' codec"),
    "surrogate in a rubric": (OURS | {"rubric": "P \ud83d\nScore 1: a\nScore 2: b"}, "field rubric"),
    "surrogate in an id": (OURS | {"id": "\ud83d"}, "field id: 'utf-8' codec"),
}


@pytest.mark.parametrize(("row", "message"), ASKED.values(), ids=ASKED)
def test_what_is_in_doubt_is_asked(tmp_path, rubric, row, message):
    (tmp_path / "a.json").write_text(json.dumps([row]))
    [reason] = [row.reason for _, _, row, _ in data.read_rows(tmp_path / "a.json", rubric=rubric)]
    assert re.search(f"row 1: .*{message}", reason)
    reason.encode()


def test_missing_columns_are_asked_for_in_one_message(tmp_path, rubric):
    rows = [{"Nr": str(i), "Questions": f"Where {i}?", "Text": "Here", "Grades": "2"} for i in range(30)]
    path = judged.write(tmp_path / "a.csv", rows)
    asked = r"(?s)^30 of 30 rows.* row 2, row 3, .*, row 21: field instruction, response, rubric, score are missing\. "
    asked += r"The columns are 'Nr', 'Questions', 'Text', 'Grades'; name columns: "
    asked += r"-p columns=instruction:Questions,response:COLUMN,score:Grades; -p rubric=FILE gives .*\n  and 10 more$"
    with pytest.raises(RowError, match=asked):
        data.load(path, n_validation=2, bad_rows="drop")
    named = ["instruction:Questions", "response:Text", "score:Grades"]
    blank = judged.write(tmp_path / "blank.csv", [row | {"Ref": ""} for row in rows])
    assert (
        data.load(blank, n_validation=2, columns=[*named, "reference_answer:Ref"], rubric=rubric).counts["rows"] == 30
    )
    loaded = data.load(path, n_validation=2, columns=named, rubric=rubric)
    assert {line["column"]: line["our field"] for line in loaded.columns} == {
        "Nr": "(not used)", "Questions": "instruction", "Text": "response", "Grades": "score", "(rubric file)": "rubric",
    }  # fmt: skip
    spaced = judged.write(tmp_path / "b.csv", [{"User Questions": "Where?", "Text": "Here", "Grade": "2"}])
    [reason] = [row.reason for _, _, row, _ in data.read_rows(spaced)]
    assert "--columns 'instruction:User Questions,response:COLUMN'" in reason, "as a shell reads it"
    preferred = write(tmp_path / "c.jsonl", [{"prompt": "Where?", "chosen": "Here", "rejected": "There"}])
    [reason] = [row.reason for _, _, row, _ in data.read_rows(preferred)]
    assert "write these pairs as response_a, response_b and preference (A or B)" in reason
    for by_hand, message in [
        (["instruction:Question"], "no row has the column 'Question' that `columns` names, but 'Questions'"),
        (["instruktion:Questions"], "columns: 'instruktion:Questions' is not FIELD:COLUMN"),
        (["score:Nr", "score:Grades"], "columns: 'score:Grades' is not FIELD:COLUMN, once"),
        (["score"], "columns: 'score' is not FIELD:COLUMN"),
    ]:
        with pytest.raises(RowError, match=message):
            data.load(path, n_validation=2, columns=by_hand)
        with pytest.raises(RowError, match=message):
            list(data.read_rows(path, columns=by_hand))


def test_a_rubric_file_is_for_rows_without_their_own(tmp_path, rubric):
    path = tmp_path / "a.jsonl"
    assert [e.rubric.criterion for e in read(path, [GRADED, OURS], rubric=rubric)] == ["Polite?", "Polite?"]
    assert [e.rubric.levels[1] for e in read(path, [GRADED, OURS], rubric=rubric)] == ["no", "rude"]
    (tmp_path / "r.json").write_text(json.dumps(POLITE | {"step": 0.5}))
    assert read(path, [GRADED], rubric=tmp_path / "r.json")[0].rubric == Rubric(**POLITE, step=0.5)
    for text, message in [
        ("criterion: a\nlevels: {1: a, 2: b, 1: c}", "two of 1, 2, 1 are equal"),
        ("criterion: a\nlevels: {1: a}", "at least two levels"),
        ("criterion: a\nlevels: {one: a, two: b}", "levels.one"),
        ("criterion: a\nlevels: {1: a, 2: b}\nsteps: 1", "unknown field 'steps'; remove it$"), ("levels: {1: a, 2: b}", "field criterion is missing"),
        ("Polite?", "has no `criterion"), ("", "has no `criterion"), ("a: [", "cannot be read"), ("[a]: b", "cannot be read"),
        ("x: {criterion: a, levels: [b]}", ", x: a rubric needs"),
    ]:  # fmt: skip
        rubric.write_text(text)
        with pytest.raises(RowError, match=f"^rubric .*rubric.yaml.*{message}"):
            read(path, [GRADED], rubric=rubric)
    with pytest.raises(RowError, match=r"none\.yaml: cannot be read"):
        read(path, [GRADED], rubric=tmp_path / "none.yaml")


def test_scores_of_several_dimensions_become_a_row_each(tmp_path):
    path, file = tmp_path / "a.jsonl", tmp_path / "r.yaml"
    clear = {"criterion": "Clear?", "levels": {"0": "no", "1": "yes"}}
    rows = [{"id": i, "question": f"Where {i // 2}?", "answer": "Here"} for i in range(60)]
    nested = [
        row | {"scores": {"polite": 1 + i % 3, "clear": i % 2}, "rationale": {"clear": "So."}}
        for i, row in enumerate(rows)
    ]
    file.write_text(
        "polite: {criterion: Polite, levels: {1: rude, 2: cool, 3: kind}}\nclear: {criterion: Clear, levels: {0: no, 1: yes}}"
    )
    [reason] = reasons(path, nested[:1])
    assert "field scores: no rubric for 'polite', 'clear'; give each dimension its own" in reason
    wide = [row | {"polite": 1 + i % 3, "clear": i % 2} for i, row in enumerate(rows)]
    for form in ([row | {"rubrics": {"polite": POLITE, "clear": clear}} for row in nested], nested, wide):
        loaded = data.load(write(path, form), n_validation=5, rubric="" if "rubrics" in form[0] else file)
        assert loaded.counts["rows"] == 120
        found = {e.id: e for name in ("train", "validation", "test") for e in loaded.splits[name]}
        assert (found["7#polite"].score, found["7#polite"].rubric.scale) == (2, (1, 2, 3))
        assert (found["7#clear"].score, found["7#clear"].rubric.scale) == (1, (0, 1))
        assert (found["7#polite"].rationale, found["7#clear"].rationale) == (None, None if form is wide else "So.")
        for name in ("validation", "test"):
            inside = {e.cluster for e in loaded.splits[name]}
            assert not inside & {e.cluster for e in loaded.splits["train"]}
    spelled = [row | {"Polite ": 2, "CLEAR": 1} for row in rows[:1]]
    assert [(e.id, e.score) for e in read(path, spelled, rubric=file)] == [("0#polite", 2), ("0#clear", 1)]
    both = [row | {"polite": 3, "Polite": 1, "clear": 0} for row in rows[:1]]
    assert [e.score for e in read(path, both, rubric=file)] == [3, 0], "the very name comes first"
    told = [row | {"rationale": json.dumps({"clear": "So."})} for row in nested[:1]]
    assert [e.rationale for e in read(path, told, rubric=file, training=True)] == [None, "So."]
    assert [e.id for e in read(path, rows[:1], rubric=file)] == ["0#polite", "0#clear"], "every dimension is judged"
    assert "field polite is missing" in reasons(path, rows[:1], rubric=file, training=True)[0]
    pair = {name: text for name, text in PAIR.items() if name != "rubric"}
    assert "has no score of polite, clear, which the rubric file is for" in reasons(path, [pair], rubric=file)[0]
    assert len(read(path, [PAIR], rubric=file)) == 1, "a row may have a rubric of its own"
    assert len(reasons(path, [b"{no json"], rubric=file)) == 1, "a line is one bad row, whatever the rubric file holds"
    part = [nested[0] | {"scores": {"polite": 4, "clear": None}}]
    assert [getattr(row, "id", None) for row in read(path, part, rubric=file)] == ["0", "0#clear"]
    with pytest.raises(
        RowError, match=r"line 1, polite: score 4 is not on .*\n.*line 1, clear: field scores.clear is missing"
    ):
        data.load(path, n_validation=1, rubric=file)


def test_dimensions_beside_an_overall_score_or_a_row_for_each_criterion(tmp_path):
    path, file = tmp_path / "a.jsonl", tmp_path / "r.yaml"
    file.write_text("polite: {criterion: P, levels: [a, b, c]}\nclear: {criterion: C, levels: [a, b, c]}")
    row = {"question": "Where?", "answer": "Here", "score": 5}
    for form in ({"polite": 1, "clear": 3}, {"scores": {"polite": 1, "clear": 3}}):
        assert [e.score for e in read(path, [row | form], rubric=file, training=True)] == [1, 3], "not the overall one"
    assert "has no score of polite, clear" in reasons(path, [row], rubric=file, training=True)[0]
    tidy = [row | {"id": name, "Criterion": name, "score": n} for n, name in enumerate(("Polite", "clear"), start=1)]
    found = [(e.id, e.rubric.criterion, e.score) for e in read(path, tidy, rubric=file, training=True)]
    assert found == [("Polite#polite", "P", 1), ("clear#clear", "C", 2)]
    many = [
        row | {"id": i, "question": f"Where {i}?", "Criterion": c, "score": 1 + i % 3}
        for i in range(30)
        for c in ("polite", "Clear")
    ]
    loaded = data.load(write(path, many), n_validation=2, rubric=file)
    assert {line["column"]: line["our field"] for line in loaded.columns}["Criterion"] == "name of a rubric"
    people = {"meta": {"ratings": [2, 3], "rationales": ["So.", "Well."]}}
    assert read(path, [tidy[0] | people], rubric=file, training=True)[0].annotated == [(2, "So."), (3, "Well.")]
    label = {"question": "Where?", "answer": "Here", "Criterion": "clear", "label": "billing", "id": 7.0}
    assert [(e.id, e.score) for e in read(path, [label], rubric=file)] == [("7#clear", None)]
    assert (loaded.counts["rows"], loaded.counts["bad rows"]) == (60, 0)
    (single := tmp_path / "single.yaml").write_text("criterion: Q\nlevels: [a, b]")
    apart = [row | {"scores": {"x": 1}, "rubrics": {"x": POLITE}, "rubric": shown} for shown in (None, POLITE)]
    [dimension], [bad] = (
        read(path, [one], training=True, rubric=whole) for one, whole in zip(apart, (single, ""), strict=True)
    )
    assert (dimension.id, dimension.score) == ("row-1#x", 1)
    assert "score 5 is not on the rubric's scale" in bad.reason, "the row has a rubric of its own"
    [broken] = ([b"{no json"],)
    with pytest.raises(RowError, match="malformed JSON"):
        data.load(write(path, broken), n_validation=2, rubric=file)
    one = [{"question": f"Where {i}?", "answer": "Here", "Polite": 1 + i % 3, "How clear?": 2} for i in range(30)]
    with pytest.raises(RowError, match=r"r\.yaml: no row has a score of 'clear'; name its column"):
        data.load(write(path, one), n_validation=2, rubric=file)


def test_a_label_in_words_is_no_score_of_a_row_to_judge(tmp_path, rubric):
    row = {"question": "Where?", "answer": "Here", "label": "billing"}
    assert [e.score for e in read(tmp_path / "a.jsonl", [row, row | {"label": "3"}], rubric=rubric)] == [None, 3]
    for options in ({"training": True}, {"columns": ["score:label"]}):
        [reason] = reasons(tmp_path / "a.jsonl", [row], rubric=rubric, **options)
        assert "field label: 'billing' is not a number" in reason
    [reason] = reasons(tmp_path / "a.jsonl", [row | {"label": "4/5"}], rubric=rubric)
    assert "field label: '4/5' is not a number" in reason, "this was meant as one"
    for named in ("score", "Score", "SCORE "):
        [reason] = reasons(
            tmp_path / "a.jsonl", [{"question": "Where?", "answer": "Here", named: "good"}], rubric=rubric
        )
        assert "'good' is not a number" in reason


def test_comparisons_beside_examples_keep_their_own_columns(tmp_path):
    named = ["instruction:Frage", "response:Antwort", "score:Note"]
    spelled = {name.replace("response_a", "Answer A").replace("response_b", "Answer B"): v for name, v in PAIR.items()}
    for pair in (PAIR, spelled, PREFERENCE | {"orig_score1_description": None}):
        assert [type(row) for row in read(tmp_path / "p.jsonl", [pair], columns=named, training=True)] == [Comparison]
    example = {"Frage": "Where?", "Antwort": "Here", "Note": 2, "rubric": PAIR["rubric"]}
    rows = [example, {"instruction": "Where?", "response": "Here", "score": 1, "rubric": PAIR["rubric"]}]
    good, bad = read(tmp_path / "a.jsonl", rows, columns=named, training=True)
    assert (good.score, "field Frage" in bad.reason) == (2, True), "a row of the examples is read by the map alone"


def test_numbers_are_rounded_once_and_a_run_reads_its_own_rows(tmp_path):
    thirds = {"criterion": "P?", "levels": {"-0.0": "none", str(1 / 3): "one", str(2 / 3): "two", "1": "all"}}
    rows = [OURS | {"id": str(i), "rubric": thirds, "score": i / 3} for i in range(4)]
    tenths = {"criterion": "P?", "levels": {"0": "a", "1": "b"}, "step": 0.1}
    rows += [
        OURS | {"id": "s", "rubric": tenths, "score": 0.1 + 0.2},
        OURS | {"id": "t", "rubric": tenths, "score": -0.0},
    ]
    found = read(tmp_path / "a.jsonl", rows)
    assert [e.score for e in found] == [0, 0.333333, 0.666667, 1, 0.3, 0]
    assert not any("score_given" in e.meta for e in found)
    files.write_rows(tmp_path / "own.jsonl", found)
    assert files.read_rows(tmp_path / "own.jsonl", Example) == found
    assert "-0" not in (tmp_path / "own.jsonl").read_text()
    assert [prompts.parse(prompts.completion("Well.", e.score), e).verdict for e in found] == [e.score for e in found]


def test_parquet_with_numbers_of_32_bits(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    text = json.dumps({"criterion": "P?", "levels": {"50": "a", "100": "b"}, "step": 0.1})
    rows = {
        "instruction": ["Greet."] * 2,
        "response": ["Hi"] * 2,
        "rubric": [text] * 2,
        "ID": pyarrow.array([5.0, None]),
    }
    rows |= {"score": pyarrow.array([87.3, 99.9], pyarrow.float32()), "meta": [{"image": None}, {"image": b"\xff"}]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    good, bad = [row for _, _, row, _ in data.read_rows(tmp_path / "a.parquet")]
    assert (good.id, good.score, "score_given" in good.meta) == ("5", 87.3, False)
    assert bad.reason == "row 2: field meta: Object of type bytes is not JSON serializable; correct it"
    rows = {
        "instruction": ["Greet."] * 2,
        "response": ["Hi"] * 2,
        "rubric": [text] * 2,
        "score": [Decimal("87.3"), Decimal(99)],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    assert [row.score for _, _, row, _ in data.read_rows(tmp_path / "a.parquet")] == [87.3, 99]
    apart = [{"scores": {name: 1}, "rubrics": {name: text}} for name in ("polite", "clear")]
    apart = [{"instruction": "Greet.", "response": "Hi", "id": "x"} | row for row in apart]
    parquet.write_table(
        pyarrow.Table.from_pylist([row | {"scores": {k: 50.0 for k in row["scores"]}} for row in apart]),
        tmp_path / "b.parquet",
    )
    assert [row.id for _, _, row, _ in data.read_rows(tmp_path / "b.parquet")] == ["x#polite", "x#clear"]


def test_comparisons_that_follow_their_examples_to_a_carved_split_are_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", many(400, split_hint="train"))
    pairs = [PAIR | {"id": f"p{i}", "instruction": f"Greet person {i}."} for i in range(100)]
    beside = write(tmp_path / "pairs.jsonl", pairs)
    limits = {"train": 200, "validation": 40, "test": 60, "ood": 5, "train_pairwise": 0, "pairwise": 10}
    found = sizes(data.load(path, n_validation=40, pairwise=beside, limits=limits).splits)
    assert (found["pairwise"], found.get("train_pairwise", 0)) == (10, 0)


def test_a_rubric_in_text_keeps_all_its_levels():
    text = "[Is it right?]\nScore 0: wrong\n Score 0,5: half\nScore 1: right"
    made = convert({"instruction": "a", "response": "b", "rubric": text, "score": "0,5"})
    assert (made.rubric.scale, made.score) == ((0.0, 0.5, 1.0), 0.5)
    taxonomy = {"level1": "Science", "level2": "Physics"}  # which are no descriptions
    row = {"instruction": "a", "response": "b", "rubric": "[Is it kind?]\nScore 1: rude\nScore 2: fair\nScore 3: kind"}
    assert convert(row | taxonomy | {"score": 3}).rubric.levels[1] == "rude"


def test_a_blank_rationale_is_none():
    row = {"instruction": "a", "response": "b", "rubric": "[c]\nScore 1: x\nScore 2: y", "score": 1}
    assert convert(row | {"rationale": "  "}).rationale is None
    both = convert(row | {"meta": {"ratings": [1, 2], "rationales": [" ", "So good."]}})
    assert [(e.id, e.rationale) for e in sft.by_annotator([both])] == [(f"{both.id}#2", "So good.")]


def test_ratings_of_the_whole_response_are_not_those_of_a_dimension(tmp_path):
    rubrics = {"x": {"criterion": "c", "levels": ["a", "b"]}, "y": {"criterion": "d", "levels": ["a", "b"]}}
    meta = {"ratings": [2, 2, 1], "rationales": ["p", "q", "r"], "source": "s"}
    row = {"instruction": "i", "response": "r", "scores": {"x": 1, "y": 2}, "rubrics": rubrics, "meta": meta}
    made = read(tmp_path / "a.jsonl", [row])
    assert [(e.score, e.annotated, e.meta["source"]) for e in made] == [(1, [], "s"), (2, [], "s")]


def test_every_annotator_is_learned_from_or_refused():
    row = {"instruction": "a", "response": "b", "rubric": "[c]\nScore 1: x\nScore 2: y", "score": 1}
    alone, some = (
        {"ratings": [1], "rationales": ["Curt."]},
        {"ratings": [2, None, 1], "rationales": ["So.", None, None]},
    )
    assert [(e.id, e.rationale) for e in sft.by_annotator([convert(row | {"meta": alone})])] == [("row-3#1", "Curt.")]
    both = convert(row | {"meta": some}, training=True)
    assert (both.ratings, both.annotated, both.rationale) == ([2, 1], [(2, "So."), (1, None)], "So.")
    for ratings in (["1", "2", "1"], [1, 2], [1, 3, 1], [None] * 3, None):
        with pytest.raises(
            RowError, match="field meta: `rationales`, texts or null, need a rating beside each text in"
        ):
            convert(row | {"meta": some | {"ratings": ratings}}, training=True)


def test_comparisons_keep_the_split_that_they_name(tmp_path):
    text = {"rubric": "[c]\nScore 1: x\nScore 2: y"}
    examples = [{"instruction": f"prompt {i % 3}", "response": f"r {i}", "score": 1 + i % 2} | text for i in range(60)]
    pair = {"response_a": "a", "response_b": "b", "preference": "A"} | text
    pairs = [pair | {"instruction": f"prompt {i % 3}", "split_hint": ("test", "train")[i % 2]} for i in range(20)]
    pairs += [pair | {"instruction": f"another {i}"} for i in range(100)]
    loaded = data.load(
        write(tmp_path / "a.jsonl", examples), pairwise=write(tmp_path / "b.jsonl", pairs), n_validation=5
    )
    trained = loaded.splits["train_pairwise"]
    assert not [row for row in trained if row.meta.get("split_hint") == "test"]
    assert len([row for row in trained if row.instruction.startswith("another")]) > 50


def test_a_carved_test_split_keeps_its_limit(tmp_path):
    text = {"rubric": "[c]\nScore 1: x\nScore 2: y"}
    rows = [{"instruction": f"prompt {i % 2}", "response": f"r {i}", "score": 1 + i % 3 // 2} | text for i in range(80)]
    loaded = data.load(write(tmp_path / "a.jsonl", rows), n_validation=5, limits={"test": 7, "train": 100})
    assert len(loaded.splits["test"]) == 7
    assert loaded.counts["over a limit"] > 0


def test_a_row_has_the_rationale_of_an_annotator_with_its_score():
    assert convert(OURS | {"orig_id": "7", "orig_score": 1}, training=True) == convert(OURS, training=True), (
        "a column of somebody's own makes no Feedback Collection"
    )
    said = {"ratings": [2, 3], "rationales": ["Somewhat cold.", "Warm enough."]}
    assert convert(OURS | {"meta": said}, training=True).rationale == "Warm enough."
    assert convert(OURS | {"meta": said | {"ratings": [1, 2]}}, training=True).rationale == "Somewhat cold.", (
        "nobody agrees"
    )
    assert convert(OURS | {"meta": said}).rationale is None, "a row to measure on"
    with pytest.raises(RowError, match=r"field meta: followed by its verdict, it reads as "):
        convert(OURS | {"meta": said | {"rationales": ["So [RESULT] 1 it is.", "Warm enough."]}}, training=True)


def test_a_test_split_is_carved_by_whole_prompts(tmp_path):
    pairs = [PAIR | {"id": f"p{i}", "instruction": f"Greet person {i}.", "split_hint": "train"} for i in range(20)]
    loaded = data.load(
        write(tmp_path / "a.jsonl", many(60, split_hint="train") + pairs), n_validation=5, limits={"test": 9}
    )
    assert sizes(loaded.splits) == {"train": 48, "validation": 3, "test": 9, "train_pairwise": 16, "pairwise": 4}
    assert loaded.counts == COUNTS | {"rows": 80, "moved to test": 9, "moved to validation": 3}
    names = ("train", "validation", "test")
    asked = [{e.instruction for e in loaded.splits[name]} for name in names]
    assert sum(map(len, asked)) == 20
    for n in range(2, 9):  # a handful of prompts: none may cross, and the hash of one may be that of a test row
        rows = [OURS | {"id": str(i), "instruction": f"{n} Greet {i % n}."} for i in range(40)]
        found = data.load(write(tmp_path / "a.jsonl", rows), n_validation=4).splits
        asked = {e.instruction for e in found["train"]}, {e.instruction for e in found["test"]}
        assert (all(asked), asked[0] & asked[1]) == (True, set())
        assert len(found["train"]) >= 16
    for hint in ({}, {"split_hint": "train"}):
        path = write(tmp_path / "one.jsonl", [OURS | {"id": str(i)} | hint for i in range(40)])
        with pytest.raises(RowError, match=r"all training rows have the same; add rows .*, or name a `group`"):
            data.load(path, n_validation=4)
    grouped = [OURS | {"id": str(i), "group": f"g{i // 4}", "split_hint": "train"} for i in range(40)]
    found = data.load(write(path, grouped), n_validation=4).splits
    assert sizes(found) == {"train": 28, "validation": 4, "test": 8}


@pytest.mark.skipif(not CASES.exists(), reason="the files are not there")
def test_inputs_that_failed():
    rubric = CASES / "rubric.yaml"
    with pytest.raises(
        RowError, match=r"(?s)^2 of 300 rows.* row 43: field Grade: 'n/a' .* row 182: field Grade is missing"
    ):
        data.load(CASES / "excel.csv", n_validation=20, rubric=rubric)
    loaded = data.load(CASES / "excel.csv", n_validation=20, rubric=rubric, bad_rows="drop")
    assert (loaded.counts["bad rows"], sum(sizes(loaded.splits).values())) == (2, 298)
    assert loaded.dialects == ["excel.csv: separator ';', encoding utf-8"]
    assert sizes(data.load(CASES / "only_train.jsonl", n_validation=5).splits) == {
        "train": 43,
        "validation": 5,
        "test": 12,
    }
    for name in ("tenths.jsonl", "float32.parquet"):
        assert [row.score for _, _, row, _ in data.read_rows(CASES / name)] == [0.3]
    for name in ("surrogate.json", "bytes_in_meta.parquet"):
        assert [row.id for _, _, row, _ in data.read_rows(CASES / name) if isinstance(row, data.RowFailure)] == ["1"]
    for name, n in {"one_object.json": 4, "integer_ids.jsonl": 60, "thirds.jsonl": 60}.items():
        assert [type(row) for _, _, row, _ in data.read_rows(CASES / name)] == [Example] * n


@pytest.mark.skipif(not REAL.exists(), reason="the files are not there; set SRLIB_DATA to their folder")
def test_real_files_are_read_or_refused_row_by_row():
    names = {"prometheus_mt_bench": (320, 0, 0), "vicuna80_gpt4_reviews": (0, 319, 1), "evalbiasbench": (0, 0, 80)}
    for name, expected in names.items():  # examples, comparisons, rows without a rubric or a response
        kinds = Counter(type(row) for _, _, row, _ in data.read_rows(REAL / f"{name}.jsonl.gz"))
        assert (kinds[Example], kinds[Comparison], kinds[data.RowFailure]) == expected
    splits = data.load(REAL / "saf_v2_en.jsonl.gz", n_validation=200).splits
    assert sizes(splits) == {"train": 1960, "validation": 167, "test": 375, "ood": 479}
    moved = [e for rows in splits.values() for e in rows if "score_given" in e.meta]
    assert len(moved) == 172  # two graders' means and others: .125, .38, .7
    assert max(abs(e.meta["score_given"] - e.score) for e in moved) <= 0.125
