"""The fifteen benchmarks, declared in suite.yaml; here are the few whose rows need more than other names for columns.

To add one, write an entry in suite.yaml, and, if one row is not one item, or its id and subset must be computed, an
entry in EXPAND.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from srlib.benchmarks import rules
from srlib.benchmarks.protocol import Benchmark
from srlib.schema import SrlibError

Fields = dict[str, Any]
DECLARED: dict[str, Fields] = yaml.safe_load(Path(__file__).with_name("suite.yaml").read_text())["benchmarks"]
RULES = {
    "by_item": rules.by_item,
    "by_score": rules.by_score,
    "by_score_and_document": lambda rows, names: rules.by_score(rows, names) + rules.by_document(rows),
    "by_style": partial(rules.by_item, names={style: style for style in rules.STYLES}, values_of=rules.style_metrics),
    "reward_bench_2": rules.reward_bench_2,
}
JUDGE_BENCH_SUBSETS = {"mmlu-pro": "knowledge", "livebench-reasoning": "reasoning"}
JUDGE_BENCH_SUBSETS |= {"livebench-math": "math", "livecodebench": "coding"}
SUMMARY_CRITERIA = {
    "coherence": "Do the sentences of the summary hang together, so that they build one well-ordered whole?",
    "consistency": "Is everything that the summary says supported by the text that it summarizes?",
    "fluency": "Are the single sentences of the summary well formed and easy to read?",
    "relevance": "Does the summary hold what is important in the text, and nothing else?",
}


def named(name: str) -> Benchmark:
    """A benchmark: `named("llmbar").criterion -> "Does the response do what ..."`. Raises SrlibError for a wrong name."""
    if name not in DECLARED:
        raise SrlibError(f"there is no benchmark {name!r}; there are {', '.join(DECLARED)}")
    fields = {"rule": "by_item", "options": {}, "expand": EXPAND.get(name, lambda row: [row])} | DECLARED[name]
    fields["rule"] = partial(RULES[fields["rule"]], **fields.pop("options"))
    return Benchmark(name, **fields)


def _biggen(row: Fields) -> list[Fields]:
    rubric, prompts = row["rubric"], [row.get("system_prompt"), row["instruction"]]
    levels = [f"Score {n}: {rubric[f'score{n}_description']}" for n in range(1, 6)]
    text = {
        "instruction": "\n\n".join(filter(None, prompts)),
        "rubric": "\n".join([f"[{rubric['criteria']}]", *levels]),
    }
    return [row | text | {"id": f"{row['id']}/{row['model_name']}", "group": row["id"]}]


def _reward_bench_2(row: Fields) -> list[Fields]:
    """In the subset Ties, "ref:7" (one right answer) and "tied:7" (several) are a group."""
    name = str(row["id"])
    return [row | {"id": f"{row['subset']}/{name}", "group": f"{row['subset']}/{name.split(':')[-1]}"}]


def _judge_bench(row: Fields) -> list[Fields]:
    subsets = [subset for source, subset in JUDGE_BENCH_SUBSETS.items() if row["subset"].startswith(source)]
    if not subsets:
        raise ValueError(f"source {row['subset'][:60]!r} is none of {', '.join(JUDGE_BENCH_SUBSETS)}")
    return [row | {"subset": subsets[0]}]


def _saf(row: Fields) -> list[Fields]:
    subset = row["split_hint"].removeprefix("bench_").replace("_", " ")
    return [row | {"subset": subset}] if row["split_hint"].startswith("bench_") else []  # the others are for training


def _summeval(row: Fields) -> Iterable[Fields]:
    """Sixteen summaries of one text, each scored in four dimensions, are 64 items."""
    instruction = f"Summarize this text.\n\n{row['instruction']}"
    for dimension, criterion in SUMMARY_CRITERIA.items():
        for k, (summary, score) in enumerate(zip(row["response"], row[dimension], strict=True)):
            item = {"id": f"{row['id']}/{k}/{dimension}", "group": row["id"], "instruction": instruction}
            yield item | {"response": summary, "criterion": criterion, dimension: score}


EXPAND = {
    "biggen_bench": _biggen,
    "reward_bench": lambda row: [row | {"preference": "A"}],
    "reward_bench_2": _reward_bench_2,
    "judge_bench": _judge_bench,
    "rm_bench": lambda row: [row | {"id": f"{row['subset']}/{row['id']}", "subset": row["subset"].split("-")[0]}],
    "hhh_alignment": lambda row: [row | {"subset": row["meta"]["subset"]}],
    "evalbiasbench": lambda row: [row | {"subset": row["meta"]["bias"]}],
    "llmbar_processed_and_casestudy": lambda row: [row | {"subset": row["meta"]["subset"]}],
    "prometheus_mt_bench": lambda row: [row | {"subset": row["meta"]["category"]}],
    "saf_v2_en": _saf,
    "summeval": _summeval,
}
