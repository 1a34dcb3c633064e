"""Hub sets and files -> Examples and Comparisons in splits, with an account of how they got there.

`sources` reads rows one at a time, `columns` knows the forms they come in, `splits` which of them go where. What does not
fit is named by row and field, and nothing is skipped in silence.

    loaded = load("answers.parquet", n_validation=200, limits={"train": 5000}, seed=0)
    loaded.splits["train"], loaded.columns, loaded.counts       # rows; how columns were read; what was left out
    for number, where, row, form, names in read_rows("rows.jsonl"): ...     # an item, or the reason why not
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from srlib import files as store
from srlib.data import columns, sources, splits
from srlib.schema import Comparison, Example, SrlibError

KEPT_FAILURES = 1000  # so many stand in `Loaded.failures`; all are counted


class RowFailure(NamedTuple):
    """One row of a source that is neither an example nor a comparison. `line` is its number where there are no lines."""

    line: int
    id: str | None
    reason: str


class DataError(SrlibError, ValueError):
    """A source that cannot be used as data. Says file, row, field, and what to do."""


@dataclass
class Loaded:
    """Rows in their splits, and how they got there."""

    splits: dict[str, list[Any]]  # Examples: train, validation, test, ood; Comparisons: train_pairwise, pairwise
    columns: list[dict[str, Any]]  # to print: form, column, rows, our field
    counts: dict[str, int]  # "rows", "bad rows", "over a limit", "left out for balance"
    failures: list[RowFailure] = field(default_factory=list)  # with bad_rows="drop", the first of them
    commits: dict[str, str] = field(default_factory=dict)  # of sets from the hub

    @property
    def examples(self) -> dict[str, list[Example]]:
        return {name: self.splits[name] for name in splits.NAMES[:4]}

    @property
    def train_pairwise(self) -> list[Comparison]:
        return self.splits["train_pairwise"]

    @property
    def pairwise(self) -> list[Comparison]:
        return self.splits["pairwise"]


class Found(NamedTuple):
    """What one row turned out to be. `number` is its line, or its place among the source's rows from 1."""

    number: int
    where: str
    row: Example | Comparison | RowFailure
    form: columns.Form | None  # None where the row could not be read at all
    columns: Iterable[str]  # that have something in this row


def read_rows(source: str | Path, revision: str = "", score_step: float = 0.25) -> Iterator[Found]:
    """Every row of a file, a folder or a hub set, one at a time: an Example, a Comparison, or a RowFailure.

    `score_step` is for rubrics that name a range and no levels: their scores go in such steps. A gold score between two
    steps (the mean of two graders, say) moves to the nearer one, and meta["score_given"] keeps what the file says.
    Raises store.RowError where the source itself cannot be read.
    """
    name = str(source) if sources.is_hub_id(source) else Path(source).name
    first: dict[tuple[type, str], str] = {}
    for number, where, values, problem, split in sources.rows(source, revision):
        form = row_id = None
        try:
            if problem is not None:
                raise store.RowError(problem)
            form, row_id = columns.form_of(values), values.get("id")
            row = columns.convert(values, where, number, source=name, split=split, score_step=score_step)
            if row_id is not None and (seen := first.setdefault((form.makes, row.id), where)) != where:
                raise store.RowError(f"{where}: id {store.shorten(row.id)} is already in {seen}; ids must be unique")
            yield Found(number, where, row, form, [name for name, value in values.items() if value is not None])
        except store.RowError as error:
            row_id = row_id if isinstance(row_id, str) else None
            yield Found(number, where, RowFailure(number, row_id, str(error)), form, tuple(values or ()))


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
    """The splits of a source of judged examples (each needs a score) and, beside it, of one of comparisons.

    `split_hint` decides where there is one (splits.HINTS: train, validation or dev, test or unseen answers, ood or unseen
    questions), else the split that the hub or the folder names, where that is one of these; rows with neither are split by a
    hash of the instruction, so that no instruction crosses. Comparisons without a hint go where the examples of their
    instruction are: those of training instructions to `train_pairwise`, all others to `pairwise`. Without a validation split,
    about `n_validation` training rows become one, see splits.carve.

    Rows pass one at a time, and at most `limits[split]` are kept: a sample that depends on `seed` and the rows' ids
    alone, in the source's order. `balance_classes` evens out the scores of the training split (splits.balanced), for
    which all of it is held. `bad_rows` "refuse" raises DataError at bad rows, "drop" leaves them out and counts them.
    """
    if not str(source):
        raise DataError(f"{pairwise}: comparisons alone make no judge; give scored examples beside them, as data")
    room = splits.room(limits or {}, n_validation, balance_classes)
    samples = {name: splits.Sample(size, seed) for name, size in room.items()}
    counts = dict.fromkeys(("rows", "bad rows", "over a limit", "left out for balance"), 0)
    seen: dict[columns.Form, Counter[str]] = {}
    homes, waiting = splits.Homes(), []  # comparisons between the examples wait for all of these
    failures: list[tuple[str | Path, RowFailure]] = []
    origins = [(source, revision), (pairwise, pairwise_revision)][: 2 if str(pairwise) else 1]
    for name, at in origins:
        for number, where, row, form, names in read_rows(name, at, score_step):
            counts["rows"] += 1
            if form is not None:
                seen.setdefault(form, Counter()).update(names)
            if isinstance(row, Example | Comparison) and row.gold is None:
                field = "score" if isinstance(row, Example) else "preference"
                reason = f"{where}: field {form.names.get(field, field)} is missing; a training row needs one"
                row = RowFailure(number, row.id, reason)
            elif isinstance(row, Example | Comparison) and "split_hint" in names:  # its own, not its folder's name
                hint = row.meta.get("split_hint")
                if hint and not splits.hinted(str(hint)):
                    known = ", ".join(word for words in splits.HINTS.values() for word in words)
                    reason = f"{where}: field split_hint: {store.shorten(hint)} is none of {known}; correct it"
                    row = RowFailure(number, row.id, reason)
            if isinstance(row, RowFailure):
                counts["bad rows"] += 1
                failures += [(name, row)] if len(failures) < KEPT_FAILURES else []
            elif isinstance(row, Example):
                split = splits.split_of(row)
                homes.add(row, split)
                samples[split].add(row)
            elif name is source:
                waiting.append(row)
            else:
                samples[splits.split_of(row, homes)].add(row)
        for row in waiting:
            samples[splits.split_of(row, homes)].add(row)
        waiting.clear()
    if failures and bad_rows == "refuse":
        name, first = failures[0]
        more = f" (and {counts['bad rows'] - 1} more bad rows)" if counts["bad rows"] > 1 else ""
        raise DataError(f"{name}, {first.reason}{more}. Correct the file, or set bad_rows to drop")
    found = {name: sample.rows() for name, sample in samples.items()}
    if not found["validation"]:
        splits.carve(found, n_validation, seed)
    if not found["train"]:
        others = "; comparisons alone make no judge, give them as data_pairwise" if found["train_pairwise"] else ""
        raise DataError(f"{source}: no training rows; `split_hint` of at least some rows must be train{others}")
    train, limit = found["train"], (limits or {}).get("train")
    if balance_classes:
        found["train"] = splits.balanced(train, seed, limit)
        counts["left out for balance"] = len(train) - len(splits.balanced(train, seed))
    else:
        found["train"] = splits.sample(train, limit, seed)
    counts["over a limit"] = (
        counts["rows"] - counts["bad rows"] - counts["left out for balance"] - sum(map(len, found.values()))
    )
    ids = Counter(row.id for rows in found.values() for row in rows)  # judgments of both kinds go into one file
    for name, times in ids.most_common(1):
        if times > 1:
            raise DataError(f"{pairwise}: id {store.shorten(name)} is in {source} too; ids must be unique, rename one")
    commits = {str(name): sources.fetch(str(name), at).name for name, at in origins if sources.is_hub_id(name)}
    return Loaded(found, columns.table(seen), counts, [failure for _, failure in failures], commits)


def load_splits(source: str | Path, **options: Any) -> dict[str, list[Any]]:
    """`load(...).splits`, for those who need no account of it."""
    return load(source, **options).splits


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
    counts = Counter(splits.scale_name(e.rubric.scale) for e in examples)
    return "; ".join(f"{name} ({n} rows)" for name, n in counts.most_common())
