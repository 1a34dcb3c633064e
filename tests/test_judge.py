"""What a user takes home: one response, two, a file of rows, and the same command again."""

import dataclasses
import json
import re
import shutil
import time

import campaign
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


def test_threads_get_the_judgments_that_one_thread_gets(base_dir, one_thread):
    """The first words of 64 of them; tests/campaign.py makes 1,600 to their end."""
    loaded = dataclasses.replace(Judge.load(base_dir), max_new_tokens=12)
    found = campaign.threads(loaded, calls=4, many=5)
    assert found["errors"] == []
    assert (found["judgments"], found["equal to the serial ones"]) == (64, 64)


def test_the_examples_of_the_readme_give_a_score(base_dir, one_thread, tmp_path, monkeypatch):
    """In a directory where the judge of `make run` lies: here the base, which has read judgments of the same world."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "runs" / "notes").mkdir(parents=True)
    (tmp_path / "runs" / "notes" / "judge").symlink_to(base_dir)
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
        seen = -1
        while seen != (seen := len(serve.bodies)):  # requests of the interrupted command may still be on their way
            time.sleep(0.3)
        serve.bodies.clear()
        write(path, [*given[:4], given[4] | changes])
        if changes:
            with pytest.raises(SrlibError, match="is of another judge or other rows; name another -o, or delete it"):
                judge.judge_file(serve.url, path, out, model="judge")
            (tmp_path / "out.jsonl.partial").unlink()
        assert judge.judge_file(serve.url, path, out, model="judge")["rows"] == 5
        assert len(serve.bodies) == asked
        assert [line["id"] for line in read(out)] == ["r0", "r1", "r2", "r3", "r4"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]
    assert judge.judge_file(serve.url, path, out, model="judge", limit=2)["rows"] == len(read(out)) == 2
    monkeypatch.setattr(files, "append_rows", dies)
    with pytest.raises(KeyboardInterrupt):
        judge.judge_file(serve.url, path, out, model="judge")
    monkeypatch.setattr(files, "append_rows", append)
    with pytest.raises(SrlibError, match="is of another judge or other rows; name another -o, or delete it"):
        judge.judge_file(serve.url, path, out, model="jugde")
    assert (tmp_path / "out.jsonl.partial").exists(), "a typing error costs nothing that is computed"


def test_rows_that_a_server_fails_on_are_named_and_judged_by_the_next_command(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    serve.answer = lambda body, _: (500, "oops") if "prime 4" in str(body) else None
    rows = write(tmp_path / "rows.jsonl", [row(f"r{i}", instruction=f"prime {i}", score=3) for i in range(6)])
    counts = judge.judge_file(serve.url, rows, tmp_path / "out.jsonl", model="judge")
    line = read(tmp_path / "out.jsonl")[4]
    assert (counts["failures"], counts["scored"], line["failure"]) == ({"not_judged": 1}, 5, "not_judged")
    assert "oops" in line["reason"]
    assert counts["gold"]["scores"]["accuracy"].n == 6, "a row without a judgment is wrong, too"
    serve.answer = lambda body, _: None
    serve.bodies.clear()
    assert judge.judge_file(serve.url, rows, tmp_path / "out.jsonl", model="judge")["scored"] == 6
    assert len(serve.bodies) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_what_cannot_be_used_is_found_out_before_judging(base_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Judge, "load", lambda *_, **__: pytest.fail("the model was loaded first"))
    monkeypatch.chdir(tmp_path)
    path, empty = write(tmp_path / "rows.jsonl", [row("a")]), write(tmp_path / "empty.jsonl", [])
    labels = write(tmp_path / "labels.jsonl", [{"id": "a", "score": 3}])
    write(tmp_path / "x.jsonl.partial", ["of somebody"])
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    cases = [
        ((base_dir, path, out), "is an input of this command")
        for out in (path, "./../" + tmp_path.name + "/rows.jsonl")
    ]
    cases += [((base_dir, path, out), "was not made by this command") for out in (labels, "x.jsonl")]
    cases += [
        ((base_dir, path, empty / "out"), "folder that does not exist"),
        ((base_dir, path, "o.gz"), "would not be compressed"),
    ]
    cases += [((base_dir, empty, "out.jsonl"), "holds no rows")]
    cases += [(("http://me:secret@host/v1", path, "out.jsonl"), "no user, password")]
    named = dict(limit=1, columns=["reference_answer:Reff"])
    with pytest.raises(SrlibError, match="no row has the column 'Reff'"):
        judge.judge_file(base_dir, write(tmp_path / "two.jsonl", [row("a"), row("b")]), "out.jsonl", **named)
    (tmp_path / "two.jsonl").unlink()
    for arguments, words in [*cases, ((tmp_path / "nothing", path, "out.jsonl"), "there is no such directory")]:
        with pytest.raises(SrlibError, match=words):
            judge.judge_file(*arguments)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_rows_with_gold_measure_the_judge(serve, tmp_path, monkeypatch):
    """The server gives a 3 to all but one row, and prefers A. The judge's name there is not looked up on the hub."""
    monkeypatch.setattr(models.loading, "hf_hub_download", lambda *_: pytest.fail("asks the hub"))
    serve.answer = lambda body, _: serve.well(body, message={"content": said(str(body))})
    said = lambda body: "no" if "prime 7 " in body else "A [RESULT] A" if "Response A" in body else "Fine. [RESULT] 3"  # noqa: E731
    gold = [3, 3, 3, 2, 1, None, 3, 3]
    given = [row(f"r{i}", instruction=f"prime {i} ", score=score) for i, score in enumerate(gold)]
    given += [
        row("p", response_a="x", response_b="y", preference="A"),
        row("q", response_a="x", response_b="y", preference="tie"),
    ]
    given += ["{not json"]
    counts = judge.judge_file(
        serve.url, write(tmp_path / "rows.jsonl", given), tmp_path / "out.jsonl", model="corp/judge"
    )
    scores, preferences = counts["gold"]["scores"], counts["gold"]["preferences"]
    assert [(scores[m].value, scores[m].n) for m in ("accuracy", "mae")] == [
        (pytest.approx(4 / 7), 7),
        (pytest.approx(0.5), 6),
    ]
    assert scores["balanced_accuracy"].value == pytest.approx((4 / 5 + 0 + 0) / 3)
    assert (preferences["accuracy"].value, preferences["accuracy"].n) == (0.5, 2)
    assert (counts["scored"], counts["parse_rate"], counts["failures"]) == (9, 0.9, {"no_verdict": 1, "bad_row": 1})
    printed = " ".join(judge.summary(counts).split())
    assert "11 rows, 9 with a score; parse rate 90.0% of the judged" in printed
    assert "Against 7 gold scores, with 95% intervals" in printed
    assert "accuracy 0.571 [0.1" in printed
    assert "pearson – [–, –] n 6" in printed, "a judge that always says 3"
    assert "7 independent rows are few, and the intervals wide: label 30 or more" in printed
    many = [row(f"r{i}", instruction=f"prime {i % 40}", score=3) for i in range(60)]
    again = judge.judge_file(serve.url, write(tmp_path / "many.jsonl", many), tmp_path / "out.jsonl", model="judge")
    assert again["gold"]["scores"]["independent"] == 40, "rows of one instruction stand or fall together"
    assert "few" not in judge.summary(again)
    assert (
        judge.judge_file(serve.url, write(tmp_path / "n.jsonl", [row("a")]), tmp_path / "out.jsonl", model="j")["gold"]
        == {}
    )


def test_a_judge_says_that_it_was_trained_on_another_kind_of_text(base_dir, one_thread, rows, tmp_path):
    """On prose the base of the built-in world is lost, even if its judgments can be read."""
    home, out = tmp_path / "judge", tmp_path / "out.jsonl"
    shutil.copytree(base_dir, home)
    own = files.write_rows(tmp_path / "own.jsonl", rows[:8]) or tmp_path / "own.jsonl"
    prose = write(
        tmp_path / "prose.jsonl", [row("a", response="It is raining cats and dogs, as my aunt would have it.")]
    )
    assert judge.judge_file(home, prose, out)["warnings"] == [], "nothing is known of its validation split"
    loaded = Judge.load(home)
    highest = max(judge.prompt_nll(*loaded.sampler.args, rows[:8], "brief"))
    known = {"parse_rate": 0.0, "prompt_nll_highest": highest}
    files.write_json(home / "judge.json", {"template": "brief", "validation": known})
    assert judge.judge_file(home, own, out)["warnings"] == []
    [warning] = judge.judge_file(home, prose, out)["warnings"]
    assert warning.startswith("This judge may have been trained on another kind of text: prompts have ")
    files.write_json(
        home / "judge.json", {"validation": {"parse_rate": 1.0, "prompt_nll_highest": 99}, "max_new_tokens": 3}
    )
    [warning] = judge.judge_file(home, own, out)["warnings"]
    assert warning.endswith("0.0% of the judgments can be read, 100.0% on its validation split")
    assert judge.judge_file(home, prose, out)["warnings"] == [], "one row may fail by chance"


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
