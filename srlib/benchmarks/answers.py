"""What a judge said -> answers to a benchmark's questions -> judged items, ready to be scored.

Imports questions, scoring and store. Answers are our own judgments, or lines that any other program writes:

    {"id": "17", "order": "BA", "verdict": "A"}    B was shown first, and A is better: letters name responses, not places
    {"id": "17", "order": "A", "score": 4.0}       A alone was scored; of a list they are "1", "2", ..., right ones first
    {"id": "17", "score": null}                    the one response of an item; nothing could be read

In sets of chosen and rejected responses A is the chosen one. An item without an answer counts as one that could not be
read, under the name `missing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from srlib import files as store
from srlib.benchmarks.questions import Question, Source
from srlib.benchmarks.scoring import Answer, Judged
from srlib.schema import OTHER_WAY, PREFERENCES, Judgment, Row


class Said(Row):
    """One answer of any judge, as another program writes it."""

    id: str
    order: str = ""
    verdict: str | None = None
    score: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_answer(cls, values: Any) -> Any:
        if isinstance(values, dict) and ("verdict" in values) == ("score" in values):
            raise ValueError("an answer has either a verdict or a score, null where it could not be read")
        if isinstance(values, dict) and type(values.get("id")) is int:
            return values | {"id": str(values["id"])}
        return values


# item -> what was shown -> (answer, or None and the name of the failure)
Answers = Mapping[str, Mapping[str, tuple[Answer | None, str]]]


def of_judgments(source: Source, judgments: Iterable[Judgment]) -> Answers:
    """Our own judgments as answers: the score of a single response, the expected score of one of several, a preference.

    Raises store.RowError on a judgment of nothing that the benchmark asks, and on a second one of the same."""
    places = {item.id: (q, shown) for q in source.questions for shown, item in q.asked.items()}
    found: dict[str, dict[str, tuple[Answer | None, str]]] = {}
    for j in judgments:
        if j.example_id not in places:
            raise store.RowError(f"judgment of {store.shorten(j.example_id)}: the benchmark has no such item")
        question, shown = places[j.example_id]
        if shown in found.get(question.id, {}):
            raise store.RowError(f"judgment of {store.shorten(j.example_id)} is there twice; keep one of the draws")
        answer: Answer | None = j.expected_score if shown else j.score
        if j.preference is not None:
            answer = OTHER_WAY[j.preference] if shown == "BA" else j.preference
        found.setdefault(question.id, {})[shown] = (answer, j.failure or "")
    return found


def read(source: Source, path: str | Path) -> Answers:
    """Answers from a file: of ours (lines with `example_id`), or of any program (`Said`). Raises store.RowError on an id
    that the benchmark does not have, an answer that its item cannot get, and one that is there twice."""
    questions = {q.id: q for q in source.questions}
    found: dict[str, dict[str, tuple[Answer | None, str]]] = {}
    own: list[Judgment] = []
    for number, line in store.read_lines(path):
        where = f"{path}, line {number}"
        values = store.parse_json(where, line)
        if isinstance(values, dict) and "example_id" in values:
            own.append(store.validate(where, values, Judgment))
            continue
        said = store.validate(where, values, Said)
        if said.id not in questions:
            raise store.RowError(
                f"{where}: id {store.shorten(said.id)} is of no item of the benchmark; ids are those of its rows"
            )
        _check(said, questions[said.id], where)
        given = found.setdefault(said.id, {})
        if said.order in given:
            raise store.RowError(f"{where}: id {store.shorten(said.id)}, order '{said.order}' is there twice; keep one")
        answer = said.score if "score" in said.model_fields_set else said.verdict
        given[said.order] = (answer, "unreadable" if answer is None else "")
    if own and found:
        raise store.RowError(f"{path}: holds judgments in two forms; give one file of either")
    return of_judgments(source, own) if own else found


def _check(said: Said, question: Question, where: str) -> None:
    scored = "score" in said.model_fields_set
    if question.responses == ("A", "B"):
        orders, verdicts = ("A", "B") if scored else ("", "AB", "BA"), PREFERENCES
    elif question.responses == ("",):
        orders, verdicts = ("",) if scored else (), ()
    else:
        orders, verdicts = question.responses if scored else ("",), question.responses
    kind = "score" if scored else "verdict"
    if said.order not in orders:
        known = ", ".join(f"'{order}'" for order in orders[:4]) or "a score"
        raise store.RowError(f"{where}: a {kind} with order {store.shorten(said.order)}; this item takes {known}")
    if said.verdict is not None and said.verdict not in verdicts:
        raise store.RowError(f"{where}: verdict {store.shorten(said.verdict)} is not one of {', '.join(verdicts[:4])}")
    item = question.asked.get("")
    if said.score is not None and item is not None and not min(item.verdicts) <= said.score <= max(item.verdicts):
        span = f"{min(item.verdicts):g} to {max(item.verdicts):g}"
        raise store.RowError(f"{where}: score {said.score:g} is outside of the item's scale, {span}")


def judged(source: Source, answers: Answers, part: str = "") -> list[Judged]:
    """Every item that has a gold score in this part, with what was said; what was not is a failure with a name."""
    both = any({"AB", "BA"} <= given.keys() for given in answers.values())
    rows = []
    for q in source.questions:
        if part not in q.gold:
            continue
        given = answers.get(q.id, {})
        wanted = set(q.responses) if given.keys() & set(q.responses) else {"AB", "BA"} if both and given else set(given)
        if not given.keys() <= wanted:
            raise store.RowError(f"item {q.id} has both scores and verdicts; keep one kind")
        failed = {shown: name for shown, (answer, name) in given.items() if answer is None}
        failed |= dict.fromkeys(sorted(wanted - given.keys()), "missing")
        if not given:  # where both orders are asked, both failed: a rule that needs two has to see two
            name = "missing" if q.asked else "empty_response"
            failed = dict.fromkeys(("AB", "BA") if both and set(q.responses) == {"A", "B"} else ("",), name)
        said = {shown: answer for shown, (answer, _) in given.items() if answer is not None}
        rows.append(Judged(q.id, q.gold[part], said, failed, q.subset, q.group))
    return rows
