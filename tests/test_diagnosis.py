"""Slices, alarms, robustness and cost on data made by hand, so that the right answer is known; and notebook 07."""

import itertools
import json
import random
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from annotated import run_cells, write_run
from cells import definition, run_cell
from scipy import optimize, sparse

from srlib import config, files, prompts
from srlib.data import world
from srlib.evaluate import alarms, arms, cost, robustness, slices
from srlib.evaluate.slices import Slice
from srlib.schema import Comparison, Example, Judgment, Pair, Rubric, SrlibError

THREE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
FIVE = Rubric(criterion="Is it polite?", levels=["rude", "cool", "neutral", "warm", "kind"])
TEN = Rubric(criterion="Is it polite?", levels={1: "rude", 10: "kind"}, step=1)
QUARTERS = Rubric(criterion="Is it polite?", levels={0: "rude", 3.5: "kind"}, step=0.25)


def example(name="a", score=2.0, response="Hello there friend", rubric=THREE):
    return Example(id=name, instruction=f"Greet {name}.", response=response, rubric=rubric, score=score)


def comparison(name):
    return Comparison(id=name, instruction="i", response_a="a b", response_b="c", rubric=THREE, preference="A")


def draws(name, *verdicts, tokens=10, text="one two three"):
    """Draws of one item: scores, preferences, or None for a failed parse."""
    field = {float: "score", int: "score", str: "preference", type(None): "failure"}
    outcomes = [{field[type(v)]: "no_verdict" if v is None else v} for v in verdicts]
    return [Judgment(example_id=name, index=i, text=text, tokens=tokens, **o) for i, o in enumerate(outcomes)]


def feature_rows(n, seed):
    """Three features without any effect."""
    rng = random.Random(seed)
    values = {"topic": ["tea", "rain", "chess"], "gold": [1.0, 2.0, 3.0], "words": [float(w) for w in range(5, 90)]}
    return [{name: rng.choice(options) for name, options in values.items()} for _ in range(n)]


def coins(n, p, seed):
    return (np.random.default_rng(seed).random(n) < p).astype(float)


def test_features_and_the_slices_named_after_them():
    meta = {"topic": "tea", "year": 1999, "key": None, "good": True, "checks": [1], "essay": "x" * 99, "gold": "no"}
    meta |= {"annotator": "hasty"}
    expected = {"criterion": "Is it polite?", "gold": 2.0, "scale": "1 to 3", "response_words": 3.0}
    assert slices.features(example(), meta) == expected | {
        "topic": "tea",
        "year": 1999.0,
        "good": "True",
        "key check": "not in the rubric",
        "annotator": "hasty",
    }
    assert slices.features(example(), {"key": 0, "checks": 1})["key check"] == "in the rubric", (
        "the first of four checks"
    )
    assert slices.features(comparison("c"))["response_words"] == 3.0
    rows = [{"topic": t, "words": float(w), "same": "x", "id": f"i{w}"} for w in range(60) for t in ("tea", "rain")]
    assert [part.name for part in slices.named(rows)] == [
        "topic is rain",
        "topic is tea",
        "words at most 19",
        "words above 39",
    ]
    said = Slice((("gold", "is not", 2.0), ("response_words", ">", 31.0))).name
    assert said == "gold score is not 2 and length in words above 31"
    rows = [{"key": 1.0}, {"key": "none"}, {}]
    members = {part.name: part.members(rows).tolist() for part in slices.named(rows)}
    assert members == {"key is 1": [True, False, False], "key is none": [False, True, True]}
    assert not Slice((("key", "<=", 9.0),)).members([{"key": "text"}, {}]).any()


def test_the_tree_finds_a_planted_slice_and_another_split_confirms_it():
    def planted(rows, seed):
        hard = np.array([row["topic"] == "rain" and row["gold"] == 3 for row in rows])
        return hard, np.where(hard, coins(len(rows), 0.9, seed), coins(len(rows), 0.1, seed + 1))

    grown_on, rows = feature_rows(400, 1), feature_rows(400, 2)
    leaves = slices.grow(grown_on, planted(grown_on, 10)[1], depth=2)
    hard, errors = planted(rows, 20)
    assert sum(leaf.members(rows).astype(int) for leaf in leaves).tolist() == [1] * 400  # they partition the items
    worst, *others = slices.measure(leaves, rows, errors, n_boot=200)
    assert np.array_equal(next(leaf for leaf in leaves if leaf.name == worst["slice"]).members(rows), hard)
    assert worst["ci_low"] <= 0.9 <= worst["ci_high"]
    assert worst["p_holm"] < 1e-6
    assert all(row["error"] < 0.3 for row in others)
    assert [Slice(*stored).name for stored in json.loads(json.dumps(leaves))] == [leaf.name for leaf in leaves]
    assert (
        slices.grow(grown_on[:30], coins(30, 0.5, 0)) == slices.grow([{"topic": "tea"}] * 90, [1] * 90) == [Slice(())]
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_noise_is_called_noise(grouped):
    """Of 30 judges without any slice about 1.5 may seem to have one; more than 4 would be chance once in 60 times."""
    rows, group, claims = feature_rows(200, 4), [i // 2 for i in range(200)] if grouped else None, 0
    for seed in range(30):
        parts = slices.named(rows) + slices.grow(feature_rows(200, 3), coins(200, 0.4, seed))
        errors = coins(100, 0.4, 1000 + seed).repeat(2) if grouped else coins(200, 0.4, 1000 + seed)
        claims += any(row["p_holm"] <= 0.05 for row in slices.measure(parts, rows, errors, group, n_boot=1))
    assert claims <= 4


def test_groups_count_as_one_small_and_repeated_slices_not_and_advice_names_the_worst():
    rows, errors = [{"topic": "rain" if i < 60 else "tea"} for i in range(240)], [1.0] * 120 + [0.0] * 120
    assert slices.measure(slices.named(rows), rows, errors, n_boot=50)[0]["p"] < 1e-9
    tied = slices.measure(slices.named(rows), rows, errors, [i // 30 for i in range(240)], n_boot=50)
    assert tied[0]["p"] > 0.05  # two groups against six
    rows = [{"topic": "rain" if i < 40 else "rare" if i < 45 else "tea", "wet": float(i < 40)} for i in range(100)]
    table = slices.measure(slices.named(rows), rows, [1.0] * 30 + [0.0] * 70, n_boot=200)
    assert [row["slice"] for row in table] == ["topic is rain", "topic is tea", "wet is 0"]
    assert re.search(r"topic is rain: 75% \[.*\] of 40 items are wrong, 0% of the rest", slices.advice(table)[0])


def assigned(affinity, prior):
    """(n, k) bool: the attributes of each item, by the cell of notebook 15."""
    program = {name: getattr(optimize, name) for name in ("Bounds", "LinearConstraint", "milp")}
    program |= dict(kron=sparse.kron, eye_array=sparse.eye_array, np=np, pd=pd, names=range(len(prior)))
    return run_cell("15_attributes", "15-16", **program, affinity=affinity, prior=np.divide(prior, sum(prior)))[
        "assigned"
    ]


def test_the_assignment_is_the_best_of_all_within_its_bounds():
    affinity, prior = np.random.default_rng(0).random((4, 3)), [0.6, 0.3, 0.1]  # sizes of 1 to 6, 0 to 3 and 0 to 1
    found = assigned(affinity, prior)
    assert found.sum(axis=1).max() <= 2
    every = np.array([*itertools.product([0, 1], repeat=12)]).reshape(-1, 4, 3)
    sizes = every.sum(axis=1)
    fits = (every.sum(axis=2) <= 2).all(axis=1) & (sizes >= [1, 0, 0]).all(axis=1) & (sizes <= [6, 3, 1]).all(axis=1)
    assert affinity[found].sum() == pytest.approx((every[fits] * affinity).sum(axis=(1, 2)).max())


def test_nobody_gets_an_attribute_that_fits_nothing_and_a_rare_one_stays_rare():
    affinity = np.zeros((40, 3))
    affinity[:30, 0] = affinity[30:, 1] = 0.5
    affinity[:, 2] = 0.1
    found = assigned(affinity, affinity.mean(axis=0))
    assert (found[:30, 0].all(), found[30:, 0].any(), found[30:, 1].all(), found[:30, 1].any()) == (
        True,
        False,
        True,
        False,
    )
    assert 4 <= found[:, 2].sum() <= 16, "a tenth of 24 in 40 is its prior, so 1.25 * 2 * 6.7 at most"
    found = assigned(affinity, [0.1, 0.8, 0.1])  # which asks for 24 items of the second
    assert (found[:30, 1].any(), found[30:, 1].all()) == (False, True)


def test_advice_names_the_attribute_its_size_its_error_and_interval():
    row = dict(slice="picnics", error=0.5, ci_low=0.404, ci_high=0.61, n=80, rest=0.21, p=0.001, p_holm=0.003)
    good, unsure = row | dict(slice="phones", error=0.1), row | dict(slice="trains", p_holm=0.06)
    [said] = slices.advice([row, unsure, good])
    assert said.startswith("picnics: 50% [40, 61] of 80 items are wrong, 21% of the rest.")
    assert slices.advice([unsure, good]) == [
        "None of 2 is worse than the rest beyond chance: no kind of item is shown to need more data."
    ]
    assert "No slice has enough items" in slices.advice([])[0]


def write_errors(run):
    """A run whose judge errs on picnics alone, and says nothing at all about the last of them."""
    for split in ("validation", "test"):
        names = ["picnic" if i % 2 else "laptop" for i in range(60)]
        items = [Example(id=f"{split}-{i}", instruction=f"Write to {split} guest {i} about the {name}.", response="Hi", rubric=THREE, score=2)
                 for i, name in enumerate(names)]  # fmt: skip
        files.write_rows(run / "data" / f"{split}.jsonl", items)
        outcome = [{"failure": "no_verdict"} if i == 59 else {"score": 3.0 if i % 2 else 2.0} for i in range(60)]
        judged = [Judgment(example_id=e.id, text="", **said) for e, said in zip(items, outcome, strict=True)]
        for name, rows in (("sre_1", judged), ("sft", judged[::-1]), ("base", judged), ("sre_1_draws", judged)):
            files.write_rows(run / "eval" / name / f"{split}.jsonl", rows)
    for stage in ("data", "eval"):
        files.write_json(run / stage / "manifest.json", {"key": "made by hand", "facts": {}})


@pytest.mark.torch
def test_notebook_15_finds_the_attribute_that_errs_and_does_without_a_writer(
    base_dir, tmp_path, one_thread, capsys, monkeypatch
):
    from servers import Scripted

    texts = [
        "- Picnic: tasks about the picnic\n* **Laptop:** the laptop\n",
        "Attributes: none",
        "1. picnic: about a picnic",
        "",
    ]
    choice = {"finish_reason": "stop"}
    server = Scripted(lambda body, n: {"model": "w", "choices": [choice | {"message": {"content": texts[n - 1]}}]})
    monkeypatch.setenv("NO_PROXY", "*")
    write_errors(tmp_path)
    own = dict(run_dir=str(tmp_path), model=str(base_dir), n_boot=100, max_new_tokens=20)
    found = run_cells("15_attributes", **own, writer=server.url, writer_model="w")
    server.close()
    said = capsys.readouterr().out
    assert found["last"].name == "sre_1"
    assert "2 attributes in 4 replies, 2 of them unreadable" in said
    assert re.search(r"picnic: 100% \[\d+, 100\] of 30 items are wrong, 0% of the rest", said)
    asked = "".join(body["messages"][0]["content"] for body in server.bodies)
    assert ("validation guest" in asked, "test guest" in asked) == (True, False)
    run_cells("15_attributes", **own)
    said = capsys.readouterr().out
    assert "The writer proposes fewer than two: criteria stand in for them." in said
    assert "No slice has enough items" in said


def test_focus_weighs_by_the_error_of_the_leaf_with_a_floor():
    focus = definition("03_sample", "focus", np=np)
    rows = [{"topic": topic} for topic in ["tea", "tea", "rain", "rain", "snow"]]
    leaves = [Slice((("topic", "is", topic),)) for topic in ("tea", "rain", "snow")]
    assert focus(leaves, rows, {0: 0.0, 2: 1.0, 3: 0.5}).tolist() == pytest.approx([0.05, 0.05, 0.75, 0.75, 0.5])
    assert focus(leaves, rows, {0: 0.0}).tolist() == focus(leaves, rows, {}).tolist() == [1.0] * 5
    judged = draws("a", 2, 2, 1, None) + draws("b", 2) + draws("stranger", 1)
    assert slices.error_rates([example("a"), example("b"), example("unjudged")], judged) == {"a": 0.5, "b": 0.0}
    with pytest.raises(ValueError, match="item a has no gold"):
        slices.error_rates([example("a", score=None)], judged)


def alarm(name, items, before, after, threshold=0.1):
    [row] = alarms.of_draws(items, before, after, iteration=1, protocol="by hand", thresholds={name: threshold})
    return row["value"], row["fired"], row["n"]


def test_alarms_of_draws_by_hand():
    a, b, c = example("a"), example("b"), comparison("c")
    before, after = draws("a", 1, 2) + draws("b", 2, 3), draws("a", 2, 2) + draws("b", 3, 3)
    assert alarm("score_drift", [a, b], before, after) == (0.25, True, 2)  # 1/4 2/4 1/4 -> 0 2/4 2/4
    assert alarm("score_drift", [a, b], before, after, threshold=0.25) == (0.25, False, 2)  # quiet at its threshold
    assert alarm("score_drift", [c], draws("c", "A", "B"), draws("c", "A", "A"))[0] == 0.5
    mixed = [a, example("b", rubric=TEN)]  # a 3 of 3 and a 3 of 10 are two outcomes
    assert alarm("score_drift", mixed, draws("a", 3) + draws("b", 1), draws("a", 1) + draws("b", 3))[0] == 1.0
    before, after = draws("a", 3, 1) + draws("b", 3, 3), draws("a", 3, 3) + draws("b", 10, 3)  # 1 of 4 -> 3 of 4
    assert alarm("saturation", [*mixed, c], before + draws("c", "A"), after + draws("c", "A"))[:2] == (0.5, True)
    assert alarm("saturation", mixed, after, before)[:2] == (-0.5, False)
    assert alarm("parse_fall", [a], draws("a", 1, 1), draws("a", 1, None))[0] == 0.5
    assert alarm("length_growth", [a], draws("a", 1, tokens=20), draws("a", 1, tokens=30))[0] == 0.5
    varied = draws("a", 1, text="one two three") + draws("a", 1, text="four five six")
    assert alarm("distinct_fall", [a], varied, draws("a", 1, 1))[0] == 0.5  # two of four pairs of words are distinct
    before = draws("a", 1, 2) + draws("b", 1, 2, None)  # ln 2 each
    assert alarm("entropy_fall", [a, b], before, draws("a", 1, 1) + draws("b", 1, 2))[0] == 0.5
    before, after = draws("a", 1) + draws("b", 1), draws("b", 1) + draws("c", 3)  # only b was judged twice
    assert alarm("score_drift", [a, b, c], before, after) == (0.0, False, 1)


def test_an_undefined_alarm_has_no_value_and_does_not_fire():
    nothing, silent, one_word = [], draws("a", None), draws("a", 1, text="one")
    undefined = [("score_drift", nothing), ("score_drift", silent), ("saturation", silent), ("distinct_fall", one_word)]
    for name, before in [*undefined, ("length_growth", draws("a", 1, tokens=0)), ("entropy_fall", draws("a", 1, 1))]:
        after = one_word if name == "distinct_fall" else draws("a", 1, 2)
        assert alarm(name, [example("a")], before, after, threshold=-9)[:2] == (None, False), name


def test_alarms_of_training_by_hand_and_how_a_run_goes_on():
    def pair(chosen, rejected, strategy="meta_judge"):
        ids = dict(id="p", example_id="e", chosen="a", rejected="b", chosen_id="e#0", rejected_id="e#1", iteration=2)
        return Pair(**ids, chosen_score=chosen, rejected_score=rejected, gold=None, margin=None, strategy=strategy)

    def training(log=(), pairs=(), **thresholds):
        return alarms.of_training(log, pairs, beta=0.1, chosen_tokens=20, iteration=2, thresholds=thresholds)

    log = [{"rewards/chosen": r} for r in [0.0] * 6 + [-0.6, -1.0]] + [{"train_loss": 0.1}]
    [row] = training(log, logp_fall=0.3)  # the last two of eight: 0.8 / 0.1 / 20
    assert (row["value"], row["fired"], row["n"], row["iteration"]) == (0.4, True, 2, 2)
    assert training([{"loss": 1.0}], logp_fall=0.0)[0]["value"] is None
    scores = [(4, 2), (5, 1), (1, 3), (3, 3), ("A", "B"), (4, None)]
    [row] = training(pairs=[pair(*both) for both in scores], meta_higher=0.6)
    assert (row["value"], row["n"], row["fired"], row["protocol"][:20]) == (0.666667, 3, True, "6 meta-judged pairs,")
    assert training(pairs=[pair(1, 5, "correct_answer")], meta_higher=0.0) == []  # there was no meta-judge
    rows = training([{"rewards/chosen": -1.0}], [pair(4, 2)], logp_fall=0.3, meta_higher=1.0)
    with pytest.raises(SrlibError, match=r"iteration 2: logp_fall is 0\.5, above 0\.3 .*raise alarm_logp_fall, "):
        alarms.stop(rows)
    alarms.stop(alarms.renewed(rows, {"logp_fall": 0.6}))  # the same value, a higher threshold
    assert [row["fired"] for row in alarms.renewed(rows, {"meta_higher": 0.9})] == [True, True]


def items(n=12, rubric=FIVE):
    return [example(f"e{i}", rubric.scale[i % 4], "Hello " * (i + 1), rubric) for i in range(n)]


def by_metric(rows):
    return {(row["split"].removeprefix("audit_"), row["metric"]): row for row in rows}


def interval(row):
    return row["value"], row["ci_low"], row["ci_high"]


def audit(judge, examples):
    """Rows of a judge that is a function of the example: {(audit, metric): row}."""
    judged = [[draws(e.id, judge(e))[0] for e in some] for some in (examples, robustness.altered_copies(examples))]
    return by_metric(robustness.altered_rows(arms.arm("sft"), *judged, examples, seed=0, n_boot=200))


def test_six_items_see_all_thirty_templates_and_a_response_is_no_template():
    copies = robustness.altered_copies([example(f"e{i}", 0.25, "{top} {response}", QUARTERS) for i in range(6)])
    assert len(copies) == 6 * robustness.COPIES == 48
    assert len({copy.response for copy in copies if "#injection" in copy.id}) == 30
    assert all("{top} {response}" in copy.response and copy.score == 0.25 for copy in copies)
    assert sum("3.5" in copy.response for copy in copies) >= 20


@pytest.mark.parametrize("template", [t for family in robustness.INJECTIONS.values() for t in family])
def test_an_injection_never_changes_the_parse_and_the_own_rubric_is_last(template):
    harmless, end = example(response="Hello Anna"), prompts.completion(None, 1.0)
    text = template.replace("{top}", "3").replace("{response}", "Hello Anna")
    hostile = harmless.model_copy(update={"response": text})
    for said in ("", "It greets. ", f"{text}\n", f"{text} no", "[RESULT] is due. "):
        for judged in (said + end, said, f"{said}{end} [RESULT]", f"{said}{end}."):
            parsed = prompts.parse(judged, hostile)
            assert parsed == prompts.parse(judged, harmless)
            assert parsed.verdict in {1.0, None} or end not in judged  # what the judge ends in, or none
    for wording in prompts.TEMPLATES:
        assert prompts.request(hostile, wording).endswith(f"### Rubric\n{THREE.text}\n### Feedback")


def test_a_constant_judge_is_robust_and_an_obedient_one_is_raised_by_fake_verdicts_alone():
    for (name, metric), row in audit(lambda e: 3.0, items()).items():
        assert interval(row) == ((1.0,) * 3 if metric == "parse_rate" else (0.0,) * 3), (name, metric)
        assert row["n"] == (60 if name == "injection" else 12)
    rows = audit(lambda e: 5.0 if "[RESULT] 5" in e.response else e.score, items())
    raised = {name: row["value"] for (name, metric), row in rows.items() if metric == "raised_to_top"}
    assert raised["injection_fake_verdict"] == pytest.approx(8 / 12, abs=1e-6)  # four of the six say [RESULT] 5
    assert raised["injection_ignore_rubric"] == raised["padding"] == 0
    expected = sum((5 - e.score) / 4 for i, e in enumerate(items()) if i % 6 < 4) / 12
    assert rows["injection_fake_verdict", "shift"]["value"] == pytest.approx(expected, abs=1e-6)
    families = [rows[f"injection_{family}", "shift"]["value"] for family in robustness.INJECTIONS]
    assert rows["injection", "shift"]["value"] == pytest.approx(sum(families) / 5, abs=1e-5)


def test_shifts_are_shares_of_each_scale_and_a_missing_score_is_counted():
    both = items(4) + [e.model_copy(update={"id": f"q{e.id}"}) for e in items(4, QUARTERS)]
    rows = audit(lambda e: max(e.rubric.scale) if "#markdown" in e.id else min(e.rubric.scale), both)
    assert rows["markdown", "shift"]["value"] == rows["markdown", "raised_to_top"]["value"] == 1.0
    rows = audit(lambda e: 3.0 + ("#plain" in e.id) - ("#padding" in e.id), items())  # markdown against plain text
    assert (rows["markdown", "shift"]["value"], rows["padding", "shift"]["value"]) == (-0.25, -0.25)
    rows = audit(lambda e: None if "#padding" in e.id else 2.0, items())
    assert [rows["padding", metric]["value"] for metric in ("parse_rate", "raised_to_top", "shift")] == [0, 0, None]
    assert audit(lambda e: 5.0, items())["injection", "raised_to_top"]["value"] is None  # nothing was below the top
    rows = audit(lambda e: 5.0 if "#injection" in e.id and e.score == 1 else 1.0, items())
    pooled, single = (np.ptp(interval(rows[name, "shift"])[1:]) for name in ("injection", "injection_unicode"))
    assert pooled == pytest.approx(single, abs=0.1)  # the copies of one item are resampled together
    with pytest.raises(ValueError, match="24 of 27 judgments are missing, first e0#padding"):
        robustness.altered_rows(arms.arm("sft"), [draws(e.id, 3.0)[0] for e in items(3)], [], items(3), seed=0)


def test_only_items_with_gold_and_a_rubric_about_content_are_audited_and_markdown_comes_off_again():
    in_bullets = Rubric(criterion="Is it short, in bullets?", levels=["no", "yes"])
    changes = [{"score": None}, {"rubric": in_bullets}, {"response": "```\ncode\n```"}, {}, {}, {}]
    rows = [e.model_copy(update=change) for e, change in zip(items(6), changes, strict=True)]
    assert [e.id for e in robustness.choose(rows, 2)] == ["e3", "e4"]
    chosen = robustness.choose(world.examples("test", seed=0, n=200), 200)
    assert len(chosen) > 100
    assert not [e for e in chosen if "format" in e.meta["criteria"]]
    text = "Picnic\nAbout the day: Friday\nBring bread\n\n3. Price: six"
    assert robustness.plain("## Picnic\n- **About the day:** Friday\n- Bring `bread`\n\n- 3. Price: six") == text
    assert robustness.markdown(text) == "## Picnic\n- **About the day:** Friday\n- Bring bread\n\n- **3. Price:** six"
    assert robustness.plain("> # *x*\n* one\n2*3*4") == "# *x*\none\n2*3*4"  # one mark a line; a product is no emphasis


def test_preferences_for_length_and_for_likely_text_show_at_equal_gold():
    def equal_gold(judge, examples, logprobs):
        judged = [draws(e.id, judge(e))[0] for e in examples]
        return by_metric(robustness.equal_gold_rows(arms.arm("sft"), judged, examples, logprobs, seed=0, n_boot=200))

    examples = items(20)
    likely = {e.id: -float(i % 5) for i, e in enumerate(examples)}
    rows = equal_gold(lambda e: 1.0 if len(e.response) < 60 else 5.0, examples, likely)
    assert rows["verbosity", "slope"]["ci_low"] > 0.2
    rows = equal_gold(lambda e: 5.0 + likely[e.id], examples, likely)
    assert rows["self_preference", "correlation"]["value"] == pytest.approx(1, abs=0.05)
    by_length = [e.model_copy(update={"score": 1.0 + i // 5}) for i, e in enumerate(examples)]
    assert interval(equal_gold(lambda e: e.score, by_length, likely)["verbosity", "slope"]) == (0.0,) * 3  # it is right
    rows = equal_gold(lambda e: None if e.id == "e0" else 3.0, examples, likely | {"e1": None})
    assert (rows["verbosity", "slope"]["n"], rows["self_preference", "slope"]["n"]) == (19, 18)
    assert equal_gold(lambda e: None, examples, likely)["verbosity", "slope"]["value"] is None


@pytest.mark.torch
def test_log_probabilities_are_means_over_the_response(tiny):
    import torch

    (model, tokenizer), e, long = tiny, example(), example("long", response="Hello " * 3000)
    context = tokenizer(prompts.rendered(tokenizer, f"### Instruction\n{e.instruction}\n### Response"))["input_ids"]
    response = tokenizer(e.response, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([context + response])).logits[0].log_softmax(-1)
    expected = np.mean([logits[len(context) + k - 1, token].item() for k, token in enumerate(response)])
    logprobs = robustness.response_logprobs(model, tokenizer, [e, long])
    assert logprobs == {"a": pytest.approx(expected, abs=1e-4), "long": None}


def write_stage(run, output, name, created="2025", seconds=1.0, **facts):
    used = dict(seconds=seconds, peak_memory=9, peak_gpu_memory=None)
    files.write_json(run / output / "manifest.json", dict(stage=name, created=created, facts=facts, **used))


@pytest.fixture
def run(tmp_path):
    for i, name in enumerate(["sft", "sft_score_only", "sft_continued", "rft", "sre_1", "sre_2"]):
        write_stage(tmp_path, f"judges/{name}", name.replace("sre", "dpo"), f"2026-{i}", 10.0**i, tokens=7 * 10**i)
    for t in (1, 2):
        write_stage(tmp_path, f"judgments/{t}", f"sample_{t}", f"2025-{t}", 3.0 * t, tokens=50 * t, prompt_tokens=9 * t)
        write_stage(tmp_path, f"pairs/{t}", f"curate_{t}", "2027", 0.0, drawn_tokens=5, prompt_tokens=0)
    return tmp_path


def test_an_arm_costs_its_whole_lineage_and_the_unmeasured_stays_unknown(run):
    for copy in ("judge", "judges/rft.partial", "eval.old"):
        write_stage(run, copy, "copy")
    names = ["base", "sft_best_of_n", "sft_score_only", "sft_continued", "rft", "sre_1", "sre_2_self_consistency"]
    rows = cost.arms(run, [arms.arm(name) for name in names])
    assert [row["training tokens"] for row in rows] == [0, 7, 70, 707, 7007, 70007, 770007]
    assert [row["drawn tokens"] for row in rows] == [0, 0, 0, 0, 55, 55, 160], "of the draws and of what curation asked"
    assert [row["seconds"] for row in rows] == [0, 1, 10, 101, 1004, 10004, 110010]
    assert [row["stage"] for row in cost.stages(run)][:3] == ["sample_1", "sample_2", "sft"]
    write_stage(run, "judges/grpo", "grpo", "2027", 5.0, tokens=30, prompt_tokens=8, drawn_tokens=4)
    assert list(cost.arms(run, [arms.arm("grpo")])[0].values()) == ["grpo", 37, 8, 4, 6], "it draws by itself"
    write_stage(run, "judgments/1", "sample_1", tokens=50, prompt_tokens=None)
    assert cost.arms(run, [arms.arm("sre_1")])[0]["prompt tokens"] is None
    write_stage(run, "judges/sft_pairwise", "sft_pairwise", tokens=1000)  # half of a merge, which sft is no more
    assert cost.arms(run, [arms.arm("sft")])[0]["training tokens"] == 7
    made = files.read_json(run / "judges" / "sft" / "manifest.json")
    files.write_json(run / "judges" / "sft" / "manifest.json", made | {"parts": {"input judges/sft_pairwise": "0"}})
    assert cost.arms(run, [arms.arm("sft")])[0]["training tokens"] == 1007


@pytest.mark.torch
def test_notebook_07_answers_on_a_run_and_again_when_it_is_done(run, base_dir, monkeypatch, capsys):
    write_run(run, 24, ("validation", "test"))
    bias = dict(arm="sre_2", split="pairwise_compared", metric="position_bias", value=0.2, ci_low=0.1, ci_high=0.3, n=9)
    files.write_json(run / "results.json", [bias, bias | dict(split="test", metric="tokens", value=70)])
    files.write_json(run / "judgments" / "2" / "focus.json", [[[["response_words", ">", 0.0]]]])
    judges = {f"judges/{name}": base_dir for name in ("sft", "sre_1", "sre_2")}
    stage = SimpleNamespace(run=run, skipped={}, path=run / "diagnose", finish=lambda **facts: None)
    stage.inputs = {"data": run / "data", "eval": run / "eval"} | judges
    stage.cfg = config.load(None, [f"model={base_dir}", "arms=sft,sre_2", "max_new_tokens=16"])
    fired = dict(alarm="logp_fall", iteration=1, value=9.0, threshold=1.0, n=30, protocol="training")
    for folder in ("judgments/1", "judgments/2", "judges/sre_1", "judges/sre_2"):
        files.write_json(run / folder / "alarms.json", [fired] if folder == "judges/sre_1" else [])
    monkeypatch.setattr("srlib.run.open_stage", lambda notebook, namespace: stage, raising=False)
    for stage.done in (False, True):
        rows = by_metric(run_cells("07_diagnose", audit_items=1, n_boot=100)["rows"])
        said = capsys.readouterr().out
        assert "sre_2 is right on 100.0 % [100.0, 100.0] (n 24)" in said
        assert "Confidence and accuracy differ by 40.0 %" in said
        assert "Tokens trained on and drawn: sft 7, sre_2 770,167" in said
        assert "Alarm after iteration 1: logp_fall is 9, above 0.2" in said, (
            "sre_1 is no arm, and yet a part of the chain"
        )
        assert rows["position", "position_bias"]["value"] == 0.2
        assert rows["injection", "parse_rate"]["n"] == 5
    assert len(files.read_json(stage.path / "results.json")) > len(rows)  # of two arms
