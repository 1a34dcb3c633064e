"""Notebook 08: whose rationales do people, and a judge that compares, prefer? A is the first of the two arms.

People compare two arms' rationales blind, side by side, six questions an item, every click saved at once (annotate.js,
annotate.css). A hash of the item decides which arm is on the left, and neither the page nor the answers name an arm: an answer
holds hashes of the two texts. So it is a preference only together with the run's judgments, and outdated once these change.
Each annotator has one append-only file; the last answer to a question holds."""

import datetime
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anywidget
import traitlets

from srlib import files as store
from srlib import prompts
from srlib.curate.followups import META_RUBRIC
from srlib.judge import Judge
from srlib.schema import OTHER_WAY, Comparison, Example, Judgment, Preference, Row, format_score
from srlib.stats.intervals import Interval, Keys, mean

CRITERIA = {
    "faithful": "Faithful to the response: what it says about the response is true",
    "grounded": "Grounded in the rubric: it judges by the criterion and its levels",
    "specific": "Specific: it names what decides in the response",
    "consistent": "Consistent with its score: the score follows from it",
    "no_invented_quotes": "No invented quotes: the response contains what it quotes",
    "overall": "Better overall",
}
Judged = Sequence[Judgment | None]


class Side(NamedTuple):
    """Two arms' judgments of one example, side by side."""

    example: Example
    a: Judgment
    b: Judgment


def side_by_side(
    examples: Sequence[Example], a: Judged, b: Judged, equal_score_only: bool = False
) -> tuple[list[Side], Counter[str]]:
    """The items that can be compared, and how many cannot, by reason; with `equal_score_only` no rationale wins by its score."""
    sides, left_out = [], Counter()
    for example, *pair in zip(examples, a, b, strict=True):
        if any(judgment is None or judgment.score is None for judgment in pair):
            left_out["an arm has no score"] += 1
        elif not all(judgment.rationale.strip() for judgment in pair):
            left_out["an arm wrote no rationale"] += 1
        elif equal_score_only and pair[0].score != pair[1].score:
            left_out["the scores differ"] += 1
        elif (pair[0].rationale, pair[0].score) == (pair[1].rationale, pair[1].score):
            left_out["both arms wrote the same"] += 1
        else:
            sides.append(Side(example, *pair))
    return sides, left_out


class Answer(Row):
    """One click. `left` and `right` are hashes of the judgments shown there."""

    example_id: str
    criterion: Literal[*CRITERIA]
    choice: Literal["left", "right", "tie"]
    left: str
    right: str
    at: str  # UTC, ISO 8601


def blind(sides: Sequence[Side], n_items: int, seed: int = 0) -> list[Side]:
    """`n_items` of the sides, `a` on the left. Order and places depend on (seed, example id) alone: all annotators see
    the same, and more items leave the first ones in place. ValueError without any side."""
    if not sides:
        raise ValueError("no item has two rationales that differ: choose other arms or another split")
    keyed = [(hashlib.blake2b(f"{seed}\0{side.example.id}".encode()).digest(), side) for side in sides]
    first = sorted(keyed, key=lambda pair: pair[0])[:n_items]
    return [side if key[-1] % 2 else Side(side.example, side.b, side.a) for key, side in first]


def _digest(judgment: Judgment) -> str:
    text = f"{judgment.rationale}\0{format_score(judgment.score)}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Session(anywidget.AnyWidget):
    """One annotator's answers in `<folder>/<annotator>.jsonl`, as a widget: annotate.js shows `page`, plain text without
    the names of arms and items, and sends clicks and keys to `receive`."""

    _esm = Path(__file__).with_name("annotate.js").read_text(encoding="utf-8")
    _css = Path(__file__).with_name("annotate.css").read_text(encoding="utf-8")
    page = traitlets.Dict().tag(sync=True)

    def __init__(self, items: Sequence[Side], folder: Path, annotator: str) -> None:
        super().__init__()
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", annotator):
            name = store.shorten(annotator)
            raise ValueError(f"annotator {name} cannot be a file name; use 1 to 32 of a-z, 0-9, _ and -, such as anna")
        self.items, self.file = list(items), folder / f"{annotator}.jsonl"
        shown = {(item.example.id, _digest(item.a), _digest(item.b)) for item in items}
        rows = [row for row in _answers(self.file) if (row.example_id, row.left, row.right) in shown]
        self.choices = {(row.example_id, row.criterion): row.choice for row in rows}
        self.show((self.unfinished or [len(items) - 1])[0])
        self.on_msg(lambda _, message, __: self.receive(message))

    @property
    def unfinished(self) -> list[int]:
        """Numbers (from 0) of the items with a question that has no answer."""
        ids = [item.example.id for item in self.items]
        return [i for i, name in enumerate(ids) if any((name, criterion) not in self.choices for criterion in CRITERIA)]

    def receive(self, message: Any) -> None:
        """`{"number": 3, "criterion": "overall", "choice": "left"}` from the page, or `{"number": 4}` to go there. An
        answer is saved before the page shows it, and the page says if it cannot be. ValueError on anything else."""
        number = message.get("number") if isinstance(message, dict) else None
        if type(number) is not int or not 0 <= number < len(self.items):
            raise ValueError(f"the page sent {store.shorten(message)}; run the cell again")
        item, error = self.items[number], ""
        if "choice" in message:
            hashes = {"left": _digest(item.a), "right": _digest(item.b)}
            at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            answer = {"criterion": message.get("criterion"), "choice": message["choice"], "at": at}
            row = Answer(example_id=item.example.id, **answer, **hashes)
            try:
                store.append_rows(self.file, [row])
                self.choices[row.example_id, row.criterion] = row.choice
            except store.StoreError as refusal:
                error = f"Not saved. {refusal}"
        self.show(number, error)

    def show(self, number: int, error: str = "") -> None:
        """Put item `number` (from 0) on the page."""
        e, left, right = self.items[number]
        sections = {"Instruction": e.instruction, "Response": e.response, "Reference answer": e.reference_answer}
        sections |= {"Rubric": e.rubric.text}
        self.page = {
            "number": number, "total": len(self.items), "done": len(self.items) - len(self.unfinished),
            "sections": [{"heading": name, "text": text} for name, text in sections.items() if text],
            "left": {"text": left.rationale, "score": format_score(left.score)},
            "right": {"text": right.rationale, "score": format_score(right.score)},
            "questions": [{"name": name, "text": CRITERIA[name], "choice": self.choices.get((e.id, name), "")} for name in CRITERIA],
            "error": error,
        }  # fmt: skip


def _answers(file: Path) -> list[Answer]:
    return store.read_rows(file, Answer, drop_torn_tail=True) if file.exists() else []


class Vote(NamedTuple):
    annotator: str
    example_id: str
    criterion: str
    preference: Preference
    choice: str  # where the preferred one was
    equal_score: bool  # of the two judgments


def read_votes(folder: Path, sides: Sequence[Side]) -> tuple[list[Vote], int]:
    """Every annotator's last answer to each question, and how many answers are about other texts than these."""
    known = {s.example.id: {_digest(s.a): "A", _digest(s.b): "B"} for s in sides}
    votes, outdated, equal = [], 0, {s.example.id: s.a.score == s.b.score for s in sides}
    for file in sorted(folder.glob("*.jsonl")):
        rows = _answers(file)
        last = {(r.example_id, r.criterion): r for r in rows if {r.left, r.right} == {*known.get(r.example_id, {})}}
        outdated += len({(r.example_id, r.criterion) for r in rows} - last.keys())
        for r in last.values():
            arms = known[r.example_id]
            preference = {"left": arms[r.left], "right": arms[r.right], "tie": "tie"}[r.choice]
            votes.append(Vote(file.stem, r.example_id, r.criterion, preference, r.choice, equal[r.example_id]))
    return votes, outdated


def as_comparison(side: Side) -> Comparison:
    """The two rationales as responses to the task of judging, for a judge that compares (as `followups.meta_comparisons`)."""
    a, b = (prompts.completion(judgment.rationale, judgment.score) for judgment in (side.a, side.b))
    asked = dict(instruction=prompts.request(side.example), rubric=META_RUBRIC, preference=None)
    return Comparison(id=side.example.id, response_a=a, response_b=b, **asked)


def judge_preferences(judge: Judge, sides: Sequence[Side], **options: Any) -> list[tuple[Preference | None, ...]]:
    """Greedy preferences for each item as given and swapped, both in terms of the arms; None without a verdict. The
    judge must compare (sft_mode mix or merge, or a general model on a server); `options` go to Judge.score_many."""
    given = [as_comparison(side) for side in sides]
    judgments = judge.score_many([order for c in given for order in (c, c.swapped())], **options)
    preferences = {j.example_id: j.preference for j in judgments}  # a server may have left some out
    return [(preferences.get(c.id), OTHER_WAY.get(preferences.get(f"{c.id}#swapped"))) for c in given]


class WinRates(NamedTuple):
    """How often the first arm wins: `A, A, tie, B -> 2.5 of 4` with ties split, `2 of 3` without them."""

    ties_split: Interval
    ties_excluded: Interval
    wins: int
    ties: int
    losses: int


def win_rates(preferences: Sequence[Preference], group: Keys = None, n_boot: int = 2000) -> WinRates:
    """Win rates of A with 95% bootstrap intervals; `group` (n,) names the item if several people judged it."""
    credit, keys = {"A": 1.0, "tie": 0.5, "B": 0.0}, range(len(preferences)) if group is None else group
    rated = [(credit[p], key) for p, key in zip(preferences, keys, strict=True)]
    subsets = (rated, [(value, key) for value, key in rated if value != 0.5])
    rates = [mean([v for v, _ in some], n_boot, group=[k for _, k in some]) if some else Interval() for some in subsets]
    return WinRates(*rates, *(list(preferences).count(p) for p in ("A", "tie", "B")))
