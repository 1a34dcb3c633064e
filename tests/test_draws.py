"""What all places share: resuming, order, parsing, and scores from likely tokens."""

import math

import pytest

from srlib import files as store
from srlib.sample import draws
from srlib.schema import Example, Judgment, Rubric

RUBRIC = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
ITEMS = [Example(id=f"e{i}", instruction="Greet.", response="Hi.", rubric=RUBRIC) for i in range(3)]


def place(asked, leaves_out=()):
    def draw(work):
        asked.extend((e.id, i) for e, missing in work for i in missing)
        for example, missing in reversed(work):
            yield [
                draws.judgment(example, i, f" Draw {i}. [RESULT] 2 ", True)
                for i in missing
                if example.id not in leaves_out
            ]

    return draw


def collect(draw, n=2, **settings):
    return draws.collect(draw, ITEMS, n=n, temperature=1.0, **settings)


def test_in_order_and_on_disk_in_order(tmp_path):
    found = collect(place([]), out=tmp_path / "j.jsonl")
    assert [(j.example_id, j.index) for j in found] == [(f"e{i}", k) for i in range(3) for k in range(2)]
    assert {(j.text, j.rationale, j.score) for j in found if j.index == 1} == {("Draw 1. [RESULT] 2", "Draw 1.", 2.0)}
    assert store.read_rows(tmp_path / "j.jsonl", Judgment) == found


def test_only_what_is_missing_is_asked_for(tmp_path):
    asked, path = [], tmp_path / "j.jsonl"
    collect(place([]), n=1, out=path)
    whole = collect(place(asked), n=2, out=path)
    assert asked == [(e.id, 1) for e in ITEMS]
    asked.clear()
    assert collect(place(asked), n=2, out=path) == whole
    assert asked == []


def test_what_another_call_drew_stays(tmp_path):
    """Fewer draws, or fewer examples, and the file keeps the rest behind them."""
    asked, path = [], tmp_path / "j.jsonl"
    whole = collect(place([]), n=3, out=path)
    found = draws.collect(place(asked), ITEMS[1:2], n=2, temperature=1.0, out=path)
    assert [(j.example_id, j.index) for j in found] == [("e1", 0), ("e1", 1)]
    assert asked == []
    kept = store.read_rows(path, Judgment)
    assert kept[:2] == found
    assert sorted(kept, key=str) == sorted(whole, key=str)


def test_a_place_that_repeats_itself_doubles_nothing(tmp_path):
    path = tmp_path / "j.jsonl"

    def twice(work):
        yield from place([])(work)
        yield from place([])(work)

    assert len(collect(twice, out=path)) == 6
    assert len(store.read_rows(path, Judgment)) == 6


def test_what_a_place_leaves_out_is_missing_and_what_it_drew_is_kept(tmp_path):
    path = tmp_path / "j.jsonl"
    found = collect(place([], leaves_out=("e1",)), out=path)
    assert {j.example_id for j in found} == {"e0", "e2"}
    assert len(store.read_rows(path, Judgment)) == 4
    assert len(collect(place([]), out=path)) == 6


def test_several_at_temperature_0_are_refused():
    with pytest.raises(ValueError, match="n=2 judgments at temperature 0"):
        draws.collect(place([]), ITEMS, n=2, temperature=0.0)


@pytest.mark.parametrize(("text", "finished", "failure"), [("Fine.", True, "no_verdict"), ("[RESULT] 2", False, "cut_off"), ("[RESULT] 9", True, "off_scale")])  # fmt: skip
def test_what_cannot_be_read_has_a_name_and_no_score(text, finished, failure):
    found = draws.judgment(ITEMS[0], 0, text, finished, likely=[(" 2", -0.1, {})], distributions=True, tokens=4)
    assert (found.failure, found.score, found.distribution, found.tokens, found.logprob) == (
        failure,
        None,
        None,
        4,
        -0.1,
    )


def test_seeds_fit_everywhere_and_differ():
    seeds = [draws.seed_of(s, e, i) for s in range(3) for e in ("a", "b") for i in range(9)]
    assert len(set(seeds)) == 54
    assert all(0 <= s < 2**31 for s in seeds)
    assert draws.seed_of(1, "a", 2) == draws.seed_of(1, "a", 2)


# ---------------------------------------------------------------- likely tokens


def at_verdict(token, top, *, before=("[RESULT]",), behind=()):
    plain = [(t, -0.1, {}) for t in before], [(t, -0.1, {}) for t in behind]
    return [*plain[0], (token, math.log(top[token]), {t: math.log(p) for t, p in top.items()}), *plain[1]]


FIVE = (1.0, 2.0, 3.0, 4.0, 5.0)


def test_the_distribution_is_that_of_the_listed_scores():
    top = {" 3": 0.5, " 4": 0.25, "2": 0.1, " 2": 0.1, " 1": 0.03, " 5": 0.01}
    found = draws.distribution(at_verdict(" 3", top, behind=("<eos>",)), FIVE, 3.0)
    assert found == pytest.approx(
        {1: 0.03 / 0.99, 2: 0.2 / 0.99, 3: 0.5 / 0.99, 4: 0.25 / 0.99, 5: 0.01 / 0.99}, abs=1e-5
    )
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)


def test_a_score_that_is_not_listed_counts_as_none_only_where_it_hardly_could_be_one():
    sure = draws.distribution(at_verdict(" 3", {" 3": 0.7, " 2": 0.295}), FIVE, 3.0)
    assert sure[5.0] == 0.0
    assert draws.distribution(at_verdict(" 3", {" 3": 0.7, " 2": 0.2}), FIVE, 3.0) is None


def test_the_token_that_was_drawn_counts_although_it_is_not_among_the_likely():
    tokens = [("[RESULT]", -0.1, {}), (" 5", math.log(0.02), {" 3": math.log(0.9), " 4": math.log(0.075)})]
    assert draws.distribution(tokens, FIVE, 5.0)[5.0] == pytest.approx(0.02 / 0.995, abs=1e-4)


@pytest.mark.parametrize(
    ("tokens", "scale", "score"),
    [
        (at_verdict(" 3", {" 3": 1.0}), FIVE, None),
        (at_verdict(" 1", {" 1": 1.0}), (1.0, 10.0), 1.0),
        (at_verdict("25", {"25": 1.0}, before=(" 2", ".")), (1.0, 2.25), 2.25),
        (at_verdict(" 3", {" 3": 1.0}), FIVE, 4.0),
        ([("[RESULT] 3", -0.1, {}), (" of 3", -0.1, {})], FIVE, 3.0),
        ([("2 and", -0.1, {}), (" 3", -0.1, {" 3": -0.1}), (": fail. [RESULT] 3", -0.1, {})], FIVE, 3.0),
        ([], FIVE, 3.0),
    ],
)
def test_where_the_tokens_do_not_tell_there_is_none(tokens, scale, score):
    assert draws.distribution(tokens, scale, score) is None


@pytest.mark.parametrize(
    ("values", "mean"), [([-1.0, -2.0], -1.5), ([], None), ([-1.0, -math.inf], None), ([math.nan], None)]
)
def test_mean_logprob(values, mean):
    assert draws.mean_logprob([("t", v, {}) for v in values]) == mean
