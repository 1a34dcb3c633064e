"""What reading each prompt once is worth in DPO: seconds a pair and peak memory, beside the standard trainer.

    srlib bench --sharing                                  # the tiny model, prompt 175 + judgment 59 tokens
    srlib bench --sharing --shape 25m --random-weights --prompt-tokens 1000 --completion-tokens 200
    srlib bench --sharing --shape llama-3.1-8b --random-weights --prompt-tokens 1000 --completion-tokens 200   # on a GPU

For k = 1, 3 and 5 pairs a prompt, each trainer in a process of its own and in turn. The ideal counts tokens: k pairs read
2k (P + R) of them apart and P + 2kR together. Apart also projects every prompt onto the vocabulary, and its larger steps
leave a processor's cache, so a measurement can be better than its ideal: `--rows` sets how many pairs go through at once.
By default these are the pairs of two prompts, or of one where two have more than AT_ONCE tokens apart.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import bench, workload
from bench.workload import Work
from srlib import files as store
from srlib import segments
from srlib.hardware import machine, shapes
from srlib.report import plots

KS = (1, 3, 5)
AT_ONCE = 24_000  # tokens that the standard trainer reads at once: 15 GiB at 28 M parameters in bf16
WAYS: dict[str, dict[str, Any]] = {
    "apart": {"share_prompts": False},
    "shared": {"share_prompts": True},
    "apart, checkpointing": {"share_prompts": False, "gradient_checkpointing": True},
    "shared, checkpointing": {"share_prompts": True, "gradient_checkpointing": True},
}


def sharing(
    shape: str,
    out: Path,
    root: Path,
    random_weights: bool = False,
    rounds: int = 3,
    prompt_tokens: int = 175,
    completion_tokens: int = 59,
    rows: int = 0,
) -> str:
    """Measure, write <out>/sharing-<cpu or gpu>-<shape>-<P>-<R>.json and .md after every k, draw all of them into
    sharing.png, and return the table.

    `rows` is how many pairs go through the model at once (0: those of two prompts, or of one). Raises bench.BenchError as
    bench.bench.
    """
    facts = machine.facts()
    model_shape = bench.checked_shape(shape, random_weights, facts["gpu"])
    command = f"srlib bench --sharing --shape {shape}{' --random-weights' * random_weights} --rounds {rounds}"
    command += f" --prompt-tokens {prompt_tokens} --completion-tokens {completion_tokens}"
    command += f" --rows {rows}" if rows else ""
    settings = dict(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, rounds=rounds)
    result: dict[str, Any] = {**facts, "versions": {}, "command": command, "shape": shape, "settings": settings}
    result |= {"parameters": model_shape.parameters, "rows": []}
    name = f"sharing-{'gpu' if facts['gpu'] else 'cpu'}-{shape}-{prompt_tokens}-{completion_tokens}"
    four_bit = "4bit" if shape.startswith("llama") else "none"
    with tempfile.TemporaryDirectory() as folder:
        directory = root / "models" / "tiny-base"
        if random_weights:
            directory = workload.random_model(shapes.RANDOM[shape], Path(folder) / shape, directory)
        for k in KS:
            work = Work(
                "dpo", "transformers", str(directory), rows=rows or pairs_at_once(k, prompt_tokens + completion_tokens),
                prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, pairs_per_prompt=k, steps=2,
                quantization=four_bit, threads=1,
            )  # fmt: skip
            result["rows"] += _measured(work, rounds, result["versions"], bool(facts["gpu"]))
            text = _table(result)
            store.write_json(out / f"{name}.json", result)
            store.write_text(out / f"{name}.md", text)
            drawn = [store.read_json(path) for path in out.glob("sharing-*.json")]
            figure = plots.sharing(sorted(drawn, key=lambda one: one["parameters"]))
            figure.savefig(out / "sharing.png", dpi=120, bbox_inches="tight")
    return text


def pairs_at_once(k: int, tokens: int) -> int:
    """The pairs of two prompts, k each of two sides of so many tokens, or of one: `(5, 1200) -> 10`, `(5, 2300) -> 5`."""
    return k * (2 if 2 * k * 2 * tokens <= AT_ONCE else 1)


def _measured(work: Work, rounds: int, versions: dict[str, str], gpu: bool) -> list[dict[str, Any]]:
    """One row for each way; a ratio is that of two neighbours in time, the median over the rounds is kept."""
    from dataclasses import replace

    ways = WAYS | _unsloths(gpu)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    failed: dict[str, Any] = {}  # Unsloth takes nothing else with it
    for i in range(rounds):
        for way in ways if i % 2 == 0 else reversed(ways):
            if failed and way not in WAYS:
                continue
            try:
                runs[way].append(workload.run(replace(work, **ways[way])))
            except workload.WorkError as error:
                if way in WAYS:
                    raise
                failed = {"k": work.pairs_per_prompt, "way": way, "failed": str(error)}
            else:
                versions |= runs[way][-1]["versions"]
    p, r, k = work.prompt_tokens, work.completion_tokens, work.pairs_per_prompt
    found = []
    for way, own in runs.items():
        if failed and way not in WAYS:
            continue
        base = runs[way.replace("shared", "apart")]
        ratios = [
            statistics.median(b["seconds"]) / statistics.median(a["seconds"]) for a, b in zip(own, base, strict=True)
        ]
        peaks = [a["peak_bytes"] / b["peak_bytes"] for a, b in zip(own, base, strict=True)]
        seconds = statistics.median(s for run in own for s in run["seconds"]) / work.rows
        found.append(
            {
                "k": k, "way": way, "pairs": work.rows, "ms_per_pair": round(1000 * seconds, 1),
                "speed": round(statistics.median(ratios), 2), "ratios": [round(x, 2) for x in ratios],
                "ideal": round(2 * k * (p + r) / (p + 2 * k * r), 2) if way.startswith("shared") else 1.0,
                "peak_mib": round(statistics.median(run["peak_bytes"] for run in own) / 2**20, 1),
                "peak": round(statistics.median(peaks), 2),
            }
        )  # fmt: skip
    return [*found, failed] if failed else found


def _unsloths(gpu: bool) -> dict[str, dict[str, Any]]:
    """The same through Unsloth, where it is installed: on a GPU checkpointed, as it always is there, and with its own kernel
    for shared prompts, if it has one."""
    if importlib.util.find_spec("unsloth") is None:
        return {}
    how = {"variant": "unsloth", "gradient_checkpointing": gpu}
    apart = {"apart, Unsloth": {**how, "share_prompts": False}}
    shareable = not gpu or segments.available()
    return apart | ({"shared, Unsloth": {**how, "share_prompts": True}} if shareable else {})


def _table(result: Mapping[str, Any]) -> str:
    s = result["settings"]
    head = (
        f"# DPO with shared prompts: {result['shape']}, {result['parameters'] / 1e6:,.1f} M parameters\n\n"
        f"`{result['command']}`: prompt {s['prompt_tokens']} + judgment {s['completion_tokens']} tokens, k pairs a prompt, LoRA "
        f"rank 16, one thread. {result['device']}, {result['cores']} cores, load average {result['load_average'][0]} before; "
        f"medians of {s['rounds']} rounds; speed and peak are against the same settings apart, measured right beside.\n\n"
        "| k | trainer | pairs at once | ms a pair | speed | ideal | peak, MiB | peak, share |\n"
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    lines = [
        f"| {row['k']} | {row['way']} | | {row['failed']} | | | | |"
        if "failed" in row
        else f"| {row['k']} | {row['way']} | {row['pairs']} | {row['ms_per_pair']:,.1f} | {row['speed']:.2f} | "
        f"{row['ideal']:.2f} | {row['peak_mib']:,.0f} | {row['peak']:.2f} |"
        for row in result["rows"]
    ]
    return head + "\n".join(lines) + bench.footer(result)
