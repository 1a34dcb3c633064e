"""A benchmark's rows -> what a judge can be asked, and what is right.

Imports sources, columns and scoring. Which benchmarks there are stands in suite.py; here is what they share. A row may
be in any of the forms of columns.py, or have its own columns, which the benchmark then names:

    source = load(suite.BENCHMARKS["llmbar"], "llmbar.jsonl")
    source.questions[0].gold, source.revision               # {"": "A"}, "llmbar.jsonl sha256:..."
    ask(source), ask(source, compare=True)                  # every response alone; or two together, in both orders
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srlib import files as store
from srlib.benchmarks import scoring
from srlib.data import columns, sources
from srlib.schema import Comparison, Item

EMPTY = (
    "(empty response)"  # stands where a response is blank, so that the rest of its row is checked; no judge is asked
)
LEVELS = (
    "does not meet the criterion at all",
    "meets it in small part",
    "meets it in part",
    "meets it almost entirely",
    "meets it entirely",
)


@dataclass(frozen=True)
class Published:
    """A figure that somebody reported for a judge, to be printed beside ours."""

    judge: str
    value: float
    source: str
    metric: str = "accuracy"
    subset: str = "all"
    part: str = ""


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark is. `columns` says which column of its rows is our field: id (without one, the row's number),
    instruction, response, or response_a and response_b, or chosen and rejected (lists), subset, group (else the
    instruction), rubric (else `criterion`), reference_answer, score or preference. Without `columns`, rows are in a form
    that columns.py knows. `expand` makes the items of a row under our names, none where it is no part of the benchmark.
    """

    name: str
    rule: Callable[..., scoring.Rows]
    ties: str  # in words: what the rule does with a tie,
    failures: str  # and with an answer that could not be read, or is missing
    columns: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()  # fields whose columns may be absent
    verdicts: Mapping[Any, str] = field(default_factory=dict)  # how the rows spell A, B and tie
    parts: Mapping[str, str] = field(default_factory=dict)  # name -> column, where there are several gold scores
    expand: Callable[[dict[str, Any]], Iterable[dict[str, Any]]] = lambda row: (row,)
    criterion: str = ""
    hub: str = ""
    revision: str = ""  # the commit of the hub set; "": not known here, and asked for
    split: str = ""
    where: str = ""  # where its rows are to be had, if not at a known commit of the hub
    published: tuple[Published, ...] = ()


@dataclass(frozen=True)
class Question:
    """One item: what is right, and what a judge can be asked."""

    id: str
    subset: str
    group: str
    gold: Mapping[str, float | str]  # part -> what is right
    responses: tuple[str, ...]  # as in scoring: ("",), ("A", "B") or ("1", "2", ...)
    asked: Mapping[str, Item]  # what is shown, as in scoring -> what a judge gets; empty where a response is


@dataclass(frozen=True)
class Source:
    """The items of a benchmark, where they are from (a hub set at a commit, a file and its hash), what was left out."""

    questions: Sequence[Question]
    revision: str
    left_out: Mapping[str, int]


def load(benchmark: Benchmark, data: str | Path = "", revision: str = "") -> Source:
    """The items, from a file or folder, else from the hub. Raises store.RowError on a row that does not fit."""
    revision = revision or ("" if data else benchmark.revision)
    if not data and not (benchmark.hub and revision):
        told = f", or name a commit of {benchmark.hub} with --revision" if benchmark.hub else ""
        raise store.RowError(
            f"{benchmark.name}: no pinned set of the hub; give its rows with --data FILE (they are at {benchmark.where}){told}"
        )
    source = str(data or benchmark.hub)
    questions: dict[str, Question] = {}
    left_out: Counter[str] = Counter()
    for row in sources.rows(source, revision):
        if row.problem is not None:
            raise store.RowError(f"{source}, {row.problem}")
        if row.split and benchmark.split and row.split != benchmark.split:
            continue
        where = f"{source}, {row.where}"
        items = _items(benchmark, row.values, where)
        left_out["of another split"] += not items
        for item in items:
            found = _question(benchmark, {"id": f"{benchmark.name}-{row.number}"} | item, where)
            left_out.update(
                f"without a gold score {part}".strip() for part in item.keys() & benchmark.parts.keys() - found.gold
            )
            left_out["without a gold score"] += not found.gold and not benchmark.parts
            if questions.setdefault(found.id, found) is not found:
                raise store.RowError(f"{where}: id {store.shorten(found.id)} is there twice; ids must be unique")
    if not questions:
        raise store.RowError(f"{source}: holds no item of {benchmark.name}")
    taken = Counter(item.id for question in questions.values() for item in question.asked.values())
    for name, times in taken.most_common(1):
        if times > 1:
            raise store.RowError(
                f"{source}: id {store.shorten(name)} is also that of a part of another item; rename one"
            )
    if sources.is_hub_id(source):
        name = f"{source}@{sources.fetch(source, revision).name}"
    else:
        name = f"{Path(source).name} sha256:{store.sha256(source)[:16]}"
    return Source(list(questions.values()), name, {why: n for why, n in left_out.items() if n})


def _items(benchmark: Benchmark, row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A row under our names; several, or none, where `expand` says so."""
    values = dict(row)
    if benchmark.columns:
        absent = [c for ours, c in benchmark.columns.items() if c not in row and ours not in benchmark.optional]
        if absent:
            raise store.RowError(f"{where}: column {absent[0]} is missing; rows of {benchmark.name} have it")
        values = {ours: row[c] for ours, c in benchmark.columns.items() if c in row}
    values |= {part: row.get(column) for part, column in benchmark.parts.items()}
    if benchmark.verdicts:
        said = values["preference"]
        if not isinstance(said, str | int) or said not in benchmark.verdicts:
            known = ", ".join(map(repr, benchmark.verdicts))
            raise store.RowError(f"{where}: verdict {store.shorten(said)} is not one of {known}; correct it")
        values["preference"] = benchmark.verdicts[said]
    try:
        return [dict(item) for item in benchmark.expand(values)]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise store.RowError(
            f"{where}: this is no row of {benchmark.name} ({why}); give a file with its columns"
        ) from None


def _question(benchmark: Benchmark, item: dict[str, Any], where: str) -> Question:
    name, subset = str(item["id"]), str(item.pop("subset", None) or "")
    group, gold = item.pop("group", None), {part: item.pop(part) for part in benchmark.parts if part in item}
    if not item.get("rubric") and "orig_criteria" not in item:
        levels = [f"Score {n}: {text}" for n, text in enumerate(LEVELS, start=1)]
        item["rubric"] = "\n".join([f"[{item.get('criterion') or benchmark.criterion}]", *levels])
    right, wrong = item.pop("chosen", None), item.pop("rejected", None)
    if right is not None:
        if not isinstance(right, list) or not isinstance(wrong, list) or not right or not wrong:
            raise store.RowError(
                f"{where}: chosen and rejected are lists with at least one response each; correct them"
            )
        texts = {str(k): text for k, text in enumerate([*right, *wrong], start=1)}
        rows = {
            k: _example(item | {"id": f"{name}#{k}", "response": _filled(text)}, where) for k, text in texts.items()
        }
        whole, gold = rows["1"], {"": len(right)}
    else:
        texts = {name: text for name, text in item.items() if name in ("response", "response_a", "response_b")}
        whole = _example(item | {"id": name} | {c: _filled(text) for c, text in texts.items()}, where)
        rows = {"": whole}
        if isinstance(whole, Comparison):
            rows = dict(zip("AB", whole.sides(), strict=True)) | {"AB": whole, "BA": whole.swapped()}
        gold = gold or {"": whole.gold}
    blank = any(_filled(text) is EMPTY for text in texts.values())
    return Question(
        id=name, subset=subset, group=str(group or whole.instruction), gold=_golds(gold, where),
        responses=("A", "B") if "AB" in rows else tuple(rows), asked={} if blank else rows,
    )  # fmt: skip


def _filled(text: Any) -> Any:
    return EMPTY if text is None or (isinstance(text, str) and not text.strip()) else text


def _example(item: dict[str, Any], where: str) -> Item:
    return columns.convert(item, where, 0)


def _golds(gold: Mapping[str, Any], where: str) -> dict[str, float | str]:
    """What is right by each part; None and -1 (BiGGen Bench: could not be parsed) are no gold score."""
    for part, value in gold.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str | None):
            raise store.RowError(f"{where}: gold score {part}: {store.shorten(value)} is not a number; correct it")
    return {part: value for part, value in gold.items() if value is not None and value != -1}


def ask(source: Source, compare: bool = False) -> list[Item]:
    """What a judge is asked: every response alone; with `compare`, two responses together, in both orders."""
    items = [item for q in source.questions for item in q.asked.values()]
    if compare and not any(isinstance(item, Comparison) for item in items):
        raise store.RowError("these items have no two responses to compare; leave --compare out")
    return [item for item in items if isinstance(item, Comparison) is compare]
