"""Files and the built-in world -> Examples.

A local file (.jsonl or .jsonl.gz) holds one example a line, in either of two forms: our own schema (schema.Example), or
the flat one in which judged data is often passed on: `instruction, response, reference_answer, rubric` (text in
Prometheus form), `score, score_min, score_max, rationale, split_hint`. What does not fit is named by line and field.

    splits = load_splits("answers.jsonl.gz", n_validation=200, seed=0)   # {"train": [...], "validation": ..., "test": ..., "ood": ...}
    examples, failures = read_any("rows.jsonl")                           # every row, or the reason why not
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srlib import store
from srlib.schema import Example, format_score

SPLITS = ("train", "validation", "test", "ood")
_LEVEL = re.compile(r"^Score[ \t]+([-+]?\d+(?:\.\d+)?)[ \t]*:", re.MULTILINE)
_OURS = set(Example.model_fields) | {"split_hint"}


class RowFailure(NamedTuple):
    """One line of a file that is no example."""

    line: int
    id: str | None
    reason: str


class DataError(ValueError):
    """A file that cannot be used as data. Says file, line, field, and what to do."""


def read_any(path: str | Path, score_step: float = 0.25) -> tuple[list[tuple[int, Example]], list[RowFailure]]:
    """Every line of a file, as (line, example) or as a named failure: nothing is skipped in silence.

    `score_step` is for rubrics that name a range and no levels: their scores go in such steps. A gold score between two
    steps (the mean of two graders, say) moves to the nearer one, and meta["score_given"] keeps what the file says.
    """
    parsed: list[tuple[int, dict[str, Any] | str]] = []
    for number, raw in store.read_lines(path):
        try:
            value = store.parse_json(f"line {number}", raw)
        except store.RowError as error:
            parsed.append((number, str(error)))
            continue
        parsed.append((number, value if isinstance(value, dict) else f"line {number}: a row is a JSON object {{...}}"))
    examples, failures, seen = [], [], {}
    for number, row in parsed:
        name = row.get("id") if isinstance(row, dict) else None
        name = name if isinstance(name, str) else None
        try:
            if isinstance(row, str):
                raise store.RowError(row)
            example = store.validate(f"line {number}", _to_ours(row, number, score_step), Example)
            if seen.setdefault(example.id, number) != number:
                raise store.RowError(
                    f"line {number}: id {store.shorten(example.id)} is already in line {seen[example.id]}; ids must be unique"
                )
            examples.append((number, example))
        except store.RowError as error:
            failures.append(RowFailure(number, name, str(error)))
    return examples, failures


def load_splits(
    path: str | Path, *, n_validation: int, seed: int = 0, bad_rows: str = "refuse", score_step: float = 0.25
) -> dict[str, list[Example]]:
    """The splits of a file of judged examples; every row needs a score.

    `split_hint` decides where there is one (train, validation or dev, test or unseen answers, ood or unseen questions);
    rows without it are split by instruction, so that no instruction crosses. Without a validation split,
    `n_validation` rows of the training split become one. `bad_rows` "refuse" raises DataError at the first bad row,
    "drop" leaves them out, and the caller reports the count.
    """
    examples, failures = read_any(path, score_step)
    failures += [
        RowFailure(line, e.id, f"line {line}: field score is missing; a training row needs one")
        for line, e in examples
        if e.score is None
    ]
    if failures and bad_rows == "refuse":
        more = f" (and {len(failures) - 1} more bad rows)" if len(failures) > 1 else ""
        raise DataError(f"{path}, {failures[0].reason}{more}. Correct the file, or set bad_rows to drop")
    scored = [e for _, e in examples if e.score is not None]
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in scored:
        splits[_split_of(example)].append(example)
    if not splits["validation"]:
        order = sorted(splits["train"], key=lambda e: _hash(f"{seed} {e.id}"))
        chosen = {e.id for e in order[: min(n_validation, len(order) // 5)]}
        splits["validation"] = [e for e in splits["train"] if e.id in chosen]
        splits["train"] = [e for e in splits["train"] if e.id not in chosen]
    if not splits["train"]:
        raise DataError(f"{path}: no training rows; `split_hint` of at least some rows must be train")
    return splits


def _split_of(example: Example) -> str:
    hint = str(example.meta.get("split_hint") or "").lower()
    if not hint:
        bucket = int(_hash(example.group or example.instruction)[:8], 16) % 10
        return "test" if bucket == 0 else "validation" if bucket == 1 else "train"
    for split, words in {
        "ood": ("ood", "unseen_question"),
        "validation": ("valid", "dev"),
        "test": ("test", "bench", "unseen_answer"),
    }.items():
        if any(word in hint for word in words):
            return split
    return "train"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _to_ours(row: dict[str, Any], number: int, step: float) -> dict[str, Any]:
    """A row of either form as the fields of an Example; what is wrong with a value is left to the schema to say."""
    if isinstance(row.get("rubric"), dict):
        if set(row) <= _OURS:
            hint = row.pop("split_hint", None)
            if hint and isinstance(row.get("meta", {}), dict):
                return {**row, "meta": {**row.get("meta", {}), "split_hint": hint}}
        return row
    if row.get("type") == "pairwise" or "response_a" in row:
        raise store.RowError(f"line {number}: two responses to compare; this reads rows with one response to score")
    rubric, score = _rubric(row, number, step), row.get("score")
    meta = {"split_hint": row.get("split_hint"), "source": row.get("source")}
    low, high = min(rubric["levels"]), max(rubric["levels"])
    if "step" in rubric and isinstance(score, int | float) and -1e9 < low <= score <= high < 1e9:
        nearest = round(low + math.floor((score - low) / step + 0.5) * step, 6)  # half up, as graders round
        meta |= {"score_given": score} if nearest != score else {}
        score = nearest
    return {
        "id": row.get("id"),
        "instruction": row.get("instruction"),
        "response": row.get("response"),
        "reference_answer": row.get("reference_answer") or None,
        "rubric": rubric,
        "rationale": row.get("rationale") or None,
        "score": score,
        "group": row.get("instruction"),
        "meta": meta,
    }


def _rubric(row: dict[str, Any], number: int, step: float) -> dict[str, Any]:
    text, low, high = row.get("rubric"), row.get("score_min"), row.get("score_max")
    if not isinstance(text, str) or not text.strip():
        raise store.RowError(
            f"line {number}: field rubric is missing; a judge needs a criterion and what the scores mean"
        )
    head, *parts = _LEVEL.split(text)  # a description ends where the next level begins, on whichever line
    levels = {float(n): " ".join(d.split()) for n, d in zip(parts[::2], parts[1::2], strict=True)}
    criterion = head.strip().removeprefix("[").replace("]\n", "\n").removesuffix("]").strip()
    if levels:
        return {"criterion": criterion, "levels": levels}
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low >= high:
        raise store.RowError(
            f"line {number}: the rubric has no levels (`Score 1: ...`) and no score_min, score_max; add either"
        )
    levels = {low: "Nothing of what is asked for", high: "Entirely correct and complete"}
    return {"criterion": criterion, "levels": levels, "step": step}


def baselines(train: Sequence[Example], rows: Sequence[Example]) -> Iterator[tuple[str, list[float]]]:
    """Scores that need no judge, each on the row's own scale: the mean gold score of the same question (of all, relative
    to the maximum, where the question is new), and the share of the reference's words that the response has."""
    relative: dict[str, list[float]] = {}
    for e in train:
        relative.setdefault(e.instruction, []).append(_relative(e, e.score))
    overall = [value for values in relative.values() for value in values]
    means = [relative.get(e.instruction, overall) for e in rows]
    yield "question_mean", [_nearest(e, sum(m) / len(m)) for e, m in zip(rows, means, strict=True)]
    yield "word_overlap", [_nearest(e, _overlap(e)) for e in rows]


def _relative(example: Example, score: float) -> float:
    low, high = example.rubric.scale[0], example.rubric.scale[-1]
    return (score - low) / (high - low)


def _nearest(example: Example, relative: float) -> float:
    scale = example.rubric.scale
    return min(scale, key=lambda s: abs(s - (scale[0] + relative * (scale[-1] - scale[0]))))


def _overlap(example: Example) -> float:
    wanted = set(re.findall(r"\w+", (example.reference_answer or "").lower()))
    return len(wanted & set(re.findall(r"\w+", example.response.lower()))) / max(1, len(wanted))


def describe_scale(examples: Sequence[Example]) -> str:
    """The scales of a split in words: `"1, 2, 3, 4, 5 (800 rows)"`."""
    counts: dict[str, int] = {}
    for e in examples:
        s = e.rubric.scale
        name = (
            ", ".join(map(format_score, s))
            if len(s) <= 7
            else f"{format_score(s[0])} .. {format_score(s[-1])} by {format_score(s[1] - s[0])}"
        )
        counts[name] = counts.get(name, 0) + 1
    return "; ".join(f"{name} ({n} rows)" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
