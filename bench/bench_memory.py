"""How good the memory forecast is: measured peaks of SFT, DPO and sampling against srlib.memory, for three random models.

    srlib bench --memory

Every peak is that of a process of its own (srlib.workload says why). A processor without bf16 instructions trains in fp32 and
has a table of its own, memory-fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import bench, workload
from bench.workload import Work
from srlib import files as store
from srlib.hardware import machine, shapes
from srlib.hardware import memory as forecasts
from srlib.hardware.memory import Job

SHAPES = ("10m", "25m", "60m")


def memory(out: Path, root: Path, rows: int = 4, prompt_tokens: int = 384, completion_tokens: int = 128) -> str:
    """Peaks of SFT, DPO and sampling for three random models against srlib.memory's forecast; memory.json and .md, or
    memory-fp32 where training runs in fp32.

    Both are written anew after each measurement, so a run that is stopped leaves what it measured.
    """
    sizes = {"rows": rows, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "n": 10}
    usual = {"rows": 4, "prompt_tokens": 384, "completion_tokens": 128}
    given = [f"--{name.replace('_', '-')} {sizes[name]}" for name in usual if sizes[name] != usual[name]]
    command = " ".join(["srlib bench --memory", *given])
    result = {**machine.facts(), "versions": {}, "command": command, "settings": sizes, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in SHAPES:
            model = workload.random_model(shapes.RANDOM[name], Path(folder) / name, root / "models" / "tiny-base")
            for kind in workload.KINDS:
                variant = "srlib" if kind == "sample" else "transformers"
                work = Work(kind, variant, str(model), **sizes, steps=1, threads=1, share_prompts=False)
                run = workload.run(work)
                result["versions"] |= run["versions"]
                result["rows"].append(_row(name, work, run, result["gpu"]))
                text = _write(out, result)
    return text


def _row(name: str, work: Work, run: Mapping[str, Any], gpu: bool) -> dict[str, Any]:
    forecast = sum(forecasts.forecast(shapes.RANDOM[name], job(work, gpu, run["bf16"])).values())
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


def _write(out: Path, result: Mapping[str, Any]) -> str:
    s = result["settings"]
    head = (
        "# The memory forecast against measured peaks\n\n"
        f"`{result['command']}`: SFT and DPO steps of {s['rows']} rows (pairs) of {s['prompt_tokens']} + "
        f"{s['completion_tokens']} tokens, and {s['n']} judgments each of {s['rows']} prompts; random Llamas, LoRA rank 16. "
        "Measured is the peak above what the process held when its libraries were loaded and warm; share_prompts is off. "
        "The constants LOGITS and ALLOCATOR of srlib.memory were fitted to the SFT and DPO rows of memory.md and memory-fp32.md, the rest is counted. "
        f"{result['device']}, {result['cores']} cores. {result.get('note', '')}\n\n"
        "| shape | parameters | work | forecast, MiB | measured, MiB | forecast / measured |\n"
        "| --- | ---: | --- | ---: | ---: | ---: |\n"
    )
    lines = [
        f"| {row['shape']} | {row['parameters'] / 1e6:.1f} M | {row['kind']} | {row['forecast_mib']:,.0f} | "
        f"{row['measured_mib']:,.0f} | {row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    text = head + "\n".join(lines) + bench.footer(result)
    name = "memory" if all(row["bf16"] for row in result["rows"]) else "memory-fp32"
    store.write_json(out / f"{name}.json", result)
    store.write_text(out / f"{name}.md", text)
    return text
