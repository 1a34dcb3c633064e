"""A benchmark's rows -> the questions that a judge is asked, and the right answers.

`items` are what a judge gets: every response alone, or two together, in both orders. The fifteen benchmarks are declared in
suite.yaml. To add one, write an entry there; only if one row is several items, or an id is more than a text composed of
columns, also write an entry in EXPAND."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from srlib import files
from srlib.benchmarks import rules
from srlib.data import columns, sources
from srlib.files import RowError
from srlib.schema import PREFERENCES, Comparison, Item, SrlibError

OPTIONAL = ("id", "subset", "system_prompt", "reference_answer")  # fields whose columns may be absent
EMPTY = "(empty response)"  # replaces a blank response while its row is checked; no judge is asked about it
LEVELS = """Score 1: does not meet the criterion at all
Score 2: meets it in small part
Score 3: meets it in part
Score 4: meets it almost entirely
Score 5: meets it entirely"""
Fields = dict[str, Any]
DECLARED: dict[str, Fields] = yaml.safe_load(Path(__file__).with_name("suite.yaml").read_text("utf-8"))["benchmarks"]
SUMMARY_CRITERIA = DECLARED["summeval"].pop("criteria")
RULES = {
    "by_item": rules.by_item, "by_score": rules.by_score, "reward_bench_2": rules.reward_bench_2,
    "by_score_and_document": lambda rows, names: rules.by_score(rows, names) + rules.by_document(rows),
    "by_style": partial(rules.by_item, names={style: style for style in rules.STYLES}, values_of=rules.style_metrics),
}  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, as declared in suite.yaml. `columns` maps our fields to the columns of its rows: id (default: the row's
    number), instruction, response, or response_a and response_b, or chosen and rejected (lists), subset, reference_answer,
    rubric (default: `criterion`), preference. Without it, rows are in one of the forms of data.columns. `expand` returns the
    items of a row under our names, none if the row is not part of the set; an item's group is its instruction by default."""

    name: str
    rule: Callable[..., rules.Rows]
    expand: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]
    ties: str = "half credit if one response is better, full credit if the gold label is a tie"
    failures: str = "an answer that cannot be parsed, or is missing, counts as wrong"
    columns: Mapping[str, str] = field(default_factory=dict)
    compose: Mapping[str, str] = field(default_factory=dict)  # field -> template, filled with the others
    verdicts: Mapping[str, str] = field(default_factory=dict)  # label in the rows -> A, B or tie
    subsets: Mapping[str, str | None] = field(default_factory=dict)  # prefix in the rows -> subset, None to leave out
    parts: Mapping[str, str] = field(default_factory=dict)  # name -> column, for several gold scores
    criterion: str = ""
    hub: str = ""
    revision: str = ""  # commit of the hub set
    split: str = ""
    where: str = ""  # where to get the rows if no commit is pinned
    files: str = ""  # pattern of the authors' files in a folder; its group is the subset of their rows
    published: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)  # "part metric subset" -> figures
    sizes: Mapping[str, int] = field(default_factory=dict)  # items of the published subsets, or of "all"


def named(name: str) -> Benchmark:
    """A benchmark: `named("llmbar").criterion -> "Does the response do what ..."`. Raises SrlibError for a wrong name."""
    if name not in DECLARED:
        raise SrlibError(f"there is no benchmark {name!r}; there are {', '.join(DECLARED)}")
    fields = {"rule": "by_item", "options": {}, "expand": EXPAND.get(name, lambda row: [row])} | DECLARED[name]
    fields["rule"] = partial(RULES[fields["rule"]], **fields.pop("options"))
    return Benchmark(name, **fields)


def _biggen(row: Fields) -> list[Fields]:
    rubric, prompts = row["rubric"], [row.get("system_prompt"), row["instruction"]]
    levels = [f"[{rubric['criteria']}]", *(f"Score {n}: {rubric[f'score{n}_description']}" for n in range(1, 6))]
    text = {"instruction": "\n\n".join(filter(None, prompts)), "rubric": "\n".join(levels)}
    return [row | text | {"id": f"{row['id']}/{row['model_name']}", "group": row["id"]}]


def _reward_bench_2(row: Fields) -> list[Fields]:
    """In the subset Ties, "ref:7" (one right answer) and "tied:7" (several) are a group."""
    name = str(row["id"])
    return [row | {"id": f"{row['subset']}/{name}", "group": f"{row['subset']}/{name.split(':')[-1]}"}]


def _summeval(row: Fields) -> Iterable[Fields]:
    """Sixteen summaries of one text, each scored in four dimensions, are 64 items."""
    shared = {"group": row["id"], "instruction": f"Summarize this text.\n\n{row['instruction']}"}
    for dimension, criterion in SUMMARY_CRITERIA.items():
        for k, (summary, score) in enumerate(zip(row["response"], row[dimension], strict=True)):
            item = {"id": f"{row['id']}/{k}/{dimension}", "response": summary, dimension: score}
            yield shared | {"criterion": criterion} | item


EXPAND = {"biggen_bench": _biggen, "reward_bench_2": _reward_bench_2, "summeval": _summeval}


class Question(NamedTuple):
    """One item of a benchmark. `choices` and `items` are keyed by the responses shown, named as in rules."""

    id: str
    subset: str
    group: str
    gold: Mapping[str, float | str | None]  # part -> the right answer, None if nobody gave one
    choices: Mapping[str, tuple[str, ...]]  # the possible verdicts, none if the answer is a score
    items: Mapping[str, Item]  # what a judge gets; empty if a response is blank


def load(benchmark: Benchmark, data: str | Path = "", revision: str = "") -> tuple[list[Question], str, dict[str, int]]:
    """The questions, from a file or folder, otherwise from the hub; their origin (a hub set at a commit, or a file and its
    hash); the number of rows left out, by reason. Raises files.RowError on a row that does not fit."""
    data = Path(data).expanduser() if data else ""
    source, revision = str(data or benchmark.hub), revision or ("" if data else benchmark.revision)
    if not data and not (benchmark.hub and revision):
        advice = f"give its rows with --data FILE (they are at {benchmark.where})"
        advice += f", or name a commit of {benchmark.hub} with --revision" if benchmark.hub else ""
        raise SrlibError(f"{benchmark.name}: no hub revision is pinned; {advice}")
    questions, left_out = [], Counter()
    seen: dict[str, str] = {}  # id of a question or of an item of it -> its row
    others: set[str] = set()  # splits, or files of a folder, that are not read
    for file, subset, row in _rows(benchmark, source, revision):
        if row.problem is not None:
            raise RowError(f"{file}, {row.problem}")
        if row.split and benchmark.split and row.split != benchmark.split:
            others.add(row.split)
            continue
        where = f"{file}, {row.where}"
        expanded = _expand(benchmark, ({benchmark.columns["subset"]: subset} if subset else {}) | row.values, where)
        left_out["of another split"] += not expanded
        for values in expanded:
            name = f"{subset}/{row.number}" if subset else f"{benchmark.name}-{row.number}"
            question = _question(benchmark, {"id": name} | values, where)
            for name in (question.id, *(item.id for item in question.items.values())):
                if seen.setdefault(name, where) != where:
                    given = row.values.get(benchmark.columns.get("id", "id"), name)
                    raise RowError(f"{where}: id {files.shorten(given)} is that of {seen[name]}; make ids unique")
            questions.append(question)
            left_out.update(f"without a gold score {p}".strip() for p, gold in question.gold.items() if gold is None)
    if not any(gold is not None for question in questions for gold in question.gold.values()):
        hint = f"; of {', '.join(sorted(others))} only {benchmark.split} would be read: name its file" if others else ""
        raise RowError(f"{source}: holds no item of {benchmark.name} with a gold answer{hint}")
    on_hub = sources.is_hub_id(source)
    commit = sources.fetch(source, revision).name if on_hub else files.sha256(source)[:16]
    return questions, f"{source}@{commit}" if on_hub else f"{Path(source).name} sha256:{commit}", dict(+left_out)


def _rows(benchmark: Benchmark, source: str, revision: str) -> Iterator[tuple[str, str, sources.SourceRow]]:
    """(file, subset, row), file by file if the authors keep each subset in one of its own."""
    path = Path(source).expanduser()
    paths = sorted(path.rglob("*.json")) if benchmark.files and path.is_dir() else [path]
    names = {p: re.search(benchmark.files, p.absolute().as_posix()) for p in paths if benchmark.files}
    subsets = {str(p): name[1] for p, name in names.items() if name}
    for file, subset in (subsets or {source: ""}).items():
        yield from ((file, subset, row) for row in sources.rows(file, revision))


def _expand(benchmark: Benchmark, row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The items of a row, under our names."""
    if absent := [c for name, c in benchmark.columns.items() if c not in row and name not in OPTIONAL]:
        raise RowError(f"{where}: column {absent[0]} is missing; rows of {benchmark.name} have it")
    values = {name: row[column] for name, column in benchmark.columns.items() if column in row} or dict(row)
    values |= {part: row.get(column) for part, column in benchmark.parts.items()}
    try:
        values |= {name: template.format_map(values) for name, template in benchmark.compose.items()}
        if benchmark.verdicts:
            values["preference"] = benchmark.verdicts[str(values["preference"])]
        if benchmark.subsets:
            column = values["subset"]
            values["subset"] = benchmark.subsets[next(filter(column.startswith, benchmark.subsets), column)]
            if values["subset"] is None:
                return []
        return list(benchmark.expand(values))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RowError(f"{where}: not a row of {benchmark.name} ({reason}); give a file with its columns") from None


def _question(benchmark: Benchmark, values: dict[str, Any], where: str) -> Question:
    name, subset, group = str(values["id"]), values.pop("subset", None), values.pop("group", None)
    gold: dict[str, Any] = {part: values.pop(part) for part in benchmark.parts if part in values}
    for part, score in gold.items():
        if isinstance(score, bool) or not isinstance(score, int | float | None):
            raise RowError(f"{where}: gold score {part}: {files.shorten(score)} is not a number; correct it")
        gold[part] = None if score == -1 else score  # in BiGGen Bench: could not be parsed
    if not values.get("rubric") and "orig_criteria" not in values:
        values["rubric"] = f"[{values.get('criterion') or benchmark.criterion}]\n{LEVELS}"
    right, wrong = values.pop("chosen", None), values.pop("rejected", None)
    several = right is not None or wrong is not None
    if several and not all(isinstance(responses, list) and responses for responses in (right, wrong)):
        raise RowError(f"{where}: chosen and rejected are lists with at least one response each; correct them")
    texts = {name: values[name] for name in ("response", "response_a", "response_b") if name in values}
    texts = {str(k): text for k, text in enumerate(right + wrong, start=1)} if several else texts
    texts = {k: EMPTY if text is None or not str(text).strip() else text for k, text in texts.items()}
    if several:
        rows = {k: values | {"id": f"{name}#{k}", "response": text} for k, text in texts.items()}
        items = {k: columns.convert(row, where, 0) for k, row in rows.items()}
        choices, gold = dict.fromkeys(texts, ()) | {"": tuple(texts)}, {"": len(right)}
    else:
        item = columns.convert(values | {"id": name} | texts, where, 0)
        items, choices, gold = {"": item}, {"": ()}, gold or {"": item.gold}
        if isinstance(item, Comparison):
            a, b = item.sides()
            items = {"A": a, "B": b, "AB": item, "BA": item.swapped()}
            choices = {"A": (), "B": ()} | dict.fromkeys(("", "AB", "BA"), PREFERENCES)
    group = group or next(iter(items.values())).instruction
    return Question(name, str(subset or ""), str(group), gold, choices, {} if EMPTY in texts.values() else items)


def items(questions: Sequence[Question], compare: bool = False) -> list[Item]:
    """What a judge is asked: every response alone, or, with `compare`, two responses together, in both orders."""
    asked = [item for question in questions for item in question.items.values()]
    if compare and not any(isinstance(item, Comparison) for item in asked):
        raise SrlibError("these items have no two responses to compare; leave --compare out")
    return [item for item in asked if isinstance(item, Comparison) is compare]
