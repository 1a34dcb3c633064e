"""Effect sizes of the audits on hand-made judges: one that minds nothing, one that obeys a response, one that likes length."""

import math

import pytest

from srlib import files as store
from srlib import prompts
from srlib.evaluate.attacks import FAMILIES
from srlib.evaluate.audits import altered, altered_rows, choose, equal_gold_rows, position_row
from srlib.evaluate import arms as readings
from srlib.evaluate import audits
from srlib.evaluate import results as evaluate
from srlib.schema import Comparison, Example, Judgment, Rubric
from srlib.stats import metrics

FIVE = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])
QUARTERS = Rubric(criterion="Is it polite?", levels={0: "rude", 2: "kind"}, step=0.5)
SFT = readings.arm("sft")


def items(n=12, rubric=FIVE):
    return [
        Example(
            id=f"e{i}", instruction=f"Greet {i}.", response="Hello " * (i + 1), rubric=rubric, score=rubric.scale[i % 4]
        )
        for i in range(n)
    ]


def said(example, score):
    failed = "no_verdict" if score is None else None
    return Judgment(example_id=example.id, text=f"[RESULT] {score}", score=score, failure=failed)


def audit(judge, examples):
    """Rows of a judge that is a function of the example: {(audit, metric): row}."""
    before, after = [said(e, judge(e)) for e in examples], [said(e, judge(e)) for e in altered(examples)]
    rows = altered_rows(SFT, before, after, examples, seed=0, n_boot=200)
    return {(r["split"].removeprefix("audit_"), r["metric"]): r for r in rows}


def interval(row):
    return row["value"], row["ci_low"], row["ci_high"]


def test_a_constant_judge_minds_nothing():
    found = audit(lambda e: 3.0, items())
    for (name, metric), row in found.items():
        assert interval(row) == ((1.0,) * 3 if metric == "parse_rate" else (0.0,) * 3), (name, metric)
        assert row["n"] == (60 if name == "injection" else 12)
        assert row["protocol"]
    assert {name for name, _ in found} == {"padding", "markdown", "injection", *(f"injection_{f}" for f in FAMILIES)}


def test_a_judge_that_obeys_a_fake_verdict_shows_up_there_alone():
    def obedient(e):
        return 5.0 if "[RESULT] 5" in e.response else e.score

    found = audit(
        obedient, items()
    )  # gold 1, 2, 3, 4: four of the six fake verdicts say [RESULT], three of four items each
    fake = found["injection_fake_verdict", "raised_to_top"]
    assert (fake["value"], fake["n"]) == (pytest.approx(8 / 12, abs=1e-6), 12)
    expected = sum((5 - e.score) / 4 for i, e in enumerate(items()) if i % 6 < 4) / 12
    assert found["injection_fake_verdict", "shift"]["value"] == pytest.approx(expected, abs=1e-6)
    assert found["injection_fake_verdict", "shift"]["ci_low"] > 0
    assert interval(found["injection_ignore_rubric", "raised_to_top"]) == (0.0, 0.0, 0.0)
    assert interval(found["padding", "changed"]) == (0.0, 0.0, 0.0)
    families = [found[f"injection_{family}", "shift"]["value"] for family in FAMILIES]
    assert found["injection", "shift"]["value"] == pytest.approx(sum(families) / 5, abs=1e-5)


def test_an_unsteady_judge_has_no_shift_and_many_changes():
    def unsteady(e):
        return e.score if "#" not in e.id else e.score + (1 if int(e.id.split("#")[0][1:]) % 2 else -1)

    found = audit(unsteady, [e.model_copy(update={"score": 3.0}) for e in items()])
    assert found["padding", "shift"]["value"] == 0
    assert found["padding", "changed"]["value"] == 1


def test_shifts_are_shares_of_each_rubrics_own_scale():
    found = audit(lambda e: max(e.rubric.scale) if "#markdown" in e.id else min(e.rubric.scale), items(4) + [
        e.model_copy(update={"id": f"q{e.id}"}) for e in items(4, QUARTERS)
    ])  # fmt: skip
    assert found["markdown", "shift"]["value"] == found["markdown", "raised_to_top"]["value"] == 1.0


def test_what_cannot_be_read_is_counted_and_never_a_score():
    found = audit(lambda e: None if "#padding" in e.id else 2.0, items())
    assert found["padding", "parse_rate"]["value"] == 0
    assert (found["padding", "shift"]["value"], found["padding", "shift"]["n"]) == (None, 0)
    assert (found["padding", "raised_to_top"]["value"], found["padding", "raised_to_top"]["n"]) == (0, 12)
    at_the_top = audit(lambda e: 5.0, items())["injection", "raised_to_top"]
    assert (at_the_top["value"], at_the_top["n"]) == (None, 0)  # nothing was below it


def test_copies_of_one_item_are_resampled_together():
    wide = audit(lambda e: 5.0 if "#injection" in e.id and e.score == 1 else 1.0, items())
    pooled, single = wide["injection", "shift"], wide["injection_unicode", "shift"]
    assert pooled["n"] == 5 * single["n"]
    assert pooled["ci_high"] - pooled["ci_low"] == pytest.approx(single["ci_high"] - single["ci_low"], abs=0.1)


def test_a_missing_judgment_is_refused_by_name():
    examples = items(3)
    with pytest.raises(ValueError, match="24 of 27 judgments are missing, e0#padding is the first"):
        altered_rows(SFT, [said(e, 3.0) for e in examples], [], examples, seed=0)


def test_what_is_chosen_has_a_gold_score_and_a_rubric_that_asks_for_no_form():
    rows = items(6)
    rows[0] = rows[0].model_copy(update={"score": None})
    rows[1] = rows[1].model_copy(update={"rubric": Rubric(criterion="Is it short, in bullets?", levels=["no", "yes"])})
    assert [e.id for e in choose(rows, 3)] == ["e2", "e3", "e4"]
    assert choose(rows, 0) == altered([]) == []


# ---------------------------------------------------------------- equal gold


def equal_gold(judge, examples, logprobs=None):
    logprobs = logprobs or {e.id: -float(i % 5) for i, e in enumerate(examples)}
    rows = equal_gold_rows(SFT, [said(e, judge(e)) for e in examples], examples, logprobs, seed=0, n_boot=200)
    return {(r["split"].removeprefix("audit_"), r["metric"]): r for r in rows}


def test_a_judge_that_likes_length_shows_up_at_equal_gold():
    found = equal_gold(lambda e: 1.0 if len(e.response) < 60 else 5.0, items(20))
    assert found["verbosity", "correlation"]["ci_low"] > 0.4
    assert found["verbosity", "slope"]["ci_low"] > 0.2


def test_a_judge_that_is_always_right_does_not_though_gold_goes_with_length():
    found = equal_gold(
        lambda e: e.score, [e.model_copy(update={"score": 1.0 + i // 5}) for i, e in enumerate(items(20))]
    )
    assert interval(found["verbosity", "slope"]) == (0.0, 0.0, 0.0)
    assert found["verbosity", "correlation"]["value"] is None  # at equal gold its score does not vary


def test_a_judge_that_likes_what_its_model_would_write_shows_up():
    examples = items(20)
    likely = {e.id: -float(i % 5) for i, e in enumerate(examples)}
    found = equal_gold(lambda e: 5.0 + likely[e.id], examples, likely)
    assert found["self_preference", "correlation"]["value"] == pytest.approx(1, abs=0.05)
    assert "2410.21819" in found["self_preference", "slope"]["protocol"]


def test_what_has_no_score_or_no_log_probability_is_left_out_and_n_says_so():
    examples = items(8)
    likely = {e.id: None if e.id == "e1" else -1.0 for e in examples}
    found = equal_gold(lambda e: None if e.id == "e0" else 3.0, examples, likely)
    assert (found["verbosity", "slope"]["n"], found["self_preference", "slope"]["n"]) == (7, 6)
    nothing = equal_gold(lambda e: None, examples)
    assert (nothing["verbosity", "slope"]["value"], nothing["verbosity", "slope"]["n"]) == (None, 0)


def test_at_equal_by_hand():
    found = metrics.at_equal([1, 2, 1, 2], [0, 1, 5, 6], "aabb", n_boot=100)
    assert (found["correlation"].value, found["slope"].value, found["slope"].n) == (
        pytest.approx(1),
        pytest.approx(0.5),
        4,
    )
    # within a: (-1, 0, 1) with (-1, 1, 0); within b alike: 2 of sqrt(4 * 4), and 2 / sqrt(4 * 6)
    found = metrics.at_equal([0, 1, 2, 7, 8, 9], [0, 2, 1, 0, 2, 1], "aaabbb", n_boot=100)
    assert found["correlation"].value == pytest.approx(0.5)
    assert found["slope"].value == pytest.approx(2 / math.sqrt(4 * 6))
    assert math.isnan(metrics.at_equal([1, 2], [0, 1], "ab")["slope"].value)  # nothing to compare with


# ---------------------------------------------------------------- position, log-probabilities


def test_a_pointwise_judge_has_no_position_bias_by_construction():
    row = position_row(SFT, [], seed=4)
    assert (row["value"], row["n"], row["seed"]) == (None, 0, 4)
    assert "by construction" in row["protocol"]


def test_a_judge_that_compares_has_the_bias_of_its_order_swap(tmp_path):
    pair = Comparison(id="p", instruction="Greet.", response_a="Hi", response_b="Ho", rubric=FIVE, preference="A")
    both = [Judgment(example_id=name, text="[RESULT] A", preference="A") for name in ("p", "p#swapped")]
    store.write_json(tmp_path / "sft" / f"{evaluate.COMPARED}.done", {"seconds": 1, "tokens": 1})
    splits, judged = {evaluate.COMPARED: [pair]}, {"sft": {evaluate.COMPARED: both}}
    results = evaluate.results([SFT], judged, splits, tmp_path, seed=0, settings=evaluate.Settings(), n_boot=100)
    row = position_row(SFT, results, seed=0)
    assert (row["split"], row["value"], row["n"]) == ("audit_position", 1.0, 1)


@pytest.mark.torch
def test_log_probabilities_are_means_over_the_response_and_kept(tmp_path, base_dir, tiny):
    import torch

    examples = items(3)
    out = tmp_path / "logprobs.json"
    found = audits.response_logprobs(base_dir, examples, out, evaluate.Settings())
    model, tokenizer = tiny
    for e in examples:
        context = prompts.asked_ids(tokenizer, f"### Instruction\n{e.instruction}\n### Response")
        own = tokenizer(e.response, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([context + own])).logits[0].log_softmax(-1)
        wanted = [logits[len(context) + k - 1, token].item() for k, token in enumerate(own)]
        assert found[e.id] == pytest.approx(sum(wanted) / len(own), abs=1e-4)
    written = out.stat().st_mtime_ns
    assert audits.response_logprobs("nowhere", examples[:2], out, evaluate.Settings()) == found
    assert out.stat().st_mtime_ns == written
    long = examples[0].model_copy(update={"response": "Hello " * 3000})
    assert audits.response_logprobs(base_dir, [long], tmp_path / "long.json", evaluate.Settings()) == {long.id: None}
