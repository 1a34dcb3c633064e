"""What a user takes home: one response, two, a file of rows, and the same command again."""

import json
import re

import pytest
from conftest import ROOT
from servers import Scripted

from srlib import Judge, Rubric, files, judge, models
from srlib.schema import SrlibError

pytestmark = pytest.mark.torch

POLITE = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])


@pytest.fixture
def serve():
    server = Scripted()
    yield server
    server.close()


def row(name, **changes):
    """One row of the flat form in which judged data is passed on."""
    rubric = "[Is it polite?]\nScore 1: rude\nScore 2: neutral\nScore 3: kind"
    return dict(id=name, instruction="Name two primes.", response="2 and 3!", rubric=rubric, score=None) | changes


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_score_with_its_distribution(base_dir, one_thread, rows):
    """The base model has read judgments of its world; most of its own can be parsed."""
    loaded, fields = Judge.load(base_dir), ("instruction", "response", "rubric", "reference_answer")
    found = [loaded.score(**{name: getattr(e, name) for name in fields}) for e in rows[:3]]
    scored = [j for j in found if j.score is not None]
    assert scored
    assert all(j.score == max(j.distribution, key=j.distribution.get) for j in scored), "greedy: the likeliest score"
    assert [j.text for j in loaded.score_many(rows[:3])] == [j.text for j in found]


def test_the_examples_of_the_readme_give_a_score(base_dir, one_thread, tmp_path, monkeypatch):
    """In a directory where the judge of `make run` lies, or here the base, which has read judgments of the same world."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    finished = ROOT / "runs" / "tiny" / "judge"
    (tmp_path / "runs" / "tiny" / "judge").symlink_to(finished if finished.is_dir() else base_dir)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["judgment"].score in (1, 2, 3, 4, 5)
    assert names["judgment"].failure is None


def test_two_responses_side_by_side(serve):
    serve.answer = lambda body, _: serve.well(body, message={"content": "A greets. [RESULT] B"})
    found = Judge.load(serve.url, model="judge").compare(
        instruction="Greet.", response_a="Hi.", response_b="Ho.", rubric=POLITE
    )
    assert (found.preference, found.score, found.failure, found.rationale) == ("B", None, None, "A greets.")
    assert "### Response A\nHi.\n### Response B\nHo.\n" in serve.bodies[0]["messages"][0]["content"]


def test_the_directory_says_how_its_prompts_are_written(serve, tmp_path, monkeypatch):
    files.write_json(tmp_path / "judge.json", {"template": "prometheus", "max_new_tokens": 5})
    monkeypatch.setattr(models, "load_tokenizer", lambda _: type("Tokenizer", (), {"chat_template": None}))
    found = Judge.load(serve.url, model=str(tmp_path)).score(instruction="Greet.", response="Hi.", rubric=POLITE)
    assert (found.score, found.rationale) == (3.0, "Draw 0.0: pass.")
    [body] = serve.bodies
    assert (body["model"], body["max_tokens"]) == (str(tmp_path), 5)
    assert body["prompt"].startswith("### Task\n"), "the prometheus template, and no chat template"
    with pytest.raises(models.ModelError, match=r"holds no config\.json"):
        Judge.load(tmp_path)


def test_every_row_has_a_line_and_none_is_lost(base_dir, tmp_path):
    given = [
        row("a"), "{not json", row("b", response="  "), row("a"), "", row("nan", score=float("nan")),
        row("steps", rubric="Is it right?", score_min=0, score_max=2.5, score=0.25), row("long", response="word " * 3000),
        row("pair", type="pairwise", response_a="x", response_b="y", preference="A"),
        row("a", type="pairwise", response_a="x", response_b="y", preference="A"),
    ]  # fmt: skip
    counts = judge.judge_file(base_dir, write(tmp_path / "rows.jsonl", given), tmp_path / "judged.jsonl")
    lines = read(tmp_path / "judged.jsonl")
    assert [line["line"] for line in lines] == [1, 2, 3, 4, 6, 7, 8, 9, 10], "all but the blank line, in order"
    bad = {line["line"]: line["reason"] for line in lines if line["failure"] == "bad_row"}
    reasons = {2: "JSON", 3: "response", 4: "line 1", 6: "score", 10: "line 1"}
    assert bad.keys() == reasons.keys()
    assert all(words in bad[line] for line, words in reasons.items())
    judged = [line for line in lines if line["failure"] != "bad_row"]
    assert [line["id"] for line in judged] == ["a", "steps", "long", "pair"]
    assert judged[2]["failure"] == "too_long"
    assert all((line["score"] is None) == (line["expected_score"] is None) for line in judged)
    scored = sum(line["failure"] is None for line in judged)
    assert (counts["rows"], counts["failures"]["bad_row"], counts["scored"]) == (9, 5, scored)
    assert counts["parse_rate"] == scored / 4, "of the rows that were judged"


def test_the_same_command_resumes_but_not_with_other_rows(serve, tmp_path, monkeypatch):
    given, out = [row(f"r{i}", instruction=f"prime {i}") for i in range(5)], tmp_path / "out.jsonl"
    path, append = write(tmp_path / "rows.jsonl", given), files.append_rows

    def dies(target, judged):
        if target.exists():
            target.write_bytes(target.read_bytes() + b'{"example_id": "to')
            raise KeyboardInterrupt
        append(target, judged)

    for changes, asked in (({}, 4), ({"response": "Something else."}, 5)):  # ids do not say whose judgments lie there
        monkeypatch.setattr(files, "append_rows", dies)
        with pytest.raises(KeyboardInterrupt):
            judge.judge_file(serve.url, path, out, model="judge")
        monkeypatch.setattr(files, "append_rows", append)
        serve.bodies.clear()
        write(path, [*given[:4], given[4] | changes])
        assert judge.judge_file(serve.url, path, out, model="judge")["rows"] == 5
        assert len(serve.bodies) == asked
        assert [line["id"] for line in read(out)] == ["r0", "r1", "r2", "r3", "r4"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]
    assert judge.judge_file(serve.url, path, out, model="judge", limit=2)["rows"] == len(read(out)) == 2


def test_rows_that_a_server_fails_on_are_named_and_judged_by_the_next_command(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    serve.answer = lambda body, _: (500, "oops") if "prime 4" in str(body) else None
    rows = write(tmp_path / "rows.jsonl", [row(f"r{i}", instruction=f"prime {i}") for i in range(6)])
    counts = judge.judge_file(serve.url, rows, tmp_path / "out.jsonl", model="judge")
    line = read(tmp_path / "out.jsonl")[4]
    assert (counts["failures"], counts["scored"], line["failure"]) == ({"not_judged": 1}, 5, "not_judged")
    assert "oops" in line["reason"]
    serve.answer = lambda body, _: None
    serve.bodies.clear()
    assert judge.judge_file(serve.url, rows, tmp_path / "out.jsonl", model="judge")["scored"] == 6
    assert len(serve.bodies) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_files_that_cannot_be_used_are_found_out_before_judging(base_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Judge, "load", lambda *_, **__: pytest.fail("the model was loaded first"))
    path, empty = write(tmp_path / "rows.jsonl", [row("a")]), write(tmp_path / "empty.jsonl", [])
    cases = [
        ((base_dir, path, out), "name a new .jsonl") for out in (path, tmp_path / "x/../rows.jsonl", "out.jsonl.gz")
    ]
    cases += [((base_dir, empty, "out.jsonl"), "holds no rows"), ((base_dir, path, empty / "out"), "cannot be written")]
    for arguments, words in [*cases, ((tmp_path / "nothing", path, "out.jsonl"), "there is no such directory")]:
        with pytest.raises(SrlibError, match=words):
            judge.judge_file(*arguments)
    assert read(path) == [row("a")]


def test_a_judge_is_identified_by_the_files_of_judge_and_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    files.write_json(base / "config.json", {})
    files.write_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(base)})
    first = judge.identity(adapter)
    files.write_json(base / "config.json", {"hidden_size": 8})
    second = judge.identity(adapter)
    assert second.partition(" on ")[0] == first.partition(" on ")[0] != second, "the same adapter on another base"
    assert judge.identity("org/judge") == judge.identity("http://localhost:8000/v1", "org/judge") == "org/judge"
    assert judge.identity("http://localhost:8000/v1", str(adapter)) == second, "a server may move"
