"""Which column of a row holds which of our fields: by its name, by a synonym in fields.yaml, or by the user's own map.

Names match without regard to case, spaces and underscores; a column with exactly our name comes first; if two others
match, the error asks which. Rows of the Feedback and the Preference Collection have columns orig_instruction, orig_response, ...

>>> match({"Question": "2 + 2?", "Answer": "4", "Grade": "1"}).columns
{'instruction': 'Question', 'response': 'Answer', 'score': 'Grade'}"""

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from srlib.files import RowError, shorten
from srlib.schema import Comparison, Example

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
OTHERS = ("score_min", "score_max", "scores", "rubrics", "source", "split_hint")
FIELDS = {field: field for field in (*Example.model_fields, *Comparison.model_fields, *OTHERS)}
COLLECTIONS = FIELDS | _TABLES["collections"]
_LEVEL = re.compile(r"(?i)(?:orig_)?(?:score[ _]?(\d+)[ _]description|level[ _]?(\d+)(?:[ _]description)?)")


class Match(NamedTuple):
    """The columns of a row."""

    columns: dict[str, str]  # our field, or a part of one -> its column: {"rubric.levels.1": "Level 1"}
    present: tuple[str, ...]
    doubtful: Mapping[str, list[str]] = {}  # fields that several columns fit
    given: Mapping[str, str] = {}  # the user's map

    def name(self, field: str) -> str:
        """The column of a field; the field itself if no column holds it."""
        return self.columns.get(field, field)


def parse(columns: Sequence[str]) -> dict[str, str]:
    """The user's map: `["instruction:Question", "score:Grade"] -> {"instruction": "Question", "score": "Grade"}`; RowError."""
    given: dict[str, str] = {}
    for entry in columns:
        field, _, column = (part.strip() for part in entry.partition(":"))
        if field not in FIELDS or not column or field in given:
            known = ", ".join(FIELDS)
            raise RowError(f"columns: {shorten(entry)} is not FIELD:COLUMN, once for a field of {known}; correct it")
        given[field] = column
    return given


def match(row: Mapping[str, Any], header: Sequence[str] = (), given: Any = (), synonyms: bool = True) -> Match:
    """The fields of a row, by its columns; `header` names the columns of a table, in which empty cells count, too; `given` is
    the user's map. Without `synonyms`, only columns with exactly our names hold fields."""
    present = tuple(c for c in header or row if c != "input" or row.get(c))  # often empty, beside `instruction`
    collection = not {"orig_instruction", "orig_criteria"}.isdisjoint(row)
    return _match(present, tuple(dict(given).items()), collection, synonyms and not collection)


@lru_cache(maxsize=4096)
def _match(present: tuple[str, ...], given: tuple[tuple[str, str], ...], collection: bool, synonyms: bool) -> Match:
    pair = any(plain(column) in (*_spellings("response_a"), "origresponsea") for column in present)
    of_pairs = [f for f, column in given if column in present or not pair or f not in (*Example.model_fields, *OTHERS)]
    columns, doubtful = {f: dict(given)[f] for f in of_pairs}, {}  # the map may be that of the examples
    free = [name for name in present if name not in columns.values()]
    for field, name in (COLLECTIONS if collection else FIELDS).items():
        fitting = [column for column in free if synonyms and plain(column) in _spellings(field)]
        if name in free and not (field == "instruction" and "input" in fitting):  # which Alpaca's `input` completes
            fitting = [name]
        if fitting and field not in columns:
            columns[field] = fitting[0]
            doubtful |= {field: fitting} if len(fitting) > 1 else {}
    levels = {column: _LEVEL.fullmatch(column) for column in free}
    columns |= {f"rubric.levels.{m[1] or m[2]}": column for column, m in levels.items() if m}
    return Match(columns, present, doubtful, dict(given))


def check(match: Match, fields: Iterable[str], needed: Sequence[str], where: str, training: bool, advise: bool) -> None:
    """RowError if a needed field has no column or one of `fields` has several; `advise` adds the map of columns to write."""
    missing = [field for field in needed if field not in match.columns]
    doubtful = {field: names for field, names in match.doubtful.items() if field in (*fields, *OTHERS)}
    if not missing and not doubtful:
        return
    unused = {plain(column): column for column in match.present if column not in match.columns.values()}
    named = {**match.given, **{field: names[0] for field, names in doubtful.items()}}
    for field in (field for field in missing if field != "rubric"):
        near = [name for text in _spellings(field) for name in difflib.get_close_matches(text, unused, n=1)]
        named[field] = unused[near[0]] if near else "COLUMN"
    columns, rubric = ("-p columns=", "-p rubric=FILE") if training else ("--columns ", "--rubric FILE")
    problems = [f"field {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
    problems += [f"columns {', '.join(map(shorten, names))} all fit {field}" for field, names in doubtful.items()]
    text = "".join(filter(str.isprintable, ",".join(map(":".join, named.items()))))[:1000]
    advice = [f"name columns: {columns}{shlex.quote(text)}"] if named else []
    if "response" in missing and {"chosen", "rejected"} <= unused.keys():
        advice = ["write these pairs as response_a, response_b and preference (A or B), a random half of them as B"]
    advice += [f"{rubric} gives all rows a criterion and levels"] if "rubric" in missing else []
    there = ", ".join(shorten(column, 30) for column in match.present[:12]) or "none"
    raise RowError(f"{where}: {'; '.join(problems)}. {'; '.join([f'The columns are {there}', *advice * advise])}")


def _spellings(field: str) -> list[str]:
    return [plain(text) for text in [field, *_TABLES["synonyms"].get(field, "").split()]]


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
