"""Ask a judge the questions of a benchmark, keep its judgments, and compute every figure from them.

`score` also reads the answers of other programs: `{"id": "17", "order": "BA", "verdict": "A"}` says that B was shown first,
and that A is better (docs/guides/benchmarks.md)."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import StrictInt, StrictStr
from rich.table import Table
from rich.text import Text

from srlib import files, prompts
from srlib.benchmarks import protocol
from srlib.benchmarks.protocol import Benchmark, Question
from srlib.benchmarks.rules import Judged, Rows
from srlib.files import RowError
from srlib.schema import OTHER_WAY, Judgment, Row, SrlibError

GREEDY = {"samples": 1, "aggregate": "none", "temperature": 0.0}  # how `evaluate` samples
NOTE = {"judge", "revision", "compare", "sampling", "prompts"}  # of judgments.json, beside the judgments
RESULT = {"benchmark", "revision", "judge", "part", "subset", "metric", "value", "ci_low", "ci_high", "n", "parse_rate"}
RESULT |= {"failures", "seed", "left_out", "protocol", "published"}
INTERVAL = "95% over prompts, 2000 resamples: BCa for plain means and errors, percentile for weighted means, "
INTERVAL += "Fisher's z with a jackknife error for correlations over all items, percentile for their mean over subsets"


class Answer(Row):
    """A judge's answer to one question. Without a verdict or a score it is a failure, and counts as one."""

    id: StrictStr | StrictInt
    order: str = ""  # the responses shown, as in rules
    verdict: str | None = None
    score: float | None = None
    failure: str = "unreadable"


Answers = Mapping[str, Mapping[str, Answer]]  # question -> responses shown -> answer


def evaluate(
    judge: str | Path,
    benchmark: Benchmark,
    out: Path,
    *,
    data: str | Path = "",
    revision: str = "",
    compare: bool = False,
    model: str = "",
) -> Rows:
    """Judge every item of a benchmark greedily, with Judge.load(judge, model=model), and write the result rows to
    `out`. Every response is judged alone, or, with `compare` (for a judge that learned it), two together in both orders.
    Judgments are kept in the file `kept`, and the same command resumes. Raises files.RowError on a row that does not
    fit, SrlibError if those judgments are of another judge or of other rows, and as files.output does."""
    from srlib.judge import Judge, identity  # imports torch, which `score` does not need

    out = files.output(out, [RESULT], inputs := [judge, model, data])
    path = kept(out, benchmark.name)
    for made in (path, beside := path.with_suffix(".note.json")):
        files.output(made, [NOTE], inputs, record=beside)
    questions, origin, _ = protocol.load(benchmark, data, revision)
    items = protocol.items(questions, compare)
    name = " ".join(dict.fromkeys((Path(model or judge).name, identity(judge, model))))
    # What every item says, in one template: the judge's own follows from the judge
    asked = hashlib.sha256("".join(prompts.request(item, "prometheus") for item in items).encode()).hexdigest()
    note = {"judge": name, "revision": origin, "compare": compare, "sampling": GREEDY, "prompts": asked}
    if path.exists() and _note(path) != note:
        other = "judgments of another judge, or of other rows or prompts"
        raise SrlibError(f"{path}: holds {other}; name another -o, or delete it")
    loaded = Judge.load(judge, model=model)
    files.write_json(beside, note)
    loaded.score_many(items, out=path, desc=benchmark.name)
    return score(benchmark, path, data=data, revision=revision, out=out)


def kept(out: Path, name: str) -> Path:
    """The judgments behind the results in `out`: beside it, or, if that is a pipe, in the working directory."""
    return (Path(f"{name}.json") if files.is_stream(out) else out).with_suffix(".judgments.jsonl")


def _note(judgments: Path) -> dict[str, Any]:
    """What `evaluate` wrote beside its judgments: the judge, the rows, and how it sampled."""
    note = judgments.with_suffix(".note.json")
    return files.read_json(note) if judgments.name.endswith(".judgments.jsonl") and files.holds(note, [NOTE]) else {}


def score(
    benchmark: Benchmark, judgments: str | Path, *, data: str | Path = "", revision: str = "", out: Path | None = None
) -> Rows:
    """The result rows of judgments or answers, also written to `out` (files.output). How others sampled is unknown."""
    if out is not None:
        out = files.output(out, [RESULT], [judgments, data])
    questions, origin, left_out = protocol.load(benchmark, data, revision)
    answers = read(questions, judgments)
    note = _note(Path(judgments)) or {"judge": Path(judgments).name, "sampling": dict.fromkeys(GREEDY, "unknown")}
    given = [answer for by_order in answers.values() for answer in by_order.values()]
    orders = {answer.order for answer in given if answer.verdict or answer.order in ("AB", "BA")}
    references = [next(iter(q.items.values())).reference_answer is not None for q in questions if q.items]
    method = dict(mode="pairwise or more" if orders else "pointwise")
    method |= dict(reference=f"in {sum(references)} of {len(references)} items") | note["sampling"]
    method |= dict(orders=("not said", "one", "both")[len(orders - {""})] if orders else "one response at a time")
    method |= dict(ties=benchmark.ties, parse_failures=benchmark.failures, interval=INTERVAL)
    rows: Rows = []
    sizes = {**Counter(question.subset for question in questions), "all": len(questions)}
    for part in dict.fromkeys(part for q in questions for part, gold in q.gold.items() if gold is not None):
        head = {"benchmark": benchmark.name, "revision": origin, "judge": note["judge"], "part": part}
        for row in benchmark.rule(judged(questions, answers, part)):
            published = benchmark.published.get(f"{part} {row['metric']} {row['subset']}".strip(), [])
            whole = row["subset"] if row["subset"] in benchmark.sizes else "all"
            published = published if sizes[whole] == benchmark.sizes.get(whole) else []  # else of other items
            rows.append(head | row | {"seed": 0, "left_out": left_out, "protocol": method, "published": published})
    if out is not None:
        files.write_json(out, rows)
    return rows


def read(questions: Sequence[Question], path: str | Path) -> Answers:
    """Judgments (lines with `example_id`) or answers of any program. Raises files.RowError on an id that the benchmark does
    not have, on an answer that does not fit its item, and on a second answer to one question."""
    by_id = {question.id: question for question in questions}
    shown = {item.id: (question.id, order) for question in questions for order, item in question.items.items()}
    answers: dict[str, dict[str, Answer]] = {}
    for number, line in files.read_lines(path):
        where = f"{path}, line {number}"
        values = files.parse_json(where, line)
        if isinstance(values, dict) and "example_id" in values:
            answer = _answer(files.validate(where, values, Judgment), shown)
        else:
            answer = files.validate(where, values, Answer)
        name, order = str(answer.id), answer.order
        given = files.shorten(values.get("example_id", name))
        if name not in by_id:
            raise RowError(f"{where}: id {given} is not in the benchmark; it has {files.shorten([*by_id][:3])}, ...")
        verdicts = by_id[name].choices.get(order)
        if verdicts is None or answer.verdict not in (None, *verdicts) or (verdicts and answer.score is not None):
            forms = [f"'{o}' {' or '.join(names[:4]) or 'a score'}" for o, names in by_id[name].choices.items()]
            got = files.shorten(answer.model_dump(include={"order", "verdict", "score"}, exclude_none=True))
            raise RowError(f"{where}: {got} does not fit; this item takes, by order, {', '.join(forms[:6])}")
        if answer.score is not None and order == "" and by_id[name].items:
            low, *_, high = by_id[name].items[""].rubric.scale
            if not low <= answer.score <= high:
                raise RowError(f"{where}: score {answer.score:g} is outside the item's scale, {low:g} to {high:g}")
        if answers.setdefault(name, {}).setdefault(order, answer) is not answer:
            raise RowError(f"{where}: id {given}, order '{order}' is there twice; keep one")
    return answers


def _answer(judgment: Judgment, shown: Mapping[str, tuple[str, str]]) -> Answer:
    """A judgment as an answer: one of several responses counts by its expected score."""
    name, order = shown.get(judgment.example_id, (judgment.example_id, ""))
    verdict = OTHER_WAY[judgment.preference] if judgment.preference and order == "BA" else judgment.preference
    score = judgment.expected_score if order else judgment.score
    return Answer(id=name, order=order, verdict=verdict, score=score, failure=judgment.failure or "")


def judged(questions: Sequence[Question], answers: Answers, part: str = "") -> list[Judged]:
    """Every item with a gold score in this part, and its answers. One that is missing is a failure of that name."""
    both = any({"AB", "BA"} <= by_order.keys() for by_order in answers.values())
    rows = []
    for question in questions:
        given = answers.get(question.id, {})
        responses = {order for order, verdicts in question.choices.items() if not verdicts}
        orders = {"AB", "BA"} if both and "AB" in question.choices else set(given) or {""}
        expected = responses if responses & given.keys() else orders  # without any answer, both orders failed
        if not given.keys() <= expected:
            raise RowError(f"item {question.id} has both scores and verdicts; keep one kind")
        missing = Answer(id=question.id, failure="missing" if given or question.items else "empty_response")
        full = {order: given.get(order, missing) for order in sorted(expected)}
        values = {order: answer.verdict if answer.score is None else answer.score for order, answer in full.items()}
        failures = {order: full[order].failure for order, value in values.items() if value is None}
        rows.append(Judged(question.id, question.gold.get(part), values, failures, question.subset, question.group))
    return [row for row in rows if row.gold is not None]


def table(rows: Rows) -> Table:
    """Result rows to print, with the figures that others reported beside them, and the protocol below."""
    first = rows[0]
    below = [f"{name}: {value}" for name, value in first["protocol"].items()]
    below += [f"{n} {reason}" for reason, n in first["left_out"].items()]
    shown = Table("subset", "metric", "value", "95% interval", "n", "parsed", "failures", "published", box=None)
    shown.title = Text(f"{first['benchmark']}, {first['revision']}: {first['judge']}")
    shown.caption, shown.title_justify, shown.caption_justify = Text("\n".join(below)), "left", "left"
    for row in rows:
        value, low, high = ("–" if row[k] is None else f"{row[k]:.3f}" for k in ("value", "ci_low", "ci_high"))
        failures = ", ".join(f"{name} {n}" for name, n in sorted(row["failures"].items()))
        published = "\n".join(f"{other['value']:g} {other['judge']} ({other['source']})" for other in row["published"])
        cells = [f"{row['part']} {row['subset']}".strip(), row["metric"], value, f"[{low}, {high}]", str(row["n"])]
        shown.add_row(*map(Text, [*cells, f"{row['parse_rate']:.1%}", failures, published]))
    return shown
