"""What an evaluation split shares with what a judge was trained on: 13-grams of words and runs of 50 characters.

Imports schema only. Both are the usual measures of contamination: 13-grams of lower-cased words without punctuation (GPT-3,
arXiv 2005.14165, appendix C), and runs of 50 letters and digits without spaces and punctuation (GPT-4, arXiv 2303.08774,
appendix C), here every run of an item and not three drawn ones. An item is hit when it shares one gram; a text too short
to hold one counts as a single gram, so it is hit when the very same text is in train.

    report(train, {"test": test})[0]
    # {"split": "test", "text": "instruction", "items": 400, "13-gram": 0.02, "50-character": 0.03}

The grams of the evaluation splits are hashed to 64 bits and sorted, 8 bytes each; the training rows pass by once. Nothing
is sampled.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from srlib.schema import Comparison, Example

MEASURES = {"13-gram": 13, "50-character": 50}
_BLOCK = 2**13  # words of training text that are hashed at once, so that the arrays stay in the cache
_GAP, _PAD = 0, 1  # codes that are neither a word nor a character: between texts, and behind a short one
_FACTOR = 0x9E3779B97F4A7C15

Row = Example | Comparison


def report(train: Iterable[Row], splits: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """For each split the share of items whose instruction, or a response of theirs, shares a gram with train's.

    Instructions are held against instructions and responses against responses; an empty split has no lines.
    """
    train = train if isinstance(train, Sequence) else list(train)
    lines = []
    for kind in ("instruction", "response"):
        hits = _hits((text for row in train for text in _texts(row, kind)), splits, kind)
        for split, rows in splits.items():
            if rows:
                shares = {measure: round(sum(found[split]) / len(rows), 4) for measure, found in hits.items()}
                lines.append({"split": split, "text": kind, "items": len(rows), **shares})
    return sorted(lines, key=lambda line: list(splits).index(line["split"]))


def _texts(row: Row, kind: str) -> list[str]:
    if kind == "instruction":
        return [row.instruction]
    return [row.response_a, row.response_b] if isinstance(row, Comparison) else [row.response]


def _hits(train: Iterator[str], splits: Mapping[str, Sequence[Row]], kind: str) -> dict[str, dict[str, list[bool]]]:
    """{measure: {split: whether each item shares a gram with train}}."""
    grams = {measure: _Grams(n, by_word=measure == "13-gram") for measure, n in MEASURES.items()}
    for texts in ([_words(text)] for rows in splits.values() for row in rows for text in _texts(row, kind)):
        for own in grams.values():
            own.add(texts)
    for own in grams.values():
        own.sort()
    for texts in _blocks(map(_words, train)):
        for own in grams.values():
            own.look_up(texts)
    return {
        measure: {
            split: [own.any_found([_words(text) for text in _texts(row, kind)]) for row in rows]
            for split, rows in splits.items()
        }
        for measure, own in grams.items()
    }


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _blocks(texts: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    block, size = [], 0
    for words in texts:
        block.append(words)
        size += len(words)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    yield block


class _Grams:
    """The grams of evaluation texts, and which of them were found in train. Texts come as lists of words."""

    def __init__(self, n: int, by_word: bool) -> None:
        self.n, self.by_word = n, by_word
        self.codes = {"": _PAD}  # word -> code, for the words of the evaluation texts only
        self.pending: list[np.ndarray] = []
        self.known = np.empty(0, np.uint64)
        self.found = np.empty(0, bool)
        self.slots, self.shift = np.empty(0, bool), np.uint64(0)

    def add(self, texts: list[list[str]]) -> None:
        if self.by_word:
            for word in itertools.chain.from_iterable(texts):
                self.codes.setdefault(word, len(self.codes) + _PAD)
        self.pending.append(self._hashes(texts))

    def sort(self) -> None:
        """Call it once, between the last `add` and the first `look_up`."""
        known = np.concatenate([np.empty(0, np.uint64), *self.pending])
        self.pending = []
        known.sort()
        self.known = known[np.concatenate([[True], known[1:] != known[:-1]])] if len(known) else known
        self.found = np.zeros(len(self.known), bool)
        bits = min(26, max(8, len(self.known).bit_length() + 4))  # a table of the first bits: most grams end there
        self.slots, self.shift = np.zeros(2**bits, bool), np.uint64(64 - bits)
        self.slots[self.known >> self.shift] = True

    def look_up(self, texts: list[list[str]]) -> None:
        hashes = self._hashes(texts)
        hashes = hashes[self.slots[hashes >> self.shift]]
        at = np.searchsorted(self.known, hashes)
        at[at == len(self.known)] = 0
        self.found[at[self.known[at] == hashes]] = True

    def any_found(self, texts: list[list[str]]) -> bool:
        return bool(self.found[np.searchsorted(self.known, self._hashes(texts))].any())

    def _hashes(self, texts: list[list[str]]) -> np.ndarray:
        """64-bit hashes of every gram of some texts, none across two of them or with a word that is in no item."""
        if self.by_word:
            tokens: list[str | None] = []
            for words in filter(None, texts):
                tokens += [*words, *[""] * (self.n - len(words)), None]
            codes = np.fromiter(map(self.codes.get, tokens, itertools.repeat(_GAP)), np.uint64, len(tokens))
        else:
            text = "".join("".join(words).ljust(self.n, chr(_PAD)) + chr(_GAP) for words in texts if words)
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        if len(codes) < self.n:
            return np.empty(0, np.uint64)
        gaps = np.cumsum(np.concatenate([[0], codes == _GAP]), dtype=np.int32)
        return _windows(_mixed(codes), self.n)[gaps[self.n :] == gaps[: -self.n]]


def _mixed(codes: np.ndarray) -> np.ndarray:
    """Codes spread over 64 bits (the finalizer of splitmix64)."""
    x = codes * np.uint64(_FACTOR)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def _windows(x: np.ndarray, n: int) -> np.ndarray:
    """Polynomial hash of every run of `n` values: `_windows([a, b, c], 2) -> [a * F + b, b * F + c]`, modulo 2^64.

    Runs of 1, 2, 4, ... are doubled, and those that make up `n` put together: 7 multiplications for n = 50.
    """
    made, have, power, size = x[:0], 0, x, 1
    while True:
        if n & size:
            length = len(x) - have - size + 1
            made = power if not have else made[:length] * _power(size) + power[have : have + length]
            have += size
        if have == n:
            return made[: len(x) - n + 1]
        power = power[:-size] * _power(size) + power[size:]
        size *= 2


def _power(size: int) -> np.uint64:
    return np.uint64(pow(_FACTOR, size, 2**64))
