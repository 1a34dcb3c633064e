"""The fifteen benchmarks, declared in suite.yaml. To add one, write an entry there; only if one row is several items, or an
id is more than a text composed of columns, also write an entry in EXPAND."""

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
SUMMARY_CRITERIA = DECLARED["summeval"].pop("criteria")
RULES = {
    "by_item": rules.by_item,
    "by_score": rules.by_score,
    "by_score_and_document": lambda rows, names: rules.by_score(rows, names) + rules.by_document(rows),
    "by_style": partial(rules.by_item, names={style: style for style in rules.STYLES}, values_of=rules.style_metrics),
    "reward_bench_2": rules.reward_bench_2,
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


def _summeval(row: Fields) -> Iterable[Fields]:
    """Sixteen summaries of one text, each scored in four dimensions, are 64 items."""
    shared = {"group": row["id"], "instruction": f"Summarize this text.\n\n{row['instruction']}"}
    for dimension, criterion in SUMMARY_CRITERIA.items():
        for k, (summary, score) in enumerate(zip(row["response"], row[dimension], strict=True)):
            item = {"id": f"{row['id']}/{k}/{dimension}", "response": summary, dimension: score}
            yield shared | {"criterion": criterion} | item


EXPAND = {"biggen_bench": _biggen, "reward_bench_2": _reward_bench_2, "summeval": _summeval}
