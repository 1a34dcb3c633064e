"""Judge: what a user takes home.

    from srlib import Judge, Rubric
    judge = Judge.load("runs/tiny/judge")
    j = judge.score(instruction="...", response="...", rubric=Rubric(criterion="...", levels=["bad", "fair", "good"]))
    j.score, j.rationale, j.expected_score, j.distribution
    judge.compare(instruction="...", response_a="...", response_b="...", rubric=...).preference

A judge that a server has is used alike: `Judge.load("http://localhost:8000/v1", model="judge")`. For files there is
`judge_file`, which is what `srlib judge` calls.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlib import data
from srlib import files as store
from srlib.models import load as models
from srlib.sample import decode as sample
from srlib.schema import Comparison, Example, Item, Judgment, Rubric


@dataclass
class Judge:
    """A loaded judge. `template` and `max_new_tokens` are what it was trained with; `sampler` is sample.judgments, or
    endpoint.judgments or vllm.judgments, with the model bound; `told` is a summary of what a server did."""

    sampler: Callable[..., list[Judgment]]
    template: str = "brief"
    max_new_tokens: int = 128
    told: Callable[[], str] = str

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str = "",
        directory: str | Path = "",
        backend: str = "transformers",
        concurrency: int = 8,
        left_out: float = 0.0,
        **weights: Any,
    ) -> Judge:
        """A judge from its directory (or any causal language model); from the URL of an OpenAI-compatible server that
        has it under the name `model`, asked `concurrency` times at once (see endpoint.Endpoint, also for `left_out`);
        or, with path "vllm", through vLLM in this process.

        `directory` is where a served judge lies here, if it does: it says how prompts are written, and is the model's
        name where none is given. Without a GPU, `workers` processes judge side by side, each with the model in its memory.
        `weights` is what models.load takes besides (quantization, ...). Raises models.ModelError or client.EndpointError
        with the reason.
        """
        directory = directory or (model if model and Path(model).is_dir() else "")
        model = model or (str(Path(directory).resolve()) if directory else "")
        if is_url(path):
            from srlib.sample import endpoint

            api = "auto"
            if directory:  # whether there is a chat template need not be found out
                api = "completions" if models.load_tokenizer(directory).chat_template is None else "chat"
            server = endpoint.Endpoint(str(path), model, api, concurrency, left_out)
            sampler, told = functools.partial(endpoint.judgments, server), server.told
        else:
            directory, loaded = path, models.load(path, backend=backend, **weights)
            sampler, told = functools.partial(sample.judgments, *loaded), str
        info = models.judge_info(directory or model)
        return cls(sampler, info["template"], info["max_new_tokens"], told)

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
        **how: Any,
    ) -> list[Judgment]:
        """`n` judgments of each example or comparison, ordered by example and index; with `out` it resumes. `how` is whatever else
        sample.judgments takes: top_p, max_new_tokens, batch_size, distributions, desc."""
        how = {"template": self.template, "max_new_tokens": self.max_new_tokens} | how
        return self.sampler(examples, n=n, temperature=temperature, seed=seed, out=out, **how)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def is_url(path: str | Path) -> bool:
    return str(path).startswith(("http://", "https://"))


def is_served(judge: str | Path) -> bool:
    """Whether a judge is asked for by name, in another process or engine, rather than loaded here."""
    return is_url(judge)


def identity(judge: str | Path, model: str = "") -> str:
    """What judged, so that another's judgments are not taken for its own: a directory by the hash of its files, and of its
    base's where it is an adapter, `"sha256:4f3a5005168266fd"`, served or not; a hub id and any other served model by their
    names, since a server may move."""
    local = Path(model if is_served(judge) and model else judge).expanduser()
    if not local.is_dir():
        return str(model or judge)
    files = f"sha256:{store.sha256(local)[:16]}"
    base = models.base_of(local)
    return files if base is None else f"{files} on {identity(base)}"


def judge_file(
    judge: str | Path, rows: str | Path, out: str | Path, limit: int | None = None, model: str = ""
) -> dict[str, Any]:
    """Judge every row of a file, a response or two to compare, by the judge that Judge.load(judge, model=model) gives; one
    line of `out` for each, in order: `{"line", "id", ...}` and then either a judgment's fields and expected_score, or
    `"failure": "bad_row"` and a reason.

    Judgments are kept in `<out>.partial` as they come, so the same command resumes. Returns counts: rows, judged, scored,
    failures by name, judgments a second, what a server did. Raises data.DataError when the file holds no row at all, and when `out` would
    replace it; models.ModelError when there is no judge.
    """
    out, started = Path(out), time.monotonic()
    if out.resolve() == Path(rows).resolve() or out.suffix == ".gz":
        raise data.DataError(
            f"{out}: judgments do not go into the file of the rows or a .gz file; name a new .jsonl file"
        )
    if not is_served(judge):
        models.check_model(judge)
    store.make_dir(out.resolve().parent)
    lines = _lines(rows)
    if not lines:
        raise data.DataError(f"{rows}: holds no rows; give a .jsonl or .jsonl.gz file with one row a line")
    lines = lines[:limit] if limit is not None else lines
    wanted = [row for _, row in lines if isinstance(row, Item)]
    partial = out.with_name(f"{out.name}.partial")
    _start_over_unless_same(partial, {"judge": identity(judge, model), "rows": store.sha256(rows)})
    loaded = Judge.load(judge, model=model)
    had = len(store.read_rows(partial, Judgment, drop_torn_tail=True)) if partial.exists() else 0
    found = {j.example_id: j for j in loaded.score_many(wanted, out=partial)}
    records: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for line, row in lines:
        if isinstance(row, Item):
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
        "judgments_per_second": (len(wanted) - had) / seconds,
        "told": loaded.told(),
    }


def _lines(rows: str | Path) -> list[tuple[int, Item | data.RowFailure]]:
    """Every row with its line. An id stands for one judgment, so an example and a comparison cannot share it."""
    found: list[tuple[int, Item | data.RowFailure]] = []
    ids: set[str] = set()
    for number, where, row, *_ in data.read_rows(rows):
        if isinstance(row, Item) and row.id in ids:
            reason = f"{where}: id {store.shorten(row.id)} is that of a row above; ids must be unique"
            row = data.RowFailure(number, row.id, reason)
        ids.add(row.id)
        found.append((number, row))
    return found


def _made_by(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _start_over_unless_same(partial: Path, now: Mapping[str, str]) -> None:
    """Judgments of another judge or of other rows are not resumed."""
    note = _made_by(partial)
    if partial.exists() and note.exists() and store.read_json(note) == now:
        return
    partial.unlink(missing_ok=True)
    store.write_json(note, now)
