"""Files, folders and hub sets -> Examples and Comparisons in splits, with an account of every row."""

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from srlib import files
from srlib.data import fields, sources, splits
from srlib.data.columns import convert, expand, read_rubric
from srlib.files import RowError
from srlib.schema import Example, Item

FEW = 0.05  # share of bad rows that are left out without asking the user


class RowFailure(NamedTuple):
    """One row of a source that is neither an Example nor a Comparison."""

    id: str | None
    reason: str


@dataclass
class Loaded:
    """Rows in their splits, and an account of them."""

    splits: dict[str, list[Any]]  # see splits.NAMES
    columns: list[dict[str, Any]]  # to print: column, our field, rows
    dialects: list[str]  # to print: separators and encodings of CSV files
    counts: dict[str, int]  # "rows", "bad rows", "over a limit", "left out for balance", "moved to test", ...
    failures: list[RowFailure]  # the first thousand bad rows
    commits: dict[str, str]  # of sets from the hub


def read_rows(
    source: str | Path,
    revision: str = "",
    score_step: float = 0.25,
    training: bool = False,
    columns: Sequence[str] = (),
    rubric: str | Path = "",
    seen: set[str] | None = None,
) -> Iterator[tuple[int, str, Item | RowFailure, list[tuple[str, str]]]]:
    """(number, place, row, [(column, our field)]) of every row of a file, a folder or a hub set, one at a time. The row is an
    Example, a Comparison or a RowFailure; for `training` it needs a gold verdict. `columns` map fields to columns by hand,
    ["score:Grade"]; `rubric` is a file with the rubric of rows that have none, or with one for each dimension of rows with
    several scores, which become one row a dimension. `score_step` is for rubrics with a range and no levels; a gold score
    between two steps (a mean of two graders) moves to the nearer, and meta["score_given"] keeps the original. `seen` gets
    the names of all columns. Raises RowError if the source or the rubric cannot be read, or no row has one of `columns`."""
    given, shared = fields.parse(columns), read_rubric(rubric) if str(rubric) else None
    name = str(source) if sources.is_hub_id(source) else Path(source).name
    options = {"source": name, "score_step": score_step, "training": training}
    first, seen = {}, set() if seen is None else seen  # ids with their first row; columns
    for raw in sources.rows(source, revision):
        match = fields.match(raw.values or {}, raw.header, given)
        seen.update(match.present)
        try:
            parts, problem = [*expand(raw.values or {}, match, raw.where, None if raw.problem else shared)], raw.problem
        except RowError as error:
            parts, problem = [("", raw.values, match)], str(error)
        for dimension, values, match in parts:
            where = f"{raw.where}, {dimension}" if dimension else raw.where
            try:
                if problem is not None:
                    raise RowError(problem)
                row = convert(values, where, raw.number, match=match, dimension=dimension, split=raw.split, **options)
                if (before := first.setdefault(row.id, where)) != where:
                    raise RowError(f"{where}: id {files.shorten(row.id)} is already in {before}; ids must be unique")
                if training and (hint := values.get(match.name("split_hint"))) and not splits.hinted(hint):
                    known = ", ".join(word for words in splits.HINTS.values() for word in words)
                    raise RowError(f"{where}: field split_hint: {files.shorten(hint)} is none of {known}; correct it")
            except RowError as error:
                name = values.get(match.name("id"))
                name = None if name is None else str(name).encode("utf-8", "replace").decode()
                row = RowFailure(name, str(error))
            uses = {column: field for field, column in reversed(match.columns.items())}
            used = [(column, uses.get(column, "(not used)")) for column, value in values.items() if value is not None]
            yield raw.number, where, row, used
    if not training:  # else load looks at both of its sources
        _check_map(given, seen, source)


def _check_map(given: Mapping[str, str], seen: Collection[str], source: str | Path) -> None:
    for column in given.values():
        if column not in seen:
            near = ", ".join(map(files.shorten, difflib.get_close_matches(column, seen, n=1) or sorted(seen)[:12]))
            raise RowError(f"{source}: no row has the column {files.shorten(column)} that `columns` names, but {near}")


def load(
    source: str | Path,
    *,
    n_validation: int,
    revision: str = "",
    pairwise: str | Path = "",
    pairwise_revision: str = "",
    limits: Mapping[str, int] | None = None,
    seed: int = 0,
    bad_rows: str = "refuse",
    score_step: float = 0.25,
    balance_classes: bool = False,
    columns: Sequence[str] = (),
    rubric: str | Path = "",
) -> Loaded:
    """The splits of a source of judged examples (each needs a score) and of a source of comparisons beside it. Splits:
    see splits.split_of; a split that the hub or a folder names counts as a hint. Without test rows, about a fifth
    of the training rows become some, by whole prompts; without a validation split, about `n_validation` (splits.carve). At
    most `limits[split]` rows are kept, a sample that depends on `seed` and ids only, in the source's order;
    `balance_classes` evens out the training scores (splits.balanced). `columns` and `rubric`: see read_rows. `bad_rows`
    "refuse" raises RowError, which lists the bad rows, "drop" counts them, "few" drops at most one row in 20."""
    if not str(source):
        raise RowError(f"{pairwise}: comparisons cannot train a judge alone; give scored examples beside them, as data")
    room = {name: (limits or {}).get(name, math.inf) for name in splits.NAMES}
    n_train, n_test = room["train"], room["test"]
    room["train"] = math.inf if balance_classes else n_train + n_validation + n_test
    room["train_pairwise"] += 20 * room["pairwise"]  # a part goes to `pairwise` with its examples, see splits.carve
    rows: dict[str, list[Any]] = {name: [] for name in splits.NAMES}
    counts = dict.fromkeys(("rows", "bad rows", "over a limit", "left out for balance"), 0)
    seen, used, failures, present = {}, Counter(), [], set()

    origins = [(source, revision), (pairwise, pairwise_revision)][: 2 if str(pairwise) else 1]
    for name, at in origins:
        for _, _, row, labels in read_rows(name, at, score_step, True, columns, rubric, present):
            counts["rows"] += 1
            used.update(labels)
            if isinstance(row, Item):
                known = isinstance(row, Example) or splits.hinted(row.meta.get("split_hint"))
                split = splits.split_of(row, seen) if known else "train_pairwise"  # until all examples are known
                rows[split].append(row)
                if len(rows[split]) > 2 * room[split] + 1000:  # bounds the memory
                    rows[split] = splits.sample(rows[split], room[split], seed)
            else:
                counts["bad rows"] += 1
                failures += [row._replace(reason=f"{name}, {row.reason}")] if len(failures) < 1000 else []
    every, rows = [row for name in splits.NAMES for row in rows[name]], {name: [] for name in splits.NAMES}
    for row in every:  # the hint of their instruction may have come later
        rows[splits.split_of(row, seen)].append(row)
    _check_map(fields.parse(columns), present, source)
    share = {"refuse": 0.0, "few": FEW, "drop": 1.0}[bad_rows]
    if failures and (counts["bad rows"] > share * counts["rows"] or not any(rows.values())):
        alike: dict[tuple[str, str], list[str]] = {}  # (file, problem) -> rows
        for failure in failures[:20]:
            place, _, problem = failure.reason.partition(": ")
            file, _, row = place.rpartition(", ")
            alike.setdefault((file, problem), []).append(row)
        listed = [f"{file}, {', '.join(places)}: {problem}" for (file, problem), places in alike.items()]
        listed += [f"and {counts['bad rows'] - 20} more"] if len(failures) > 20 else []
        head = f"{counts['bad rows']} of {counts['rows']} rows cannot be used; correct them"
        head += ", or set bad_rows=drop" if any(rows.values()) else ""
        raise RowError("\n  ".join([head, *listed]))
    dimensions = shared if isinstance(shared := read_rubric(rubric) if str(rubric) else None, dict) else {}
    if absent := [name for name in dimensions if not any(column == f"rubrics.{name}" for column, _ in used)]:
        advice = "name its column as the rubric file does, or remove it there"
        raise RowError(f"{rubric}: no row has a score of {', '.join(map(files.shorten, absent))}; {advice}")
    rows = {name: splits.sample(rows[name], room[name], seed) for name in rows}
    counts |= splits.complete(rows, n_validation, n_test, seed)
    for name in ("test", "train_pairwise", "pairwise"):
        rows[name] = splits.sample(rows[name], (limits or {}).get(name, math.inf), seed)
    if not rows["train"]:
        named = ", ".join(sorted({str(row.meta.get("split_hint")) for row in rows["test"]})[:3])
        others = f" (test rows have {named})" * bool(rows["test"])
        others += "; comparisons cannot train a judge alone, give them as data_pairwise" * bool(rows["train_pairwise"])
        raise RowError(f"{source}: no training rows; `split_hint` of at least some rows must be train{others}")
    if not rows["test"]:
        advice = "add rows with more instructions, set `split_hint` of some to test, or name a `group` for each row"
        problem = "rows are split by group or instruction, and all training rows have the same"
        raise RowError(f"{source}: {problem}; {advice}")
    if balance_classes:
        counts["left out for balance"] = len(rows["train"]) - len(splits.balanced(rows["train"], seed))
        rows["train"] = splits.balanced(rows["train"], seed, n_train)
    rows["train"] = splits.sample(rows["train"], n_train, seed)
    ids = Counter(row.id for split in rows.values() for row in split)
    if twice := [name for name, n in ids.items() if n > 1]:  # judgments of both kinds go into one file
        raise RowError(f"{pairwise}: id {files.shorten(twice[0])} is in {source} too; rename one, or add a column `id`")
    counts["over a limit"] = counts["rows"] - counts["bad rows"] - counts["left out for balance"] - len(ids)
    commits = {str(name): sources.fetch(str(name), at).name for name, at in origins if sources.is_hub_id(name)}
    table = [{"column": column, "our field": field, "rows": n} for (column, field), n in used.items()]
    return Loaded(rows, table, [line for o in origins for line in sources.dialects(*o)], counts, failures, commits)
