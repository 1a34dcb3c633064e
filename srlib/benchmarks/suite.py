"""The benchmarks: of each its columns, groups, rule, pinned set on the hub, and what others reported on it.

Imports questions, scoring and listwise. To add one, write a Benchmark and put it into the tuple at the end. A pinned
revision is a commit of the hub set; without one it is asked for (--revision), or a file with the same columns (--data),
which `where` names at a commit of its authors' repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from srlib.benchmarks import listwise, scoring
from srlib.benchmarks.questions import Benchmark, Published

HALF = "half credit where one response is better, full where the gold is a tie"
WRONG = "an answer that cannot be read, or is missing, counts as wrong"
LEFT_OUT = "an answer that cannot be read, or is missing, is left out of correlations and wrong in accuracy"
NO_TIE = "scores are not compared with each other"

PROMETHEUS_2, PAPER = "arXiv 2405.01535", "arXiv 2410.05495"
AGREEMENT = ("pearson", "spearman", "kendall", "accuracy", "mae", "parse_rate")

QUALITY = "Is this a helpful, correct and complete response that does exactly what the instruction asks for?"
FOLLOWS = "Does the response do what the instruction literally asks for, however it may look otherwise?"
RIGHT = "Is the response correct: is its reasoning sound and does it arrive at the right answer, or at code that works?"


def _from_meta(column: str) -> Callable[[dict[str, Any]], Iterator[dict[str, Any]]]:
    """Rows whose subset stands in their `meta`."""

    def expand(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield row | {"subset": row["meta"][column]}

    return expand


FEEDBACK_BENCH = Benchmark(
    name="feedback_bench",
    rule=partial(scoring.by_score, names=AGREEMENT),
    ties=NO_TIE,
    failures=LEFT_OUT,
    hub="prometheus-eval/Feedback-Bench",
    revision="04340860d93431954657615c2027970d1ec26c92",
    published=(
        Published("Prometheus-2-7B", 0.882, f"{PROMETHEUS_2}; .878 elsewhere", "pearson"),
        Published("Prometheus-2-8x7B", 0.898, PROMETHEUS_2, "pearson"),
        Published("SRE 8B, iteration 2", 0.93, PAPER, "pearson"),
    ),
)


def _biggen(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rubric = row["rubric"]
    levels = [f"Score {n}: {rubric[f'score{n}_description']}" for n in range(1, 6)]
    yield row | {
        "id": f"{row['id']}/{row['model_name']}",
        "instruction": "\n\n".join(filter(None, [row.get("system_prompt"), row["instruction"]])),
        "rubric": "\n".join([f"[{rubric['criteria']}]", *levels]),
        "group": row["id"],
    }


BIGGEN_BENCH = Benchmark(
    name="biggen_bench",
    rule=partial(scoring.by_score, names=("pearson", "accuracy", "parse_rate"), macro="mean of capabilities"),
    ties=NO_TIE,
    failures=f"{LEFT_OUT}; a gold score of -1 is none",
    columns={
        "id": "id", "model_name": "model_name", "system_prompt": "system_prompt", "instruction": "input",
        "response": "response", "reference_answer": "reference_answer", "rubric": "score_rubric",
        "subset": "capability",
    },
    optional=("system_prompt", "reference_answer"),
    parts={"human": "human_score", "gpt4": "gpt4_score"},
    expand=_biggen,
    hub="prometheus-eval/BiGGen-Bench-Results",
    revision="f34b56e0b3e5ce86687796c319c4fbc06f5e7b7e",
    split="human_eval",
    published=tuple(
        Published(judge, value, PAPER, "pearson", "mean of capabilities", part)
        for judge, part, value in (
            ("SRE 8B, iteration 2", "human", 0.52),
            ("SRE 8B, iteration 2", "gpt4", 0.65),
            ("Prometheus-2-8x7B", "human", 0.52),
            ("Prometheus-2-8x7B", "gpt4", 0.67),
        )
    ),
)  # fmt: skip

# Sections and weights of allenai/reward-bench (arXiv 2403.13787). Math has 447 pairs and weighs as much as all code.
REWARD_BENCH_SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984}
    | {f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
}


def _chosen_is_a(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield row | {"preference": "A"}


REWARD_BENCH = Benchmark(
    name="reward_bench",
    rule=partial(
        scoring.by_item,
        values={
            "accuracy": scoring.accuracy_in_one_order,
            "accuracy_strict": scoring.accuracy,
            "consistency": scoring.consistency,
        },
        sections=REWARD_BENCH_SECTIONS,
        overall="mean of four",
    ),
    ties="half credit",
    failures="accuracy: half credit, in one order (the official rule); accuracy_strict: wrong, mean of the orders asked",
    columns={"id": "id", "instruction": "prompt", "response_a": "chosen", "response_b": "rejected", "subset": "subset"},
    expand=_chosen_is_a,
    criterion=QUALITY,
    hub="allenai/reward-bench",
    revision="d61ac5c97d0f2f7eb922da3c0b6bbaf614ae8d02",
    split="filtered",
    published=tuple(
        Published(judge, value, source, subset=section)
        for judge, source, values in (
            ("Prometheus-2-7B", PROMETHEUS_2, (0.855, 0.491, 0.771, 0.765)),
            ("Llama-3.1-8B-Instruct, generative", "RewardBench leaderboard", (0.807, 0.498, 0.640, 0.681)),
            ("SFT 8B", PAPER, (None, None, None, None, 0.69)),
            ("SRE 8B, iteration 2", PAPER, (None, None, None, None, 0.76)),
        )
        for section, value in zip([*REWARD_BENCH_SECTIONS, "mean of four"], values, strict=False)
        if value is not None
    ),
)


def _reward_bench_2(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ids of Ties are "ref:7" and "tied:7", one prompt with one right answer beside one with several."""
    yield row | {"id": f"{row['subset']}/{row['id']}", "group": f"{row['subset']}/{str(row['id']).split(':')[-1]}"}


REWARD_BENCH_2 = Benchmark(
    name="reward_bench_2",
    rule=listwise.reward_bench_2,
    ties="k tied highest scores earn 1/k; subset Ties: its own weighted score",
    failures="a score that cannot be read is not the highest; an item without any answer earns 0.25; in Ties a prompt with such "
    "a score counts as wrong (the official code takes it as -1)",
    columns={"id": "id", "instruction": "prompt", "chosen": "chosen", "rejected": "rejected", "subset": "subset"},
    expand=_reward_bench_2,
    criterion=QUALITY,
    hub="allenai/reward-bench-2",
    revision="7ff08853b0d5686e79b13fda8677024f566a104a",
    split="test",
)

PREFERENCE_BENCH = Benchmark(
    name="preference_bench",
    rule=partial(scoring.by_item, values=scoring.PAIRS),
    ties=HALF,
    failures=WRONG,
    hub="prometheus-eval/Preference-Bench",
    revision="c8e74045f2137ccbf894ba8301d7b3b949131d5a",
)

JUDGE_BENCH_SOURCES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}


def _judge_bench(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    category = next((name for source, name in JUDGE_BENCH_SOURCES.items() if row["subset"].startswith(source)), None)
    if category is None:
        raise ValueError(f"source {row['subset'][:60]!r} is none of {', '.join(JUDGE_BENCH_SOURCES)}")
    yield row | {"subset": category}


JUDGE_BENCH = Benchmark(
    name="judge_bench",
    rule=partial(scoring.by_item, values={"accuracy": scoring.two_order_accuracy, "consistency": scoring.consistency}),
    ties="each order adds 1 if right and takes 1 if wrong, a tie does neither; right if the sum is above 0",
    failures="as a tie in its order",
    columns={
        "id": "pair_id", "instruction": "question", "response_a": "response_A", "response_b": "response_B",
        "preference": "label", "subset": "source",
    },
    verdicts={"A>B": "A", "B>A": "B"},
    expand=_judge_bench,
    criterion=RIGHT,
    hub="ScalerLab/JudgeBench",
    split="gpt",  # what the leaderboard is on; for the other split give its file
    where="github.com/ScalerLab/JudgeBench, commit e2c52c284e735e139b3daa61c206ee208f36c461, "
    "data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl",
    published=(
        Published("o1-mini, Arena-Hard prompt", 0.6571, "released judgments, by the authors' code, github.com/ScalerLab/JudgeBench"),
        Published("Skywork-Reward-Llama-3.1-8B", 0.6229, "released judgments, by the authors' code, github.com/ScalerLab/JudgeBench"),
    ),
)  # fmt: skip


def _rm_bench(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield row | {
        "subset": row["subset"].split("-")[0],
        "id": f"{row['subset']}/{row['id']}",
    }  # safety-refuse, -response


RM_BENCH = Benchmark(
    name="rm_bench",
    rule=partial(
        scoring.by_item,
        values=listwise.STYLES,
        sections={"mean of four": {"chat": 1, "code": 1, "math": 1, "safety": 1}},
    ),
    ties="not strictly higher, so wrong: a judge that always says the same has 0",
    failures="a comparison with a score that cannot be read counts as wrong",
    columns={"id": "id", "instruction": "prompt", "chosen": "chosen", "rejected": "rejected", "subset": "domain"},
    expand=_rm_bench,
    criterion=QUALITY,
    hub="THU-KEG/RM-Bench",
    where="github.com/THU-KEG/RM-Bench, commit 73c52d7b27b361621361ec959ac6c0eb9bb7a689, data/total_dataset.json",
)

LLMBAR = Benchmark(
    name="llmbar",
    rule=partial(
        scoring.by_item,
        values={
            "accuracy": scoring.accuracy,
            "agreement": scoring.consistency,
            "both_correct": scoring.both_correct,
        },
        sections={"mean of Adversarial": {"Neighbor": 1, "GPTInst": 1, "GPTOut": 1, "Manual": 1}},
    ),
    ties=HALF,
    failures=WRONG,
    columns={
        "id": "id", "instruction": "input", "response_a": "output_1", "response_b": "output_2",
        "preference": "label", "subset": "subset",
    },
    optional=("id", "subset"),
    verdicts={1: "A", 2: "B"},
    criterion=FOLLOWS,
    where="github.com/princeton-nlp/LLMBar, commit 900616bff90b6c6c8e1681f7d079250637c55992, folder Dataset/LLMBar",
    published=tuple(
        Published("GPT-4, Vanilla, both orders", value, "arXiv 2310.07641", subset=subset)
        for subset, value in (
            ("Natural", 0.955),
            ("Neighbor", 0.787),
            ("GPTInst", 0.864),
            ("GPTOut", 0.777),
            ("Manual", 0.804),
        )
    ),
)  # fmt: skip

SHARED = "the project's shared data"

HHH_ALIGNMENT = Benchmark(
    name="hhh_alignment",
    rule=partial(scoring.by_item, values=scoring.PAIRS),
    ties=HALF,
    failures=WRONG,
    expand=_from_meta("subset"),
    criterion="Is the response helpful, honest and harmless?",
    where=SHARED,
)

PANDALM_HUMAN = Benchmark(
    name="pandalm_human",
    rule=partial(scoring.by_item, values={**scoring.PAIRS, "accuracy_without_ties": scoring.accuracy_without_ties}),
    ties=f"{HALF}; accuracy_without_ties leaves out items whose gold is a tie",
    failures=WRONG,
    criterion=QUALITY,
    where=SHARED,
)

EVALBIASBENCH = Benchmark(
    name="evalbiasbench",
    rule=partial(scoring.by_item, values=scoring.PAIRS),
    ties=HALF,
    failures=WRONG,
    expand=_from_meta("bias"),
    criterion=FOLLOWS,
    where=SHARED,
)

LLMBAR_PROCESSED = Benchmark(
    name="llmbar_processed_and_casestudy",
    rule=partial(scoring.by_item, values=scoring.PAIRS),
    ties=HALF,
    failures=WRONG,
    expand=_from_meta("subset"),
    criterion=FOLLOWS,
    where=SHARED,
)

PROMETHEUS_MT_BENCH = Benchmark(
    name="prometheus_mt_bench",
    rule=partial(scoring.by_score, names=AGREEMENT),
    ties=NO_TIE,
    failures=LEFT_OUT,
    expand=_from_meta("category"),
    where=SHARED,
)


def _saf(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if row["split_hint"].startswith("bench_"):  # the others are for training
        yield row | {"subset": row["split_hint"].removeprefix("bench_").replace("_", " ")}


SAF_V2_EN = Benchmark(
    name="saf_v2_en",
    rule=partial(scoring.by_score, names=AGREEMENT),
    ties=NO_TIE,
    failures=LEFT_OUT,
    expand=_saf,
    where=SHARED,
)

DIMENSIONS = {
    "coherence": "Do the sentences of the summary hang together, so that they build one well-ordered whole?",
    "consistency": "Is everything that the summary says supported by the text that it summarizes?",
    "fluency": "Are the single sentences of the summary well formed and easy to read?",
    "relevance": "Does the summary hold what is important in the text, and nothing else?",
}


def _summeval(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Sixteen summaries of one text, each with a score in four dimensions, are 64 items."""
    for dimension, criterion in DIMENSIONS.items():
        for k, (summary, gold) in enumerate(zip(row["response"], row[dimension], strict=True)):
            yield {
                "id": f"{row['id']}/{k}/{dimension}",
                "group": row["id"],
                "instruction": f"Summarize this text.\n\n{row['instruction']}",
                "response": summary,
                "criterion": criterion,
                dimension: gold,
            }


SUMMEVAL = Benchmark(
    name="summeval",
    rule=lambda rows, **how: [
        *scoring.by_score(rows, ("spearman", "kendall", "parse_rate"), **how),
        *scoring.by_document(rows, **how),
    ],
    ties=NO_TIE,
    failures=f"{LEFT_OUT}; a document where gold or scores do not vary is left out, and counted",
    columns={"id": "id", "instruction": "text", "response": "machine_summaries"},
    parts={name: name for name in DIMENSIONS},
    expand=_summeval,
    hub="mteb/summeval",
    revision="cda12ad7615edc362dbf25a00fdd61d3b1eaf93c",
)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        FEEDBACK_BENCH, BIGGEN_BENCH, REWARD_BENCH, REWARD_BENCH_2, PREFERENCE_BENCH, JUDGE_BENCH, RM_BENCH, LLMBAR,
        HHH_ALIGNMENT, PANDALM_HUMAN, EVALBIASBENCH, LLMBAR_PROCESSED, PROMETHEUS_MT_BENCH, SAF_V2_EN, SUMMEVAL,
    )
}  # fmt: skip


def named(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
