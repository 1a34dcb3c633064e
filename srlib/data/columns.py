"""A row as somebody else wrote it -> our Example or Comparison.

Imports schema and store only. Five forms are known, by their columns, row by row (a file may mix them):

    srlib                  the fields of schema.Example or schema.Comparison, the rubric as an object
    flat                   `rubric` as text in Prometheus form, `score`, `score_min`, `score_max`; pairs: `response_a`,
                           `response_b`, `preference`
    Feedback Collection    orig_instruction, orig_response, orig_criteria, orig_score1_description ..., orig_score as text
    Feedback prompt        the same set where only the whole prompt (`instruction`) and the `output` are there
    Preference Collection  orig_response_A, orig_response_B, orig_preference ...

(arXiv 2310.08491 and 2405.01535 for the last three.) What a value is wrong about is said with the file's own name for it.

    example = convert({"orig_instruction": ..., "orig_score": "4", ...}, "row 3", number=3)
    FEEDBACK.columns["orig_score"]     # "score"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from pydantic import ValidationError

from srlib import files as store
from srlib.schema import Comparison, Example, Rubric

_LEVEL = re.compile(r"^Score[ \t]+([-+]?\d+(?:\.\d+)?)[ \t]*:", re.MULTILINE)
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d+)?\s*", re.ASCII)
_HEADING = re.compile(
    r"^###[ \t]*(The instruction to evaluate|Response to evaluate|Reference Answer \(Score 5\)|Score Rubrics?)[ \t]*:",
    re.MULTILINE,
)
_LOWEST, _HIGHEST = "Nothing of what is asked for", "Entirely correct and complete"  # where a rubric describes no score


@dataclass(frozen=True, eq=False)
class Form:
    """One way to write a row. `columns` says which fields of ours each column fills, in part or alone."""

    name: str
    makes: type[Example] | type[Comparison]
    columns: Mapping[str, str]

    @cached_property
    def names(self) -> dict[str, str]:
        """What the file calls our fields: `{"score": "orig_score", "rubric": "orig_criteria", ...}`."""
        found: dict[str, str] = {}
        for column, fields in self.columns.items():
            for name in fields.split(", "):
                found.setdefault(name.removesuffix(".criterion"), column)
        return found


_SPLIT = {"split_hint": "meta.split_hint"}
_FLAT = {"id": "id", "instruction": "instruction, group", "reference_answer": "reference_answer", "rubric": "rubric"}
_FLAT |= {"rationale": "rationale", "source": "meta.source", **_SPLIT}
_ORIG = {"orig_instruction": "instruction, group", "orig_reference_answer": "reference_answer"}
_ORIG |= {
    "orig_feedback": "rationale",
    "orig_criteria": "rubric.criterion",
    "id": "id",
    "source": "meta.source",
    **_SPLIT,
}

OURS = Form("srlib", Example, {name: name for name in Example.model_fields} | _SPLIT)
OUR_PAIRS = Form("srlib, pairs", Comparison, {name: name for name in Comparison.model_fields} | _SPLIT)
FLAT = Form(
    "flat", Example, _FLAT | {"response": "response", "score": "score", "score_min": "rubric", "score_max": "rubric"}
)
FLAT_PAIRS = Form(
    "flat, pairs",
    Comparison,
    _FLAT | {name: name for name in ("response_a", "response_b", "preference")},
)
FEEDBACK = Form(
    "Feedback Collection",
    Example,
    {"orig_response": "response", "orig_score": "score", **_ORIG}
    | {f"orig_score{n}_description": f"rubric.levels.{n}" for n in range(1, 6)},
)
FEEDBACK_PROMPT = Form(
    "Feedback prompt",
    Example,
    {"instruction": "instruction, group, response, reference_answer, rubric", "output": "rationale, score"}
    | {"id": "id", "source": "meta.source", **_SPLIT},
)
PREFERENCE = Form(
    "Preference Collection",
    Comparison,
    {"orig_response_A": "response_a", "orig_response_B": "response_b", "orig_preference": "preference"}
    | {"orig_score_A": "meta.scores", "orig_score_B": "meta.scores", **_ORIG}
    | {f"orig_score{n}_description": f"rubric.levels.{n}" for n in range(1, 6)},
)


def form_of(row: Mapping[str, Any]) -> Form:
    """Which form a row is in; a row in none counts as flat, and `convert` then says what it lacks."""
    if any(name.startswith("orig_") for name in row):
        pairs = any(name in row for name in ("orig_response_A", "orig_response_B", "orig_preference"))
        return PREFERENCE if pairs else FEEDBACK
    pairs = "response_a" in row or "response_b" in row or row.get("type") == "pairwise"
    rubric = row.get("rubric")
    if isinstance(rubric, dict) or (isinstance(rubric, str) and rubric.lstrip().startswith("{")):
        return OUR_PAIRS if pairs else OURS
    if not pairs and "output" in row and not {"response", "rubric"} & row.keys():
        return FEEDBACK_PROMPT
    return FLAT_PAIRS if pairs else FLAT


def convert(
    row: Mapping[str, Any], where: str, number: int, *, source: str = "", split: str = "", score_step: float = 0.25
) -> Example | Comparison:
    """A row as ours. Raises store.RowError, beginning with `where`, on the first field that does not fit.

    `source` and `split` stand in meta where the row does not say them itself; a collection's rows have no id and get one
    from `number`. `score_step` is for flat rubrics that name a range and no levels, see data.read_rows.
    """
    form = form_of(row)
    make = {OURS.name: _ours, OUR_PAIRS.name: _ours, FLAT.name: _flat, FLAT_PAIRS.name: _flat_pair}
    make |= {FEEDBACK.name: _feedback, FEEDBACK_PROMPT.name: _feedback_prompt, PREFERENCE.name: _preference}
    values = make[form.name](row, where, score_step)
    hint = row.get("split_hint") or split
    if form is OURS or form is OUR_PAIRS:
        if hint and isinstance(values.get("meta", {}), dict):
            values["meta"] = {**values.get("meta", {}), "split_hint": hint}
    else:
        known = row.get("source") or (None if form is FLAT or form is FLAT_PAIRS else source)
        values["meta"] = {"split_hint": hint or None, "source": known, **values.get("meta", {})}
        values["group"] = values["instruction"]
    if form in (FEEDBACK, FEEDBACK_PROMPT, PREFERENCE):
        values["id"] = str(row.get("id") or f"{form.name.split()[0].lower()}-{number}")
    return store.validate(where, values, form.makes, form.names)


def table(seen: Mapping[Form, Mapping[str, int]]) -> list[dict[str, Any]]:
    """How columns were read, to print: a line for each column of each form, with the rows that have something in it."""
    return [
        {"form": form.name, "column": c, "rows": found[c], "our field": form.columns.get(c, "(not used)")}
        for form, found in seen.items()
        for c in [*(c for c in form.columns if c in found), *sorted(found.keys() - form.columns.keys())]
    ]


# Our own form


def _ours(row: Mapping[str, Any], where: str, step: float) -> dict[str, Any]:
    values = {name: value for name, value in row.items() if name != "split_hint"}
    for name in ("rubric", "meta"):  # objects, in a cell of a CSV file as JSON
        if isinstance(values.get(name), str) and values[name].lstrip().startswith("{"):
            values[name] = store.parse_json(f"{where}: field {name}", values[name].encode("utf-8", "replace"))
    rubric = values.get("rubric")
    if isinstance(rubric, dict) and rubric.keys() <= {"criterion", "levels", "step"}:
        values["rubric"] = _shared(rubric.get("criterion"), rubric.get("levels"), rubric.get("step")) or rubric
    if isinstance(values.get("score"), bool):
        _number(values["score"], where, "score")
    return values


# The flat form


def _flat(row: Mapping[str, Any], where: str, step: float) -> dict[str, Any]:
    rubric, score = _flat_rubric(row, where, step), _number(row.get("score"), where, "score")
    low, high = min(rubric["levels"]), max(rubric["levels"])
    meta = {}
    if "step" in rubric and isinstance(score, int | float) and -1e9 < low <= score <= high < 1e9:
        nearest = round(low + math.floor((score - low) / step + 0.5) * step, 6)  # half up, as graders round
        meta = {"score_given": score} if nearest != score else {}
        score = nearest
    return {
        "id": row.get("id"),
        "instruction": row.get("instruction"),
        "response": row.get("response"),
        "reference_answer": row.get("reference_answer") or None,
        "rubric": _shared(*(rubric.get(name) for name in ("criterion", "levels", "step"))) or rubric,
        "rationale": row.get("rationale") or None,
        "score": score,
        "meta": meta,
    }


def _flat_pair(row: Mapping[str, Any], where: str, step: float) -> dict[str, Any]:
    rubric = _flat_rubric(row, where, step, pairs=True)
    return {
        "id": row.get("id"),
        "instruction": row.get("instruction"),
        "response_a": row.get("response_a"),
        "response_b": row.get("response_b"),
        "reference_answer": row.get("reference_answer") or None,
        "rubric": _shared(*(rubric.get(name) for name in ("criterion", "levels", "step"))) or rubric,
        "rationale": row.get("rationale") or None,
        "preference": _preferred(row.get("preference")),
    }


def _flat_rubric(row: Mapping[str, Any], where: str, step: float, pairs: bool = False) -> dict[str, Any]:
    text = row.get("rubric")
    if not isinstance(text, str) or not text.strip():
        raise store.RowError(f"{where}: field rubric is missing; a judge needs a criterion and what the scores mean")
    rubric = _rubric_of_text(text, f"{where}: field rubric")
    if rubric["levels"]:
        return rubric
    low, high = (_number(row.get(name), where, name) for name in ("score_min", "score_max"))
    if pairs and low is None and high is None:
        return _criterion_only(rubric["criterion"])
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low >= high:
        raise store.RowError(
            f"{where}: the rubric has no levels (`Score 1: ...`) and no score_min, score_max; add either"
        )
    return rubric | {"levels": {low: _LOWEST, high: _HIGHEST}, "step": step}


def _rubric_of_text(text: str, where: str) -> dict[str, Any]:
    """`"[Polite?]\\nScore 1: rude\\nScore 2: kind" -> {"criterion": "Polite?", "levels": {1.0: "rude", 2.0: "kind"}}`."""
    head, *parts = _LEVEL.split(text)  # a description ends where the next level begins, on whichever line
    numbers = [float(n) for n in parts[::2]]
    twice = sorted({n for n in numbers if numbers.count(n) > 1})
    if twice:
        raise store.RowError(
            f"{where} describes score {twice[0]:g} twice; a rubric has one criterion and one text a score"
        )
    levels = {n: " ".join(d.split()) for n, d in zip(numbers, parts[1::2], strict=True)}
    criterion = head.strip().removeprefix("[").replace("]\n", "\n").removesuffix("]").strip()
    return {"criterion": criterion, "levels": levels}


def _criterion_only(criterion: Any) -> dict[str, Any]:
    """A preference needs no scores; a judge that scores both sides does, so it gets the collections' 1 to 5."""
    return {"criterion": criterion, "levels": {1: _LOWEST, 5: _HIGHEST}, "step": 1}


# The collections


def _feedback(row: Mapping[str, Any], where: str, step: float) -> dict[str, Any]:
    rationale, score = row.get("orig_feedback"), _number(row.get("orig_score"), where, "orig_score")
    levels = [row.get(f"orig_score{n}_description") for n in range(1, 6)]
    for n, description in enumerate(levels, start=1):
        if not isinstance(description, str):
            raise store.RowError(f"{where}: field orig_score{n}_description is missing; a scale needs all five")
    _on_scale(score, where, "orig_score")
    return {
        "instruction": row.get("orig_instruction"),
        "response": row.get("orig_response"),
        "reference_answer": row.get("orig_reference_answer") or None,
        "rubric": _shared(row.get("orig_criteria"), levels, None)
        or {"criterion": row.get("orig_criteria"), "levels": levels},
        "rationale": rationale or None,
        "score": score,
    }


def _feedback_prompt(row: Mapping[str, Any], where: str, step: float) -> dict[str, Any]:
    text, output = row.get("instruction"), row.get("output")
    if not isinstance(text, str) or not isinstance(output, str):
        name = "output" if isinstance(text, str) else "instruction"
        raise store.RowError(f"{where}: field {name} is missing; add it")
    _, *parts = _HEADING.split(text)
    sections: dict[str, str] = {}
    for heading, section in zip(parts[::2], parts[1::2], strict=True):
        if sections.setdefault(heading.removesuffix("s"), section) is not section:
            raise store.RowError(f"{where}: field instruction has the heading '###{heading}:' twice; keep one")
    for heading in ("The instruction to evaluate", "Response to evaluate", "Score Rubric"):
        if heading not in sections:
            raise store.RowError(f"{where}: field instruction has no heading '###{heading}:'; it is no judge's prompt")
    rubric = _rubric_of_text(re.split(r"(?m)^###", sections["Score Rubric"])[0], f"{where}: field instruction")
    feedback, marker, verdict = output.rpartition("[RESULT]")
    if not marker:
        raise store.RowError(f"{where}: field output: {store.shorten(output)} has no '[RESULT]' before a score; add it")
    score = _number(verdict, where, "output")
    if score not in rubric["levels"]:
        raise store.RowError(f"{where}: field output: score {score:g} is not in the prompt's rubric; correct it")
    reference = sections.get("Reference Answer (Score 5)", "").strip()
    return {
        "instruction": sections["The instruction to evaluate"].strip(),
        "response": sections["Response to evaluate"].strip(),
        "reference_answer": reference or None,
        "rubric": _shared(rubric["criterion"], rubric["levels"], None) or rubric,
        "rationale": feedback.strip().removeprefix("Feedback:").strip() or None,
        "score": score,
    }


def _preference(row: Mapping[str, Any], where: str, step: float) -> dict[str, Any]:
    scores = [_number(row.get(name), where, name) for name in ("orig_score_A", "orig_score_B")]
    levels = [row[f"orig_score{n}_description"] for n in range(1, 6) if row.get(f"orig_score{n}_description")]
    rubric: dict[str, Any] = _criterion_only(row.get("orig_criteria"))
    if len(levels) == 5:
        rubric = {"criterion": row.get("orig_criteria"), "levels": levels}
    return {
        "instruction": row.get("orig_instruction"),
        "response_a": row.get("orig_response_A"),
        "response_b": row.get("orig_response_B"),
        "reference_answer": row.get("orig_reference_answer") or None,
        "rubric": _shared(rubric["criterion"], rubric["levels"], rubric.get("step")) or rubric,
        "rationale": row.get("orig_feedback") or None,
        "preference": _preferred(row.get("orig_preference")),
        "meta": {} if None in scores else {"scores": scores},
    }


# Values


def _number(value: Any, where: str, column: str) -> Any:
    """A number that may be written as text, as the collections and CSV do; what is neither is left to the schema."""
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise store.RowError(f"{where}: field {column}: {store.shorten(value)} is not a number; correct it")
    return float(value) if isinstance(value, str) else value


def _on_scale(score: Any, where: str, column: str) -> None:
    if isinstance(score, int | float) and score not in (1, 2, 3, 4, 5):
        raise store.RowError(
            f"{where}: field {column}: {store.shorten(score)} is not on the scale (1, 2, 3, 4, 5); correct it"
        )


def _preferred(value: Any) -> Any:
    text = value.strip().lower() if isinstance(value, str) else value
    return {"a": "A", "b": "B", "tie": "tie"}.get(text, value) if isinstance(text, str) else value


def _shared(criterion: Any, levels: Any, step: Any) -> Rubric | None:
    """The one Rubric of equal rubrics: a set of 100,000 rows has a thousand. None where the schema refuses it."""
    try:
        pairs = tuple(levels.items()) if isinstance(levels, dict) else tuple(enumerate(levels, start=1))
        return _rubric(criterion, pairs, step)
    except (AttributeError, TypeError, ValidationError, OverflowError):
        return None  # the whole row is then validated with the rubric as it stands, and names the field


@lru_cache(maxsize=4096, typed=True)
def _rubric(criterion: Any, levels: tuple[tuple[Any, str], ...], step: Any) -> Rubric:
    return Rubric(criterion=criterion, levels=dict(levels), step=step)
