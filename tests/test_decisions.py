"""What is chosen on validation items, on judgments whose confidence is made up so that the right choice is known."""

import numpy as np
import pytest

from srlib.evaluate import decisions
from srlib.schema import Example, Judgment, Rubric

FIVE = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])


def made(n, seed, right_when_sure=1.0):
    """Half of the judgments are sure (0.9) and right that often, half are unsure (0.4) and right in four of ten."""
    rng = np.random.default_rng(seed)
    items, own = [], []
    for i in range(n):
        score, sure = int(rng.integers(1, 6)), i % 2 == 0
        right = rng.random() < (right_when_sure if sure else 0.4)
        gold = score if right else score % 5 + 1
        rest = [s for s in range(1, 6) if s != score]
        p = {float(s): (0.1 if sure else 0.6) / 4 for s in rest} | {float(score): 0.9 if sure else 0.4}
        items.append(Example(id=f"e{i}", instruction=f"Greet {i}.", response="Hi", rubric=FIVE, score=gold))
        own.append(Judgment(example_id=f"e{i}", text="", score=score, distribution=dict(sorted(p.items()))))
    return items, own


def test_it_answers_where_it_was_right_on_validation():
    found, words = decisions.abstention(made(200, 0), made(200, 1), risk=0.1, delta=0.05, n_boot=50)
    assert found["guaranteed_coverage"].value == pytest.approx(0.5)
    assert (found["guaranteed_risk"].value, found["guaranteed_risk"].n) == (0, 100)
    assert words == (
        "answers at a confidence of 0.900, for a risk of 0.1 on 200 validation items, guaranteed with probability 0.95"
    )


def test_where_no_threshold_will_do_it_answers_nothing():
    found, words = decisions.abstention(made(60, 0, 0.5), made(60, 1), risk=0.1, delta=None, n_boot=50)
    assert found["selective_coverage"].value == 0
    assert np.isnan(found["selective_risk"].value)
    assert words.startswith("answers nothing")


def test_a_temperature_mends_what_is_too_sure():
    found, words = decisions.temperature(made(400, 0, 0.5), made(400, 1, 0.5), n_boot=50)
    assert found["ece_tempered"].value < 0.2
    assert "fitted on 400 validation items" in words


def test_a_missing_judgment_is_silent_and_a_wrong_decision():
    items, own = made(100, 1)
    validation, none = made(100, 0), [None] * 50 + own[50:]
    whole, part = (dict(decisions.on_test(validation, (items, rows), n_boot=20)[-1][0]) for rows in (own, none))
    assert part["pass_accuracy"].n == 100
    assert part["pass_accuracy"].value <= whole["pass_accuracy"].value - 0.3
    assert whole["pass_gain"].value == pytest.approx(whole["pass_accuracy"].value - whole["pass_accuracy_score"].value)


def test_without_any_confidence_there_is_nothing_to_choose():
    validation, (items, own) = made(20, 0), made(20, 1)
    assert decisions.on_test(validation, (items, [None] * 20)) == []
    assert decisions.on_test(([], []), (items, own)) == []
    assert len(decisions.on_test(validation, (items, own), n_boot=20)) == 4
