"""Text that an evaluation split shares with the training rows: 13-grams of words and runs of 50 characters.

The usual measures of contamination: lower-cased words without punctuation (GPT-3, arXiv 2005.14165, appendix C), letters and
digits (GPT-4, arXiv 2303.08774, appendix C; here every run, not three). One shared gram is a hit; a short text is one gram."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srlib.schema import Comparison, Item

MEASURES = {"13-gram": 13, "50-character": 50}


def report(train: Iterable[Item], splits: Mapping[str, Sequence[Item]]) -> list[dict[str, Any]]:
    """For each split, the share of items with an instruction, or a response, that shares a gram with a training row's:
    `[{"split": "test", "text": "instruction", "items": 400, "13-gram": 0.02, "50-character": 0.03}, ...]`. Empty
    splits are left out. Nothing is sampled: 100,000 training rows take half a minute; each gram of the splits 200 bytes."""
    train, lines = list(train), {}
    for kind, (measure, n) in itertools.product(("instruction", "response"), MEASURES.items()):
        items = {split: [_texts(row, kind, n) for row in rows] for split, rows in splits.items() if rows}
        known, blocks, shared, block = set(), set(), set(), (n + 1) // 2
        for text in (text for rows in items.values() for texts in rows for text in texts):
            known |= _grams(text, n)
            blocks |= _grams(text, block)
        for text in {text for row in train for text in _texts(row, kind, n)}:
            if blocks & _grams(text, block, step=block):  # as in every text with a shared gram
                shared |= known & _grams(text, n)
        for split, rows in items.items():
            line = lines.setdefault((split, kind), {"split": split, "text": kind, "items": len(rows)})
            line[measure] = round(sum(any(shared & _grams(text, n) for text in texts) for texts in rows) / len(rows), 4)
    return sorted(lines.values(), key=lambda line: list(splits).index(line["split"]))


def _texts(row: Item, kind: str, n: int) -> list[tuple[str, ...] | str]:
    """The texts of a row as words, or for the longer grams as characters."""
    responses = [row.response_a, row.response_b] if isinstance(row, Comparison) else [row.response]
    words = [re.findall(r"\w+", text.lower()) for text in ([row.instruction] if kind == "instruction" else responses)]
    return [tuple(text) if n == MEASURES["13-gram"] else "".join(text) for text in words]


def _grams(text: tuple[str, ...] | str, n: int, step: int = 1) -> set[int]:
    return {hash(text[i : i + n]) for i in range(0, max(1, len(text) - n + 1), step)} if text else set()
