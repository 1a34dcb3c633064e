"""The figures of this repository: how fast it trains and judges, beside the alternatives.

    srlib bench                                                   # the tiny model, on whatever machine this is
    srlib bench --shape llama-3.2-1b --random-weights             # on a GPU: 4-bit LoRA, prompt 1,000, judgment 200, N = 10

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

from bench import roofline, workload
from bench.workload import TRAINERS, Work
from srlib import files as store
from srlib.hardware import machine, shapes

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
        found, versions = _measure_all(str(directory), model_shape, settings, rounds)
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
        raise BenchError(f"shape {name} is measured on a GPU, and there is none here; take one of 10m, 25m, 60m")
    return shapes.RANDOM[name]


def _measure_all(
    model: str, shape: shapes.Shape, settings: Mapping[str, Any], rounds: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """({"sft": {variant: figures}, "dpo": ..., "sample": ..., "sample_1": one judgment a prompt}, versions)."""
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
                    apart = variant == "unsloth" and machine.found().gpu  # its kernel for shared prompts: bench_sharing
                    work = Work(kind, variant, model, **settings, share_prompts=not apart)
                    runs[variant].append(workload.run(work))
                except workload.WorkError as error:
                    failed[variant] = str(error)
        found[kind] = {
            variant: {"failed": failed[variant]} if variant in failed else _figures(kind, own, runs, settings)
            for variant, own in runs.items()
        }
        versions |= {k: v for own in runs.values() for run in own for k, v in run["versions"].items()}
    for kind, n in (("sample", settings["n"]), ("sample_1", 1)):
        own = {**settings, "n": n}
        run = workload.run(Work("sample", ",".join(workload.SAMPLERS), model, **{**own, "steps": rounds}))
        found[kind] = _sampled(run, own, shape)
        versions |= run["versions"]
    return found, versions


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


def _sampled(run: Mapping[str, Any], settings: Mapping[str, Any], shape: shapes.Shape) -> dict[str, Any]:
    """Figures of each sampler; `of_the_roofline` is the share that the least possible time (roofline.least) has of its own."""
    judgments, theirs = settings["rows"] * settings["n"], run["seconds"]["generate"]
    sizes = {name: settings[name] for name in ("rows", "n", "prompt_tokens", "completion_tokens")}
    least = roofline.least(shape, run["peak"], **sizes, size=4 if run["dtype"] == "float32" else 2)
    found = {}
    for name, seconds in run["seconds"].items():
        ratios = [base / own for own, base in zip(seconds, theirs, strict=True)]
        found[name] = {
            "per_second": round(judgments / statistics.median(seconds), 2),
            "unit": UNITS["sample"],
            "tokens_per_second": round(run["tokens"] / statistics.median(seconds), 1),
            "speed_against_generate": round(statistics.median(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in ratios],
            "of_the_roofline": round(least / statistics.median(seconds), 3),
        }
    return found | {"peak": {name: round(value / 1e9, 1) for name, value in run["peak"].items()}}


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
        "| work | through | speed | against | peak memory | of the roofline |\n| --- | --- | ---: | ---: | ---: | ---: |\n"
    )
    lines = []
    names = {"transformers": "srlib, transformers + PEFT", "unsloth": "srlib, Unsloth", "trl": "TRL alone"}
    names |= {"srlib": "srlib.sample"}
    names |= {"prefilled": "generate, from a cache read once and copied N times"}
    kinds = {"sft": "sft", "dpo": "dpo", "sample": f"sample, N = {s['n']}", "sample_1": "sample, N = 1"}
    for kind, called in kinds.items():
        names["generate"] = f"generate(num_return_sequences={1 if kind == 'sample_1' else s['n']})"
        for name, own in result[kind].items():
            if name == "peak":
                continue
            if "failed" in own:
                lines.append(f"| {called} | {names[name]} | {own['failed']} | | | |")
                continue
            ratio = own.get("speed_against_transformers", own.get("speed_against_generate"))
            peak = f"{own['peak_mib']:,.0f} MiB" if "peak_mib" in own else ""
            share = f"{own['of_the_roofline']:.0%}" if "of_the_roofline" in own else ""
            lines.append(
                f"| {called} | {names[name]} | {own['per_second']:,.1f} {own['unit']} | {ratio:.2f} | {peak} | {share} |"
            )
    peak = result["sample"]["peak"]
    lines.append(
        f"\nThe roofline: {peak['flops']:,.0f} billion operations a second in a large matrix product, {peak['bytes']:,.1f} GB a "
        "second in a copy, both measured beside it, and what N judgments must at least compute and read (srlib.roofline)."
    )
    return head + "\n".join(lines) + footer(result)


def footer(result: Mapping[str, Any]) -> str:
    """The last line of every table: `Python 3.11.7, peft 0.21.2, torch 2.13.0+cpu, ...`."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    return f"\n\nPython {result['python']}, {versions}.\n"
