"""A judge on a benchmark: ask it, keep what it says, and compute every figure from what was kept.

Imports judge, questions, answers, scoring and store. `evaluate` writes RESULTS.json, and beside it the judgments, which
`score` reads as it reads those of any other program:

    rows = evaluate("runs/tiny/judge", suite.BENCHMARKS["llmbar"], Path("llmbar.json"), data="llmbar.jsonl")
    rows = score(suite.BENCHMARKS["llmbar"], "llmbar.judgments.jsonl", data="llmbar.jsonl")     # the same rows

A result row has benchmark, revision (the commit of the hub set, or the file's hash), judge, part, subset, metric,
value, ci_low, ci_high, n, parse_rate, failures by name, seed, left_out, protocol, and what others have `published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from srlib import files as store
from srlib.benchmarks import answers, questions
from srlib.benchmarks.questions import Benchmark, Source
from srlib.judge import Judge, identity, is_served
from srlib.models import load as models

GREEDY = {"samples": 1, "aggregate": "none", "temperature": 0.0}  # how `evaluate` asks


def evaluate(
    judge: str | Path,
    benchmark: Benchmark,
    out: Path,
    *,
    data: str | Path = "",
    revision: str = "",
    compare: bool = False,
    model: str = "",
    n_boot: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Judge every item of a benchmark greedily, by the judge that Judge.load(judge, model=model) gives, and score it.

    Every response is judged alone; with `compare` two are judged together, in both orders, for a judge that learned to. The
    same command resumes. Raises store.RowError on rows that do not fit, and where the judgments beside `out` are others'.
    """
    if not is_served(judge):
        models.check_model(judge)
    source = questions.load(benchmark, data, revision)
    asked = questions.ask(source, compare)
    store.make_dir(out.resolve().parent)
    kept = out.with_suffix(".judgments.jsonl")
    name = " ".join(filter(None, dict.fromkeys((str(judge), model, identity(judge, model)))))
    _same_or_refuse(kept, {"judge": name, "revision": source.revision, "compare": compare, "told": GREEDY})
    judge_ = Judge.load(judge, model=model)
    found = judge_.score_many(asked, out=kept, desc=benchmark.name)
    rows = results(benchmark, source, answers.of_judgments(source, found), name, GREEDY, n_boot, seed)
    store.write_json(out, rows)
    return rows


def score(
    benchmark: Benchmark,
    judgments: str | Path,
    *,
    data: str | Path = "",
    revision: str = "",
    n_boot: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The same rows from judgments in a file: of `evaluate`, or of any program (see answers). Of the latter it is not known how
    the judge was asked, and the protocol says so."""
    source = questions.load(benchmark, data, revision)
    note, name, told = _note(Path(judgments)), Path(judgments).name, None
    if note.exists():
        made_by = store.read_json(note)
        name, told = made_by["judge"], made_by["told"]
    return results(benchmark, source, answers.read(source, judgments), name, told, n_boot, seed)


def results(
    benchmark: Benchmark,
    source: Source,
    given: answers.Answers,
    judge: str,
    told: Mapping[str, Any] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """All result rows. `told` is what is known of how the judge was asked: samples, aggregate, temperature."""
    shown = {shown for found in given.values() for shown in found}
    firsts = [next(iter(q.asked.values())) for q in source.questions if q.asked]
    with_reference = sum(item.reference_answer is not None for item in firsts)
    protocol = {
        "mode": _mode(source, given),
        "reference": f"in {with_reference} of {len(firsts)} items",
        **(told or dict.fromkeys(GREEDY, "not told")),
        "orders": "both" if {"AB", "BA"} <= shown else "one" if shown & {"AB", "BA"} else "one response at a time",
        "ties": benchmark.ties,
        "parse_failures": benchmark.failures,
        "interval": f"95% over prompts, {n_boot} resamples: BCa for plain means and errors, percentile for weighted ones, "
        "Fisher's z and a jackknife error for correlations over all items",
    }
    rows = []
    for part in benchmark.parts or [""]:
        base = {"benchmark": benchmark.name, "revision": source.revision, "judge": judge, "part": part}
        for found in benchmark.rule(answers.judged(source, given, part), n_boot=n_boot, seed=seed):
            place = (found["metric"], found["subset"], part)
            beside = [p for p in benchmark.published if (p.metric, p.subset, p.part) == place]
            published = [{"judge": p.judge, "value": p.value, "source": p.source} for p in beside]
            rest = {"seed": seed, "left_out": dict(source.left_out), "protocol": protocol, "published": published}
            rows.append(base | found | rest)
    return rows


def _mode(source: Source, given: answers.Answers) -> str:
    if all(q.responses == ("",) for q in source.questions):
        return "pointwise: the score of the response, as it was written"
    if any(isinstance(answer, str) for found in given.values() for answer, _ in found.values()):
        return "pairwise or more: the responses are shown together, and the judge says which is better"
    return "pointwise: every response alone; their scores are compared, of our judges the expected ones"


def table(rows: list[dict[str, Any]]) -> Table:
    """Result rows to print, with what others reported for their judges beside them, and the protocol below."""
    first = rows[0]
    told = "\n".join(
        [*(f"{k}: {v}" for k, v in first["protocol"].items()), *(f"{n} {w}" for w, n in first["left_out"].items())]
    )
    shown = Table(
        title=Text(f"{first['benchmark']}, {first['revision']}: {first['judge']}"), caption=Text(told),
        title_justify="left", caption_justify="left", box=None, pad_edge=False, header_style="bold",
    )  # fmt: skip
    for title in ("subset", "metric", "value", "95% interval", "n", "parsed", "failures", "published"):
        shown.add_column(title, justify="right" if title in ("value", "n", "parsed") else "left", overflow="fold")
    for row in rows:
        value = "–" if row["value"] is None else f"{row['value']:.3f}"
        span = "" if row["ci_low"] is None else f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        failures = ", ".join(f"{name} {n}" for name, n in sorted(row["failures"].items()))
        published = "\n".join(f"{p['value']:g} {p['judge']} ({p['source']})" for p in row["published"])
        subset = " ".join(filter(None, [row["part"], row["subset"]]))
        cells = (subset, row["metric"], value, span, str(row["n"]), f"{row['parse_rate']:.1%}", failures, published)
        shown.add_row(*map(Text, cells))
    return shown


def _note(kept: Path) -> Path:
    return kept.with_suffix(".json")


def _same_or_refuse(kept: Path, now: Mapping[str, Any]) -> None:
    """Judgments of another judge, or of other rows, are neither resumed nor replaced."""
    note = _note(kept)
    if kept.exists() and (not note.exists() or store.read_json(note) != now):
        raise store.RowError(
            f"{kept}: holds judgments of another judge or of other rows; name another -o, or delete it"
        )
    store.write_json(note, now)
