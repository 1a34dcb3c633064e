"""A few hundred of each kind of tests/fuzz.py, drawn from another seed than the campaign's."""

import random

import fuzz
import pytest


@pytest.mark.parametrize("kind", [fuzz.judgments, fuzz.inputs], ids=["judgments", "inputs"])
def test_no_wrong_score_and_no_traceback(kind):
    counts = kind(random.Random("a sample"), 300)
    assert sum(counts.values()) == 300
    assert len(counts) > 1


@pytest.mark.torch
def test_no_response_brings_control_tokens_into_a_prompt():
    assert set(fuzz.responses(random.Random("a sample"), 120)) == set(fuzz.TOKENS)
