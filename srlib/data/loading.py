"""Files, folders and hub sets -> Examples and Comparisons in splits, with an account of every row."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from srlib import files
from srlib.data import columns, sources, splits
from srlib.files import RowError
from srlib.schema import Example, Item, SrlibError


class DataError(SrlibError, ValueError):
    """A source that cannot be used as data. Says file, row, field, and what to do."""


class RowFailure(NamedTuple):
    """One row of a source that is neither an Example nor a Comparison."""

    line: int  # or the number of the row in a format without lines
    id: str | None
    reason: str


@dataclass
class Loaded:
    """Rows in their splits, and an account of them."""

    splits: dict[str, list[Any]]  # see splits.NAMES
    columns: list[dict[str, Any]]  # to print: column, our field, rows
    counts: dict[str, int]  # "rows", "bad rows", "over a limit", "left out for balance"
    failures: list[RowFailure]  # with bad_rows="drop", the first thousand
    commits: dict[str, str]  # of sets from the hub


def read_rows(
    source: str | Path, revision: str = "", score_step: float = 0.25, training: bool = False
) -> Iterator[tuple[int, str, Item | RowFailure, list[tuple[str, str]]]]:
    """(number, place, row, [(column, our field)]) of every row of a file, a folder or a hub set, one at a time.

    The row is an Example, a Comparison or a RowFailure; for `training` it needs a gold verdict. `score_step` is for rubrics
    with a range and no levels; a gold score between two steps (the mean of two graders, say) moves to the nearer one, and
    meta["score_given"] keeps the original. Raises RowError if the source cannot be read.
    """
    name = str(source) if sources.is_hub_id(source) else Path(source).name
    first: dict[str, str] = {}  # id -> its first row
    for number, where, values, problem, split in sources.rows(source, revision):
        values = values or {}
        try:
            if problem is not None:
                raise RowError(problem)
            row = columns.convert(values, where, number, source=name, split=split, score_step=score_step)
            if first.setdefault(row.id, where) != where:
                raise RowError(f"{where}: id {files.shorten(row.id)} is already in {first[row.id]}; ids must be unique")
            if training and row.gold is None:
                column = columns.names(values)["score" if isinstance(row, Example) else "preference"]
                raise RowError(f"{where}: field {column} is missing; a training row needs one")
            if training and (hint := values.get("split_hint")) and not splits.hinted(hint):
                known = ", ".join(word for words in splits.HINTS.values() for word in words)
                raise RowError(f"{where}: field split_hint: {files.shorten(hint)} is none of {known}; correct it")
        except RowError as error:
            row = RowFailure(number, values.get("id") and str(values["id"]), str(error))
        fields = {column: field for field, column in reversed(columns.names(values).items())}
        yield number, where, row, [(c, fields.get(c, "(not used)")) for c, value in values.items() if value is not None]


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
) -> Loaded:
    """The splits of a source of judged examples (each needs a score) and of a source of comparisons beside it.

    Splits: see splits.split_of; a split that the hub or a folder names counts as a hint. Without a validation split, about
    `n_validation` training rows become one (splits.carve). At most `limits[split]` rows are kept, a sample that depends on
    `seed` and ids only, in the source's order; `balance_classes` evens out the training scores (splits.balanced).
    `bad_rows` "refuse" raises DataError at bad rows, "drop" counts them.
    """
    if not str(source):
        raise DataError(f"{pairwise}: comparisons alone make no judge; give scored examples beside them, as data")
    room = {name: (limits or {}).get(name, math.inf) for name in splits.NAMES}
    n_train, room["train"] = room["train"], math.inf if balance_classes else room["train"] + n_validation
    rows: dict[str, list[Any]] = {name: [] for name in splits.NAMES}
    counts = dict.fromkeys(("rows", "bad rows", "over a limit", "left out for balance"), 0)
    seen, used, failures = {}, Counter(), []

    def keep(row: Item) -> None:
        split = splits.split_of(row, seen)
        rows[split].append(row)
        if len(rows[split]) > 2 * room[split] + 1000:  # bounds the memory
            rows[split] = splits.sample(rows[split], room[split], seed)

    origins = [(source, revision), (pairwise, pairwise_revision)][: 2 if str(pairwise) else 1]
    for name, at in origins:
        waiting = []  # comparisons, for the examples behind them
        for _, _, row, fields in read_rows(name, at, score_step, training=True):
            counts["rows"] += 1
            used.update(fields)
            if isinstance(row, Example) or (name is pairwise and isinstance(row, Item)):
                keep(row)
            elif isinstance(row, Item):
                waiting.append(row)
            else:
                counts["bad rows"] += 1
                failures += [row._replace(reason=f"{name}, {row.reason}")] if len(failures) < 1000 else []
        for row in waiting:
            keep(row)
    if failures and bad_rows == "refuse":
        more = f" (and {counts['bad rows'] - 1} more bad rows)" if len(failures) > 1 else ""
        raise DataError(f"{failures[0].reason}{more}. Correct the file, or set bad_rows to drop")
    rows = {name: splits.sample(rows[name], room[name], seed) for name in rows}
    if not rows["validation"]:
        splits.carve(rows, n_validation, seed)
    if not rows["train"]:
        others = "; comparisons alone make no judge, give them as data_pairwise" if rows["train_pairwise"] else ""
        raise DataError(f"{source}: no training rows; `split_hint` of at least some rows must be train{others}")
    if balance_classes:
        counts["left out for balance"] = len(rows["train"]) - len(splits.balanced(rows["train"], seed))
        rows["train"] = splits.balanced(rows["train"], seed, n_train)
    rows["train"] = splits.sample(rows["train"], n_train, seed)
    ids = Counter(row.id for split in rows.values() for row in split)
    if twice := [name for name, n in ids.items() if n > 1]:  # judgments of both kinds go into one file
        raise DataError(f"{pairwise}: id {files.shorten(twice[0])} is in {source} too; ids must be unique, rename one")
    counts["over a limit"] = counts["rows"] - counts["bad rows"] - counts["left out for balance"] - len(ids)
    commits = {str(name): sources.fetch(str(name), at).name for name, at in origins if sources.is_hub_id(name)}
    table = [{"column": column, "our field": field, "rows": n} for (column, field), n in used.items()]
    return Loaded(rows, table, counts, failures, commits)
