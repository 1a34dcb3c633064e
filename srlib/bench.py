"""The figures of this repository: how fast it trains and judges, beside the alternatives, and how good the memory forecast is.

    srlib bench                                                   # the tiny model, on whatever machine this is
    srlib bench --shape llama-3.2-1b --random-weights             # on a GPU: 4-bit LoRA, prompt 1,000, judgment 200, N = 10
    srlib bench --memory                                          # measured peaks against srlib.memory, three shapes

SFT and DPO run through `train.sft` and `train.dpo` on transformers + PEFT and on Unsloth, and through TRL alone, at the
same settings; judgments through srlib.sample and through `generate(num_return_sequences=N)`. Every training measurement
is a process of its own (srlib.workload says why); variants take turns, medians are kept, and a ratio is one of two
neighbours in time, which a busy machine moves less than the absolutes.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlib import machine, shapes, store, workload
from srlib import memory as memories
from srlib.memory import Job
from srlib.workload import TRAINERS, Work

MEMORY_SHAPES = ("10m", "25m", "60m")
TINY = dict(rows=16, prompt_tokens=190, completion_tokens=45, n=10, steps=4)  # as long as the built-in world's
LARGE = dict(rows=2, prompt_tokens=1000, completion_tokens=200, n=10, steps=6)
UNITS = {"sft": "tokens/s", "dpo": "pairs/s", "sample": "judgments/s"}


class BenchError(ValueError):
    """A measurement that cannot be made here. Says why, and what can."""


def bench(shape: str, out: Path, root: Path, random_weights: bool = False, rounds: int = 3, **sizes: int) -> str:
    """Measure one shape on this machine, write <out>/<cpu or gpu>-<shape>.json and .md, and return the table.

    `sizes` replaces rows, prompt_tokens, completion_tokens, n or steps. Raises BenchError on a shape that needs a GPU
    where there is none, or random weights where they were not asked for; a variant that fails says so in the table.
    """
    facts = machine.facts()
    model_shape = checked_shape(shape, random_weights, facts["gpu"])
    settings = {**(LARGE if shape.startswith("llama") else TINY), **sizes}
    settings |= {"quantization": "4bit" if shape.startswith("llama") else "none"}
    with tempfile.TemporaryDirectory() as folder:
        directory = root / "models" / "tiny-base"
        if random_weights:
            directory = workload.random_model(model_shape, Path(folder) / shape, directory)
        found, versions = _measure_all(str(directory), settings, rounds)
    command = f"srlib bench --shape {shape}" + (" --random-weights" if random_weights else "") + f" --rounds {rounds}"
    command += "".join(f" --{name.replace('_', '-')} {value}" for name, value in sizes.items())
    result = {
        **facts, "versions": versions, "command": command, "shape": shape, "parameters": model_shape.parameters,
        "settings": settings | {"rounds": rounds}, **found, "plan": _for_plan(found),
    }  # fmt: skip
    name = f"{'gpu' if facts['gpu'] else 'cpu'}-{shape}"
    text = _table(result)
    store.write_json(out / f"{name}.json", result)
    store.write_text(out / f"{name}.md", text)
    return text


def checked_shape(name: str, random_weights: bool, gpu: bool) -> shapes.Shape:
    """A shape that can be measured on this machine; raises BenchError."""
    if name not in shapes.RANDOM:
        raise BenchError(f"shape {name!r} is not one of {', '.join(shapes.RANDOM)}")
    if not random_weights and name != "tiny":
        raise BenchError(f"shape {name} is measured on random weights: add --random-weights")
    if name.startswith("llama") and not gpu:
        raise BenchError(
            f"shape {name} is measured on a GPU, and there is none here; take one of {', '.join(MEMORY_SHAPES)}"
        )
    return shapes.RANDOM[name]


def _measure_all(model: str, settings: Mapping[str, Any], rounds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """({"sft": {variant: figures}, "dpo": ..., "sample": ...}, versions)."""
    versions: dict[str, str] = {}
    found: dict[str, Any] = {}
    for kind in ("sft", "dpo"):
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in TRAINERS}
        failed = {} if importlib.util.find_spec("unsloth") else {"unsloth": "not installed"}
        for i in range(rounds):
            for variant in TRAINERS if i % 2 == 0 else reversed(TRAINERS):
                if variant in failed:
                    continue
                try:
                    runs[variant].append(workload.run(Work(kind, variant, model, **settings)))
                except workload.WorkError as error:
                    failed[variant] = str(error)
        found[kind] = {
            variant: {"failed": failed[variant]} if variant in failed else _figures(kind, own, runs, settings)
            for variant, own in runs.items()
        }
        versions |= {k: v for own in runs.values() for run in own for k, v in run["versions"].items()}
    sampled = workload.run(Work("sample", "srlib,generate", model, **{**settings, "steps": rounds}))
    found["sample"] = _sampled(sampled, settings)
    return found, versions | sampled["versions"]


def _figures(
    kind: str,
    own: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    step = statistics.median(s for run in own for s in run["seconds"])
    ratios = [
        statistics.median(base["seconds"]) / statistics.median(run["seconds"])
        for run, base in zip(own, runs["transformers"], strict=False)
    ]
    per_step = own[0]["tokens"] if kind == "sft" else settings["rows"]
    return {
        "per_second": round(per_step / step, 2),
        "unit": UNITS[kind],
        "tokens_per_second": round(own[0]["tokens"] / step, 1),
        "step_seconds": round(step, 4),
        "peak_mib": round(statistics.median(run["peak_bytes"] for run in own) / 2**20, 1),
        "speed_against_transformers": round(statistics.median(ratios), 2) if ratios else None,
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def _sampled(run: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    judgments = settings["rows"] * settings["n"]
    ratios = [theirs / ours for ours, theirs in zip(run["seconds"]["srlib"], run["seconds"]["generate"], strict=True)]
    return {
        name: {
            "per_second": round(judgments / statistics.median(seconds), 2),
            "unit": UNITS["sample"],
            "tokens_per_second": round(run["tokens"] / statistics.median(seconds), 1),
            "speed_against_generate": round(statistics.median(ratios), 2) if name == "srlib" else 1.0,
            "ratios": [round(ratio, 2) for ratio in ratios] if name == "srlib" else [],
        }
        for name, seconds in run["seconds"].items()
    }


def _for_plan(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `srlib plan` reckons with: the better of our two backends, and our sampler."""
    best = {}
    for kind in ("sft", "dpo"):
        figures = [found[kind].get(name, {}) for name in ("transformers", "unsloth")]
        own = [f["per_second"] for f in figures if "per_second" in f]
        if own:
            best[kind] = {"per_second": max(own)}
    return best | {"sample": {"per_second": found["sample"]["srlib"]["per_second"]}}


def _table(result: Mapping[str, Any]) -> str:
    s = result["settings"]
    head = (
        f"# {result['shape']}, {result['parameters'] / 1e6:,.1f} M parameters, on {result['device']}\n\n"
        f"`{result['command']}`: {s['rows']} rows (pairs, prompts) at once, prompt {s['prompt_tokens']} + completion "
        f"{s['completion_tokens']} tokens, N = {s['n']}, quantization {s['quantization']}, LoRA rank 16. "
        f"{result['cores']} cores, load average {result['load_average'][0]} before; medians of {s['rounds']} rounds.\n\n"
        "| work | through | speed | against | peak memory |\n| --- | --- | ---: | ---: | ---: |\n"
    )
    lines = []
    names = {"transformers": "srlib, transformers + PEFT", "unsloth": "srlib, Unsloth", "trl": "TRL alone"}
    names |= {"srlib": f"srlib.sample, N = {s['n']}", "generate": f"generate(num_return_sequences={s['n']})"}
    for kind in ("sft", "dpo", "sample"):
        for name, own in result[kind].items():
            if "failed" in own:
                lines.append(f"| {kind} | {names[name]} | {own['failed']} | | |")
                continue
            ratio = own.get("speed_against_transformers", own.get("speed_against_generate"))
            peak = f"{own['peak_mib']:,.0f} MiB" if "peak_mib" in own else ""
            lines.append(f"| {kind} | {names[name]} | {own['per_second']:,.1f} {own['unit']} | {ratio:.2f} | {peak} |")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    return head + "\n".join(lines) + f"\n\nPython {result['python']}, {versions}.\n"


# ---------------------------------------------------------------- the memory forecast


def memory(out: Path, root: Path, rows: int = 4, prompt_tokens: int = 384, completion_tokens: int = 128) -> str:
    """Peaks of SFT, DPO and sampling for three random models against srlib.memory's forecast; memory.json and .md.

    Both are written anew after each measurement, so a run that is stopped leaves what it measured.
    """
    sizes = {"rows": rows, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "n": 10}
    result = {**machine.facts(), "versions": {}, "command": "srlib bench --memory", "settings": sizes, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in MEMORY_SHAPES:
            model = workload.random_model(shapes.RANDOM[name], Path(folder) / name, root / "models" / "tiny-base")
            for kind in workload.KINDS:
                variant = "srlib" if kind == "sample" else "transformers"
                work = Work(kind, variant, str(model), **sizes, steps=1, threads=1, share_prompts=False)
                run = workload.run(work)
                result["versions"] |= run["versions"]
                result["rows"].append(_memory_row(name, work, run, result["gpu"]))
                text = _write_memory(out, result)
    return text


def _memory_row(name: str, work: Work, run: Mapping[str, Any], gpu: bool) -> dict[str, Any]:
    forecast = sum(memories.forecast(shapes.RANDOM[name], job(work, gpu, run["bf16"])).values())
    return {
        "shape": name, "parameters": shapes.RANDOM[name].parameters, "kind": work.kind, "bf16": run["bf16"],
        "forecast_mib": round(forecast / 2**20, 1), "measured_mib": round(run["peak_bytes"] / 2**20, 1),
        "ratio": round(forecast / run["peak_bytes"], 3), "libraries_mib": round(run["before_bytes"] / 2**20, 1),
    }  # fmt: skip


def job(work: Work, gpu: bool, bf16: bool) -> Job:
    """The job that a measured piece of work is, for the forecast."""
    sampling = work.kind == "sample"
    return Job(
        work.kind, work.rows, work.prompt_tokens + (0 if sampling else work.completion_tokens),
        new_tokens=work.completion_tokens if sampling else 0, n=work.n if sampling else 1, gpu=gpu, bf16=bf16,
        four_bit=work.quantization == "4bit", checkpointing=work.gradient_checkpointing, lora_rank=work.lora_rank,
    )  # fmt: skip


def _write_memory(out: Path, result: Mapping[str, Any]) -> str:
    s = result["settings"]
    head = (
        "# The memory forecast against measured peaks\n\n"
        f"`{result['command']}`: SFT and DPO steps of {s['rows']} rows (pairs) of {s['prompt_tokens']} + "
        f"{s['completion_tokens']} tokens, and {s['n']} judgments each of {s['rows']} prompts; random Llamas, LoRA rank 16. "
        "Measured is the peak above what the process held when its libraries were loaded and warm; share_prompts is off. "
        "The constants LOGITS and ALLOCATOR of srlib.memory were fitted to the SFT and DPO rows, the rest is counted. "
        f"{result['device']}, {result['cores']} cores. {result.get('note', '')}\n\n"
        "| shape | parameters | work | forecast, MiB | measured, MiB | forecast / measured |\n"
        "| --- | ---: | --- | ---: | ---: | ---: |\n"
    )
    lines = [
        f"| {row['shape']} | {row['parameters'] / 1e6:.1f} M | {row['kind']} | {row['forecast_mib']:,.0f} | "
        f"{row['measured_mib']:,.0f} | {row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    text = head + "\n".join(lines) + f"\n\nPython {result['python']}, {versions}.\n"
    store.write_json(out / "memory.json", result)
    store.write_text(out / "memory.md", text)
    return text
