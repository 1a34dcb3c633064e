"""Judgments from any source: resumed, in order, parsed; and verdicts that are drawn again."""

import math
import multiprocessing
import os
import time

import numpy as np
import pytest

from srlib import files
from srlib.sample import draws
from srlib.schema import Example, Judgment, Rubric

pytestmark = pytest.mark.torch

RUBRIC = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
ITEMS = [Example(id=f"e{i}", instruction="Greet.", response="Hi.", rubric=RUBRIC) for i in range(3)]


def collect(n=2, items=ITEMS, out=None, asked=None, left_out=""):
    """Draws of the items in reverse, each list of them twice; the missing draws are noted in `asked`."""

    def source(work, k, together):
        for item, missing in reversed(work):
            (asked if asked is not None else []).extend(f"{item.id}#{i}" for i in missing)
            rows = [draws.judgment(item, i, f" Draw {i}. [RESULT] 2 ", True) for i in missing if item.id != left_out]
            yield from (rows, rows + rows)

    return draws.collect(source, items, n, out)


def ids(rows):
    return [row.id for row in rows]


def test_only_missing_draws_are_asked_for_and_others_stay(tmp_path):
    asked, path = [], tmp_path / "j.jsonl"
    assert ids(collect(n=1, out=path, left_out="e1")) == ["e0#0", "e2#0"]
    whole = collect(n=3, out=path, asked=asked)
    assert ids(whole) == [f"e{i}#{k}" for i in range(3) for k in range(3)]
    assert {(j.text, j.rationale, j.score) for j in whole if j.index == 1} == {("Draw 1. [RESULT] 2", "Draw 1.", 2.0)}
    assert sorted(asked) == ["e0#1", "e0#2", "e1#0", "e1#1", "e1#2", "e2#1", "e2#2"]
    assert files.read_rows(path, Judgment) == whole
    asked.clear()
    assert ids(collect(n=2, items=ITEMS[1:2], out=path, asked=asked)) == ["e1#0", "e1#1"], "fewer items and draws"
    assert asked == []
    kept = files.read_rows(path, Judgment)
    assert ids(kept[:2]) == ["e1#0", "e1#1"]
    assert sorted(kept, key=str) == sorted(whole, key=str)
    with pytest.raises(ValueError, match="n=2 judgments at temperature 0"):
        draws.Sampling(n=2)


def draw_a_part(out, k, n, launch, stop, answer):
    """In a process of its own: what the k-th of n processes has drawn, and all that it got back."""
    os.environ |= {"TORCHELASTIC_RUN_ID": launch, "WORLD_SIZE": str(n), "RANK": str(k)}
    drawn = []

    def source(work, k, together):
        for item, missing in work[k::together]:
            time.sleep(0.1 * k)
            drawn.extend(f"{item.id}#{i}" for i in missing)
            yield [draws.judgment(item, i, f"Draw {i}. [RESULT] 2", True) for i in missing]
            if stop and k == 0:
                os._exit(1)

    answer.put((k, [drawn, ids(draws.collect(source, ITEMS, 2, out))]))


def together(out, n, launch, stop=False):
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    started = [fork.Process(target=draw_a_part, args=(out, k, n, launch, stop, answers)) for k in range(n)]
    for process in started:
        process.start()
    if stop:  # the first one does not come to its mark, so the other waits for it
        started[0].join()
        while not out.with_name(f".{out.name}.1-of-{n}.{launch}").exists():
            assert started[1].is_alive()
        started[1].kill()
        return []
    return [answer for _, answer in sorted(answers.get(timeout=60) for _ in started)]


def test_processes_share_the_draws_and_go_on_where_others_stopped(tmp_path):
    out = tmp_path / "j.jsonl"
    together(out, 2, "killed", stop=True)
    part = tmp_path / ".j.jsonl.killed.0-of-2"
    assert ids(files.read_rows(part, Judgment)) == ["e0#0", "e0#1"]
    assert not out.exists()
    (tmp_path / ".j.jsonl.cut off.1-of-2").write_bytes(part.read_bytes())  # a process that others took for dead went on
    every = [f"e{i}#{k}" for i in range(3) for k in range(2)]
    (first, whole), (second, same) = together(out, 2, "again")
    assert (first, second) == (["e2#0", "e2#1"], []), "what was drawn before the kill is not drawn again"
    assert whole == same == ids(files.read_rows(out, Judgment)) == every
    assert list(tmp_path.iterdir()) == [out]
    out.rename(tmp_path / ".j.jsonl.1-of-3")  # of a session that had three processes
    theirs, asked = tmp_path / "j.jsonl.1-of-3.txt", []
    theirs.write_text("not ours")
    assert ids(collect(out=out, asked=asked)) == every
    assert asked == []
    assert {*tmp_path.iterdir()} == {out, theirs}, "what others have beside it stays"
    assert together(out, 2, "done") == [[[], every]] * 2


def test_uniform_numbers_depend_on_seed_name_and_index_alone():
    first = draws.uniforms(0, "a", 0, 50)
    assert (first == draws.uniforms(0, "a", 0, 80)[:50]).all()
    assert all((first != draws.uniforms(*other, 50)).all() for other in ((1, "a", 0), (0, "b", 0), (0, "a", 1)))


def judged(score, distribution=None, name="e", index=0):
    failure = "no_verdict" if score is None else None
    return Judgment(example_id=name, index=index, text="x", score=score, failure=failure, distribution=distribution)


def test_entropy_and_flip_rate_come_from_the_distribution():
    even, sure = draws.redraw([judged(4, {3: 0.5, 4: 0.5}), judged(5, {4: 0.0, 5: 1.0}, index=1)], k=10, seed=0)
    assert (even.entropy, even.flip_rate) == (pytest.approx(math.log(2)), 0.5)
    assert (sure.id, sure.entropy, sure.flip_rate, sure.flips) == ("e#1", 0, 0, False)
    assert draws.redraw([judged(None)], k=3, seed=0) == []
    with pytest.raises(ValueError, match="judgment e#0 holds no distribution of its verdict"):
        draws.redraw([judged(4)], k=3, seed=0)


def test_redraws_follow_the_distribution_and_depend_on_seed_and_judgment_alone():
    def flips(rows, k, seed):
        return np.array([r.flips for r in draws.redraw(rows, k, seed)])

    rows = [judged(1, {1: 0.3, 2: 0.5, 3: 0.2}, index=i) for i in range(2000)]
    half = [judged(1, {1: 0.5, 2: 0.5}, index=i) for i in range(2000)]
    assert flips(rows, 1, 3).mean() == pytest.approx(0.7, abs=0.03)  # three standard errors
    assert flips(rows, 9, 3).mean() == pytest.approx(0.901, abs=0.03)  # five or more of nine
    assert flips(half, 2, 3).mean() == pytest.approx(0.25, abs=0.03), "more than half"
    assert (flips(rows, 1, 3) != flips(rows, 1, 4)).any()
    assert flips(rows[7:8], 1, 3) == flips(rows, 1, 3)[7]


def test_the_summary_counts_each_example_once():
    stays, flips = {3: 0.0, 4: 1.0}, {3: 1.0, 4: 0.0}
    rows = [judged(4, flips if e == "a" else stays, e, i) for e in "abcd" for i in range(5 if e == "a" else 2)]
    found = draws.flip_summary(draws.redraw(rows, k=4, seed=0))
    assert [found[name].value for name in ("flip_rate", "flips", "entropy")] == [0.25, 0.25, 0]
    assert found["flips"].n == 4
    assert found["flips"].high >= 0.75  # four prompts, not eleven judgments, are what is resampled
    grouped = draws.flip_summary(draws.redraw(rows, k=4, seed=0), group={"a": "x", "b": "x", "c": "y", "d": "y"})
    assert grouped["flips"].high == 0.5, "two clusters"
