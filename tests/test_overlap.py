"""Shared 13-grams and runs of 50 characters: by hand, and against a search that compares every text with every other."""

import random
import re

import pytest

from srlib.data import overlap
from srlib.schema import Comparison, Example, Rubric

RUBRIC = Rubric(criterion="c", levels=["a", "b"])
NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()


def row(i, instruction, response="-"):
    return Example(id=str(i), instruction=instruction, response=response, rubric=RUBRIC)


def shares(train, test):
    lines = overlap.report([row(i, "?", text) for i, text in enumerate(train)], {"t": [row(0, "!", t) for t in test]})
    return lines[1]["13-gram"], lines[1]["50-character"]


def test_the_edges_of_both_measures():
    run, words = "abcdefghij" * 5, [" ".join(NUMBERS[:n]) for n in (12, 13)]
    assert shares([f"before {words[1]} behind"], [f"another {words[1].upper().replace(' ', '; ')}."]) == (1, 1)
    assert shares([f"before {words[0]} behind"], [f"another {words[0]} more"])[0] == 0
    assert shares([f"X{run[:25]} - {run[25:]}Y"], [f"Q{run}Z"]) == (0, 1)  # without spaces and punctuation
    assert shares([f"X{run[1:]}Y"], [f"Q{run[1:]}Z"]) == (0, 0)
    assert shares(["Yes, please."], ["yes please", "yes please do"]) == (0.5, 0.5)  # short: by the same text only
    assert shares(["..."], ["..."]) == (0, 0)
    assert shares([" ".join(NUMBERS[:7]), " ".join(NUMBERS[7:])], [" ".join(NUMBERS)]) == (0, 0)  # each text alone


def test_instructions_and_both_responses_of_a_comparison():
    text = " ".join(NUMBERS)
    pair = Comparison(id="p", instruction="i", response_a="short", response_b=text, rubric=RUBRIC, preference="A")
    lines = overlap.report([pair, row(1, text)], {"a": [row(2, "new", text)], "b": [pair, row(3, text, "n")], "c": []})
    assert [tuple(line.values()) for line in lines[:2]] == [("a", "instruction", 1, 0, 0), ("a", "response", 1, 1, 1)]
    assert [tuple(line.values())[1:] for line in lines[2:]] == [("instruction", 2, 1, 1), ("response", 2, 0.5, 0.5)]


@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_search(seed):
    rng = random.Random(seed)
    pool = [rng.choice(["ab", "cde", "é", "fg", "漢字", "h1"]) for _ in range(400)]

    def text():
        start, length = rng.randrange(360), rng.choice([0, 3, 12, 13, 14, 20, 40])
        return " ".join([*pool[start : start + length], str(rng.randrange(9))])

    def grams(tokens, n):
        return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))}

    train, test = [text() for _ in range(60)], [text() for _ in range(60)]
    cuts = (13, str.split), (50, lambda text: re.sub(r"\s", "", text))
    seen = [set().union(*(grams(cut(t), n) for t in train)) for n, cut in cuts]
    expected = [sum(bool(grams(cut(t), n) & s) for t in test) / 60 for s, (n, cut) in zip(seen, cuts, strict=True)]
    assert 0.1 < min(expected) < 0.9
    assert shares(train, test) == pytest.approx(expected, abs=1e-4)
