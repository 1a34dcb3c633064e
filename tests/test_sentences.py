"""Sentences say what the numbers say, and no more. No torch."""

from srlib.report import sentences


def row(metric, value, low, high, **more):
    return {
        "arm": "sre_2",
        "metric": metric,
        "split": "test",
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": 50,
        **more,
    }


def difference(value, p):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "p_holm": p, "detectable": 0.1}


def test_where_no_item_differs_nothing_is_said_of_what_could_be_found():
    same = {"value": 0.0, "low": 0.0, "high": 0.0, "p_holm": 1.0, "detectable": float("nan")}
    said = sentences.better(row("accuracy", 0.6, 0.55, 0.65), {"sft": same})
    assert "p 1 after Holm; no item differs." in said
    assert "nan" not in said


def test_better_counts_what_is_beyond_chance():
    said = sentences.better(
        row("accuracy", 0.6, 0.55, 0.65),
        {"sft": difference(0.1, 0.01), "rft": difference(0.02, 0.6), "base": difference(-0.2, 0.001)},
    )
    assert "right on 60.0 % of 50 items [55.0, 65.0]" in said
    assert "Against sft that is +10.0 points [+5.0, +15.0], p 0.01" in said
    assert said.endswith("better than 1 of 3 other arms, and worse than 1.")


def test_confused_measures_steps_of_the_scale():
    said = sentences.confused([0, 0.5, 2, 2, 1], [0.5, 2, 2, float("nan"), 0.5], [0, 0.5, 1, 2])
    assert said == "Of 3 wrong scores 66.7 % are one step off, and 66.7 % are too high."
    assert sentences.confused([1], [1], [1, 2]) == "None of 1 scores is wrong."


def test_calibrated_with_and_without_a_temperature():
    both = [row("ece", 0.3, 0.2, 0.4), row("ece_tempered", 0.05, 0.0, 0.1)]
    assert "30.0 points apart, 5.0 after a temperature" in sentences.calibrated(both)
    assert "temperature" not in sentences.calibrated(both[:1])
    assert sentences.calibrated([row("ece", None, None, None)]) == "The judge gives no probabilities."


def test_silent_claims_only_what_the_interval_carries():
    assert sentences.silent([row("auroc", 0.52, 0.45, 0.59)]).endswith("does not tell them apart.")
    assert sentences.silent([row("auroc", 0.8, 0.7, 0.9)]).endswith("where it is unsure helps.")
    assert sentences.silent([row("auroc", 0.2, 0.1, 0.3)]).endswith("makes it worse.")
    assert sentences.silent([row("auroc", None, None, None)]).startswith("Nothing to choose by")


def test_robust_names_the_largest_effect_that_is_sure():
    rows = [
        row("shift", -0.3, -0.7, 0.1, split="audit_injection"),
        row("shift", -0.15, -0.2, -0.1, split="audit_markdown"),
        row("slope", 0.05, 0.01, 0.09, split="audit_verbosity"),
        row("changed", 0.9, 0.8, 1.0, split="audit_markdown"),
        row("shift", None, None, None, split="audit_padding"),
    ]
    said = sentences.robust(rows, {"audit_markdown": "in markdown"})
    assert said.startswith("2 of 3 effects differ from 0")
    assert said.endswith("in markdown, sre_2, -15.0 % of the scale [-20.0, -10.0].")
    assert sentences.robust(rows[:1], {}) == "None of 1 effects differs from 0 by its interval."


def test_alarms_and_costs():
    fired = {"alarm": "length_growth", "value": 0.7, "fired": True}
    quiet = {"alarm": "parse_fall", "value": 0.0, "fired": False}
    assert sentences.alarmed([fired, quiet]) == "1 of 2 alarms fired: length_growth."
    assert sentences.alarmed([quiet, quiet | {"value": None}]).startswith("None of 1 alarms fired")
    took = [
        {"arm": "sft", "training tokens": 100, "drawn tokens": None},
        {"arm": "sre_2", "training tokens": 150, "drawn tokens": 100},
    ]
    assert sentences.cost(took, "sre_2") == "sre_2 took 2.5 times the tokens of sft, drawn and trained on."
    assert sentences.cost(took, "base") == "The base model took nothing here."


def test_over_seeds_needs_an_interval():
    shared = {"arm": "sre_2", "against": "sft", "n": 3}
    rows = [
        shared | {"value": 0.1, "ci_low": 0.05, "ci_high": 0.15},
        shared | {"value": 0.1, "ci_low": None, "ci_high": None},
    ]
    assert sentences.over_seeds(rows) == ["sre_2 against sft: +10.0 points [+5.0, +15.0] over 3 seeds."]
