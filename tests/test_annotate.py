"""Blind annotation without a browser: what is on the page, what is saved, what is refused, and what it says about the arms."""

import math
from pathlib import Path

import pytest
from annotated import HOSTILE, run_cells, write_run

from srlib import annotate, files
from srlib.annotate import as_comparison
from srlib.judge import Judge
from srlib.schema import Example, Judgment, Rubric

THREE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])


def example(name="e", **more):
    return Example(id=name, instruction=f"Greet {name}.", response=HOSTILE, rubric=THREE, **more)


def judged(rationale, score=3.0, name="e"):
    failure = "no_verdict" if score is None else None
    return Judgment(example_id=name, text=f"{rationale} [RESULT]", rationale=rationale, score=score, failure=failure)


def some_sides(n=12, b="plain"):
    names = [f"e{i}" for i in range(n)]
    a, b = ([judged(f"{text} {name}", name=name) for name in names] for text in (f"{HOSTILE} first", b))
    return annotate.side_by_side([example(name) for name in names], a, b)[0]


def answer_all(session, choose):
    for number, item in enumerate(session.items):
        for criterion in annotate.CRITERIA:
            session.receive({"number": number, "criterion": criterion, "choice": choose(item)})


@pytest.fixture
def session(tmp_path):
    return annotate.Session(annotate.blind(some_sides(), 10), tmp_path, "anna")


def test_every_item_is_compared_or_counted_under_one_reason():
    a = [judged("Short."), judged("Short."), judged(""), judged("Short."), judged("Short.", None), None]
    b = [judged("Long."), judged("Short.", 2), judged("Long."), judged("Short."), judged("Long."), judged("Long.")]
    examples = [example(f"e{i}", reference_answer="Good day.") for i in range(6)]
    sides, left_out = annotate.side_by_side(examples, a, b)
    assert [side.example.id for side in sides] == ["e0", "e1"]  # the same words for another score can be compared
    assert left_out == {"an arm has no score": 2, "an arm wrote no rationale": 1, "both arms wrote the same": 1}
    equal, left_out = annotate.side_by_side(examples, a, b, equal_score_only=True)
    assert ([side.example.id for side in equal], left_out["the scores differ"]) == (["e0"], 1)
    asked = as_comparison(sides[1])
    for part in (
        "Greet e1.",
        f"### Response\n{HOSTILE}",
        "### Reference\nGood day.",
        "[Is it polite?]",
        "Score 3: kind",
    ):
        assert part in asked.instruction
    assert (asked.response_a, asked.response_b) == ("Short. [RESULT] 3", "Short. [RESULT] 2")


def test_a_judges_preferences_in_both_orders_are_in_terms_of_the_arms():
    def preferred(prefers):
        def sampler(items, **options):
            said = [(i.id, prefers(i)) for i in items]
            return [Judgment(example_id=i, text="", preference=p, failure=None if p else "no_verdict") for i, p in said]

        return annotate.judge_preferences(Judge(sampler), some_sides(4))

    assert preferred(lambda c: "A" if len(c.response_a) > len(c.response_b) else "B") == [("A", "A")] * 4
    assert preferred(lambda c: "A") == [("A", "B")] * 4  # it prefers the first position, and no arm
    assert preferred(lambda c: None if c.id == "e1#swapped" else "tie")[:2] == [("tie", "tie"), ("tie", None)]


def test_win_rates_with_ties_split_and_excluded():
    won = annotate.win_rates(["A"] * 5 + ["tie"] * 3 + ["B"] * 2)
    assert (won.ties_split.value, won.ties_split.n, won.wins, won.ties, won.losses) == (0.65, 10, 5, 3, 2)
    assert (won.ties_excluded.value, won.ties_excluded.n) == (pytest.approx(5 / 7), 7)
    for preferences, n in (([], 0), (["tie", "tie"], 2)):
        won = annotate.win_rates(preferences)
        assert (won.ties_split.n, won.ties_excluded.n, math.isnan(won.ties_excluded.value)) == (n, 0, True)
    # ten people who say the same about each of four items know as much as one of them
    alone, together = annotate.win_rates(list("AAAB")), annotate.win_rates(list("AAAB") * 10, group=[*range(4)] * 10)
    assert together.ties_split[:3] == alone.ties_split[:3]
    assert annotate.win_rates(list("AAAB") * 10).ties_split.low > together.ties_split.low


def test_order_and_places_depend_on_seed_and_item_alone():
    sides = some_sides(40)
    items = annotate.blind(sides, 30)
    assert annotate.blind(sides[::-1], 30) == items
    assert annotate.blind(sides, 10) == items[:10]  # more items later leave the first ones in place
    assert annotate.blind(sides, 30, seed=1) != items
    left = [item.a.rationale.startswith(HOSTILE) for item in annotate.blind(sides, 40)]
    assert 10 <= sum(left) <= 30  # 40 fair coins: outside of this once in 2,000
    with pytest.raises(ValueError, match="no item has two rationales that differ"):
        annotate.blind([], 10)


@pytest.mark.parametrize("name", ["", "Anna", "../anna", "anna.jsonl", "a" * 33, "anna\n", "ännа"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be a file name"):
        annotate.Session(annotate.blind(some_sides(), 10), tmp_path, name)


def test_the_page_names_no_arm_and_holds_the_text_as_it_is(session):
    page, item = session.page, session.items[0]
    assert (page["left"]["text"], page["right"]["text"]) == (item.a.rationale, item.b.rationale)
    assert [section["heading"] for section in page["sections"]] == ["Instruction", "Response", "Rubric"]
    assert (page["sections"][1]["text"], page["total"], page["done"], page["error"]) == (HOSTILE, 10, 0, "")
    assert set(page) == {"number", "total", "done", "sections", "left", "right", "questions", "error"}
    source = (Path(annotate.__file__).parent / "annotate.js").read_text()
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval("):
        assert name not in source


def test_every_click_is_on_disk_when_it_returns_and_the_last_answer_holds(session, tmp_path):
    for n, criterion in enumerate(annotate.CRITERIA, start=1):
        session._handle_custom_msg({"number": 0, "criterion": criterion, "choice": "left"}, [])
        assert len(session.file.read_text().splitlines()) == n
    assert session.page["done"] == 1
    for criterion in annotate.CRITERIA:
        session.receive({"number": 0, "criterion": criterion, "choice": "tie"})
    session.receive({"number": 1, "criterion": "specific", "choice": "right"})
    with open(session.file, "a") as file:
        file.write('{"example_id": "e1", "crit')  # the process died here
    again = annotate.Session(session.items, tmp_path, "anna")
    assert (again.page["number"], again.unfinished) == (1, [*range(1, 10)])
    assert [question["choice"] for question in again.page["questions"]] == ["", "", "right", "", "", ""]
    again.receive({"number": 0})
    assert {question["choice"] for question in again.page["questions"]} == {"tie"}
    again.receive({"number": 1, "criterion": "overall", "choice": "left"})
    assert len(annotate.Session(session.items, tmp_path, "anna").choices) == 8


@pytest.mark.parametrize(
    "message", [None, {}, {"number": 99}, {"number": -1}, {"number": True}, {"choice": "left"}, "A"]
)
def test_messages_of_another_page_are_refused_and_not_saved(session, message):
    wrong = {"number": 0, "criterion": "overall", "choice": message}
    for sent in (message, wrong, wrong | {"criterion": "looks", "choice": "left"}):
        with pytest.raises(ValueError, match=r"run the cell again|criterion|choice"):
            session.receive(sent)
    assert not session.file.exists()


def test_an_answer_that_cannot_be_saved_shows_on_the_page(tmp_path):
    (tmp_path / "blocked").write_text("a file in the place of a folder")
    session = annotate.Session(annotate.blind(some_sides(), 10), tmp_path / "blocked", "anna")
    session.receive({"number": 2, "criterion": "overall", "choice": "left"})
    assert session.page["error"].startswith("Not saved.")
    assert session.page["questions"][-1]["choice"] == ""


def test_answers_are_preferences_of_the_arms_or_outdated(tmp_path):
    items, n = annotate.blind(some_sides(), 10), len(annotate.CRITERIA)
    choices = {"anna": lambda i: "left" if HOSTILE in i.a.rationale else "right", "ben": lambda i: "left"}
    for name, choose in (choices | {"cleo": lambda i: "tie"}).items():
        answer_all(annotate.Session(items, tmp_path, name), choose)
    votes, outdated = annotate.read_votes(tmp_path, some_sides())
    by = {name: [vote.preference for vote in votes if vote.annotator == name] for name in ("anna", "ben", "cleo")}
    assert (by["anna"], by["cleo"], outdated) == (["A"] * 10 * n, ["tie"] * 10 * n, 0)
    assert by["ben"].count("A") == sum(HOSTILE in item.a.rationale for item in items) * n
    new = some_sides(b="new")
    assert annotate.read_votes(tmp_path, new) == ([], 30 * n)
    session = annotate.Session(annotate.blind(new, 10), tmp_path, "anna")
    assert len(session.unfinished) == 10
    answer_all(session, choices["ben"])
    assert (len(annotate.read_votes(tmp_path, new)[0]), annotate.read_votes(tmp_path, new)[1]) == (10 * n, 20 * n)
    again = [vote for vote in annotate.read_votes(tmp_path, some_sides())[0] if vote.annotator == "anna"]
    assert len(again) == 10 * n, "her answers about the first texts count where these are shown again"
    (tmp_path / "anna.jsonl").write_text('{"example_id": "e1", "criterion": "beauty", "choice": "left"}\n')
    with pytest.raises(files.RowError, match=r"anna\.jsonl, line 1: field criterion"):
        annotate.read_votes(tmp_path, new)


def test_notebook_08_shows_results_to_all_but_an_annotator_who_is_not_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("srlib.run.open_run", lambda namespace, needs: tmp_path, raising=False)
    write_run(tmp_path)
    examples = files.read_rows(tmp_path / "data" / "test.jsonl", Example)
    a, b = (files.read_rows(tmp_path / "eval" / arm / "test.jsonl", Judgment) for arm in ("sre_2", "sft"))
    items = annotate.blind(annotate.side_by_side(examples, a, b)[0], 10)
    for name, ties in (("anna", [9]), ("ben", [8, 9])):
        ids = [items[i].example.id for i in ties]
        session = annotate.Session(items, tmp_path / "annotations" / "test-sre_2-sft", name)
        answer_all(session, lambda i, ids=ids: "tie" if i.example.id in ids else ("right", "left")[i.a.score == 4])
    shown = run_cells("08_annotate", n_items=10, n_boot=100)
    assert "120 answers; 0 more" in capsys.readouterr().out
    rows = {row["measure"]: row for row in shown["rows"]}
    assert (rows["people, ties half"]["value"], rows["people, ties half"]["n"]) == (0.925, 20)  # (17 + 3 / 2) / 20
    # one of ten pairs of preferences differs; by chance 17 * 3 of 20 * 19 / 2 would
    assert rows["Krippendorff's alpha"]["value"] == pytest.approx(1 - (1 / 10) / (17 * 3 / 190))
    assert math.isnan(rows["judge, ties half"]["value"])
    hidden = run_cells("08_annotate", n_items=10, n_boot=100, annotator="cleo")
    assert "cleo: 10 of 10 items are left" in capsys.readouterr().out
    assert all(math.isnan(row["value"]) for row in hidden["rows"])
