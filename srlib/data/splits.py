"""Which rows go where: by hint or by instruction, sampled by hash, carved, evened out.

Imports schema only. Everything is decided by hashes of ids, instructions and the seed, so that the same rows make the same
splits on every machine and in one pass, whatever their order.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from srlib.schema import Comparison, Example, format_score

NAMES = (
    "train",
    "validation",
    "test",
    "ood",
    "train_pairwise",
    "pairwise",
)  # Examples, then Comparisons in the last two


HINTS = {  # what a row may say of itself, as words; the first that fits counts
    "ood": ("ood", "unseen question", "unseen questions"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "bench", "eval", "evaluation", "holdout", "held out", "unseen answer", "unseen answers"),
    "train": ("train", "training"),
}


def hinted(hint: str) -> str:
    """The split that a hint names, or "": `"bench_unseen_answers" -> "test"`, `"filtered" -> ""`."""
    words = f" {' '.join(re.findall(r'[a-z0-9]+', hint.lower()))} "
    return next((split for split, known in HINTS.items() if any(f" {word} " in words for word in known)), "")


class Homes:
    """The splits of all examples' instructions, a hash of each: there their comparisons belong, too."""

    def __init__(self) -> None:
        self.splits: dict[str, str] = {}

    def add(self, example: Example, split: str) -> None:
        """An instruction of several splits is one of an evaluation split."""
        for text in (example.instruction, example.cluster):
            if self.splits.setdefault(_hash(text)[:16], split) == "train":
                self.splits[_hash(text)[:16]] = split

    def of(self, row: Comparison) -> str:
        found = (self.splits.get(_hash(text)[:16], "") for text in (row.instruction, row.cluster))
        return next(filter(None, found), "")


def split_of(row: Example | Comparison, homes: Homes | None = None) -> str:
    """Where a row belongs: by its own hint, a comparison else by the example of its instruction, else by a hash of the
    instruction: 80% train, 10% validation, 10% test.

    Comparisons of training instructions are `train_pairwise`, all others `pairwise`.
    """
    split = hinted(str(row.meta.get("split_hint") or ""))
    if isinstance(row, Example):
        return split or _by_instruction(row)
    split = split or (homes.of(row) if homes else "") or _by_instruction(row)
    return "train_pairwise" if split == "train" else "pairwise"


def _by_instruction(row: Example | Comparison) -> str:
    bucket = int(_hash(row.cluster)[:8], 16) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def room(limits: Mapping[str, int], n_validation: int, balance_classes: bool) -> dict[str, int | None]:
    """How many rows of each split have to be held while the source passes; None: all of them.

    `train` also holds what may become the validation split; what is to be balanced has to be there as a whole.
    """
    held = {name: limits.get(name) for name in NAMES}
    if held["train"] is not None:
        held["train"] = None if balance_classes else held["train"] + n_validation
    return held


class Sample:
    """At most `size` of the rows that are added, those whose hashes with the seed are smallest; the order is kept."""

    def __init__(self, size: int | None, seed: int) -> None:
        self.size, self.seed, self.added = size, seed, 0
        self.held: list[tuple[int, int, Any]] = []  # with a size a heap: (-rank, place, row)

    def add(self, row: Example | Comparison) -> None:
        self.added += 1
        if self.size is None:
            self.held.append((0, self.added, row))
        elif len(self.held) < self.size:
            heapq.heappush(self.held, (-_rank(self.seed, row.id), self.added, row))
        elif self.size and (rank := -_rank(self.seed, row.id)) > self.held[0][0]:
            heapq.heapreplace(self.held, (rank, self.added, row))

    def rows(self) -> list[Any]:
        return [row for _, _, row in sorted(self.held, key=lambda item: item[1])]


def sample(rows: Sequence[Any], size: int | None, seed: int) -> list[Any]:
    """`size` of the rows by hash (all of them where there are no more), in their order."""
    chosen = Sample(size, seed)
    for row in rows:
        chosen.add(row)
    return chosen.rows()


def carve(splits: dict[str, list[Any]], n: int, seed: int) -> None:
    """Make a validation split out of about `n` rows of train, a fifth of it at most.

    Whole instructions move, with their comparisons, so that none crosses. Only where each instruction has more rows than
    wanted do single rows move; overlap.report then shows what both sides share.
    """
    train = splits["train"]
    wanted = min(n, len(train) // 5)
    sizes, chosen = Counter(row.cluster for row in train), set()
    for group in sorted(sizes, key=lambda group: _rank(seed, group)):
        if sizes[group] <= wanted:
            chosen.add(group)
            wanted -= sizes[group]
    if not chosen:
        ids = {e.id for e in sorted(train, key=lambda e: _rank(seed, e.id))[:wanted]}
        splits["validation"] = [e for e in train if e.id in ids]
        splits["train"] = [e for e in train if e.id not in ids]
        return
    instructions = {row.instruction for row in train if row.cluster in chosen}  # a comparison may say no group

    def moves(row: Example | Comparison) -> bool:
        return row.cluster in chosen or (isinstance(row, Comparison) and row.instruction in instructions)

    for source, target in (("train", "validation"), ("train_pairwise", "pairwise")):
        splits[target] = [*splits[target], *(row for row in splits[source] if moves(row))]
        splits[source] = [row for row in splits[source] if not moves(row)]


def balanced(examples: Sequence[Example], seed: int = 0, limit: int | None = None) -> list[Example]:
    """As many rows of each score as of the rarest one that occurs, within each source and scale; the order is kept.

    With 60 rows scored 5, 30 scored 4 and 10 scored 1, ten of each stay. `limit` shrinks all of them by one factor.
    """
    classes: dict[tuple[Any, ...], dict[float | None, list[Example]]] = {}
    for e in sorted(examples, key=lambda e: _rank(seed, e.id)):
        classes.setdefault((_source(e), e.rubric.scale), {}).setdefault(e.score, []).append(e)
    rarest = {key: min(map(len, scores.values())) for key, scores in classes.items()}
    total = sum(rarest[key] * len(scores) for key, scores in classes.items())
    part = 1.0 if limit is None or total <= limit else limit / total
    kept = {
        e.id
        for key, scores in classes.items()
        for rows in scores.values()
        for e in rows[: int(rarest[key] * part + 1e-9)]
    }
    return [e for e in examples if e.id in kept]


def class_balance(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """How often each score occurs, one line for each source and scale: `{"source", "scale", "rows", "1": 12, "2": 30}`."""
    lines: dict[tuple[str, tuple[float, ...]], Counter[float]] = {}
    for e in examples:
        lines.setdefault((_source(e), e.rubric.scale), Counter())[e.score] += 1
    return [
        {"source": source or "unnamed", "scale": scale_name(scale), "rows": found.total()}
        | {format_score(score): found[score] for score in sorted(found)}
        for (source, scale), found in sorted(lines.items())
    ]


def _source(example: Example) -> str:
    return str(example.meta.get("source") or "")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _rank(seed: int, name: str) -> int:
    return int(_hash(f"{seed} {name}")[:15], 16)


def scale_name(scale: tuple[float, ...]) -> str:
    if len(scale) <= 7:
        return ", ".join(map(format_score, scale))
    return f"{format_score(scale[0])} .. {format_score(scale[-1])} by {format_score(scale[1] - scale[0])}"
