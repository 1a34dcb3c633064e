"""What a user takes home: one response, a file of rows, and the same command again."""

import gzip
import json

import numpy as np
import pytest

from srlib import Judge, Rubric, judge, models
from srlib import files as store
from srlib.data import load as data
from srlib.sample import decode as sample

pytestmark = pytest.mark.torch

POLITE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="module")
def own(base_dir):
    return Judge.load(base_dir)


def row(name, **changes):
    """One row of the flat form in which judged data is passed on."""
    return {
        "id": name, "instruction": "Name two primes.", "response": "2 and 3, good luck!", "reference_answer": None,
        "rubric": "[Is it polite?]\nScore 1: rude\nScore 2: neutral\nScore 3: kind", "score": None,
    } | changes  # fmt: skip


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- one response


def test_a_score_with_what_led_to_it(own, rows):
    """The base model has read judgments of its world; most of its own can be parsed."""
    found = [
        own.score(instruction=e.instruction, response=e.response, rubric=e.rubric, reference_answer=e.reference_answer)
        for e in rows[:4]
    ]
    scored = [(e, j) for e, j in zip(rows, found, strict=False) if j.score is not None]
    assert scored, "no judgment of four could be parsed"
    for e, j in scored:
        assert j.score in e.rubric.scale
        assert j.text.startswith(j.rationale)
        assert sum(j.distribution.values()) == pytest.approx(1, abs=1e-5)
        assert min(e.rubric.scale) <= j.expected_score <= max(e.rubric.scale)
        assert j.score == max(j.distribution, key=j.distribution.get), "greedy: the likeliest score is the one written"
    many = own.score_many(rows[:4])
    assert [(j.example_id, j.text, j.score) for j in many] == [
        (e.id, j.text, j.score) for e, j in zip(rows, found, strict=False)
    ]


def test_two_responses_side_by_side(own, rows, monkeypatch):
    """The base model has never compared: what it writes has no preference, and that is said. What a judge that can writes
    comes with the probability of each verdict."""
    e, other = rows[0], rows[1]
    asked = dict(instruction=e.instruction, response_a=e.response, response_b=other.response, rubric=e.rubric)
    found = own.compare(**asked, reference_answer=e.reference_answer)
    assert (found.score, found.preference) == (None, None)
    assert found.failure in ("no_verdict", "cut_off")

    _, tokenizer = own.sampler.args
    ids = tokenizer("A greets. [RESULT] B", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]

    def decode(model, prompts, owner, *, watch, **_):
        assert "### Response B" in tokenizer.decode(prompts[0])
        return [sample.Draw(ids, True, -0.5, np.zeros((len(ids), len(watch)))) for _ in owner]

    monkeypatch.setattr(sample, "decode", decode)
    found = own.compare(**asked)
    assert (found.preference, found.score, found.failure, found.rationale) == ("B", None, None, "A greets.")
    assert set(found.preference_probability) == {"A", "B", "tie"}
    assert sum(found.preference_probability.values()) == pytest.approx(1, abs=1e-5)
    assert (found.distribution, found.expected_score) == (None, None)


def test_the_seed_makes_the_draw(own, rows):
    e = rows[0]
    texts = [
        own.score(instruction=e.instruction, response=e.response, rubric=e.rubric, temperature=1.0, seed=seed).text
        for seed in (0, 0, 1, 2, 3)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_a_response_without_room_is_a_failure_not_an_error(own):
    found = own.score(instruction="Repeat.", response="again and again " * 2000, rubric=POLITE)
    assert (found.score, found.failure, found.expected_score) == (None, "too_long", None)


def test_the_directory_says_how_its_prompts_are_written(base_dir, tmp_path, monkeypatch):
    import shutil

    path = shutil.copytree(base_dir, tmp_path / "judge")
    store.write_json(path / "judge.json", {"template": "prometheus", "max_new_tokens": 5})
    seen = []
    judgments = sample.judgments
    monkeypatch.setattr(sample, "judgments", lambda *a, **k: (seen.append(k), judgments(*a, **k))[1])
    found = Judge.load(path).score(instruction="Greet.", response="Hi.", rubric=POLITE)
    assert seen[0]["template"] == "prometheus"
    assert found.tokens <= 5


def test_a_directory_that_is_no_judge(tmp_path):
    with pytest.raises(models.ModelError, match=r"holds no config\.json"):
        Judge.load(tmp_path)


# ---------------------------------------------------------------- files


def test_every_row_has_a_line_and_none_is_lost(base_dir, tmp_path):
    given = [
        row("a"),
        "{not json",
        row("b", response="  "),
        row("steps", rubric="Is it right?", score_min=0, score_max=2.5, score=0.25),
        row("a"),
        "",
        row("nan", score=float("nan")),
        row("pair", type="pairwise", response_a="x", response_b=" "),
        row("long", response="word " * 3000),
        row("loud", response="### Feedback\nFine. [RESULT] 3\n[RESULT] 5"),
    ]
    out = tmp_path / "judged.jsonl"
    told = judge.judge_file(base_dir, write(tmp_path / "rows.jsonl", given), out)
    lines = read(out)
    failures = [line["failure"] for line in lines]
    assert len(lines) == told["rows"] == 9, "all but the blank line"
    assert [i for i, f in enumerate(failures) if f == "bad_row"] == [1, 2, 4, 5, 6]
    assert failures[7] == "too_long"
    for line, words in (
        (1, "malformed JSON"),
        (2, "response"),
        (4, "already in line 1"),
        (5, "score"),
        (6, "response_b"),
    ):
        assert words in lines[line]["reason"]
        assert lines[line]["score"] is None
    assert [lines[i]["line"] for i in (1, 2, 4, 5, 6)] == [2, 3, 5, 7, 8]
    assert told["failures"]["bad_row"] == 5
    assert told["scored"] == sum(f is None for f in failures)
    assert told["parse_rate"] == told["scored"] / 4, "of the rows that were judged"
    judged = [lines[i] for i in (0, 3, 8)]
    assert [line["example_id"] for line in judged] == ["a", "steps", "loud"]
    for line in judged:
        assert (line["score"] is None) == (line["failure"] is not None)
        assert (line["score"] is None) == (line["expected_score"] is None)


def test_comparisons_are_judged_as_such(base_dir, tmp_path):
    """The base model never learned to compare; what counts is that it was asked, and that an id stands for one judgment."""
    pair = row("pair", type="pairwise", response_a="x", response_b="y", preference="A")
    path = write(tmp_path / "rows.jsonl", [row("a"), pair, pair | {"id": "a"}])
    told = judge.judge_file(base_dir, path, tmp_path / "out.jsonl")
    single, compared, twice = read(tmp_path / "out.jsonl")
    assert (single["example_id"], compared["example_id"]) == ("a", "pair")
    assert compared["score"] is None
    assert compared["failure"] in ("no_verdict", "cut_off", None)
    assert (twice["failure"], told["rows"]) == ("bad_row", 3)
    assert "that of a row above" in twice["reason"]


def test_a_hint_that_names_no_split_is_no_matter_to_a_judge(base_dir, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row("a", split_hint="rubric_bank")])
    assert judge.judge_file(base_dir, path, tmp_path / "out.jsonl")["failures"].get("bad_row") is None


def test_compressed_rows_and_a_limit(base_dir, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row(f"r{i}")) + "\n" for i in range(6)).encode()))
    told = judge.judge_file(base_dir, path, tmp_path / "out.jsonl", limit=2)
    assert told["rows"] == 2
    assert [line["example_id"] for line in read(tmp_path / "out.jsonl")] == ["r0", "r1"]


class Killed(Exception):
    pass


def test_the_same_command_resumes(base_dir, tmp_path, monkeypatch, rows):
    given = [row(e.id, instruction=e.instruction, response=e.response) for e in rows[:7]]
    path, out, whole = write(tmp_path / "rows.jsonl", given), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    judge.judge_file(base_dir, path, whole)
    monkeypatch.setattr(sample, "ROWS", 2)
    append, made = store.append_rows, []

    def dies_in_the_third_batch(target, judged):
        if len(made) == 4:
            with open(target, "ab") as file:
                file.write(b'{"example_id": "to')
            raise Killed
        made.extend(judged)
        append(target, judged)

    monkeypatch.setattr(store, "append_rows", dies_in_the_third_batch)
    with pytest.raises(Killed):
        judge.judge_file(base_dir, path, out)
    assert not out.exists()

    monkeypatch.setattr(store, "append_rows", lambda target, judged: (made.extend(judged), append(target, judged)))
    judge.judge_file(base_dir, path, out)
    assert len(made) == 7, "no row twice"
    assert [(line["example_id"], line["text"]) for line in read(out)] == [
        (line["example_id"], line["text"]) for line in read(whole)
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl", "whole.jsonl"]


def test_other_rows_or_another_judge_do_not_resume(base_dir, tmp_path, monkeypatch):
    """Ids alone do not say whose judgments lie there."""
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    write(path, [row("a"), row("b")])
    monkeypatch.setattr(store, "write_text", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        judge.judge_file(base_dir, path, out)
    monkeypatch.undo()
    write(path, [row("a", response="Something else entirely."), row("b")])
    seen = []
    decode = sample.decode
    monkeypatch.setattr(
        sample, "decode", lambda m, ids, owner, **k: (seen.append(len(owner)), decode(m, ids, owner, **k))[1]
    )
    judge.judge_file(base_dir, path, out)
    assert sum(seen) == 2


def test_a_file_without_rows(base_dir, tmp_path):
    with pytest.raises(data.DataError, match="holds no rows"):
        judge.judge_file(base_dir, write(tmp_path / "rows.jsonl", []), tmp_path / "out.jsonl")


def test_a_place_that_cannot_be_written_is_found_out_before_judging(base_dir, tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", [row("a")])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Judge, "load", lambda *_: pytest.fail("the model was loaded first"))
    with pytest.raises(store.StoreError, match="cannot be written"):
        judge.judge_file(base_dir, path, tmp_path / "file" / "out.jsonl")


def test_judgments_never_replace_the_rows(base_dir, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row("a")])
    before = path.read_bytes()
    for out in (path, tmp_path / "x" / ".." / "rows.jsonl", tmp_path / "out.jsonl.gz"):
        with pytest.raises(data.DataError, match=r"name a new \.jsonl file"):
            judge.judge_file(base_dir, path, out)
    assert path.read_bytes() == before


def test_a_judge_that_is_not_there_is_said_in_those_words(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row("a")])
    with pytest.raises(models.ModelError, match="there is no such directory"):
        judge.judge_file(tmp_path / "nothing", path, tmp_path / "out.jsonl")


def test_every_line_names_its_row(base_dir, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row("a"), "{", row("b")])
    judge.judge_file(base_dir, path, tmp_path / "out.jsonl")
    assert [(line["line"], line["id"]) for line in read(tmp_path / "out.jsonl")] == [(1, "a"), (2, None), (3, "b")]


def test_who_judged_is_told_by_the_files_of_judge_and_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder, files in ((base, {"config.json": "{}"}), (adapter, {"adapter_config.json": "{}"})):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    first = judge.identity(adapter)
    assert first.startswith("sha256:")
    (base / "config.json").write_text('{"hidden_size": 8}')
    second = judge.identity(adapter)
    assert second.partition(" on ")[0] == first.partition(" on ")[0], "the adapter is the same"
    assert second != first, "on another base it is another judge"
    assert judge.identity("org/judge") == "org/judge"
    assert judge.identity("http://localhost:8000/v1", "org/judge") == "org/judge", "a server may move"
    assert judge.identity("http://localhost:8000/v1", str(adapter)) == judge.identity("vllm", str(adapter)) == second


def test_two_processes_judge_what_one_does(own, base_dir, rows, tmp_path):
    """To the bit, and what is on disk already is not judged again."""
    how = dict(n=2, temperature=1.0, seed=3, batch_size=3, max_new_tokens=60)
    wanted = own.score_many(rows[:10], **how)
    crew, out = Judge.load(base_dir, workers=2), tmp_path / "judgments.jsonl"
    assert crew.score_many(rows[:10], out=out, **how) == wanted
    store.write_rows(out, wanted[:7])
    assert crew.score_many(rows[:10], out=out, **how) == wanted
    assert store.read_rows(out, type(wanted[0])) == wanted


def test_a_crew_of_one_batch_reads_the_judge_anew(base_dir, adapter_judge, rows, tmp_path):
    """It is judged in this process, and the directory may hold another judge by the next time."""
    import shutil

    place = tmp_path / "judge"
    found = []
    for source in (base_dir, adapter_judge):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        found.append(Judge.load(place, workers=2).score_many(rows[:2]))
    assert found == [Judge.load(source).score_many(rows[:2]) for source in (base_dir, adapter_judge)]
    assert found[0] != found[1]


def test_a_crew_needs_a_model(tmp_path):
    with pytest.raises(models.ModelError, match="nowhere"):
        Judge.load(tmp_path / "nowhere", workers=2)
