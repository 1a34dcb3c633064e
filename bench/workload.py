"""One piece of work, measured: some SFT or DPO steps, or sampling, in a process that does nothing else.

What it trains on is random numbers of a given shape, for speed and memory do not depend on the weights. `srlib bench`
starts one process for each measurement (`run`), for three reasons: Unsloth patches transformers and TRL as soon as it
is imported, memory that a process once had is not given back, and a variant that fails takes no other with it.

    work = Work("sft", "transformers", "runs/.bench/tiny", rows=4, prompt_tokens=256, completion_tokens=64)
    run(work) -> {"seconds": [0.31, 0.30, ...], "tokens": 1280, "peak_bytes": 41943040, ...}

Memory is the peak above what the process held once its libraries were loaded and warm: resident memory on a CPU, what
torch allocated on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import roofline
from srlib.hardware import machine
from srlib.hardware.shapes import Shape

KINDS = ("sft", "dpo", "sample")
TRAINERS = ("transformers", "unsloth", "trl")  # through train.sft and train.dpo on either backend; TRL by itself
# srlib.sample; transformers' generate, also from a cache that was read once.
SAMPLERS = ("srlib", "generate", "prefilled")


class WorkError(RuntimeError):
    """A measurement whose process failed; the message ends in its last words."""


@dataclass(frozen=True)
class Work:
    kind: str  # one of KINDS
    variant: str  # one of TRAINERS; of SAMPLERS where kind is "sample", several with commas
    model: str  # a directory that `random_model` made
    rows: int = 4  # sequences, pairs or prompts that go through the model at once
    prompt_tokens: int = 1000
    completion_tokens: int = 200
    n: int = 10  # judgments a prompt
    steps: int = 4  # optimizer steps, or rounds of sampling
    quantization: str = "none"
    pairs_per_prompt: int = 1  # of DPO; `rows` counts pairs
    share_prompts: bool = True
    gradient_checkpointing: bool = False
    bf16: bool = True  # where the machine has it
    lora_rank: int = 16
    threads: int = 0  # 0: as many as torch takes


def random_model(shape: Shape, directory: Path, tokenizer_from: Path) -> Path:
    """A Llama of this shape with random weights, as a model directory; the tokenizer is another model's, and smaller."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    gpu = torch.cuda.is_available()
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        intermediate_size=shape.intermediate, tie_word_embeddings=shape.tied, attention_bias=False,
        max_position_embeddings=shape.max_positions, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16 if gpu else torch.float32)
        with torch.device("cuda" if gpu else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(directory)
    return directory


def run(work: Work, timeout: float | None = None) -> dict[str, Any]:
    """Measure in a process of its own. Raises WorkError with what it said last."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **machine.environment(work.threads or None)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "srlib.workload", json.dumps(asdict(work))]
    with tempfile.TemporaryDirectory() as elsewhere:  # Unsloth leaves its compiled cache where it stands
        work_path = Path(work.model).resolve()
        command[-1] = json.dumps(asdict(replace(work, model=str(work_path))))
        ended = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout, cwd=elsewhere, check=False
        )
    if ended.returncode != 0:
        last = ended.stderr.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
        raise WorkError(f"{work.kind} with {work.variant} failed: {last[0]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def measure(work: Work) -> dict[str, Any]:
    """What `run` returns, in this process."""
    if work.kind not in KINDS:
        raise ValueError(f"kind {work.kind!r} is not one of {', '.join(KINDS)}")
    backend = "unsloth" if work.variant == "unsloth" else "transformers"
    from srlib.models import load as models

    models.resolve_backend(backend)  # Unsloth comes before trl
    import torch

    if work.threads:
        torch.set_num_threads(work.threads)
    if not work.bf16:
        torch.cpu._is_avx512_bf16_supported = lambda: False
    with tempfile.TemporaryDirectory() as folder:
        small = random_model(_WARM, Path(folder) / "warm", Path(work.model))
        few = replace(
            work, model=str(small), rows=1, prompt_tokens=8, completion_tokens=4, steps=1, quantization="none"
        )
        _do(few, Path(folder) / "warm-out")
        _words(work.model)
        before = _reset_peak()
        done = _do(work, Path(folder) / "out")
        peak = _peak() - before
        if work.kind == "sample":  # afterwards, or its tables would count as the work's
            done["peak"] = roofline.measured(done["dtype"])
        bf16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
        return {**done, "peak_bytes": peak, "before_bytes": before, "bf16": bf16, "versions": _versions()}


_WARM = Shape("warm", 64, 1, 2, 2, 32, 64, 1536, True)


def _do(work: Work, out: Path) -> dict[str, Any]:
    if work.kind == "sample":
        return _sample(work)
    marks: list[float] = []
    with _step_times(marks):
        tokens = (_plain_trl if work.variant == "trl" else _train)(work, out)
    return {"seconds": [b - a for a, b in itertools.pairwise(marks)][1:], "tokens": tokens}


@contextlib.contextmanager
def _step_times(marks: list[float]) -> Iterator[None]:
    """When each optimizer step began: the same clock for every trainer, ours or not."""
    import torch
    from transformers import Trainer

    inner = Trainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        return inner(self, *args, **kwargs)

    Trainer.training_step = training_step
    try:
        yield
    finally:
        Trainer.training_step = inner


def _ids(work: Work, how_many: int, length: int, salt: str) -> list[list[int]]:
    """Random words that are one token each, so that their text has as many tokens for a trainer that takes text."""
    rng, words = random.Random(f"{work.kind} {salt}"), _words(work.model)
    return [rng.choices(words, k=length) for _ in range(how_many)]


@functools.cache
def _words(model: str) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
    return [
        i for i, text in texts.items() if text[:1] == " " and text[1:].isalpha() and tokenizer(text)["input_ids"] == [i]
    ]


def _train(work: Work, out: Path) -> int:
    """The way of the notebooks: train.sft, train.dpo. Returns the tokens of one step."""
    from srlib import train

    how_many = work.rows * (work.steps + 2)  # the first interval warms up, the last step has no end
    k = work.pairs_per_prompt
    prompts = [ids for ids in _ids(work, -(-how_many // k), work.prompt_tokens, "prompt") for _ in range(k)][:how_many]
    chosen = _ids(work, how_many, work.completion_tokens, "chosen")
    settings = train.Settings(
        learning_rate=1e-5, max_steps=work.steps + 2, batch_size=work.rows, micro_batch_size=work.rows,
        lora_rank=work.lora_rank, gradient_checkpointing=work.gradient_checkpointing, quantization=work.quantization,
        share_prompts=work.share_prompts, unsloth_kernel=True, backend="unsloth" if work.variant == "unsloth" else "transformers",
    )  # fmt: skip
    if work.kind == "sft":
        rows = [train._sft_row(p, c) for p, c in zip(prompts, chosen, strict=True)]
        train.sft(work.model, rows, out, settings)
        return work.rows * (work.prompt_tokens + work.completion_tokens)
    rejected = _ids(work, how_many, work.completion_tokens, "rejected")
    rows = [
        {"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]
    train.dpo(work.model, rows, out, settings, nll_weight=0.5)
    return 2 * work.rows * (work.prompt_tokens + work.completion_tokens)


def _plain_trl(work: Work, out: Path) -> int:
    """What TRL's own documentation shows, at the same settings: a trainer, a LoraConfig, rows of text."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from srlib import train
    from srlib.models import load as models

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    how_many = work.rows * (work.steps + 2)
    columns = {"prompt": work.prompt_tokens, **dict.fromkeys(("chosen", "rejected"), work.completion_tokens)}
    rows = {name: [tokenizer.decode(ids) for ids in _ids(work, how_many, n, name)] for name, n in columns.items()}
    settings = train.Settings(
        learning_rate=1e-5, max_steps=work.steps + 2, batch_size=work.rows, micro_batch_size=work.rows,
        gradient_checkpointing=work.gradient_checkpointing,
    )  # fmt: skip
    same = train._arguments(settings, out, work.steps + 2)
    for ours in ("train_sampling_strategy", "length_column_name", "remove_unused_columns", "save_strategy"):
        same.pop(ours)
    model, _ = models.load(work.model, quantization=work.quantization, training=True)
    adapter = LoraConfig(r=work.lora_rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    shared = dict(model=model, peft_config=adapter, processing_class=tokenizer)
    if work.kind == "sft":
        data = Dataset.from_dict({"prompt": rows["prompt"], "completion": rows["chosen"]})
        SFTTrainer(args=SFTConfig(**same, save_strategy="no"), train_dataset=data, **shared).train()
        return work.rows * (work.prompt_tokens + work.completion_tokens)
    loss = dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5])
    config = DPOConfig(**same, **loss, save_strategy="no")
    DPOTrainer(args=config, train_dataset=Dataset.from_dict(rows), **shared).train()
    return 2 * work.rows * (work.prompt_tokens + work.completion_tokens)


# ---------------------------------------------------------------- sampling


def _sample(work: Work) -> dict[str, Any]:
    """Rounds of N judgments a prompt, variants in turn: seconds of each round, `{"srlib": [...], "generate": [...]}`."""
    from srlib.models import load as models

    model, _ = models.load(work.model, quantization=work.quantization)
    model.generation_config.eos_token_id = None  # every judgment has exactly completion_tokens tokens
    prompts = _ids(work, work.rows, work.prompt_tokens, "prompt")
    draws = {"srlib": _ours, "generate": _theirs, "prefilled": _prefilled}
    seconds: dict[str, list[float]] = {name: [] for name in work.variant.split(",")}
    for i in range(work.steps):
        for name in seconds if i % 2 == 0 else reversed(seconds):
            started = time.perf_counter()
            draws[name](model, prompts, work)
            seconds[name].append(time.perf_counter() - started)
    dtype = str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch.")
    tokens = work.rows * work.n * work.completion_tokens
    return {"seconds": seconds, "tokens": tokens, "dtype": dtype}


def _ours(model: Any, prompts: list[list[int]], work: Work) -> None:
    import numpy as np

    from srlib.sample import decode as sample

    owner = [i for i in range(len(prompts)) for _ in range(work.n)]
    draws = np.stack([sample.uniforms(0, str(i), k, work.completion_tokens) for k, i in enumerate(owner)])
    sample.decode(model, prompts, owner, max_new_tokens=work.completion_tokens, eos=-1, temperature=1.0, draws=draws)


def _theirs(model: Any, prompts: list[list[int]], work: Work) -> None:
    """transformers' `generate`; whatever generation_config could bring along is set by hand."""
    import torch

    ids = torch.tensor(prompts, device=model.device)
    with torch.inference_mode():
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=work.n, max_new_tokens=work.completion_tokens, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip


def _prefilled(model: Any, prompts: list[list[int]], work: Work) -> None:
    """transformers' advice for many continuations: read the prompts once, copy their cache for every row, generate."""
    import torch
    from transformers import DynamicCache

    ids = torch.tensor(prompts, device=model.device)
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.inference_mode():
        model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(work.n)
        ids = ids.repeat_interleave(work.n, 0)
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, max_new_tokens=work.completion_tokens, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip


# ---------------------------------------------------------------- memory


def _reset_peak() -> int:
    """Forget the peak so far; returns bytes held now."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # without this file the peak includes the warm-up, which is small
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes; where there is none, what getrusage knows."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _versions() -> dict[str, str]:
    import importlib.metadata

    found = {}
    for package in ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(measure(Work(**json.loads(sys.argv[1])))))
