"""People compare two arms' rationales: blind, side by side, six questions an item, every click on disk at once.

Which arm stands left is decided by a hash of the item, and neither the page nor the answers name an arm: an answer holds
hashes of the two texts that were shown. So an answer can be read as a preference only beside the run's judgments, and one
that was given about other texts is counted as outdated, not used. One append-only file for each annotator; the last answer
to a question holds.

    session = Session(shown(sides, n_items=40, seed=0), file_of(folder, "anna"))
    face(session)                                    # the widget of notebook 07; everything else here needs no browser
    votes, outdated = read_votes(folder, sides)      # of all annotators, in terms of the arms: A is the first
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import field_validator

from srlib import files as store
from srlib.annotate.preference import SideBySide
from srlib.schema import Judgment, Preference, Row, format_score

CRITERIA = {
    "faithful": "Faithful to the response: what it says of the response is so",
    "grounded": "Grounded in the rubric: it judges by the criterion and its levels",
    "specific": "Specific: it names what in the response decides",
    "consistent": "Consistent with its score: the score follows from it",
    "no_invented_quotes": "No invented quotes: what it cites stands in the response",
    "overall": "Better overall",
}
Choice = Literal["left", "right", "tie"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class Answer(Row):
    """One click. `left` and `right` are hashes of the judgments shown there (`digest`); no arm is named."""

    example_id: str
    criterion: str
    choice: Choice
    left: str
    right: str
    at: str  # UTC, ISO 8601

    @field_validator("criterion")
    @classmethod
    def _known(cls, criterion: str) -> str:
        if criterion not in CRITERIA:
            raise ValueError(f"must be one of {', '.join(CRITERIA)}")
        return criterion


@dataclass(frozen=True)
class Shown:
    """One item as it is shown: which judgment stands left, which right."""

    side: SideBySide
    left: Judgment
    right: Judgment


def shown(sides: Sequence[SideBySide], n_items: int, seed: int = 0) -> list[Shown]:
    """`n_items` of the sides, in an order and with sides that depend on (seed, example id) alone.

    The same for every annotator, and with more items the first ones stay. Raises ValueError where there is nothing to show.
    """
    if not sides:
        raise ValueError("no item has two rationales that differ: choose other arms, or another split")
    key = {side.example.id: hashlib.blake2b(f"{seed}\0{side.example.id}".encode()).digest() for side in sides}
    first = sorted(sides, key=lambda side: key[side.example.id])[:n_items]
    heads = [key[side.example.id][-1] % 2 == 0 for side in first]  # the last bit says nothing of the order
    return [
        Shown(side, *((side.a, side.b) if head else (side.b, side.a))) for side, head in zip(first, heads, strict=True)
    ]


def digest(judgment: Judgment) -> str:
    """What was shown of a judgment, as 16 hexadecimal digits."""
    text = f"{judgment.rationale}\0{format_score(judgment.score)}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_of(folder: Path, annotator: str) -> Path:
    """Where an annotator's answers are: `<folder>/anna.jsonl`. ValueError on a name that is no plain file name."""
    if not NAME.fullmatch(annotator):
        raise ValueError(
            f"annotator {store.shorten(annotator)} cannot be a file name; take 1 to 32 of a-z, 0-9, _ and -, such as anna"
        )
    return folder / f"{annotator}.jsonl"


class Session:
    """One annotator at work: the answers so far, and the item that is shown. What is on disk already is resumed."""

    def __init__(self, items: Sequence[Shown], file: Path) -> None:
        self.items, self.file, self.error = list(items), file, ""
        seen = {item.side.example.id: (digest(item.left), digest(item.right)) for item in items}
        self.answers = {
            (row.example_id, row.criterion): row.choice
            for row in _answers(file)
            if (row.left, row.right) == seen.get(row.example_id)
        }
        self.number = next((i for i in range(len(items)) if not self.is_done(i)), len(items) - 1)

    def is_done(self, number: int) -> bool:
        """Whether every question of an item has an answer."""
        return all((self.items[number].side.example.id, criterion) in self.answers for criterion in CRITERIA)

    @property
    def done(self) -> int:
        """Items that are done."""
        return sum(map(self.is_done, range(len(self.items))))

    def answer(self, number: int, criterion: str, choice: Choice) -> None:
        """Keep an answer about item `number` (from 0): on disk first, and only then on the page."""
        item = self.items[number]
        row = Answer(
            example_id=item.side.example.id, criterion=criterion, choice=choice,
            left=digest(item.left), right=digest(item.right),
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        store.append_rows(self.file, [row])
        self.answers[row.example_id, row.criterion] = row.choice

    def receive(self, message: Any) -> None:
        """A message of the page: `{"number": 3, "criterion": "overall", "choice": "left"}`, or `{"number": 4}` to go there.

        Raises ValueError on anything else. An answer that cannot be written shows on the page and is not kept.
        """
        match message:
            case {"number": int(number)} if 0 <= number < len(self.items):
                self.number = number
            case _:
                raise ValueError(f"the page sent {store.shorten(message)}; run the cell again")
        if "choice" in message:
            try:
                self.answer(number, message.get("criterion"), message["choice"])
                self.error = ""
            except store.StoreError as error:
                self.error = f"Not saved. {error}"

    def page(self) -> dict[str, Any]:
        """All that the page shows, as plain text. It names no arm and no item."""
        item, example = self.items[self.number], self.items[self.number].side.example
        sections = {
            "Instruction": example.instruction, "Response": example.response,
            "Reference answer": example.reference_answer or "", "Rubric": example.rubric.text,
        }  # fmt: skip
        chosen = {criterion: self.answers.get((example.id, criterion), "") for criterion in CRITERIA}
        return {
            "number": self.number,
            "total": len(self.items),
            "done": self.done,
            "sections": [{"heading": name, "text": text} for name, text in sections.items() if text],
            "left": _card(item.left),
            "right": _card(item.right),
            "questions": [{"name": name, "text": text, "choice": chosen[name]} for name, text in CRITERIA.items()],
            "error": self.error,
        }


def _card(judgment: Judgment) -> dict[str, str]:
    return {"text": judgment.rationale, "score": format_score(judgment.score)}


def _answers(file: Path) -> list[Answer]:
    return store.read_rows(file, Answer, drop_torn_tail=True) if file.exists() else []


def face(session: Session) -> Any:
    """The widget: annotate.js shows `session.page()` and sends clicks and keys back.

    One anywidget instead of a tree of ipywidgets: keys need an event handler in the page, and a module of our own puts
    every text there as text. It ships as a prebuilt extension, so JupyterLab is not built again.
    """
    import anywidget
    import traitlets

    here = Path(__file__).parent

    class Face(anywidget.AnyWidget):
        _esm = (here / "annotate.js").read_text(encoding="utf-8")
        _css = (here / "annotate.css").read_text(encoding="utf-8")
        page = traitlets.Dict().tag(sync=True)

    widget = Face(page=session.page())

    def received(_: Any, message: Any, __: Any) -> None:
        session.receive(message)
        widget.page = session.page()

    widget.on_msg(received)
    return widget


# ---------------------------------------------------------------- what all annotators said


class Vote(NamedTuple):
    """One annotator's answer to one question of one item."""

    annotator: str
    example_id: str
    criterion: str
    preference: Preference  # A: the first arm
    choice: Choice  # where that stood
    equal_score: bool  # both judgments gave the same score


def read_votes(folder: Path, sides: Sequence[SideBySide]) -> tuple[list[Vote], int]:
    """Every annotator's last answer to each question, and how many answers are about other texts than these sides hold."""
    known = {side.example.id: side for side in sides}
    found, outdated = [], 0
    for file in sorted(folder.glob("*.jsonl")):
        last = {(row.example_id, row.criterion): row for row in _answers(file)}
        for row in last.values():
            side = known.get(row.example_id)
            arms = {} if side is None else {digest(side.a): "A", digest(side.b): "B"}
            if {row.left, row.right} != set(arms):
                outdated += 1
                continue
            preference = "tie" if row.choice == "tie" else arms[row.left if row.choice == "left" else row.right]
            found.append(Vote(file.stem, row.example_id, row.criterion, preference, row.choice, side.equal_score))
    return found, outdated
