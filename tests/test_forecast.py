"""What is said before training: the forecast of a run, what it cannot have, and rationales for rows without."""

import pytest

pytest.importorskip("torch")

from srlib import config, files, sft
from srlib.run import RunError, forecast, stages
from srlib.run.stage import kept
from srlib.schema import Comparison, Example, Rubric

pytestmark = pytest.mark.torch
RUBRIC = Rubric(criterion="Is it polite?", levels={1: "rude", 2: "neutral", 3: "kind"})
FROM_0 = Rubric(criterion="Is it polite?", levels={0: "an insult", 1: "rude", 2: "neutral", 3: "kind"})
TWO = dict(instruction="Greet.", response_a="Hi", response_b="Oi", rubric=RUBRIC, rationale="It greets.")
PAIRED = {"train_pairwise": [Comparison(**TWO, id=f"c{p}", preference=p) for p in "AB"]}


def rows(n=40, **changes):
    """n examples with scores 1, 2, 3, 1, ...; a change is a value, or a function of the row's number."""
    made = []
    for i in range(n):
        fields = dict(id=str(i), instruction=f"Greet {i}.", response="Hi.", rubric=RUBRIC, score=1 + i % 3)
        fields |= {name: value(i) if callable(value) else value for name, value in changes.items()}
        made.append(Example(**fields))
    return made


def foresee(*overrides, test=None, train_pairwise=(), **changes):
    splits = {"train": rows(**{"rationale": "It greets."} | changes), "test": rows() if test is None else test}
    splits["train_pairwise"] = train_pairwise
    arms = [] if any(o.startswith("arms=") for o in overrides) else ["arms=base,sft,sre_1,sre_2"]
    return forecast.of_rows(splits, config.load(None, ["margin=1", *arms, *overrides]))


def test_nothing_speaks_against_good_rows(tmp_path, monkeypatch):
    assert foresee() == forecast.Forecast([], [])
    monkeypatch.chdir(tmp_path)
    assert foresee() == forecast.Forecast([], []), "models/notes-base is found from anywhere"


@pytest.mark.parametrize(
    ("reason", "overrides", "changes"),
    [
        ("all 40 training scores are 2, so there is nothing to learn", [], {"score": 2}),
        ("train has 8 rows, and 10 are the least", [], {"n": 8}),
        ("40 of 40 training rows are longer than max_length (60 tokens), the longest by", ["max_length=60"], {}),
        ("there are no test rows", [], {"test": []}),
        ("40 of 40 training rows cannot give a pair: no score of their scale is 3 (margin) off", ["margin=3"], {}),
        (
            "sft_mode merge makes one adapter of two halves; lora_rank is 7",
            ["sft_mode=merge", "lora_rank=7"],
            PAIRED,
        ),
        (
            "sft_mode merge makes one adapter of two halves; lora_rank is 0",
            ["sft_mode=merge", "lora_rank=0"],
            PAIRED,
        ),
        (
            "sft_mode mix learns from comparisons, and there are none to train on; name data_pairwise",
            ["sft_mode=mix"],
            {},
        ),
        (
            "all preferences of training comparisons are A, so there is nothing to learn",
            ["sft_mode=mix"],
            {"train_pairwise": PAIRED["train_pairwise"][:1]},
        ),
        (
            "endpoint_model j is one judge, and each iteration samples the newest",
            ["endpoint=http://h/v1", "endpoint_model=j"],
            {},
        ),
    ],
)
def test_what_cannot_end_well_is_refused(reason, overrides, changes):
    foreseen = foresee(*overrides, **changes)
    assert len(foreseen.refusals) == 1
    assert foreseen.refusals[0].startswith(reason)
    with pytest.raises(RunError, match="cannot end well"):
        foreseen.check()


@pytest.mark.parametrize(
    ("note", "overrides", "changes"),
    [
        ("test has 9 rows: an accuracy near 50% will have an interval of ±33 points", [], {"test": rows(9)}),
        ("test has 2 instructions", [], {"test": rows(instruction=lambda i: f"Greet {i % 2}.")}),
        ("all test scores are 3", [], {"test": rows(score=3)}),
        (
            "test has 2 scales, which mae and correlations mix",
            [],
            {"test": rows(rubric=lambda i: (RUBRIC, FROM_0)[i % 2])},
        ),
        ("meta_equal needs a judge that compares", ["strategy=meta_equal"], {}),
        ("4 of 40 training rows are longer", [], {"response": lambda i: "very " * 600 if i % 10 == 0 else "Hi."}),
        ("13 of 40 training rows cannot give a pair", ["margin=2"], {}),
        (
            "40 of 40 training rows have no rationale: the base model models/notes-base writes 10",
            [],
            {"rationale": None},
        ),
        ("40 of 40 training rows have no rationale: the writer W writes", ["writer=W"], {"rationale": ""}),
        ("40 of 40 gold judgments have more than max_new_tokens (4), and a judge", ["max_new_tokens=4"], {}),
        ("the arm sft_careful_only is left out", ["arms=sft,sft_careful_only"], {}),
        ("the run keeps sre_3, but no arm evaluates it", ["iterations=3"], {}),
        (
            "2 of 42 training rows have no rationale",
            ["sft_mode=mix"],
            {"train_pairwise": [c.model_copy(update={"rationale": None}) for c in PAIRED["train_pairwise"]]},
        ),
    ],
)
def test_what_is_less_than_hoped_for_is_noted(note, overrides, changes):
    foreseen = foresee(*overrides, **changes)
    assert [text[: len(note)] for text in foreseen.notes] == [note]
    assert foreseen.refusals == []


def test_a_server_may_have_a_name_for_each_judge():
    server = "endpoint=http://h/v1"
    for fine in (["endpoint_model=j-{judge}"], ["endpoint_model=j", "iterations=1", "arms=sft,sre_1"], []):
        assert foresee(server, *fine) == forecast.Forecast([], [])


def test_a_margin_counts_only_where_pairs_are_made():
    assert foresee("margin=3", "arms=base,sft").refusals == []


def write(run, **facts):
    for name, values in facts.items():
        files.write_json(run / name / "manifest.json", {"key": name, "content": name, "facts": values})


def test_a_run_goes_on_without_what_it_cannot_have(tmp_path):
    cfg = config.load(None, ["data=rows.csv"])
    assert stages.skipped(cfg, tmp_path) == {}, "nothing is known yet"
    write(tmp_path, data={"without_rationale": 0, "careful": 0}, **{"pairs/1": {"pairs": 3}, "pairs/2": {"pairs": 0}})
    skipped = stages.skipped(cfg, tmp_path)
    assert list(skipped) == ["rationales", "judges/sre_2", "judges/sft_careful_only"]
    assert skipped["judges/sre_2"] == "pairs/2 holds no pair"
    assert kept(tmp_path, cfg) == "judges/sre_1"
    write(tmp_path, data={"without_rationale": 3, "careful": 1}, **{"pairs/1": {"pairs": 0}})
    skipped = stages.skipped(cfg, tmp_path)
    chain = "judges/sre_1 judgments/2 pairs/2 judges/sre_2 judges/sft_continued judges/rft".split()
    assert list(skipped) == chain
    assert set(skipped.values()) == {"pairs/1 holds no pair"}
    assert kept(tmp_path, cfg) == "judges/sft"


def test_what_is_skipped_is_no_input_even_if_an_older_run_left_it(tmp_path):
    cfg = config.load(None, ["iterations=1", "arms=sft,sre_1"])
    write(tmp_path, **{"judges/sre_1": {}, "judges/sft": {}, "pairs/1": {"pairs": 1}})
    evaluation = stages.of(cfg)[-1]
    assert stages.parts(evaluation, cfg, tmp_path)["input judges/sre_1"] == "judges/sre_1"
    write(tmp_path, **{"pairs/1": {"pairs": 0}})
    assert "input judges/sre_1" not in stages.parts(evaluation, cfg, tmp_path)


def test_the_built_in_world_needs_no_writer():
    assert "rationales" not in [stage.name for stage in stages.of(config.load())]
    [stage] = [stage for stage in stages.of(config.load(None, ["data=x.csv"])) if stage.name == "sft"]
    assert stage.inputs == ("data", "rationales")


def test_rows_with_rationales_are_learned_from_and_the_others_counted():
    items = rows(30, rationale=lambda i: "It greets." if i < 5 else None)
    items[0] = items[0].model_copy(update={"meta": {"ratings": [1, 2], "rationales": ["It greets.", "It whines."]}})
    kept, origin, few = sft.with_rationales(items, {str(i): f"Written {i}." for i in range(5, 25)})
    assert [item.rationale for item in kept] == ["It greets."] * 5 + [f"Written {i}." for i in range(5, 25)]
    assert origin == "rationales: 5 came with the data, 20 were written; rows left out: 5"
    assert few == []
    kept, origin, few = sft.with_rationales(items, {"5": "Written."})
    assert [item.rationale for item in sft.by_annotator(kept)] == [None] * 30, (
        "six rationales teach nobody to write them"
    )
    assert few[0].startswith("6 of 30 training examples have a rationale, too few")


def test_comparisons_without_rationales_are_learned_beside_examples_with_them():
    bare = [Comparison(**TWO | {"id": f"c{i}", "rationale": None}, preference="AB"[i % 2]) for i in range(20)]
    kept, origin, few = sft.with_rationales(rows(100, rationale="It greets.") + bare, {"c0": "A greets."})
    assert [sum(isinstance(item, kind) for item in kept) for kind in (Example, Comparison)] == [100, 20]
    assert {item.rationale for item in kept} == {"It greets.", None}
    assert few[0].startswith("1 of 20 training comparisons have a rationale, too few")
    assert origin == "rationales: 100 came with the data, 0 were written; rows left out: 0"
    assert sft.with_rationales(rows(3, rationale="It greets."), {})[2] == [], "few rows, but all of them have one"


def test_a_hint_names_the_verdict_and_never_gets_into_a_rationale():
    [item] = rows(1)
    assert sft.hinted(item).instruction.startswith("Greet 0.\n\n(Hint: the right verdict is 1.")
    assert sft.hinted(item).model_copy(update={"instruction": item.instruction}) == item
    assert sft.mentions_hint("The Hint says 1.")
    assert sft.mentions_hint("So the right verdict is given.")
    assert sft.mentions_hint("The correct score is 4, because it greets.")
    assert not sft.mentions_hint("It whines; the verdict is right.")
    assert not sft.mentions_hint("It gives the correct answer.")


def test_every_annotator_of_a_row_is_a_row_of_its_prompt():
    several = {"ratings": [1, 3], "rationales": ["It whines.", "It greets."]}
    items = rows(2, meta=lambda i: several if i else {"ratings": [1, 2], "rationales": ["No list of two."]})
    silent = rows(1, meta={"ratings": [2, 3], "rationales": ["", "Curt."]}, rationale="Written.")
    assert [(item.id, item.rationale) for item in sft.by_annotator(silent)] == [("0#2", "Curt.")]
    silent = rows(1, meta={"ratings": [2, 3], "rationales": ["", ""]}, rationale="Written.")
    assert sft.by_annotator(silent) == silent, "what was written for the row stays"
    first, *others = sft.by_annotator(items)
    assert first == items[0]
    assert [(e.id, e.score, e.rationale) for e in others] == [("1#1", 1, "It whines."), ("1#2", 3, "It greets.")]
    assert {e.instruction for e in others} == {"Greet 1."}
    assert sft.by_annotator(rows(1, meta={"ratings": [1, 9], "rationales": ["a", "b"]})) == rows(
        1, meta={"ratings": [1, 9], "rationales": ["a", "b"]}
    ), "a rating that is off the scale is nobody's score"
    several = {"ratings": ["A", "tie"], "rationales": ["More polite.", "Alike."]}
    two = Comparison(
        id="c", instruction="Greet.", response_a="Hi", response_b="Oi", preference="A", rubric=RUBRIC, meta=several
    )
    assert [(c.gold, c.rationale) for c in sft.by_annotator([two])] == [("A", "More polite."), ("tie", "Alike.")]
