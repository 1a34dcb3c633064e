"""Blind annotation without a browser: what is shown, what is kept, what is refused, and what it says of the arms."""

import json
from pathlib import Path

import pytest

from srlib import files as store
from srlib.annotate.preference import side_by_side
from srlib.annotate.session import CRITERIA, Session, file_of, read_votes, shown
from srlib.annotate import session as annotate
from srlib.schema import Example, Judgment, Rubric

THREE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def judged(name, rationale, score=3.0):
    return Judgment(example_id=name, text="", rationale=rationale, score=score)


def some_sides(n=12, b="plain", score_b=3.0):
    names = [f"e{i}" for i in range(n)]
    examples = [Example(id=x, instruction=f"Greet {x}.", response=HOSTILE, rubric=THREE) for x in names]
    a = [judged(x, f"{HOSTILE} {x} first") for x in names]
    return side_by_side(examples, a, [judged(x, f"{x} {b}", score_b) for x in names])[0]


@pytest.fixture
def session(tmp_path):
    return Session(shown(some_sides(), 10), file_of(tmp_path, "anna"))


def answer_all(session, choice):
    for number, item in enumerate(session.items):
        for criterion in CRITERIA:
            session.answer(number, criterion, choice(item) if callable(choice) else choice)


def test_the_order_depends_on_seed_and_item_alone():
    sides = some_sides(40)
    items = shown(sides, 30)
    assert shown(sides[::-1], 30) == items
    assert shown(sides, 10) == items[:10]  # more items later: the first ones stay
    assert shown(sides, 30, seed=1) != items
    heads = {item.side.example.id: item.left is item.side.a for item in shown(sides, 40)}
    assert 10 <= sum(heads.values()) <= 30  # 40 fair coins: outside of this once in 2,000
    assert all({item.left, item.right} == {item.side.a, item.side.b} for item in items if item.left != item.right)


def test_nothing_to_show_is_said():
    with pytest.raises(ValueError, match="no item has two rationales that differ"):
        shown([], 10)


@pytest.mark.parametrize("name", ["", "Anna", "../anna", "anna.jsonl", "a b", "a" * 33, "-a", "anna\n", "ännа"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be a file name"):
        file_of(tmp_path, name)


def test_the_page_names_no_arm_and_holds_the_text_as_it_is(session):
    page = session.page()
    assert {page["left"]["text"], page["right"]["text"]} == {
        session.items[0].left.rationale,
        session.items[0].right.rationale,
    }
    assert HOSTILE in json.dumps(page).replace("\\", "")
    assert [section["heading"] for section in page["sections"]] == ["Instruction", "Response", "Rubric"]
    assert (page["number"], page["total"], page["done"], page["error"]) == (0, 10, 0, "")
    assert not {"a", "b", "arm", "id", "example_id"} & set(page)


def test_every_click_is_on_disk_when_it_returns(session):
    for n, criterion in enumerate(CRITERIA, start=1):
        session.receive({"number": 0, "criterion": criterion, "choice": "left"})
        assert len(session.file.read_text().splitlines()) == n
    assert session.done == 1
    assert "first" not in session.file.read_text()


def test_the_last_answer_holds_and_a_new_session_goes_on(session):
    for choice in ("left", "tie"):
        for criterion in CRITERIA:
            session.answer(0, criterion, choice)
    session.answer(1, "specific", "right")
    again = Session(session.items, session.file)
    assert (again.number, again.done) == (1, 1)
    assert {q["choice"] for q in Session(session.items[:1], session.file).page()["questions"]} == {"tie"}
    assert [q["choice"] for q in again.page()["questions"]] == ["", "", "right", "", "", ""]


def test_a_line_that_was_being_written_when_the_process_died_is_left_out(session):
    session.answer(0, "overall", "left")
    with open(session.file, "a") as file:
        file.write('{"example_id": "e1", "crit')
    again = Session(session.items, session.file)
    assert len(again.answers) == 1
    again.answer(0, "specific", "left")
    assert len(Session(session.items, session.file).answers) == 2


@pytest.mark.parametrize(
    "message",
    [None, "x", {}, {"number": 99}, {"number": -1}, {"number": "0"}, {"number": 0, "choice": "left"},
     {"number": 0, "criterion": "looks", "choice": "left"}, {"number": 0, "criterion": "overall", "choice": "A"}],
)  # fmt: skip
def test_what_no_page_of_ours_sends_is_refused_and_not_kept(session, message):
    with pytest.raises(ValueError, match=r"run the cell again|criterion|choice"):
        session.receive(message)
    assert not session.file.exists()


def test_an_answer_that_cannot_be_written_shows_on_the_page(tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    session = Session(shown(some_sides(), 10), file_of(tmp_path / "blocked", "anna"))
    session.receive({"number": 2, "criterion": "overall", "choice": "left"})
    page = session.page()
    assert page["error"].startswith("Not saved.")
    assert page["questions"][-1]["choice"] == ""


def test_answers_become_preferences_of_the_arms(tmp_path):
    sides = some_sides()
    answer_all(
        first := Session(shown(sides, 10), file_of(tmp_path, "anna")),
        lambda i: "left" if i.left is i.side.a else "right",
    )
    answer_all(Session(shown(sides, 10), file_of(tmp_path, "ben")), "left")
    answer_all(Session(shown(sides, 10), file_of(tmp_path, "cleo")), "tie")
    votes, outdated = read_votes(tmp_path, sides)
    assert (len(votes), outdated) == (3 * 10 * len(CRITERIA), 0)
    of = {name: [v.preference for v in votes if v.annotator == name] for name in ("anna", "ben", "cleo")}
    assert set(of["anna"]) == {"A"}
    assert set(of["cleo"]) == {"tie"}
    lefts = sum(item.left is item.side.a for item in first.items)
    assert of["ben"].count("A") == lefts * len(CRITERIA)
    assert all(v.equal_score for v in votes)


def test_an_answer_about_other_texts_is_outdated_not_used(tmp_path):
    answer_all(Session(shown(some_sides(b="old"), 10), file_of(tmp_path, "anna")), "left")
    votes, outdated = read_votes(tmp_path, some_sides(b="new"))
    assert (votes, outdated) == ([], 10 * len(CRITERIA))
    again = Session(shown(some_sides(b="new"), 10), file_of(tmp_path, "anna"))
    assert (again.done, again.number) == (0, 0)
    answer_all(again, "left")
    assert read_votes(tmp_path, some_sides(b="new"))[1] == 0  # the last answer is about these texts
    assert len(read_votes(tmp_path, some_sides(b="new"))[0]) == 10 * len(CRITERIA)


def test_a_file_that_somebody_edited_badly_is_refused_with_its_line(tmp_path):
    (tmp_path / "anna.jsonl").write_text('{"example_id": "e1", "criterion": "beauty", "choice": "left"}\n')
    with pytest.raises(store.RowError, match=r"anna\.jsonl, line 1: field criterion: must be one of faithful"):
        read_votes(tmp_path, some_sides())


def test_the_widget_passes_pages_out_and_clicks_in(session):
    pytest.importorskip("anywidget")
    widget = annotate.face(session)
    assert widget.page == session.page()
    widget._handle_custom_msg({"number": 0, "criterion": "overall", "choice": "right"}, [])
    assert widget.page["questions"][-1]["choice"] == "right"
    assert session.answers == {(session.items[0].side.example.id, "overall"): "right"}


def test_the_page_writes_text_and_never_html():
    source = (Path(annotate.__file__).parent / "annotate.js").read_text()
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval("):
        assert name not in source
