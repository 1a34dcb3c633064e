"""sft() and dpo(): a judge learns from rows, on TRL.

Both take token ids, tokenized by srlib.prompts as in sampling, so what a judge is trained on is to the token what it
reads and writes later. Both start from a model directory, train one LoRA adapter, a fresh one or the judge's own (or
all weights), and write the judge (srlib.adapters); DPO's reference is the model it starts from (paper section 3: J_t from
J_{t-1}). The log, one dict a step, is written beside the judge; where it is there already, nothing is trained.

    log = sft("models/tiny-base", sft_rows(tokenizer, examples), Path("runs/tiny/judges/sft"), Settings(max_steps=120))
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srlib import batches, prompts, reference
from srlib import files as store
from srlib import shared_prompts as shared
from srlib.files import progress
from srlib.models import adapters
from srlib.models import load as models
from srlib.schema import Item, Pair, SrlibError

WARMUP = 0.1  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class Settings:
    """How a judge is trained, whatever the loss. `max_steps` 0 means `epochs`."""

    learning_rate: float = 2e-3
    epochs: float = 1.0
    max_steps: int = 0
    batch_size: int = 16  # rows (pairs) an optimizer step
    micro_batch_size: int = 16  # of these, how many go through the model at once, or other ones of as many tokens
    adam_beta2: float = 0.95
    lora_rank: int = 16  # 0: all weights
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: str = adapters.ALL
    gradient_checkpointing: bool = False
    share_prompts: bool = True  # rows that share a prompt read it once, see srlib.shared
    unsloth_kernel: bool = False  # with Unsloth on a GPU through its own kernel; not measured, so no notebook offers it
    backend: str = "auto"
    quantization: str = "none"
    quant_type: str = "nf4"
    dtype: str = "auto"  # float32 also means no mixed precision
    judge_format: str = "auto"
    seed: int = 0
    judge: dict[str, Any] = field(default_factory=dict)  # what judge.json is to say


class ReferenceMismatch(SrlibError):
    """Policy and reference disagree before the first step, so the reference is not the model training starts from."""


def sft_rows(
    tokenizer: Any, examples: Sequence[Item], template: str, rationale: bool = True
) -> list[dict[str, list[int]]]:
    """Examples and comparisons with gold judgments as rows of ids: `{"input_ids": prompt + completion, "completion_mask":
    0... 1...}`. Raises ValueError on one without a gold verdict."""
    rows = []
    for example in examples:
        if example.gold is None:
            raise ValueError(f"{example.id} has no gold score or preference to learn; give it one or leave it out")
        prompt = prompts.prompt_ids(tokenizer, example, template)
        text = prompts.completion(example.rationale if rationale else None, example.gold)
        rows.append(_sft_row(prompt, prompts.completion_ids(tokenizer, text)))
    return rows


def rft_rows(
    tokenizer: Any, examples: Sequence[Item], pairs: Sequence[Pair], template: str
) -> list[dict[str, list[int]]]:
    """The chosen side of preference pairs as rows for SFT: rejection-sampling fine-tuning, the control without a contrast."""
    by_id = {example.id: example for example in examples}
    return [
        _sft_row(
            prompts.prompt_ids(tokenizer, by_id[pair.example_id], template),
            prompts.completion_ids(tokenizer, pair.chosen),
        )
        for pair in pairs
    ]


def _sft_row(prompt: list[int], completion: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}


def dpo_rows(
    tokenizer: Any, examples: Sequence[Item], pairs: Sequence[Pair], template: str
) -> list[dict[str, list[int]]]:
    """Preference pairs as rows of ids: `{"prompt_ids", "chosen_ids", "rejected_ids"}`."""
    by_id = {example.id: example for example in examples}
    return [
        {
            "prompt_ids": prompts.prompt_ids(tokenizer, by_id[pair.example_id], template),
            "chosen_ids": prompts.completion_ids(tokenizer, pair.chosen),
            "rejected_ids": prompts.completion_ids(tokenizer, pair.rejected),
        }
        for pair in pairs
    ]


def sft(
    model: str | Path, rows: Sequence[dict[str, list[int]]], out: Path, settings: Settings
) -> list[dict[str, float]]:
    """Supervised fine-tuning on the completion tokens alone; writes the judge to `out` and returns the log."""
    models.resolve_backend(settings.backend)  # Unsloth comes before trl
    from trl import SFTConfig, SFTTrainer

    lengths = [len(row["input_ids"]) for row in rows]
    prompt_of = [tuple(row["input_ids"][: row["completion_mask"].index(1)]) for row in rows]
    sharing = settings.share_prompts and len(set(prompt_of)) < len(rows)

    def trainer(policy: Any, tokenizer: Any, dataset: Any, arguments: dict[str, Any]) -> Any:
        if not sharing:
            config = _on_one_gpu(SFTConfig(**arguments, completion_only_loss=True, packing=False))
            return SFTTrainer(model=policy, args=config, train_dataset=dataset, processing_class=tokenizer)
        plan = _share(policy, rows, prompt_of, lengths, settings, arguments)
        config = _on_one_gpu(SFTConfig(**arguments, completion_only_loss=True, packing=False, loss_type="nll"))
        return shared.sft_trainer()(plan, model=policy, args=config, train_dataset=dataset, processing_class=tokenizer)

    return _train(model, rows, lengths, out, settings, trainer)


def dpo(
    model: str | Path,
    rows: Sequence[dict[str, list[int]]],
    out: Path,
    settings: Settings,
    *,
    beta: float = 0.1,
    nll_weight: float = 0.0,
) -> list[dict[str, float]]:
    """Direct preference optimization from `model`, which is the reference, too; writes the judge to `out`, returns the log.

    The loss is -log sigmoid(beta * margin) + nll_weight * NLL(chosen) (RPO, arXiv 2404.19733). The reference's
    log-probabilities are computed before training and kept in `out` (srlib.reference), so there is one model. Raises
    ReferenceMismatch if the first step's reward margin is not zero within 1e-5 (fp32) or 1e-2 (16 bit), that is, if the
    sigmoid loss does not start at ln 2.
    """
    models.resolve_backend(settings.backend)
    from trl import DPOConfig, DPOTrainer

    class TokenizedDPOTrainer(shared.dpo_trainer() if settings.share_prompts else DPOTrainer):
        """TRL tokenizes text, and cuts where prompt and completion merge; these rows are ids already."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            return reference.with_columns(self, dataset, batch_size, out / "reference.json")

    def trainer(policy: Any, tokenizer: Any, dataset: Any, arguments: dict[str, Any]) -> Any:
        loss = (
            dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, nll_weight])
            if nll_weight
            else dict(loss_type="sigmoid")
        )
        plan = []
        if settings.share_prompts:
            prompt_of = [tuple(row["prompt_ids"]) for row in rows]
            plan = [_share(policy, rows, prompt_of, lengths, settings, arguments)]
        else:
            print("each judgment reads its own prompt (TRL's trainer)")
        config = _on_one_gpu(DPOConfig(**arguments, **loss, beta=beta, precompute_ref_log_probs=True))
        return TokenizedDPOTrainer(*plan, model=policy, args=config, train_dataset=dataset, processing_class=tokenizer)

    lengths = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    return _train(model, rows, lengths, out, settings, trainer)


def _share(
    policy: Any,
    rows: Sequence[dict[str, list[int]]],
    prompt_of: Sequence[tuple[int, ...]],
    lengths: Sequence[int],
    settings: Settings,
    arguments: dict[str, Any],
) -> shared.Plan:
    """How this training reads each prompt once; puts the parts of a step into the trainer's `arguments`.

    A part may have as many tokens as `micro_batch_size` of the longest rows have where each row reads its own prompt.
    """
    import torch

    unsloth_on_gpu = torch.cuda.is_available() and models.resolve_backend(settings.backend) == "unsloth"
    kernel = settings.unsloth_kernel
    engine = shared.engine(policy, settings.gradient_checkpointing, max(lengths), unsloth_on_gpu, kernel)
    cost = shared.cost(rows)
    sides = 2 if "chosen_ids" in rows[0] else 1
    apart = [cost([i]) + (sides - 1) * len(prompt) for i, prompt in enumerate(prompt_of)]
    layout = batches.layout(
        batches.by_prompt(prompt_of),
        lengths,
        cost,
        batch_size=settings.batch_size,
        steps=arguments["max_steps"],
        seed=settings.seed,
        budget=None if settings.micro_batch_size >= settings.batch_size else settings.micro_batch_size * max(apart),
    )
    arguments["gradient_accumulation_steps"] = layout.per_step
    print(
        f"each prompt is read once ({engine} engine): {len(rows)} rows of {len(set(prompt_of))} prompts, "
        f"{sum(apart) / cost(range(len(rows))):.1f} times fewer tokens; a step goes through the model in {layout.per_step}"
    )
    return shared.Plan(engine, layout)


def steps(n_rows: int, settings: Settings) -> int:
    """Optimizer steps that these settings mean for so many rows: `(482 rows, 16 a step, 1 epoch) -> 31`."""
    return settings.max_steps or math.ceil(n_rows / settings.batch_size * settings.epochs)


def _train(
    model: str | Path,
    rows: Sequence[dict[str, list[int]]],
    lengths: list[int],
    out: Path,
    settings: Settings,
    make_trainer: Any,
) -> list[dict[str, float]]:
    record, checkpoints = out / "train.json", out / "checkpoints"
    if record.exists():
        shutil.rmtree(checkpoints, ignore_errors=True)
        return store.read_json(record)["log"]
    if not rows:
        raise ValueError("there is nothing to train on: no rows; look at the drops of the stage before")
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, set_seed

    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # TRL draws bars of its own; ours reaches the pipeline
    started = time.monotonic()
    total = steps(len(rows), settings)
    set_seed(settings.seed)
    if settings.lora_rank == 0 and settings.judge_format == "adapter":
        raise models.ModelError(
            "lora_rank 0 trains all weights: there is no adapter to keep; set judge_format to merged"
        )
    dtype = settings.dtype if settings.lora_rank else "float32"  # small steps are lost in 16-bit weights
    weights = dict(quantization=settings.quantization, quant_type=settings.quant_type, dtype=dtype)
    policy, tokenizer = models.load(model, backend=settings.backend, training=True, **weights)
    as_adapter = adapters.keeps_adapter(
        settings.judge_format, model, settings.quantization, models.torch_dtype(settings.dtype)
    )
    policy = adapters.add_lora(
        policy, backend=settings.backend, quantization=settings.quantization, rank=settings.lora_rank,
        alpha=settings.lora_alpha, dropout=settings.lora_dropout, lora_targets=settings.lora_targets, seed=settings.seed,
    )  # fmt: skip
    arguments = _arguments(settings, checkpoints, total)
    trains = [] if settings.quantization == "none" else [p for p in policy.parameters() if p.requires_grad]
    exact = [p.detach().clone() for p in trains]
    dataset = Dataset.from_list([{**row, "length": n} for row, n in zip(rows, lengths, strict=True)])
    trainer = make_trainer(policy, tokenizer, dataset, arguments)
    trainer.remove_callback(PrinterCallback)
    for p, value in zip(trains, exact, strict=True):  # TRL rounds a 4-bit model's adapter to bf16; small steps vanish
        p.data = value
    with progress(total=total, desc=f"train {out.name.removesuffix('.partial')}") as bar:
        trainer.add_callback(_watch(bar, _tolerance(trainer.args)))
        resumed = _last_checkpoint(checkpoints)
        with adapters.saving(out):
            trainer.train(resume_from_checkpoint=resumed)
    # Resumed behind its last step, the trainer makes one more, at a learning rate of 0.
    entries = [entry for entry in trainer.state.log_history if "loss" in entry and entry["step"] <= total]
    log = [{k: float(v) for k, v in entry.items()} for entry in entries]
    trained = trainer.accelerator.unwrap_model(trainer.model)
    adapters.save_judge(trained, tokenizer, out, source=model, judge=settings.judge, adapter=as_adapter)
    tokens = sum(lengths) * total * settings.batch_size / len(rows)
    facts = {
        "steps": total,
        "rows": len(rows),
        "tokens": round(tokens),
        "seconds": None if resumed else round(time.monotonic() - started, 2),  # what was killed did not tell
    }
    store.write_json(record, {**facts, "bf16": bool(trainer.args.bf16), "torch": torch.__version__, "log": log})
    shutil.rmtree(checkpoints, ignore_errors=True)
    return log


def _arguments(settings: Settings, checkpoints: Path, total: int) -> dict[str, Any]:
    import torch

    gpu, dtype = torch.cuda.is_available(), models.torch_dtype(settings.dtype)
    if not gpu and dtype == torch.float16:
        raise models.ModelError("dtype float16 trains on a GPU only; set it to auto, float32 or bfloat16")
    # On a CPU fp32 weights compute in bf16 where it has instructions for that, unless float32 was asked for.
    bf16 = dtype == torch.bfloat16 or (not gpu and settings.dtype == "auto" and torch.cpu._is_avx512_bf16_supported())
    tracked = "wandb" if _wandb_is_on() else "none"
    # A step is cut into equal parts: the largest that are no larger than asked for.
    micro = max(n for n in range(1, settings.micro_batch_size + 1) if settings.batch_size % n == 0)
    return dict(
        output_dir=str(checkpoints), max_steps=total, learning_rate=settings.learning_rate, seed=settings.seed,
        per_device_train_batch_size=micro, gradient_accumulation_steps=settings.batch_size // micro,
        warmup_steps=math.ceil(WARMUP * total), lr_scheduler_type="linear", adam_beta2=settings.adam_beta2,
        max_grad_norm=1.0, weight_decay=0.0, use_cpu=not gpu, bf16=bf16, fp16=dtype == torch.float16,
        gradient_checkpointing=settings.gradient_checkpointing, logging_steps=1, logging_first_step=True,
        save_strategy="steps", save_steps=50, save_total_limit=1, report_to=tracked, disable_tqdm=True,
        # Rows of one length side by side save a fifth of the time; too long ones were dropped before, never truncated.
        train_sampling_strategy="group_by_length", length_column_name="length", remove_unused_columns=False,
        max_length=None, dataloader_pin_memory=gpu,
    )  # fmt: skip


def _on_one_gpu(config: Any) -> Any:
    """Where there are several, transformers would copy the model to all of them, and a step would have that many times the
    rows; the model is on one (models.load_transformers)."""
    config._n_gpu = min(1, config.n_gpu)
    return config


def _last_checkpoint(checkpoints: Path) -> str | None:
    """The newest complete one. A checkpoint is not written at once; one of a killed process would stop every resume."""
    complete = []
    for path in checkpoints.glob("checkpoint-*"):
        try:
            store.read_json(path / "trainer_state.json")  # the last file that the trainer writes
            complete.append((int(path.name.removeprefix("checkpoint-")), str(path)))
        except ValueError:  # a RowError is one
            shutil.rmtree(path)
    return max(complete, default=(0, None))[1]


def _wandb_is_on() -> bool:
    import sys

    return "wandb" in sys.modules and sys.modules["wandb"].run is not None


def _tolerance(arguments: Any) -> float:
    return 1e-2 if arguments.bf16 or arguments.fp16 else 1e-5


def _watch(bar: Any, tolerance: float) -> Any:
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Moves the bar, and looks at the first step: before it, policy and reference are one model."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.resumes = state.global_step > 0

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """The rows of an epoch are shuffled by torch's state at its beginning, which a checkpoint within it lacks."""
            path = Path(args.output_dir) / f"epoch-{int(state.epoch)}.json"
            if path.exists():
                torch.set_rng_state(torch.tensor(store.read_json(path), dtype=torch.uint8))
            elif not self.resumes:  # else the checkpoint's state, which comes after this, is the epoch's
                store.write_json(path, torch.get_rng_state().tolist())
            self.resumes = False

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bar.update(state.global_step - bar.done)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
            margin = float((logs or {}).get("rewards/margins", 0.0))
            if state.global_step == 1 and not abs(margin) <= tolerance:
                raise ReferenceMismatch(
                    f"at the first step the reward margin is {margin:.3g}, not 0 within {tolerance:g}: the reference is "
                    "not the model this training starts from; delete the judge's directory and start from the judge "
                    "that sampled the pairs"
                )

    return Watch()
