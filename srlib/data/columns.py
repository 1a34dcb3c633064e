"""Columns of other people's rows, and their conversion to Example and Comparison; a file may mix these layouts:

    srlib                  fields of schema.Example or schema.Comparison; `rubric` is an object, or text in Prometheus form
                           with its levels (`Score 1: ...`) or a range beside it (`score_min`, `score_max`)
    Feedback Collection    orig_instruction, orig_response, orig_criteria, orig_score1_description ..., orig_score as text
    Feedback prompt        the same set, the whole prompt in `instruction` and the judgment in `output`
    Preference Collection  orig_response_A, orig_response_B, orig_preference ...

(The last three: arXiv 2310.08491 and 2405.01535.) Messages use the file's names; other spellings belong into `names`.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from srlib import files
from srlib.files import RowError
from srlib.schema import Comparison, Example, Item, Rubric

OURS = {name: name for name in (*Example.model_fields, *Comparison.model_fields, "score_min", "score_max")}
OURS |= {"meta.source": "source", "meta.split_hint": "split_hint"}
COLLECTIONS = OURS | {name: f"orig_{name}" for name in "instruction response reference_answer score preference".split()}
COLLECTIONS |= {"response_a": "orig_response_A", "response_b": "orig_response_B", "rationale": "orig_feedback"}
COLLECTIONS |= {"rubric": "orig_criteria", "meta.score_a": "orig_score_A", "meta.score_b": "orig_score_B"}
COLLECTIONS |= {f"rubric.levels.{n}": f"orig_score{n}_description" for n in range(1, 6)}
HEADINGS = {"instruction": "The instruction to evaluate", "response": "Response to evaluate", "rubric": "Score Rubric"}
HEADINGS |= {"reference_answer": "Reference Answer (Score 5)"}
PROMPT = OURS | dict.fromkeys(HEADINGS, "instruction") | {"rationale": "output", "score": "output"}
_HEADING = re.compile(rf"^###[ \t]*({'|'.join(map(re.escape, HEADINGS.values()))})s?[ \t]*:", re.MULTILINE)
_LEVEL = re.compile(r"^Score[ \t]+([-+]?\d+(?:\.\d+)?)[ \t]*:", re.MULTILINE)
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d+)?\s*", re.ASCII)


def names(row: Mapping[str, Any]) -> dict[str, str]:
    """Our field, or a part of one -> the row's column for it: `{"score": "orig_score", ...}`."""
    if any(name.startswith("orig_") for name in row):
        return COLLECTIONS
    return PROMPT if "output" in row and not {"response", "response_a", "rubric"} & row.keys() else OURS


def convert(
    row: Mapping[str, Any], where: str, number: int, *, source: str = "", split: str = "", score_step: float = 0.25
) -> Item:
    """A row as an Example or a Comparison. Raises RowError, beginning with `where`, at the first field that does not fit.

    A row without an id gets one from `number`, one without `source` and `split_hint` those given here, for meta.
    """
    columns = names(row)
    pair = row.get("type") == "pairwise" or columns["response_a"] in row or columns["response_b"] in row
    makes = Comparison if pair else Example
    values = {field: row.get(columns[field]) for field in makes.model_fields}
    values |= dict.fromkeys(HEADINGS) | _parse_prompt(row, where) if columns is PROMPT else {}
    values = {field: value for field, value in values.items() if value is not None and value != ""}
    name = values.get("id", f"{'pair' if pair else 'row'}-{number}")
    meta = _object(values.get("meta", {}), f"{where}: field meta")
    try:
        json.dumps(meta, ensure_ascii=False, allow_nan=False).encode()
        known = {"source": row.get("source") or source, "split_hint": row.get("split_hint") or split}
        meta = {name: value for name, value in known.items() if value} | meta
    except (TypeError, ValueError) as error:  # no object, or NaN, bytes, a broken character in it
        raise RowError(f"{where}: field meta: {error}; correct it") from None
    rubric = _rubric(values.get("rubric"), row, pair, where, score_step)
    values |= {"id": str(name) if isinstance(name, int) else name, "meta": meta, "rubric": rubric}
    if pair:
        said = values.get("preference")
        values["preference"] = {"a": "A", "b": "B", "tie": "tie"}.get(str(said).strip().lower(), said)
        scores = [_number(row.get(column), column, where) for column in ("orig_score_A", "orig_score_B")]
        meta |= {} if None in scores else {"scores": scores}
    else:
        score = values["score"] = _number(values.get("score"), columns["score"], where)
        scale = rubric.scale if isinstance(rubric, Rubric) and rubric.step else ()
        if isinstance(score, int | float) and scale and scale[0] <= score <= scale[-1] and score not in scale:
            values["score"] = min(scale, key=lambda s: (round(abs(s - score), 9), -s))  # half up, as graders round
            meta["score_given"] = score
    return files.validate(where, values, makes, columns)


def _parse_prompt(row: Mapping[str, Any], where: str) -> dict[str, str]:
    _, *parts = _HEADING.split(str(row.get("instruction")))
    for field, heading in HEADINGS.items():
        n = parts[::2].count(heading)
        if n > 1 or (n == 0 and field != "reference_answer"):
            raise RowError(f"{where}: field instruction has {n} headings '###{heading}:'; a judge's prompt has one")
    values = {field: parts[parts.index(h) + 1].strip() for field, h in HEADINGS.items() if h in parts}
    rationale, marker, score = str(row.get("output")).rpartition("[RESULT]")
    if not marker:
        raise RowError(f"{where}: field output: {files.shorten(score)} has no '[RESULT]' before a score; add it")
    values |= {"rationale": rationale.strip().removeprefix("Feedback:").strip(), "score": score}
    return values | {"rubric": re.split(r"(?m)^###", values["rubric"])[0]}


def _rubric(value: Any, row: Mapping[str, Any], pair: bool, where: str, step: float) -> Any:
    """A Rubric, one object for all equal ones; or the malformed value, for the schema to refuse with its field."""
    column = names(row)["rubric"]
    rubric = _object(value, f"{where}: field {column}")
    if rubric is None:
        raise RowError(f"{where}: field {column} is missing; a judge needs a criterion and the meaning of the scores")
    if column == "orig_criteria":
        levels = [row.get(f"orig_score{n}_description") for n in range(1, 6)]
        rubric = {"criterion": value, "levels": levels if any(levels) else {}}
    elif isinstance(rubric, str):
        head, *parts = _LEVEL.split(rubric)  # a description ends at the next level, on whichever line
        levels = {float(n): " ".join(text.split()) for n, text in zip(parts[::2], parts[1::2], strict=True)}
        if 2 * len(levels) < len(parts):
            raise RowError(f"{where}: field {column} describes a score twice; a rubric has one text a score")
        criterion = head.strip().removeprefix("[").replace("]\n", "\n").removesuffix("]").strip()
        rubric = {"criterion": criterion, "levels": levels}
    elif isinstance(rubric, dict) and isinstance(rubric.get("levels"), dict):  # in Parquet with the levels of all rows
        rubric = rubric | {"levels": {n: text for n, text in rubric["levels"].items() if text is not None}}
    if isinstance(rubric, dict) and rubric.get("levels") == {}:
        low, high = (_number(row.get(name), name, where) for name in ("score_min", "score_max"))
        if pair and low is None and high is None:  # no scale is needed, except to score both sides
            low, high, step = 1, 5, 1
        if not isinstance(low, int | float) or not isinstance(high, int | float) or low >= high:
            raise RowError(f"{where}: field {column} has no levels (`Score 1: ...`) or score_min, score_max; add them")
        levels = {low: "Nothing of what is asked for", high: "Entirely correct and complete"}
        rubric = rubric | {"levels": levels, "step": step}
    try:
        return _parsed(json.dumps(rubric)) or rubric
    except (TypeError, ValueError):
        return rubric


@lru_cache(maxsize=4096)
def _parsed(rubric: str) -> Rubric | None:
    try:
        return Rubric.model_validate_json(rubric)
    except ValidationError:
        return None


def _object(value: Any, where: str) -> Any:
    """A cell of a CSV file may hold an object as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return files.parse_json(where, value.encode("utf-8", "replace"))
    return value


def _number(value: Any, column: str, where: str) -> Any:
    """A number, perhaps written as text. The schema refuses a value of any other type."""
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise RowError(f"{where}: field {column}: {files.shorten(value)} is not a number; correct it")
    return float(value) if isinstance(value, str) else value
