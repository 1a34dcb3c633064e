"""Shared 13-grams and runs of 50 characters: by hand, and against a search that compares every text with every other."""

import random
import re

import numpy as np
import pytest

from srlib.data import overlap
from srlib.schema import Comparison, Example, Rubric

RUBRIC = Rubric(criterion="c", levels=["a", "b"])


def row(i, instruction, response="-"):
    return Example(id=str(i), instruction=instruction, response=response, rubric=RUBRIC)


def found(train, test):
    lines = overlap.report(
        [row(i, "?", text) for i, text in enumerate(train)], {"test": [row(0, "!", t) for t in test]}
    )
    [line] = [line for line in lines if line["text"] == "response"]
    return line["13-gram"], line["50-character"]


NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()


def test_thirteen_words_are_enough_and_twelve_are_not():
    shared = " ".join(NUMBERS[:13])
    assert found([f"before {shared} behind"], [f"another {shared}, and more"]) == (1, 1)
    shared = " ".join(NUMBERS[:12])
    assert found([f"before {shared} behind"], [f"another {shared} and more"])[0] == 0


def test_case_and_punctuation_do_not_count():
    assert found(["; ".join(NUMBERS)], [" ".join(NUMBERS).upper()]) == (1, 1)


def test_fifty_characters_are_enough_and_forty_nine_are_not():
    run = "abcdefghij" * 6
    assert found([f"X{run[:50]}Y"], [f"Q{run[:50]}Z"]) == (0, 1)
    assert found([f"X{run[:49]}Y"], [f"Q{run[:49]}Z"]) == (0, 0)
    assert found([run[:25] + " - " + run[25:50]], [run[:50]]) == (0, 1)  # spaces and punctuation are left out


def test_a_short_text_is_hit_by_the_same_text_only():
    assert found(["Yes, please."], ["yes please", "yes", "yes please do"]) == (0.3333, 0.3333)
    assert found(["yes please " + " ".join(NUMBERS)], ["yes please"]) == (0, 0)
    assert found(["..."], ["..."]) == (0, 0)  # no words, nothing shared


def test_no_gram_runs_from_one_text_into_the_next():
    left, right = " ".join(NUMBERS[:7]), " ".join(NUMBERS[7:])
    assert found([left, right], [f"{left} {right}"]) == (0, 0)
    assert found([f"{left} {right}"], [left, right]) == (0, 0)


def test_instructions_and_both_responses_of_a_comparison():
    text = " ".join(NUMBERS)
    pair = Comparison(id="p", instruction="i", response_a="short", response_b=text, rubric=RUBRIC, preference="A")
    lines = overlap.report([pair, row(1, text)], {"a": [row(2, "new", text)], "b": [pair, row(3, text, "n")], "c": []})
    assert [(li["split"], li["text"], li["items"], li["13-gram"], li["50-character"]) for li in lines] == [
        ("a", "instruction", 1, 0, 0),
        ("a", "response", 1, 1, 1),
        ("b", "instruction", 2, 1, 1),
        ("b", "response", 2, 0.5, 0.5),
    ]
    assert overlap.report([], {"a": [row(2, "new", text)]})[0]["13-gram"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_search(monkeypatch, seed):
    monkeypatch.setattr(overlap, "_BLOCK", 40)  # several blocks
    rng = random.Random(seed)
    pool = [rng.choice(["ab", "cde", "é", "fg", "漢字", "h1"]) for _ in range(400)]

    def text():
        start, length = rng.randrange(360), rng.choice([0, 3, 12, 13, 14, 20, 40])
        return " ".join([*pool[start : start + length], str(rng.randrange(9))])

    def grams(words, n):
        words = list(words)
        return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}

    train, test = [text() for _ in range(60)], [text() for _ in range(60)]
    for measure, n, cut in (("13-gram", 13, lambda t: t.split()), ("50-character", 50, lambda t: re.sub(r"\s", "", t))):
        seen = set().union(*(grams(cut(t), n) for t in train))
        expected = sum(bool(grams(cut(t), n) & seen) for t in test) / 60
        lines = overlap.report([row(i, t) for i, t in enumerate(train)], {"test": [row(0, t) for t in test]})
        assert 0.1 < expected < 0.9
        assert lines[0][measure] == pytest.approx(expected, abs=1e-4)


def test_windows_are_polynomials():
    x = np.array([5, 7, 11, 13, 17, 19, 23, 29], np.uint64)
    for n in range(1, 9):
        powers = [pow(overlap._FACTOR, n - 1 - k, 2**64) for k in range(n)]
        by_hand = [sum(int(x[i + k]) * powers[k] for k in range(n)) % 2**64 for i in range(9 - n)]
        assert overlap._windows(x, n).tolist() == by_hand
