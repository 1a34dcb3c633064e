"""What SFT, DPO and GRPO share around TRL's trainers: the order of the rows, settings of the machine, progress, checkpoints.

A training is laid out as a whole before it begins: `order` names the row of every position in every step. So it is the
same on every machine, and the trainer resumes at any step from a checkpoint without drawing anything again."""

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from srlib import config, files
from srlib.config import Parameters, cpu_has_bf16
from srlib.models.loading import ModelError, torch_dtype

WINDOW = 32  # steps whose rows are sorted by length together
# Where several processes train on CPUs, the Trainer loads its optimizer to "cpu:0", a place that torch does not know.
torch.serialization.register_package(99, lambda s: None, lambda s, at: s if at.startswith("cpu:") else None)
os.environ["TQDM_DISABLE"] = "1"  # TRL's own bars; `Progress` shows a notebook and the pipeline how far a training is
disable_progress_bars()  # of datasets.map


def steps(n_rows: int, batch_size: int, epochs: float, fixed: int = 0) -> int:
    """Optimizer steps of some epochs, or `fixed` if that is set: `(482, 16, 1.0) -> 31`, `(482, 16, 1.0, 120) -> 120`."""
    return fixed or math.ceil(n_rows / batch_size * epochs)


def order(lengths: Sequence[int], prompts: Sequence = (), *, batch_size: int, steps: int, seed: int) -> list[int]:
    """Row numbers of a whole training, `steps * batch_size` of them: every row once before any comes again. Rows of one
    prompt (`prompts`, one for each row) stand side by side, so that `shared_prompts` finds them in one batch. Rows of
    similar length mostly meet in one step, which saves a fifth of the time in padding; steps are shuffled."""
    if not len(lengths):
        raise ModelError("there is nothing to train on: no rows are left; look at the drops of the stage before")
    of_prompt: dict[Hashable, list[int]] = {}
    for i in range(len(lengths)):
        of_prompt.setdefault(prompts[i] if prompts else i, []).append(i)
    groups = list(of_prompt.values())
    longest = {i: max(lengths[j] for j in group) for group in groups for i in group}
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < steps * batch_size:
        shuffled = [i for g in rng.permutation(len(groups)) for i in groups[g]]
        batches = []
        for start in range(0, len(shuffled), WINDOW * batch_size):
            window = shuffled[start : start + WINDOW * batch_size]
            window.sort(key=longest.__getitem__, reverse=True)  # stable: rows of one prompt stay together
            batches += [window[k : k + batch_size] for k in range(0, len(window), batch_size)]
        rows += [i for b in rng.permutation(len(batches)) for i in batches[b]]
    return rows[: steps * batch_size]


def arguments(cfg: Parameters, *, batch_size: int) -> dict[str, Any]:
    """Settings of transformers' Trainer that belong to the machine and not to the method. A step of `batch_size` rows
    is cut into equal parts of at most `cfg.micro_batch_size`, as many for each of `cfg.gpus` processes. A notebook
    run by hand, in one process, has the same parts, so its judge is the same up to rounding. On a CPU, fp32 weights
    compute in bf16 if it has instructions for that, unless `dtype: float32` forbids it."""
    gpu, dtype = torch.cuda.is_available(), torch_dtype(cfg.dtype)
    if not gpu and dtype == torch.float16:
        raise ModelError("dtype float16 trains on a GPU only; set it to auto, float32 or bfloat16")
    bf16 = dtype == torch.bfloat16 or (not gpu and cfg.dtype == "auto" and cpu_has_bf16())
    sizes = [n for n in range(1, cfg.micro_batch_size + 1) if batch_size % (n * cfg.gpus) == 0]
    micro = max(sizes, default=1)  # in `srlib run` there is always one
    return dict(
        per_device_train_batch_size=micro, gradient_accumulation_steps=batch_size // micro // config.together()[1],
        ddp_find_unused_parameters=False, use_cpu=not gpu, bf16=bf16, fp16=gpu and dtype == torch.float16, dataloader_pin_memory=gpu,
        gradient_checkpointing=cfg.gradient_checkpointing, train_sampling_strategy="sequential",
        optim="adamw_torch_fused", weight_decay=0.0,  # transformers' defaults; Unsloth has others on a GPU
        remove_unused_columns=False, save_strategy="steps", save_steps=50, save_total_limit=1, logging_steps=1,
        logging_first_step=True, logging_nan_inf_filter=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip


def dataset(rows: Sequence[dict[str, Any]], folder: Path) -> Dataset:
    """Rows as a data set. Processes that train together share it in `folder`, where each of them finds what TRL keeps beside
    it: the log-probabilities of the reference, which they compute together. The trainer's arguments have to exist before."""
    if config.together()[1] == 1:
        return Dataset.from_list(list(rows))
    if PartialState().is_main_process:
        Dataset.from_list(list(rows)).save_to_disk(folder)
    PartialState().wait_for_everyone()
    return Dataset.load_from_disk(folder)


def sft_loss(model: Any) -> dict[str, str]:
    """What SFTConfig has to say about the loss: TRL's default, in chunks, leaves out how a Granite scales its logits. Nothing
    for other models, for Unsloth has a default of its own, which gives way to an explicit one."""
    scaled = any(hasattr(model.config.get_text_config(), name) for name in ("logits_scaling", "lm_head_multiplier"))
    return {"loss_type": "nll"} if scaled else {}


class Progress(TrainerCallback):
    """Show how far a training is, in a notebook and to the pipeline; its curves go to the open wandb run (`stage.track()`). Save
    also between the regular checkpoints where steps are slow; not where processes train together, which share no clock."""

    def __init__(self, desc: str) -> None:
        self.desc, self.saved = desc, time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = files.progress(total=state.max_steps, desc=self.desc)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        if args.save_strategy != "no" and args.world_size == 1 and time.monotonic() - self.saved > 600:  # seconds
            control.should_save, self.saved = True, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if not math.isfinite(loss := logs.get("loss", 0.0)):  # nothing that follows can be trusted
            raise ModelError(f"step {state.global_step}: the loss is {loss}; lower the learning rate, or use fp32")
        if (wandb := sys.modules.get("wandb")) and wandb.run is not None:
            values = logs | {"global_step": state.global_step}
            wandb.run.log({f"train/{name}": value for name, value in values.items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint, None if there is none. One that a killed process was writing is deleted, and so is TRL's
    reference in it: transformers 5.17 would load that adapter in place of the policy's, and the training would be lost."""
    while newest := Path(folder).is_dir() and get_last_checkpoint(str(folder)):
        with contextlib.suppress(OSError, ValueError):
            TrainerState.load_from_json(str(Path(newest) / "trainer_state.json"))  # the trainer writes this file last
            shutil.rmtree(Path(newest) / "ref", ignore_errors=True)
            return newest
        with contextlib.suppress(FileNotFoundError):  # another process of this training deletes it, too
            shutil.rmtree(newest)
    return None


@contextlib.contextmanager
def exact_adapter(model: Any) -> Iterator[None]:
    """While a trainer is made: TRL rounds the adapter of a 4-bit model to bf16, where small steps vanish. Restore it."""
    values = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, p in model.named_parameters():
        if name in values:
            p.data = values[name]


def log_of(trainer: Any) -> list[dict[str, float]]:
    """What the trainer logged, a dict a step: `[{"step": 1, "loss": 0.75, "rewards/margins": 0.0, ...}, ...]`; no inf or NaN."""
    history, last = trainer.state.log_history, trainer.args.max_steps
    entries = [entry for entry in history if "loss" in entry and entry["step"] <= last]
    return [{name: float(n) for name, n in entry.items() if math.isfinite(float(n))} for entry in entries]
