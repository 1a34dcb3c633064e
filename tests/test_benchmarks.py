"""Rows of benchmarks as their authors write them -> questions; answers of any judge -> result rows."""

import io
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import judged
import pytest
from rich.console import Console
from typer.testing import CliRunner

from srlib import benchmarks
from srlib.benchmarks import named, protocol, run
from srlib.benchmarks.protocol import DECLARED, SUMMARY_CRITERIA
from srlib.cli import app
from srlib.files import RowError
from srlib.schema import Judgment, SrlibError

REAL = Path(os.environ.get("SRLIB_DATA") or Path(__file__).parents[2] / "shared" / "data")
PAIR = {"input": "Name a prime.", "output_1": "3", "output_2": "4", "label": 1}
ORIG = {"orig_instruction": "Greet.", "orig_criteria": "Polite?", "orig_reference_answer": "Hello!"}
LEVELS = {f"score{n}_description": f"level {n}" for n in range(1, 6)}
BIGGEN = {"id": "plan_0", "capability": "planning", "system_prompt": "You plan.", "input": "Plan a day."}
BIGGEN |= {"response": "Sleep.", "reference_answer": "Work.", "score_rubric": {"criteria": "Is it a plan?", **LEVELS}}
SUMMARIES = {"id": "s", "text": "A long text.", "machine_summaries": ["Short.", "Shorter."], "human_summaries": ["x"]}
JUDGE_BENCH = {"pair_id": "p", "source": "mmlu-pro-law", "question": "Is it legal?", "label": "B>A"}
FEEDBACK = ORIG | {"orig_response": "Hi.", "orig_score": "4"} | {f"orig_{k}": text for k, text in LEVELS.items()}
ROWS = {
    "feedback_bench": FEEDBACK,
    "biggen_bench": BIGGEN | {"model_name": "m1", "human_score": 2, "gpt4_score": -1},
    "reward_bench": {"id": 3, "prompt": "Name a prime.", "chosen": "3", "rejected": "4", "subset": "math-prm"},
    "reward_bench_2": {"id": "tied:7", "prompt": "?", "chosen": ["3"], "rejected": ["4", "6", "8"], "subset": "Ties"},
    "preference_bench": ORIG | {"orig_response_A": "Hi.", "orig_response_B": "Go.", "orig_preference": "A"},
    "judge_bench": JUDGE_BENCH | {"response_A": "Yes", "response_B": "No"},
    "rm_bench": {"id": 5, "prompt": "Hi", "chosen": [*"abc"], "rejected": [*"def"], "domain": "safety-refuse"},
    "llmbar": PAIR,
    "summeval": SUMMARIES | {name: [1.0, 3.6666667] for name in SUMMARY_CRITERIA},
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(tmp_path, name, *rows):
    return protocol.load(named(name), write(tmp_path / "rows.jsonl", rows or [ROWS[name]]))[0]


def told(questions, tmp_path, *lines):
    """What the rules get from these answers."""
    answers = run.read(questions, write(tmp_path / "answers.jsonl", lines))
    return [(row.answers, row.failures) for row in run.judged(questions, answers)]


def judgment(name, **fields):
    return Judgment(example_id=name, text="", **fields).model_dump(mode="json")


@pytest.fixture
def pairs(tmp_path):
    rows = [PAIR | {"id": "1", "subset": "Natural"}, PAIR | {"id": "2", "subset": "Natural", "label": 2}]
    return load(tmp_path, "llmbar", *rows)


def test_ids_subsets_and_gold_labels_as_the_authors_write_them(tmp_path):
    found = {name: load(tmp_path, name)[0] for name in ROWS}
    assert {name: (q.id, q.subset, q.gold) for name, q in found.items()} == {
        "feedback_bench": ("feedback_bench-1", "", {"": 4.0}),
        "biggen_bench": ("plan_0/m1", "planning", {"human": 2, "gpt4": None}),
        "reward_bench": ("3", "math-prm", {"": "A"}),
        "reward_bench_2": ("Ties/tied:7", "Ties", {"": 1}),
        "preference_bench": ("preference_bench-1", "", {"": "A"}),
        "judge_bench": ("p", "knowledge", {"": "B"}),
        "rm_bench": ("safety-refuse/5", "safety", {"": 3}),
        "llmbar": ("llmbar-1", "", {"": "A"}),
        "summeval": ("s/0/coherence", "", {"coherence": 1.0}),
    }
    assert (found["rm_bench"].items["4"].response, found["reward_bench"].items["BA"].response_a) == ("d", "4")
    assert found["reward_bench_2"].group == "Ties/7", "beside ref:7"
    biggen = found["biggen_bench"].items[""]
    assert (found["biggen_bench"].group, biggen.instruction) == ("plan_0", "You plan.\n\nPlan a day.")
    assert biggen.rubric.text.startswith("[Is it a plan?]\nScore 1: level 1\n")
    summaries = load(tmp_path, "summeval")
    assert (summaries[1].gold, summaries[1].group) == ({"coherence": 3.6666667}, "s")
    assert {q.items[""].rubric.criterion for q in summaries} == set(SUMMARY_CRITERIA.values())


def test_a_pair_is_asked_alone_or_together_in_both_orders(pairs, tmp_path):
    assert [(item.id, item.response) for item in protocol.items(pairs)[:2]] == [("1#A", "3"), ("1#B", "4")]
    given, swapped, *_ = protocol.items(pairs, compare=True)
    assert (given.preference, swapped.preference, swapped.response_a) == ("A", "B", "4")
    with pytest.raises(SrlibError, match="no two responses to compare"):
        protocol.items(load(tmp_path, "feedback_bench"), compare=True)


def test_a_blank_response_is_a_failure_that_no_judge_is_asked_about(tmp_path):
    blank = load(tmp_path, "llmbar", PAIR | {"output_2": "  "}, PAIR)
    assert (blank[0].gold, blank[0].items, len(protocol.items(blank))) == ({"": "A"}, {}, 2)
    assert told(blank, tmp_path)[0] == ({"": None}, {"": "empty_response"})


def test_rows_without_a_right_answer_are_refused_before_anything_is_judged(tmp_path):
    with pytest.raises(SrlibError, match="holds no item of feedback_bench with a gold answer"):
        load(tmp_path, "feedback_bench", FEEDBACK | {"orig_score": None})
    found = load(tmp_path, "biggen_bench", ROWS["biggen_bench"] | {"gpt4_score": None})
    assert {
        row["part"]
        for row in benchmarks.score(
            named("biggen_bench"), write(tmp_path / "j.jsonl", []), data=tmp_path / "rows.jsonl"
        )
    } == {"human"}
    assert list(found[0].gold.values()).count(None) == 1


def test_a_row_that_does_not_fit_is_refused_with_its_line(tmp_path):
    cases = [
        ("llmbar", {"label": True}, "not a row of llmbar .KeyError: 'True'"),
        ("llmbar", {"output_1": 7}, "response_a"),
        ("judge_bench", {"source": "elsewhere"}, "not a row of judge_bench .KeyError: 'elsewhere'"),
        ("reward_bench_2", {"chosen": "3"}, "chosen and rejected are lists"),
        ("biggen_bench", {"score_rubric": "text"}, "not a row of biggen_bench"),
        ("biggen_bench", {"human_score": [1]}, "gold score human"),
        ("summeval", {"fluency": [1.0]}, "not a row of summeval"),
    ]
    for name, changes, words in cases:
        with pytest.raises(RowError, match=f"line 1.*{words}"):
            load(tmp_path, name, ROWS[name] | changes)


def test_a_missing_column_a_repeated_id_no_pinned_set_and_no_such_benchmark(tmp_path):
    with pytest.raises(RowError, match="column label is missing"):
        load(tmp_path, "llmbar", {k: v for k, v in PAIR.items() if k != "label"})
    with pytest.raises(RowError, match=r"line 2: id 'x' is that of .*line 1; make ids unique"):
        load(tmp_path, "llmbar", PAIR | {"id": "x#A"}, PAIR | {"id": "x"})
    with pytest.raises(RowError, match=r"line 2: id 'tied:7' is that of .*line 1"):  # not Ties/tied:7
        load(tmp_path, "reward_bench_2", *[ROWS["reward_bench_2"]] * 2)
    with pytest.raises(SrlibError, match=r"total_dataset.json\), or name a commit of THU-KEG/RM-Bench with --revision"):
        protocol.load(named("rm_bench"))
    with pytest.raises(SrlibError, match="there are feedback_bench, biggen_bench"):
        named("mt_bench")


def test_answers_name_responses_and_our_judgments_positions(pairs, tmp_path):
    lines = [("1", "AB", "A"), ("1", "BA", "A"), (2, "AB", None), ("2", "BA", "tie")]
    found = told(pairs, tmp_path, *[{"id": i, "order": order, "verdict": v} for i, order, v in lines])
    assert found == [({"AB": "A", "BA": "A"}, {}), ({"AB": None, "BA": "tie"}, {"AB": "unreadable"})]
    compared = [judgment(item.id, preference="A") for item in protocol.items(pairs, compare=True)]
    assert told(pairs, tmp_path, *compared)[0] == ({"AB": "A", "BA": "B"}, {}), "shown second, A is the response B"
    drawn = judgment("1#A", score=3, distribution={3: 0.6, 5: 0.4}), judgment("1#B", failure="cut_off")
    expected = {"A": pytest.approx(3.8), "B": None}
    assert told(pairs, tmp_path, *drawn) == [(expected, {"B": "cut_off"}), ({"": None}, {"": "missing"})]
    single = load(tmp_path, "feedback_bench")
    own = judgment("feedback_bench-1", score=3, distribution={3: 0.6, 5: 0.4})
    assert told(single, tmp_path, own) == [({"": 3.0}, {})], "a single response keeps its score as written"


def test_a_missing_order_counts_only_if_both_were_asked(pairs, tmp_path):
    both = [{"id": "1", "order": order, "verdict": "A"} for order in ("AB", "BA")]
    other = {"id": "2", "order": "AB", "verdict": "A"}
    assert told(pairs, tmp_path, both[1], other) == [({"BA": "A"}, {}), ({"AB": "A"}, {})]
    assert told(pairs, tmp_path, *both, other)[1] == ({"AB": "A", "BA": None}, {"BA": "missing"})
    assert told(pairs, tmp_path, *both)[1][1] == {"AB": "missing", "BA": "missing"}
    assert told(pairs, tmp_path, {"id": "1", "order": "A", "score": 2})[0] == ({"A": 2, "B": None}, {"B": "missing"})
    four = load(tmp_path, "reward_bench_2")
    scores = [{"id": "Ties/tied:7", "order": str(k), "score": k} for k in (1, 2, 3)]
    assert told(four, tmp_path, *scores) == [({"1": 1, "2": 2, "3": 3, "4": None}, {"4": "missing"})]
    assert told(four, tmp_path, {"id": "Ties/tied:7", "verdict": "2"}) == [({"": "2"}, {})]


def test_an_answer_that_does_not_fit_is_refused_with_its_line(pairs, tmp_path):
    cases = [
        ({"id": "9", "order": "AB", "verdict": "A"}, r"id '9' is not in the benchmark; it has \['1', '2'\]"),
        ({"id": "1", "order": "AB", "verdict": "A", "score": 1}, "does not fit"),
        ({"id": "1", "order": "AB", "verdict": "first"}, "'verdict': 'first'.* does not fit.* 'AB' A or B or tie"),
        ({"id": "1", "order": "A", "verdict": "A"}, "does not fit; this item takes, by order, 'A' a score"),
        ({"id": "1", "order": "AB", "verdict": "A", "why": "x"}, "unknown field 'why'"),
        ({"id": True, "order": "AB", "verdict": "A"}, "field id"),
    ]
    for line, words in cases:
        with pytest.raises(RowError, match=f"line 1.*{words}"):
            told(pairs, tmp_path, line)


def test_repeated_mixed_and_off_scale_answers_are_refused(pairs, tmp_path):
    answer = {"id": "1", "order": "AB", "verdict": "A"}
    with pytest.raises(RowError, match=r"line 2: id '1', order 'AB' is there twice"):
        told(pairs, tmp_path, answer, answer)
    with pytest.raises(RowError, match="id '1#A', order 'A' is there twice"):
        told(pairs, tmp_path, judgment("1#A", score=3), judgment("1#A", score=3, index=1))
    with pytest.raises(RowError, match="both scores and verdicts"):
        told(pairs, tmp_path, answer, {"id": "1", "order": "A", "score": 1})
    single = load(tmp_path, "feedback_bench", FEEDBACK | {"id": "f"})
    assert told(single, tmp_path, {"id": "f", "score": 3.4}) == [({"": 3.4}, {})], "a mean of several samples"
    with pytest.raises(RowError, match="score 7 is outside the item's scale, 1 to 5"):
        told(single, tmp_path, {"id": "f", "score": 7})


def test_every_row_has_its_protocol_and_prints_what_others_reported(tmp_path):
    rows = [PAIR | {"id": str(i), "subset": ("Natural", "[/red]")[i // 2], "label": 1 + i % 2} for i in range(4)]
    data = write(tmp_path / "rows.jsonl", rows)
    lines = [{"id": str(i), "order": order, "verdict": "A"} for i in range(4) for order in ("AB", "BA")]
    benchmark = replace(named("llmbar"), sizes={"Natural": 2})
    found = benchmarks.score(benchmark, write(tmp_path / "answers.jsonl", lines[:-1]), data=data)
    fields = "benchmark revision judge part subset metric value ci_low ci_high n parse_rate failures seed left_out"
    method = "mode reference samples aggregate temperature orders ties parse_failures interval"
    assert all({*row} == {*fields.split(), "protocol", "published"} for row in found)
    assert {*found[0]["protocol"]} == {*method.split()}
    assert "the authors' code counts two unread orders as agreement" in found[0]["protocol"]["parse_failures"]
    assert (found[0]["value"], found[0]["parse_rate"], found[0]["failures"]) == (0.5, 0.875, {"missing": 1})
    console = Console(width=200, file=io.StringIO())
    console.print(benchmarks.table(found))
    printed = console.file.getvalue()
    assert all(text in printed for text in ("orders: both", "0.955 GPT-4", "[/red]", "rows.jsonl sha256:"))


def test_figures_of_others_stand_beside_their_split_only(tmp_path):
    """JudgeBench: 350 pairs by GPT-4o, which the figures are of, and 270 by Claude."""
    for n, judges in ((350, ["o1-mini, Arena-Hard prompt", "Skywork-Reward-Llama-3.1-8B"]), (270, []), (349, [])):
        data = write(tmp_path / "rows.jsonl", [ROWS["judge_bench"] | {"pair_id": f"p{i}"} for i in range(n)])
        answers = write(tmp_path / "answers.jsonl", [{"id": "p1", "order": "AB", "verdict": "A"}])
        found = benchmarks.score(named("judge_bench"), answers, data=data)
        assert [other["judge"] for row in found if row["subset"] == "all" for other in row["published"]] == judges
    for name in (name for name in DECLARED if named(name).published):
        subsets = {key.split(maxsplit=1)[1] for key in named(name).published}
        assert named(name).sizes.keys() in ({"all"}, subsets), f"{name} says how many items its figures are of"


def test_the_authors_files_as_they_lie_in_their_repositories(tmp_path):
    llmbar, rm = tmp_path / "LLMBar", tmp_path / "data"
    for subset, n in (("Natural", 2), ("Adversarial/Manual", 1), ("Adversarial/GPTOut", 3)):
        results = llmbar / subset / "evaluators" / "GPT-4"
        results.mkdir(parents=True)
        (results / "statistics.json").write_text('{"correct_average": "95%"}')
        (llmbar / subset / "statistics.json").write_text("[1, 2]")
        (llmbar / subset / "dataset.json").write_text(json.dumps([PAIR] * n, indent=2))
    for folder, sizes in (("", {"GPTOut": 3, "Manual": 1, "Natural": 2}), ("Natural/dataset.json", {"Natural": 2})):
        questions, *_ = protocol.load(named("llmbar"), llmbar / folder)
        assert Counter(question.subset for question in questions) == sizes
        assert questions[-1].id == "Natural/2"
    (llmbar / "Natural" / "dataset.json").write_text(json.dumps([PAIR, PAIR | {"label": 3}]))
    with pytest.raises(RowError, match=r"Natural/dataset.json, row 2: not a row of llmbar .KeyError: '3'"):
        protocol.load(named("llmbar"), llmbar)
    rm.mkdir()
    for domain in ("chat", "safety-refuse", "safety-response"):
        row = ROWS["rm_bench"] | {"domain": domain}
        (rm / f"{domain}_filtered.json").write_text(json.dumps([row]))
    (rm / "chat_filtered.json").write_text(json.dumps([{k: v for k, v in row.items() if k != "domain"}]))
    (rm / "total_dataset.json").write_text(json.dumps([row, row | {"domain": "chat"}]))
    found = [(question.id, question.subset) for question in protocol.load(named("rm_bench"), rm)[0]]
    assert found == [("chat/5", "chat"), ("safety-refuse/5", "safety"), ("safety-response/5", "safety")]
    assert len(protocol.load(named("rm_bench"), rm / "total_dataset.json")[0]) == 2


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty hub cache, and a hub that refuses every connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


@pytest.mark.torch
def test_a_pinned_set_in_the_cache_needs_no_network_and_a_missing_one_is_one_message(no_network, tmp_path):
    (tmp_path / "folder").mkdir()
    answers = write(tmp_path / "answers.jsonl", [{"id": "3", "order": "AB", "verdict": "A"}])
    commands = (["score", str(answers)], ["eval", "org/judge", "-o", str(tmp_path / "out.json")])
    for command in (*commands, ["score", str(answers), "--revision", "main"]):
        result = CliRunner().invoke(app, [*command, "--bench", "reward_bench"])
        assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True)
        assert "Connection refused" in result.output
        revision = "main" if "main" in command else named("reward_bench").revision
        assert f"\n    hf download allenai/reward-bench --repo-type dataset --revision {revision}\n" in result.output
    snapshot = no_network / "datasets--allenai--reward-bench" / "snapshots" / named("reward_bench").revision
    (snapshot / "data").mkdir(parents=True)
    for split in ("raw", "filtered"):  # as the hub has them
        judged.write(snapshot / "data" / f"{split}-00000-of-00001.parquet", [ROWS["reward_bench"] | {"prompt": split}])
    paths = "".join(f"  - {{split: {split}, path: data/{split}-*}}\n" for split in ("raw", "filtered"))
    (snapshot / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{paths}---\n")
    for split in ("raw", "other"):
        judged.write(tmp_path / "folder" / f"{split}.parquet", [ROWS["reward_bench"]])
    with pytest.raises(
        RowError, match=r"gold answer; of other.parquet, raw.parquet only filtered would be read: name its file"
    ):
        protocol.load(named("reward_bench"), tmp_path / "folder")
    questions, origin, _ = protocol.load(named("reward_bench"))
    assert [question.group for question in questions] == ["filtered"]
    assert origin == f"allenai/reward-bench@{snapshot.name}"


def test_scored_twice_into_a_file_beside_gives_the_same_table(tmp_path):
    """Results that lie where `evaluate` keeps its note would be read as one."""
    data = write(tmp_path / "llmbar.jsonl", [PAIR | {"id": "1"}])
    for name in ("X", "X.judgments"):
        judgments = write(tmp_path / f"{name}.jsonl", [{"id": "1", "order": "AB", "verdict": "A"}])
        note = {"judge": "runs/tiny/judge", "revision": "", "compare": False, "sampling": run.GREEDY, "prompts": ""}
        (tmp_path / f"{name}.note.json").write_text(json.dumps(note))
        command = [
            "score",
            str(judgments),
            "--bench",
            "llmbar",
            "--data",
            str(data),
            "-o",
            str(tmp_path / f"{name}.json"),
        ]
        first, second = (CliRunner().invoke(app, command) for _ in range(2))
        assert (first.exit_code, first.output) == (second.exit_code, second.output)
        assert first.exit_code == 0
        assert ("runs/tiny/judge" in first.output) == (name == "X.judgments")


@pytest.mark.torch
def test_judged_resumed_and_scored_again(base_dir, one_thread, tmp_path):
    """`score` computes the rows of `evaluate` from the kept judgments; those of another judge are not touched."""
    rows = [{"id": f"p{i}", "prompt": "Invite.", "chosen": "Dear Ann.", "rejected": f"No {i}"} for i in range(3)]
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.json"
    kept, benchmark = tmp_path / "out.judgments.jsonl", named("reward_bench")
    found = benchmarks.evaluate(base_dir, benchmark, out, data=data)
    assert json.loads(out.read_text()) == found == benchmarks.score(benchmark, kept, data=data)
    whole = kept.read_text()
    assert (found[-1]["n"], len(whole.splitlines())) == (3, 6)
    kept.write_text("".join(whole.splitlines(keepends=True)[:2]))
    spelled = os.path.relpath(base_dir)  # the same judge
    assert (benchmarks.evaluate(spelled, benchmark, out, data=data), kept.read_text()) == (found, whole)
    other = replace(benchmark, criterion="Is it short?")
    for asked, how in ((benchmark, {"compare": True}), (other, {})):
        with pytest.raises(SrlibError, match="of another judge, or of other rows or prompts"):
            benchmarks.evaluate(base_dir, asked, out, data=data, **how)
    assert kept.read_text() == whole
    for bad, words in ((data, "is an input"), (kept, "was not made"), (kept.with_suffix(".note.json"), "was not made")):
        with pytest.raises(SrlibError, match=words):
            benchmarks.evaluate(base_dir, benchmark, bad, data=data)
    theirs = write(tmp_path / "x.judgments.jsonl", [json.loads(line) for line in whole.splitlines()])
    for _ in range(2):  # beside judgments of another program, results may have the name of a note
        again = benchmarks.score(benchmark, theirs, data=data, out=tmp_path / "x.judgments.json")
        assert [row["value"] for row in again] == [row["value"] for row in found]


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data is not here")
def test_real_sets():
    counts = {}
    for name in (name for name in DECLARED if (REAL / f"{name}.jsonl.gz").exists()):
        questions, _, left_out = protocol.load(named(name), REAL / f"{name}.jsonl.gz")
        blank, subsets = sum(not q.items for q in questions), {q.subset for q in questions}
        counts[name] = (len(questions), len(subsets), blank, sum(left_out.values()))
    assert counts == {
        "hhh_alignment": (221, 4, 0, 0),
        "pandalm_human": (999, 1, 54, 0),
        "evalbiasbench": (80, 6, 0, 0),
        "llmbar_processed_and_casestudy": (781, 8, 1, 0),
        "prometheus_mt_bench": (320, 8, 0, 0),
        "saf_v2_en": (854, 2, 0, 2127),
    }
