"""Judge: what a user takes home.

    from srlib import Judge, Rubric
    judge = Judge.load("runs/notes/judge")
    j = judge.score(instruction="...", response="...", rubric=Rubric(criterion="...", levels=["bad", "fair", "good"]))
    j.score, j.rationale, j.expected_score, j.distribution
    judge.compare(instruction="...", response_a="...", response_b="...", rubric=...).preference

A judge behind a server is used alike: `Judge.load("http://localhost:8000/v1", model="judge")`. Files: `judge_file`."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from srlib import data, files, models, prompts, sample
from srlib.schema import Comparison, Example, Item, Judgment, Rubric
from srlib.stats import agreement, intervals

RECORDS = {"line", "id", "score", "failure", "reason"}, {"line", "id", "expected_score", *Judgment.model_fields}
METRICS = ("accuracy", "balanced_accuracy", "mae", "pearson", "qwk")  # of those that `summary` shows
FEW = 30  # independent rows with a gold verdict: of fewer, the interval is wide
FAR = 0.5  # nats per token beyond the least likely prompt of the validation split


@dataclass
class Judge:
    """A loaded judge. `template` and `max_new_tokens` are those of its training; `sampler` draws from the model or server."""

    sampler: Callable[..., list[Judgment]]
    template: str = "brief"
    max_new_tokens: int = 128
    server: sample.Server | None = None

    @classmethod
    def load(cls, path: str | Path, *, model: str = "", **options: Any) -> Judge:
        """Load a judge from its directory (or any causal language model), or from the URL of an OpenAI-compatible
        server. `model` is the judge's name on the server, or its directory if the server has it under that: then the
        directory says how its prompts are written. `options` go to `models.load` (dtype, ...; an adapter has by default
        the quantization of its training) or to `sample.Server` (concurrency, ...). Raises ModelError or DrawsError."""
        if not is_served(path):
            info = models.judge_info(path)
            bits = {"quantization": info["quantization"]} if "quantization" in info and models.base_of(path) else {}
            bound = functools.partial(sample.judgments, *models.load(path, **bits | options))
            return cls(bound, info["template"], info["max_new_tokens"])
        here = model * any((Path(model) / name).is_file() for name in ("judge.json", "config.json"))
        if here and models.load_tokenizer(here).chat_template is None:
            options = {"api": "completions"} | options
        server, info = sample.Server(str(path), model, **options), models.judge_info(here)
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
        """Judge two responses side by side, greedily: `preference` is "A", "B" or "tie", or `failure` says why not. For
        a judge that learned to compare (sft_mode mix or merge). Any judge compares by `expected_score` of both. Judge
        both orders if it matters: a judge may prefer the first response."""
        fields = dict(instruction=instruction, response_a=response_a, response_b=response_b, rubric=rubric)
        comparison = Comparison(id="one", reference_answer=reference_answer, preference=None, **fields)
        return self.score_many([comparison])[0]

    def score_many(self, items: Sequence[Item], **sampling: Any) -> list[Judgment]:
        """Judge items, greedily unless `sampling` says otherwise (as in `sample.judgments`: n, temperature, ...). The file `out`
        lets the same call resume; use one for each judge, set of items and settings, because it records ids only."""
        return self.sampler(items, **{"template": self.template, "max_new_tokens": self.max_new_tokens} | sampling)

    def write(self, requests: Sequence[str], **sampling: Any) -> list[list[str]]:
        """N free texts of the model for each request, `write(["Name a colour."], n=2, temperature=1.0) -> [["Red", "Blue"]]`;
        `sampling` as in `score_many`. A text that the length limit cuts off is kept as it is."""
        blank = dict(response="-", rubric=Rubric(criterion="-", levels=["-", "-"]))
        items = [Example(id=f"{i} {text}", instruction=text, **blank) for i, text in enumerate(requests)]
        drawn = self.score_many(items, **{"distributions": False, "desc": "write"} | sampling | {"template": ""})
        texts = {name: [j.text for j in of] for name, of in itertools.groupby(drawn, lambda j: j.example_id)}
        return [texts.get(item.id, []) for item in items]


def is_served(judge: str | Path) -> bool:
    """Whether a judge is named by the URL of its server."""
    return str(judge).startswith(("http://", "https://"))


def identity(judge: str | Path, model: str = "") -> str:
    """A text that tells judges apart: of a directory (served or not) or a GGUF file the hash of its files and of its base's,
    `"sha256:4f3a5005168266fd"`; of a hub id or another served model its name, because a server may move."""
    local = Path(model if is_served(judge) and model else judge).expanduser()
    if not local.exists():
        return str(model or judge)
    files_hash, base = f"sha256:{files.sha256(local)[:16]}", models.base_of(local) if local.is_dir() else None
    return files_hash if base is None else f"{files_hash} on {identity(base)}"


def judge_file(
    judge: str | Path, rows: str | Path, out: str | Path, limit: int | None = None, model: str = "", **reading: Any
) -> dict[str, Any]:
    """Judge every row of a file with Judge.load(judge, model=model). One line of `out` for each row, in order:
    `{"line", "id", ...}` with the fields of a judgment and expected_score, or with `failure` bad_row or not_judged and
    a `reason`. Judgments are kept in `<out>.partial` as they come: the same command resumes, and asks a server again
    for what it failed on. `reading` goes to `data.read_rows`. Returns what `summary` prints. Raises RowError,
    ModelError, and SrlibError on an `out` that is not its own (see `files.output`)."""
    out = files.output(out, RECORDS, [rows, judge, model])
    partial, note = (out.with_name(out.name + end) for end in (".partial", ".partial.json"))
    resumes = not files.is_stream(out)
    for path in (partial, note) if resumes else ():
        files.output(path, [{"judge", "rows"}], [rows], record=note)
    check = sample.server.address if is_served(judge) else models.check_model
    check(str(judge))
    known = model * (Path(model) / "judge.json").is_file() if is_served(judge) else judge  # not by its name on the hub
    reading = {"score_step": models.judge_info(known)["score_step"]} | reading
    lines = [(line, row) for line, _, row, *_ in data.read_rows(rows, **reading)][:limit]
    if not lines:
        raise files.RowError(f"{rows}: holds no rows; give a file with one row a line")
    items = [row for _, row in lines if isinstance(row, Item)]
    made_from = {"judge": identity(judge, model), "rows": hashlib.sha256(repr(lines).encode()).hexdigest()}
    kept = files.read_json(note) if resumes and partial.exists() and note.exists() else {}
    if kept and kept != made_from:
        raise files.SrlibError(f"{partial}: is of another judge or other rows; name another -o, or delete it")
    if resumes and not kept:
        partial.unlink(missing_ok=True)
        files.write_json(note, made_from)
    resumed = len(files.read_rows(partial, Judgment, drop_torn_tail=True)) if partial.exists() else 0
    loaded = Judge.load(judge, model=model, **({"left_out": 1.0} if is_served(judge) else {}))
    started = time.monotonic() - 1e-9  # a coarse clock may stand still
    judged = {j.example_id: j for j in loaded.score_many(items, out=partial if resumes else None)}
    failed, seconds = loaded.server.unfinished if loaded.server else {}, time.monotonic() - started
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
    if resumes and not failed:
        partial.unlink(missing_ok=True)
        note.unlink()
    failures = Counter(record["failure"] for record in records if record["failure"])
    scored = len(records) - failures.total()
    done = {"rows": len(records), "scored": scored, "failures": dict(failures), "gold": against_gold(items, judged)}
    done |= {"parse_rate": scored / max(1, len(judged)), "judgments_per_second": (len(judged) - resumed) / seconds}
    warnings = _unlike_validation(known, loaded, items, list(judged.values()))
    scales = {item.rubric.scale for item in items if isinstance(item, Example) and item.gold is not None}
    warnings += ["Gold scores have several scales, which mae and correlations mix: use accuracies"] * (len(scales) > 1)
    return done | {"server": loaded.server.summary() if loaded.server else "", "warnings": warnings}


def against_gold(items: Sequence[Item], judged: Mapping[str, Judgment]) -> dict[str, dict[str, Any]]:
    """How judgments, by id, agree with the gold verdicts of their items: the metrics of `agreement.measure` for "scores", and
    for "preferences" with A, tie and B as 1, 0 and -1; `independent` counts the instructions, unless all have the same."""
    metrics, number = {}, {"A": 1, "tie": 0, "B": -1}
    for kind, makes in (("scores", Example), ("preferences", Comparison)):
        rows = [item for item in items if isinstance(item, makes) and item.gold is not None]
        if rows:
            gold = [row.gold for row in rows]
            said = [judged[row.id].verdict if row.id in judged else None for row in rows]
            gold, said = ([number.get(verdict, verdict) for verdict in verdicts] for verdicts in (gold, said))
            group = [row.cluster for row in rows] if len({row.cluster for row in rows}) > 1 else None
            independent = len({*(group or range(len(rows)))})
            metrics[kind] = agreement.measure(gold, said, group=group) | {"independent": independent}
    return metrics


def prompt_nll(model: Any, tokenizer: Any, items: Sequence[Item], template: str) -> list[float]:
    """Mean NLL, in nats per token, of the prompts of up to 32 items (of each, up to 1,024 tokens): high on an unknown kind of text."""
    nll, longest = [], int(min(1024, sample.decoding.longest_text(model)))
    for item in items[:: max(1, len(items) // 32)][:32]:
        ids = torch.tensor([prompts.prompt_ids(tokenizer, item, template)[:longest]], device=model.device)
        with torch.inference_mode():
            nll.append(float(model(input_ids=ids, labels=ids).loss))
    return [value for value in nll if math.isfinite(value)]


def _unlike_validation(path: str | Path, judge: Judge, items: Sequence[Item], judged: Sequence[Judgment]) -> list[str]:
    """How these rows are unlike the validation split of the judge, as far as its judge.json knows that."""
    known, facts = models.judge_info(path).get("validation"), []
    if known and judged:
        readable, usual = intervals.mean([j.verdict is not None for j in judged]), known.get("parse_rate", 0)
        if len(judged) >= 8 and readable.high < usual:  # fewer may all fail by chance
            facts.append(f"{readable.value:.1%} of the judgments can be read, {usual:.1%} on its validation split")
        nll = [] if judge.server else prompt_nll(*judge.sampler.args, items, judge.template)
        if nll and fmean(nll) > (usual := known.get("prompt_nll_highest", math.inf)) + FAR:
            facts.append(f"prompts have {fmean(nll):.1f} nats per token, on its validation split at most {usual:.1f}")
    return [f"This judge may have been trained on another kind of text: {fact}" for fact in facts]


def summary(done: Mapping[str, Any]) -> str:
    """The value of `judge_file` in words, as `srlib judge` prints it."""
    failures = ", ".join(f"{name} {n}" for name, n in sorted(done["failures"].items())) or "none"
    rates = f"parse rate {done['parse_rate']:.1%} of the judged, {done['judgments_per_second']:.1f} judgments/s"
    lines = [f"{done['rows']} rows, {done['scored']} with a score; {rates}; failures: {failures}", done["server"]]
    for kind, metrics in done["gold"].items():
        lines.append(f"Against {metrics['accuracy'].n} gold {kind}, with 95% intervals (no verdict counts as wrong):")
        for name, (value, low, high, n) in ((name, metrics[name]) for name in METRICS):
            lines.append(f"  {name:<18}{value:6.3f} [{low:.3f}, {high:.3f}]  n {n}".replace("nan", "–"))
        if (n := metrics["independent"]) < FEW:
            lines.append(f"  {n} independent rows are few, and the intervals wide: label {FEW} or more to rely on this")
    lines += [] if done["scored"] else ["No row got a score: each line of the output says why"]
    return "\n".join(filter(None, [*lines, *done["warnings"]]))
