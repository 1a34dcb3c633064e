"""Judge: what a user takes home.

    from srlib import Judge, Rubric
    judge = Judge.load("runs/tiny/judge")
    j = judge.score(instruction="...", response="...", rubric=Rubric(criterion="...", levels=["bad", "fair", "good"]))
    j.score, j.rationale, j.expected_score, j.distribution
    judge.compare(instruction="...", response_a="...", response_b="...", rubric=...).preference

A judge behind a server is used alike: `Judge.load("http://localhost:8000/v1", model="judge")`. For files there is
`judge_file`, which is what `srlib judge` calls.
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlib import data, files, models, sample
from srlib.schema import Comparison, Example, Item, Judgment, Rubric


@dataclass
class Judge:
    """A loaded judge. `template` and `max_new_tokens` are those of its training; `sampler` is `sample.judgments` with the model,
    or `sample.server_judgments` with the server."""

    sampler: Callable[..., list[Judgment]]
    template: str = "brief"
    max_new_tokens: int = 128
    server: sample.Server | None = None

    @classmethod
    def load(cls, path: str | Path, *, model: str = "", **options: Any) -> Judge:
        """Load a judge from its directory (or any causal language model), or from the URL of an OpenAI-compatible server.

        `model` is the judge's name on the server, or its directory if the server has it under that: then the directory says
        how its prompts are written. `options` go to `models.load` (quantization, dtype, ...) or to `sample.Server`
        (concurrency, api, ...). Raises ModelError or DrawsError with the reason.
        """
        if not is_served(path):
            info, bound = models.judge_info(path), functools.partial(sample.judgments, *models.load(path, **options))
            return cls(bound, info["template"], info["max_new_tokens"])
        if Path(model).is_dir() and models.load_tokenizer(model).chat_template is None:
            options = {"api": "completions"} | options
        server, info = sample.Server(str(path), model, **options), models.judge_info(model)
        bound = functools.partial(sample.server_judgments, server)
        return cls(bound, info["template"], info["max_new_tokens"], server)

    def score(
        self, *, instruction: str, response: str, rubric: Rubric, reference_answer: str | None = None, **sampling: Any
    ) -> Judgment:
        """Judge one response, greedily, or with one draw: `temperature=1.0, seed=3`. Without a score, `failure` says why."""
        fields = dict(instruction=instruction, response=response, rubric=rubric, reference_answer=reference_answer)
        return self.score_many([Example(id="one", **fields)], **sampling)[0]

    def compare(
        self, *, instruction: str, response_a: str, response_b: str, rubric: Rubric, reference_answer: str | None = None
    ) -> Judgment:
        """Judge two responses side by side, greedily: `preference` is "A", "B" or "tie", or `failure` says why not.

        For a judge that learned to compare (sft_mode mix or merge). Any judge compares by `expected_score` of both. Judge
        both orders if it matters: a judge may prefer the first response.
        """
        fields = dict(instruction=instruction, response_a=response_a, response_b=response_b, rubric=rubric)
        comparison = Comparison(id="one", reference_answer=reference_answer, preference=None, **fields)
        return self.score_many([comparison])[0]

    def score_many(self, items: Sequence[Item], **sampling: Any) -> list[Judgment]:
        """Judge examples and comparisons, greedily unless `sampling` says otherwise: n, temperature, top_p, seed, out (resumes), ...
        as in `sample.judgments`. Ordered by item, then index."""
        return self.sampler(items, **{"template": self.template, "max_new_tokens": self.max_new_tokens} | sampling)


def is_served(judge: str | Path) -> bool:
    """Whether a judge is named by the URL of its server."""
    return str(judge).startswith(("http://", "https://"))


def identity(judge: str | Path, model: str = "") -> str:
    """What tells one judge from another: of a directory, served or not, the hash of its files and of its base's,
    `"sha256:4f3a5005168266fd"`; of a hub id or any other served model its name, since a server may move."""
    local = Path(model if is_served(judge) and model else judge).expanduser()
    if not local.is_dir():
        return str(model or judge)
    files_hash, base = f"sha256:{files.sha256(local)[:16]}", models.base_of(local)
    return files_hash if base is None else f"{files_hash} on {identity(base)}"


def judge_file(
    judge: str | Path, rows: str | Path, out: str | Path, limit: int | None = None, model: str = ""
) -> dict[str, Any]:
    """Judge every row of a file with Judge.load(judge, model=model). One line of `out` for each row, in order: `{"line", "id",
    ...}` with the fields of a judgment and expected_score, or with `failure` bad_row or not_judged and a `reason`.

    Judgments are kept in `<out>.partial` as they come: the same command resumes, and asks a server again for what it failed
    on. Returns rows, scored, failures by name, parse_rate, judgments_per_second, server. Raises DataError, ModelError.
    """
    out, started = Path(out), time.monotonic()
    if out.resolve() == Path(rows).resolve() or out.suffix == ".gz":
        raise data.DataError(f"{out}: cannot take the judgments; name a new .jsonl file with -o, not that of the rows")
    if not is_served(judge):
        models.check_model(judge)
    files.make_dir(out.resolve().parent)
    lines = [(line, row) for line, _, row, *_ in data.read_rows(rows)][:limit]
    if not lines:
        raise data.DataError(f"{rows}: holds no rows; give a .jsonl or .jsonl.gz file with one row a line")
    items = [row for _, row in lines if isinstance(row, Item)]
    partial, note = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.partial.json")
    made_from = {"judge": identity(judge, model), "rows": files.sha256(rows)}
    if not (partial.exists() and note.exists() and files.read_json(note) == made_from):
        partial.unlink(missing_ok=True)  # of another judge, or of other rows
        files.write_json(note, made_from)
    resumed = len(files.read_rows(partial, Judgment, drop_torn_tail=True)) if partial.exists() else 0
    loaded = Judge.load(judge, model=model, **({"left_out": 1.0} if is_served(judge) else {}))
    judged = {j.example_id: j for j in loaded.score_many(items, out=partial)}
    failed = loaded.server.unfinished if loaded.server else {}

    records: list[dict[str, Any]] = []
    for line, row in lines:
        record = {"line": line, "id": row.id}
        if isinstance(row, data.RowFailure):
            record |= {"score": None, "failure": "bad_row", "reason": row.reason}
        elif row.id in failed:
            record |= {"score": None, "failure": "not_judged", "reason": failed[row.id]}
        else:
            record |= judged[row.id].model_dump(mode="json") | {"expected_score": judged[row.id].expected_score}
        records.append(record)
    files.write_text(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    if not failed:
        partial.unlink(missing_ok=True)
        note.unlink()
    failures = Counter(record["failure"] for record in records if record["failure"])
    scored = len(records) - failures.total()
    return {
        "rows": len(records),
        "scored": scored,
        "failures": dict(failures),
        "parse_rate": scored / max(1, len(items)),
        "judgments_per_second": (len(judged) - resumed) / (time.monotonic() - started),
        "server": loaded.server.summary() if loaded.server else "",
    }
