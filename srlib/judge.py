"""Judge: what a user takes home.

    from srlib import Judge, Rubric
    judge = Judge.load("runs/tiny/judge")
    j = judge.score(instruction="...", response="...", rubric=Rubric(criterion="...", levels=["bad", "fair", "good"]))
    j.score, j.rationale, j.expected_score, j.distribution
    judge.compare(instruction="...", response_a="...", response_b="...", rubric=...).preference

and for files, `judge_file`, which is what `srlib judge` calls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlib import data, models, sample, store
from srlib.schema import Comparison, Example, Item, Judgment, Rubric


@dataclass
class Judge:
    """A loaded judge. `template` and `max_new_tokens` are what it was trained with."""

    model: Any
    tokenizer: Any
    template: str = "brief"
    max_new_tokens: int = 128

    @classmethod
    def load(cls, path: str | Path, backend: str = "transformers", quantization: str = "none") -> Judge:
        """A judge from its directory (or any causal language model). Raises models.ModelError with the reason."""
        info = models.judge_info(path)
        model, tokenizer = models.load(path, backend=backend, quantization=quantization)
        return cls(model, tokenizer, info["template"], info["max_new_tokens"])

    def score(
        self,
        *,
        instruction: str,
        response: str,
        rubric: Rubric,
        reference_answer: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Judgment:
        """Judge one response: greedy, or one draw at `temperature`. No score means `failure` says why."""
        example = Example(
            id="one", instruction=instruction, response=response, rubric=rubric, reference_answer=reference_answer
        )
        return self.score_many([example], temperature=temperature, seed=seed)[0]

    def compare(
        self,
        *,
        instruction: str,
        response_a: str,
        response_b: str,
        rubric: Rubric,
        reference_answer: str | None = None,
    ) -> Judgment:
        """Judge two responses side by side, greedily: `preference` is "A", "B" or "tie", or `failure` says why not.

        For a judge that learned to compare (sft_mode mix or merge). Any judge compares by `expected_score` of both. Ask for
        both orders where it matters: a judge may like the first place.
        """
        comparison = Comparison(
            id="one", instruction=instruction, response_a=response_a, response_b=response_b, rubric=rubric,
            reference_answer=reference_answer, preference=None,
        )  # fmt: skip
        return self.score_many([comparison])[0]

    def score_many(
        self,
        examples: Sequence[Item],
        *,
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        out: Path | None = None,
    ) -> list[Judgment]:
        """`n` judgments of each example or comparison, ordered by example and index; with `out` it resumes, see sample.judgments."""
        return sample.judgments(
            self.model,
            self.tokenizer,
            examples,
            template=self.template,
            n=n,
            temperature=temperature,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
            out=out,
        )


def judge_file(judge: str | Path, rows: str | Path, out: str | Path, limit: int | None = None) -> dict[str, Any]:
    """Judge every row of a file; one line of `out` for each, in order: `{"line", "id", ...}` and then either a judgment's
    fields and expected_score, or `"failure": "bad_row"` and a reason.

    Judgments are kept in `<out>.partial` as they come, so the same command resumes. Returns counts: rows, judged, scored,
    failures by name, judgments a second. Raises data.DataError when the file holds no row at all, and when `out` would
    replace it; models.ModelError when there is no judge.
    """
    out, started = Path(out), time.monotonic()
    if out.resolve() == Path(rows).resolve() or out.suffix == ".gz":
        raise data.DataError(
            f"{out}: judgments do not go into the file of the rows or a .gz file; name a new .jsonl file"
        )
    models.check_model(judge)
    store.make_dir(out.resolve().parent)
    examples, failures = data.read_any(rows)
    if not examples and not failures:
        raise data.DataError(f"{rows}: holds no rows; give a .jsonl or .jsonl.gz file with one row a line")
    lines = sorted(
        [(line, example) for line, example in examples] + [(f.line, f) for f in failures], key=lambda x: x[0]
    )
    lines = lines[:limit] if limit is not None else lines
    wanted = [row for _, row in lines if isinstance(row, Example)]
    partial = out.with_name(f"{out.name}.partial")
    _start_over_unless_same(partial, judge, rows)
    found = {j.example_id: j for j in Judge.load(judge).score_many(wanted, out=partial)}
    records: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for line, row in lines:
        if isinstance(row, Example):
            record = {"line": line, "id": row.id, **found[row.id].model_dump(mode="json")}
            record["expected_score"] = found[row.id].expected_score
        else:
            record = {"line": line, "id": row.id, "score": None, "failure": "bad_row", "reason": row.reason}
        if record["failure"]:
            counts[record["failure"]] = counts.get(record["failure"], 0) + 1
        records.append(record)
    store.write_text(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    partial.unlink(missing_ok=True)
    _made_by(partial).unlink(missing_ok=True)
    scored = len(records) - sum(counts.values())
    seconds = time.monotonic() - started
    return {
        "rows": len(records),
        "scored": scored,
        "failures": counts,
        "parse_rate": scored / max(1, len(wanted)),
        "judgments_per_second": len(wanted) / seconds,
    }


def _made_by(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _start_over_unless_same(partial: Path, judge: str | Path, rows: str | Path) -> None:
    """Judgments of another judge or of other rows are not resumed."""
    local = Path(judge).expanduser()
    now = {"judge": store.sha256(local) if local.is_dir() else str(judge), "rows": store.sha256(rows)}
    note = _made_by(partial)
    if partial.exists() and note.exists() and store.read_json(note) == now:
        return
    partial.unlink(missing_ok=True)
    store.write_json(note, now)
