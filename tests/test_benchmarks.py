"""Rows of benchmarks as their authors write them -> questions; answers of any judge -> result rows."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from srlib import benchmarks
from srlib.benchmarks import named, protocol, run
from srlib.benchmarks.suite import DECLARED, SUMMARY_CRITERIA
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
    with pytest.raises(RowError, match="line 2: id 'x#A' is there twice"):
        load(tmp_path, "llmbar", PAIR | {"id": "x#A"}, PAIR | {"id": "x"})
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
        ({"id": "9", "order": "AB", "verdict": "A"}, "id '9' is not in the benchmark"),
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
    with pytest.raises(RowError, match="'1', order 'A' is there twice"):
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
    found = benchmarks.score(named("llmbar"), write(tmp_path / "answers.jsonl", lines[:-1]), data=data)
    fields = "benchmark revision judge part subset metric value ci_low ci_high n parse_rate failures seed left_out"
    method = "mode reference samples aggregate temperature orders ties parse_failures interval"
    assert all({*row} == {*fields.split(), "protocol", "published"} for row in found)
    assert {*found[0]["protocol"]} == {*method.split()}
    assert (found[0]["value"], found[0]["parse_rate"], found[0]["failures"]) == (0.5, 0.875, {"missing": 1})
    console = Console(width=200, file=io.StringIO())
    console.print(benchmarks.table(found))
    printed = console.file.getvalue()
    assert all(text in printed for text in ("orders: both", "0.955 GPT-4", "[/red]", "rows.jsonl sha256:"))


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
    assert (benchmarks.evaluate(base_dir, benchmark, out, data=data), kept.read_text()) == (found, whole)
    with pytest.raises(SrlibError, match="of another judge or of other rows"):
        benchmarks.evaluate(base_dir, benchmark, out, data=data, compare=True)
    assert kept.read_text() == whole


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
