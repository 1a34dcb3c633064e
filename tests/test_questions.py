"""Rows of benchmarks as their authors write them -> items: ids, gold, groups, and what is refused."""

import gzip
import json
import os
from pathlib import Path

import pytest
from test_answers import FEEDBACK, PAIR, RB2, write

from srlib.benchmarks.questions import EMPTY
from srlib.benchmarks import questions, suite
from srlib.files import RowError
from srlib.schema import Comparison

REAL = Path(os.environ.get("SRLIB_DATA") or Path(__file__).parents[2] / "shared" / "data")
LEVELS = {f"score{n}_description": f"level {n}" for n in range(1, 6)}
BIGGEN = {
    "id": "plan_0", "capability": "planning", "system_prompt": "You plan.", "input": "Plan a day.", "response": "Sleep.",
    "reference_answer": "Work.", "score_rubric": {"criteria": "Is it a plan?", **LEVELS}, "model_name": "m1",
    "human_score": 2, "gpt4_score": -1,
}  # fmt: skip
ROWS = {
    "feedback_bench": FEEDBACK,
    "biggen_bench": BIGGEN,
    "reward_bench": {"id": 3, "prompt": "Name a prime.", "chosen": "3", "rejected": "4", "subset": "math-prm"},
    "reward_bench_2": RB2,
    "preference_bench": {
        "orig_instruction": "Greet.", "orig_response_A": "Hi.", "orig_response_B": "Go.", "orig_preference": "A",
        "orig_criteria": "Polite?", "orig_reference_answer": "", "orig_score_A": "4", "orig_score_B": "1",
    },
    "judge_bench": {
        "pair_id": "p", "source": "mmlu-pro-law", "question": "Is it legal?", "response_A": "Yes", "response_B": "No", "label": "B>A",
    },
    "rm_bench": {"id": 5, "prompt": "Hi", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "safety-refuse"},
    "llmbar": PAIR,
    "summeval": {
        "id": "s", "text": "A long text.", "machine_summaries": ["Short.", "Shorter."], "human_summaries": ["x"],
        **{name: [1.0, 3.6666667] for name in suite.DIMENSIONS},
    },
}  # fmt: skip


def load(tmp_path, name, *rows):
    return questions.load(suite.BENCHMARKS[name], write(tmp_path / "rows.jsonl", rows or [ROWS[name]])).questions


@pytest.mark.parametrize("name", ROWS)
def test_rows_in_the_columns_of_the_hub(tmp_path, name):
    items = load(tmp_path, name)
    assert len(items) == {"summeval": 8}.get(name, 1)
    for item in items:
        assert item.gold
        assert item.group
        assert all("[RESULT]" not in asked.rubric.text for asked in item.asked.values())


def test_gold_and_subset_are_read_as_the_authors_write_them(tmp_path):
    found = {name: load(tmp_path, name)[0] for name in ROWS}
    assert {
        name: (q.id, q.subset, q.gold) for name, q in found.items() if name not in ("summeval", "biggen_bench")
    } == {
        "feedback_bench": ("feedback_bench-1", "", {"": 4.0}),
        "reward_bench": ("3", "math-prm", {"": "A"}),
        "reward_bench_2": ("Math/7", "Math", {"": 1}),
        "preference_bench": ("preference_bench-1", "", {"": "A"}),
        "judge_bench": ("p", "knowledge", {"": "B"}),
        "rm_bench": ("safety-refuse/5", "safety", {"": 3}),
        "llmbar": ("llmbar-1", "", {"": "A"}),
    }
    assert found["rm_bench"].responses == ("1", "2", "3", "4", "5", "6")
    assert found["rm_bench"].asked["4"].response == "d"
    assert found["reward_bench"].asked["BA"].response_a == "4", "the rejected one first"


def test_biggen_has_two_gold_scores_and_minus_one_is_none(tmp_path):
    source = questions.load(suite.BIGGEN_BENCH, write(tmp_path / "rows.jsonl", [BIGGEN]))
    assert source.left_out == {"without a gold score gpt4": 1}
    [item] = source.questions
    assert (item.id, item.group, item.subset, item.gold) == ("plan_0/m1", "plan_0", "planning", {"human": 2})
    asked = item.asked[""]
    assert asked.instruction == "You plan.\n\nPlan a day."
    assert asked.rubric.text == "[Is it a plan?]\n" + "\n".join(f"Score {n}: level {n}" for n in range(1, 6))


def test_summeval_is_an_item_for_each_summary_and_dimension(tmp_path):
    items = load(tmp_path, "summeval")
    assert [q.id for q in items[:3]] == ["s/0/coherence", "s/1/coherence", "s/0/consistency"]
    assert (items[1].gold, items[1].group) == ({"coherence": 3.6666667}, "s")
    assert len({q.asked[""].rubric.criterion for q in items}) == 4


def test_a_pair_can_be_asked_alone_or_together_in_both_orders(tmp_path):
    source = questions.load(suite.LLMBAR, write(tmp_path / "rows.jsonl", [PAIR]))
    assert [(e.id, e.response) for e in questions.ask(source)] == [("llmbar-1#A", "3"), ("llmbar-1#B", "4")]
    given, swapped = questions.ask(source, compare=True)
    assert (given.preference, swapped.preference, swapped.response_a) == ("A", "B", "4")
    alone = questions.load(suite.FEEDBACK_BENCH, write(tmp_path / "rows.jsonl", [FEEDBACK]))
    with pytest.raises(RowError, match="no two responses to compare"):
        questions.ask(alone, compare=True)


def test_an_empty_response_is_an_item_that_nobody_is_asked(tmp_path):
    items = load(tmp_path, "llmbar", PAIR | {"output_2": "  "}, PAIR)
    assert (items[0].gold, items[0].asked, items[0].responses) == ({"": "A"}, {}, ("A", "B"))
    assert not any(EMPTY in asked.model_dump_json() for q in items for asked in q.asked.values())
    [item] = load(tmp_path, "reward_bench_2", RB2 | {"rejected": ["4", None, " "]})
    assert (item.gold, item.asked, len(item.responses)) == ({"": 1}, {}, 4)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llmbar", {"label": "1"}, "line 1: verdict '1' is not one of 1, 2"),
        ("llmbar", {"output_1": 7}, "response_a"),
        ("judge_bench", {"source": "elsewhere"}, "no row of judge_bench"),
        ("reward_bench_2", {"chosen": "3"}, "chosen and rejected are lists"),
        ("biggen_bench", {"score_rubric": "text"}, "no row of biggen_bench"),
        ("biggen_bench", {"human_score": [1]}, "gold score human"),
        ("summeval", {"fluency": [1.0]}, "no row of summeval"),
        ("feedback_bench", {"orig_score": "9"}, "orig_score"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_line(tmp_path, name, changes, words):
    with pytest.raises(RowError, match=words) as error:
        load(tmp_path, name, ROWS[name] | changes)
    assert "line 1" in str(error.value)


def test_a_missing_column_an_id_twice_and_no_rows(tmp_path):
    with pytest.raises(RowError, match="column label is missing"):
        load(tmp_path, "llmbar", {k: v for k, v in PAIR.items() if k != "label"})
    with pytest.raises(RowError, match="id '3' is there twice"):
        load(tmp_path, "reward_bench", ROWS["reward_bench"], ROWS["reward_bench"])
    with pytest.raises(RowError, match="holds no item"):
        questions.load(suite.LLMBAR, write(tmp_path / "rows.jsonl", []))


def test_a_set_that_is_not_pinned_asks_for_a_commit_or_a_file():
    with pytest.raises(
        RowError, match=r"commit 73c52d7b\w+, data/total_dataset.json\), or name a commit of THU-KEG/RM-Bench with"
    ):
        questions.load(suite.RM_BENCH)
    with pytest.raises(RowError, match="they are at github"):
        questions.load(suite.LLMBAR)


def test_every_benchmark_says_what_it_does():
    assert len(suite.BENCHMARKS) == 15
    for name, benchmark in suite.BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.ties
        assert benchmark.failures
        assert len(benchmark.revision) in (0, 40)
        assert benchmark.revision or benchmark.where, f"{benchmark.name}: where are its rows?"
    with pytest.raises(ValueError, match="there are feedback_bench, biggen_bench"):
        suite.named("mt_bench")


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize(
    ("name", "n", "subsets", "unasked"),
    [
        ("hhh_alignment", 221, 4, 0), ("pandalm_human", 999, 1, 54), ("evalbiasbench", 80, 6, 0),
        ("llmbar_processed_and_casestudy", 781, 8, 1), ("prometheus_mt_bench", 320, 8, 0), ("saf_v2_en", 854, 2, 0),
    ],
)  # fmt: skip
def test_the_shared_sets(name, n, subsets, unasked):
    source = questions.load(suite.BENCHMARKS[name], REAL / f"{name}.jsonl.gz")
    assert (len(source.questions), len({q.subset for q in source.questions})) == (n, subsets)
    assert sum(not q.asked for q in source.questions) <= unasked
    pairs = [q for q in source.questions if "AB" in q.asked]
    assert all(isinstance(q.asked["AB"], Comparison) and set(q.gold.values()) <= {"A", "B", "tie"} for q in pairs)
    assert source.left_out == ({"of another split": 2127} if name == "saf_v2_en" else {})
    with gzip.open(REAL / f"{name}.jsonl.gz") as file:
        assert json.loads(file.readline())["id"] == source.questions[0].id or name == "saf_v2_en"
