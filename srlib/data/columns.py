"""Conversion of other people's rows to Example and Comparison; `fields` finds their columns, and a file may mix layouts.

The rubric of a row is an object, text in Prometheus form, or a criterion with a range or with columns of levels. One for all
rows comes from a YAML or JSON file with `criterion`, `levels` and perhaps `step`; for rows with several scores the file has
such a block under the name of each dimension. Messages use the names of the file's columns."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from srlib import files, prompts
from srlib.data import fields
from srlib.data.fields import Match
from srlib.files import RowError
from srlib.schema import Comparison, Example, Item, Rubric, rounded

TEXTS, PAIR_TEXTS = ("instruction", "response"), ("instruction", "response_a", "response_b")
_LEVEL = re.compile(r"^[ \t]*Score[ \t]+([-+]?\d+(?:[.,]\d+)?)[ \t]*:", re.MULTILINE)
_BRACKETS = re.compile(r"(?s)\A\[((?:[^\[\]]|\[[^\[\]]*\])*)\](\n.*)?\Z")  # around the criterion, as in the collections
_NUMBER = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+|\d+,\d\d?)\s*", re.ASCII)  # 2,5 in many countries, not 2,500
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_parsed = lru_cache(maxsize=4096)(Rubric.model_validate_json)
Part = tuple[str, Mapping[str, Any], Match]  # dimension, or ""; row; its columns
Shared = Rubric | dict[str, Rubric] | None  # the rubric of a file, or one for each dimension


def read_rubric(path: str | Path) -> Rubric | dict[str, Rubric]:
    """The rubric of a file, or one for each dimension; RowError if it holds neither."""
    path, where = Path(path).expanduser(), f"rubric {path}"
    try:
        is_json = path.suffix.lower() == ".json"
        value = files.read_json(path) if is_json else _plain(files.read_yaml(path))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise RowError(f"{where}: cannot be read as YAML or JSON in UTF-8 ({problem}); correct it") from None
    if isinstance(value, dict) and value.keys() & {"criterion", "levels"}:
        return files.validate(where, value, Rubric)
    if not (isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values())):
        raise RowError(f"{where}: has no `criterion: ...` and `levels: {{1: ..., 2: ...}}`, nor those of dimensions")
    return {name: files.validate(f"{where}, {name}", part, Rubric) for name, part in value.items()}


def _plain(node: Any) -> Any:
    """A YAML node with every scalar as text: the level `no` is no boolean."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(key.value, _plain(value)) for key, value in node.value]
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"two of {', '.join(name for name, _ in pairs)} are equal")
        return dict(pairs)
    return [*map(_plain, node.value)] if isinstance(node, yaml.SequenceNode) else getattr(node, "value", None)


def expand(row: Mapping[str, Any], match: Match, where: str, shared: Shared = None) -> Iterator[Part]:
    """The row, once or for each dimension: a name in `scores`, or a column called like a `shared` rubric.
    RowError if a dimension has no rubric. `shared` may also be the one rubric of all rows without any."""
    cells = (_object(row.get(c), f"{where}: field {c}") for c in map(match.name, ("scores", "rubrics")))
    scores, rubrics = (cell if isinstance(cell, Mapping) else {} for cell in cells)
    if isinstance(shared, dict):
        named = fields.plain(named) if isinstance(named := row.get(match.name("rubric")), str) else None
        if own := next((name for name in shared if fields.plain(name) == named), None):  # a row for each criterion
            columns = match.columns | {"rubric": f"rubrics.{own}", "name of a rubric": match.name("rubric")}
            yield own, {**row, f"rubrics.{own}": shared[own]}, match._replace(columns=columns)
            return
        alike = [(n, c) for n in shared for c in match.present if fields.plain(n) == fields.plain(c)]
        scores = scores or {n: row.get(n, row.get(c)) for n, c in alike}  # a column with exactly this name comes first
        scores = scores or dict.fromkeys(shared if row.get(match.name("rubric")) is None else ())
        rubrics = shared | rubrics
    scores = {name: score for name, score in scores.items() if score is not None or rubrics.get(name) is not None}
    known = isinstance(shared, dict) or all(map(rubrics.get, scores))
    rated = known and any(score is not None for score in scores.values())
    alone = row.get(match.name("rubric")) is not None or not rated
    if _is_pair(row, match) or (row.get(match.name("score")) is not None and alone):  # read without those beside it
        scores = {}
    if absent := ", ".join(files.shorten(name) for name in scores if rubrics.get(name) is None):
        advice = "give each dimension its own, under its name, in a file (rubric=FILE) or in a column `rubrics`"
        raise RowError(f"{where}: field {match.name('scores')}: no rubric for {absent}; {advice}")
    for name, score in scores.items():
        column = name if name in match.present or "scores" not in match.columns else f"{match.name('scores')}.{name}"
        columns = match.columns | {"score": column, "rubric": f"rubrics.{name}"}
        yield name, {**row, column: score, f"rubrics.{name}": rubrics[name]}, match._replace(columns=columns)
    if not scores:
        if isinstance(shared, dict) and row.get(match.name("rubric")) is None:
            advice = "add a column `rubric` with the rubric of each such row"
            raise RowError(f"{where}: has no score of {', '.join(shared)}, which the rubric file is for; {advice}")
        if isinstance(shared, Rubric) and row.get(match.name("rubric")) is None:
            match = match._replace(columns=match.columns | {"rubric": "(rubric file)"})
            row = {**row, "(rubric file)": shared}
        yield "", row, match


def convert(
    row: Mapping[str, Any],
    where: str,
    number: int,
    *,
    match: Match | None = None,
    dimension: str = "",
    training: bool = False,
    source: str = "",
    split: str = "",
    score_step: float = 0.25,
) -> Item:
    """A row as an Example or a Comparison. Raises RowError, beginning with `where`, at the first field that does not
    fit. `match` and `dimension` are those of `expand`; without them, columns have our names or a collection's. A row
    for `training` needs a gold verdict. `number` makes an absent id; `source` and `split` go to meta if absent."""
    match, advised = match or fields.match(row, synonyms=False), match is not None
    pair = _is_pair(row, match)
    makes, gold, texts = (Comparison, "preference", PAIR_TEXTS) if pair else (Example, "score", TEXTS)
    fields.check(match, makes.model_fields, [*texts, "rubric", *[gold] * training], where, training, advised)
    values = {field: row.get(match.name(field)) for field in makes.model_fields}
    values["meta"] = _object(values["meta"], f"{where}: field {match.name('meta')}")
    said = _object(values["rationale"], f"{where}: field {match.name('rationale')}") if dimension else None
    if isinstance(said, Mapping):
        values["rationale"] = said.get(dimension)
    values = {f: v for f, v in values.items() if v is not None and (str(v).strip() if f == "rationale" else v) != ""}
    known = {f: row.get(match.name(f)) or given for f, given in (("source", source), ("split_hint", split))}
    _check_cells(values | known, match, where)
    parted = dimension and "name of a rubric" not in match.columns  # one of several rows that share `meta`
    stated = {n: v for n, v in values.get("meta", {}).items() if not (parted and n in ("ratings", "rationales"))}
    stated = {n: v for n, v in stated.items() if v is not None or not known.get(n)}
    meta = {n: v for n, v in known.items() if v} | stated
    names = values.get("id", f"{'pair' if pair else 'row'}-{number}"), values.get("group")
    name, group = (str(int(n)) if isinstance(n, int) or (isinstance(n, float) and n.is_integer()) else n for n in names)
    rubric = _rubric(values.get("rubric"), row, match, pair, where, score_step)
    values |= {"id": f"{name}#{dimension}" if dimension else name, "group": group, "meta": meta, "rubric": rubric}
    if pair:
        said = values.get("preference")
        values["preference"] = {"a": "A", "b": "B", "tie": "tie"}.get(str(said).strip().lower(), said)
    else:
        named = "score" in match.given or fields.plain(match.name("score")) in ("score", "origscore")
        sure = training or parted or named or re.search(r"\d", str(values.get("score")))  # not `label: billing`
        score = values.get("score") if sure else None
        score = values["score"] = _number(score, match.name("score"), where)
        scale = rubric.scale if isinstance(rubric, Rubric) else ()
        if isinstance(score, int | float) and scale and scale[0] - 1e-6 <= score <= scale[-1] + 1e-6:
            near = min(scale, key=lambda s: (round(abs(s - score), 9), -s))  # half up, as graders round
            is_noise = abs(near - score) <= 1e-6 * max(1, abs(score))  # of 32-bit numbers
            values["score"] = near if is_noise or rubric.step else score
            meta |= {} if is_noise or not rubric.step else {"score_given": rounded(score)}
    item = files.validate(where, values, makes, match.columns)
    if training and item.gold is None:
        raise RowError(f"{where}: field {match.name(gold)} is missing; a training row needs one")
    for verdict, text in [(item.gold, item.rationale), *item.annotated] if training else ():
        failure = prompts.parse(prompts.completion(text, verdict), item).failure if text else None
        if failure is not None:
            problem = f"followed by its verdict, it reads as {failure}; remove {prompts.MARKER} from it"
            raise RowError(f"{where}: field {match.name('rationale' if text == item.rationale else 'meta')}: {problem}")
    if training and not item.annotated and isinstance(meta.get("rationales"), list) and any(meta["rationales"]):
        problem = f"`rationales`, texts or null, need a rating beside each text in `ratings`, of {files.shorten(item.verdicts)}"
        raise RowError(f"{where}: field {match.name('meta')}: {problem}; correct them")
    said = [text for verdict, text in sorted(item.annotated, key=lambda one: one[0] != item.gold) if text]
    return item if item.rationale or not (training and said) else item.model_copy(update={"rationale": said[0]})


def _is_pair(row: Mapping[str, Any], match: Match) -> bool:
    return row.get("type") == "pairwise" or any(row.get(match.name(f"response_{side}")) is not None for side in "ab")


def _check_cells(values: Mapping[str, Any], match: Match, where: str) -> None:
    """RowError at a value that is not valid JSON (NaN, bytes, half a surrogate pair), or of the wrong kind."""
    for field, value in values.items():
        place = f"{where}: field {match.name(field)}"
        if isinstance(value, list) and field in (*TEXTS, *PAIR_TEXTS):
            raise RowError(f"{place}: a list (of chat messages?) is not text; write out the text for the judge")
        if field == "meta" and not isinstance(value, dict):
            raise RowError(f"{place}: {files.shorten(value)} is not an object; correct it")
        is_gold = field == "reference_answer" and match.name(field).lower() == "gold" and field not in match.given
        if is_gold and (_NUMBER.fullmatch(str(value)) or str(value).strip().lower() in ("a", "b", "tie")):
            advice = "name its field in `columns`: score:gold, or reference_answer:gold"
            raise RowError(f"{place} is {files.shorten(value)}: {advice}")
        try:
            if field != "rubric":  # the schema checks rubrics, one object for many rows
                (value if isinstance(value, str) else _JSON.encode(value)).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RowError(f"{place}: {error}; correct it") from None


def _rubric(value: Any, row: Mapping[str, Any], match: Match, pair: bool, where: str, step: float) -> Any:
    """A Rubric, one object for all equal ones; or the malformed value, for the schema to refuse with its field. `value` is
    the cell of the rubric or the criterion; levels or a range may be in other columns."""
    if isinstance(value, Rubric):
        return value
    column = match.name("rubric")
    rubric = _object(value, f"{where}: field {column}")
    if rubric is None:
        raise RowError(f"{where}: field {column} is missing; a judge needs a criterion and the meaning of the scores")
    if isinstance(rubric, dict) and isinstance(rubric.get("levels"), dict):  # in Arrow with the levels of all rows
        rubric = rubric | {"levels": {n: text for n, text in rubric["levels"].items() if text is not None}}
    columns = {f.rpartition(".")[2]: name for f, name in match.columns.items() if f.startswith("rubric.levels.")}
    levels = {n: row.get(name) for n, name in columns.items() if row.get(name) is not None or name.startswith("orig_")}
    if isinstance(rubric, str) and any(levels.values()) and not _LEVEL.search(rubric):
        rubric = {"criterion": rubric, "levels": levels}
    elif isinstance(rubric, str):
        head, *parts = _LEVEL.split(rubric)  # a description ends at the next level, on whichever line
        scores = [float(n.replace(",", ".")) for n in parts[::2]]
        levels = {n: " ".join(text.split()) for n, text in zip(scores, parts[1::2], strict=True)}
        if 2 * len(levels) < len(parts):
            raise RowError(f"{where}: field {column} describes a score twice; a rubric has one text a score")
        criterion = _BRACKETS.sub(r"\1\2", head.strip()).strip()
        rubric = {"criterion": criterion, "levels": levels}
    if isinstance(rubric, dict) and rubric.get("levels") == {}:
        names = [match.name("score_min"), match.name("score_max")]
        low, high = (_number(row.get(name), name, where) for name in names)
        if pair and low is None and high is None:  # no scale is needed, except to score both sides
            low, high, step = 1, 5, 1
        if not isinstance(low, int | float) or not isinstance(high, int | float) or low >= high:
            raise RowError(f"{where}: field {column} has no levels (`Score 1: ...`) or {', '.join(names)}; add them")
        levels = {low: "Nothing of what is asked for", high: "Entirely correct and complete"}
        rubric = rubric | {"levels": levels, "step": step}
    try:
        return _parsed(json.dumps(rubric))
    except (TypeError, ValueError):  # pydantic's errors are ValueErrors
        return rubric


def _object(value: Any, where: str) -> Any:
    """A cell of a table may hold an object as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return files.parse_json(where, value.encode("utf-8", "replace"))
    return value


def _number(value: Any, column: str, where: str) -> Any:
    """A number, perhaps written as text. The schema refuses a value of any other type."""
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise RowError(f"{where}: field {column}: {files.shorten(value)} is not a number; correct it")
    return float(value.replace(",", ".")) if isinstance(value, str) else value
