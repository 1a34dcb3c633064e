"""Drafts of a rubric as a writer words them, the choice that luck shall not make, the writer itself, and notebook 14."""

import random
import re

import numpy as np
import pytest
from cells import definition

from srlib import files
from srlib.data.columns import read_rubric
from srlib.schema import Example, Rubric

THREE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
QUARTERS = Rubric(criterion="Is it polite?", levels={0: "rude", 3.5: "kind"}, step=0.25)
GOOD = "Here is a rubric:\n\n**Criterion: Is it kind?**\n\n- **Score 1:** insults\n- Score 2 : says  nothing\n* Level 3: thanks\n\nI hope it helps."
LEVEL = definition("14_rubric", "LEVEL", re=re)
read_draft = definition("14_rubric", "read_draft", re=re, LEVEL=LEVEL)
finalists, decide = (definition("14_rubric", name, np=np, ORIGINAL="original") for name in ("finalists", "choose"))


@pytest.mark.parametrize(
    ("text", "found"),
    [(GOOD, Rubric(criterion="Is it polite?", levels=["insults", "says nothing", "thanks"])),
     ("My rubric:\nscore 3: c\nscore 1: a\nscore 2: b", Rubric(criterion="Is it polite?", levels=["a", "b", "c"])),
     ("Score 1: a\nScore 2: b\nScore 3: c\nScore 4: d", "another scale"), ("Score 1: a\nScore 3: c", "another scale"),
     ("Score 1: a\nScore 2: b\nScore 2: b2\nScore 3: c", "a score twice"), ("It is polite. [RESULT] 3", "no levels"), ("", "no levels"),
     (THREE.text, "nothing new"), ("Score 1: Bella\nScore 2: ...\nScore 3: ...", "no levels")],
)  # fmt: skip
def test_a_draft_is_a_rubric_on_the_same_scale_or_named_by_what_is_wrong(text, found):
    assert read_draft(text, THREE.levels) == (found if isinstance(found, str) else found.levels)


def test_the_step_of_a_scale_stays():
    rubrics = definition("14_rubric", "rubrics", original=QUARTERS)
    drafts = rubrics("draft {}", ["no levels", read_draft("Score 0: bad\nScore 3.5: good", QUARTERS.levels)])
    assert [(name, draft.scale, draft.levels) for name, draft in drafts.items()] == [
        ("draft 2", QUARTERS.scale, {0: "bad", 3.5: "good"})
    ]


def choose(selection, held_out, keep=3):
    return decide({name: held_out[name] for name in finalists(selection, keep)})


def test_the_held_out_half_decides_among_the_three_best_and_the_original():
    nan = float("nan")
    selection = {"original": 0.5, "broken": nan, "lucky": 0.9, "sound": 0.8, "third": 0.7, "fourth": 0.6}
    held_out = dict.fromkeys(selection, 0.3) | {"sound": 0.6, "fourth": 0.99, "broken": 1.0}
    assert choose(selection, held_out) == "sound", "neither the luckiest nor one that was not among the best"
    assert choose(selection, held_out, keep=1) == "original", "a tie changes nothing"
    assert choose(selection, held_out | {"sound": nan, "original": nan}) == "lucky"
    assert choose({"original": nan}, {"original": nan}) == "original"


def test_the_best_of_many_equal_drafts_is_the_original_as_often_as_not():
    """Drafts that are as good as the original win by luck alone: on their own half always, on the other as one of four."""
    rng, wins, flattered = random.Random(0), 0, 0
    for _ in range(400):
        halves = [{name: rng.gauss(0.4, 0.1) for name in ("original", *range(16))} for _ in "ab"]
        wins += choose(*halves) != "original"
        flattered += max(halves[0].values()) > halves[0]["original"]
    assert 0.7 < wins / 400 < 0.8 < 0.9 < flattered / 400


@pytest.mark.torch
def test_a_judge_writes_what_a_request_asks_for_without_the_form_of_a_judgment(tiny, monkeypatch):
    from servers import Scripted

    from srlib import sample
    from srlib.judge import Judge

    model, tokenizer = tiny
    judge = Judge(lambda items, **sampling: sample.judgments(model, tokenizer, items, **sampling))
    drawn = dict(n=2, temperature=1.0, max_new_tokens=8)
    texts = judge.write(["Once", "Twice", "Once"], **drawn)
    assert [len(some) for some in texts] == [2, 2, 2]
    assert texts == judge.write(["Once", "Twice", "Once"], **drawn)
    greedy = sample.decode(model, [tokenizer("Once\n")["input_ids"]], [0], max_new_tokens=8, eos=tokenizer.eos_token_id)
    whole = tokenizer.decode(greedy[0].token_ids, skip_special_tokens=True).strip()
    assert judge.write(["Once"], max_new_tokens=8) == [[whole]]
    monkeypatch.setenv("NO_PROXY", "*")
    server = Scripted(
        lambda body, number: {
            "model": "w",
            "choices": [{"message": {"content": " A text "}, "finish_reason": "length"}],
        }
    )
    assert Judge.load(server.url, model="w").write(["Once"], max_new_tokens=8) == [["A text"]]
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Once"}]
    server.close()


def write_data(run, rows):
    """Two dozen answers with one rubric, from the built-in world, and half as many to test on."""
    same = [
        row.model_copy(update={"id": f"{row.id}-{i}", "rubric": rows[0].rubric, "score": 1.0 + i % 5})
        for i in range(2)
        for row in rows
    ]
    files.write_rows(run / "data" / "train.jsonl", same[:24])
    files.write_rows(run / "data" / "test.jsonl", same[24:36])
    files.write_json(run / "data" / "manifest.json", {"key": "made by hand", "facts": {}})


@pytest.mark.slow
@pytest.mark.torch
def test_notebook_14_keeps_the_original_of_a_writer_that_cannot_write(base_dir, rows, tmp_path, one_thread, capsys):
    from cells import run_cells

    write_data(tmp_path, rows)
    found = run_cells(
        "14_rubric", run_dir=str(tmp_path), model=str(base_dir), n_drafts=2, max_new_tokens=60, n_boot=100
    )
    said = capsys.readouterr().out
    assert "0 of 2 drafts can be read; the others: {'no levels': 2}" in said
    assert "Of 4 texts none is a rubric on this scale" in said
    assert (found["chosen"], read_rubric(tmp_path / "rubric" / "rubric.yaml")) == ("original", rows[0].rubric)


@pytest.mark.slow
@pytest.mark.torch
def test_notebook_14_with_a_writer_behind_a_server(base_dir, rows, tmp_path, one_thread, capsys, monkeypatch):
    from cells import run_cells
    from servers import Scripted

    levels = sorted(rows[0].rubric.levels)

    def answer(body, number):
        texts = [
            "\n".join([f"Is it good, {number}.{k}?", *(f"Score {s:g}: is at {s:g}, {number}.{k}" for s in levels)])
            for k in range(body.get("n", 1))
        ]
        choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]
        return {
            "model": "w",
            "choices": [*choices[:-1], choices[-1] | {"message": {"content": "no rubric"}}] if number > 1 else choices,
        }

    monkeypatch.setenv("NO_PROXY", "*")
    write_data(tmp_path, rows)
    server = Scripted(answer)
    own = dict(run_dir=str(tmp_path), model=str(base_dir), n_drafts=2, max_new_tokens=60, n_boot=100)
    found = run_cells("14_rubric", **own, writer=server.url, writer_model="w")
    server.close()
    asked = [body["messages"][0]["content"] for body in server.bodies]
    train = {e.instruction for e in files.read_rows(tmp_path / "data" / "train.jsonl", Example)}
    assert len(asked) == 3
    assert asked[0].count("\nResponse: ") == 3
    assert asked[1].count("\nResponse: ") == 6
    assert "Revise the words" in asked[2]
    assert not any(
        text in "".join(asked)
        for text in {e.instruction for e in found["held_out"]} - {e.instruction for e in found["selection"]}
    )
    assert {e.instruction for e in found["selection"]} <= train
    assert "1 of 2 drafts can be read; the others: {'no levels': 1}" in capsys.readouterr().out
    written = read_rubric(tmp_path / "rubric" / "rubric.yaml")
    assert written == found["drafts"][found["chosen"]]
    assert written.scale == rows[0].rubric.scale
    kept = files.read_json(tmp_path / "rubric" / "drafts.json")
    assert kept["chosen"] == found["chosen"]
    assert set(kept["held_out"]) <= set(kept["selection"])
    assert len(kept["held_out"]) <= 4, "only finalists are measured on the half that decides"
