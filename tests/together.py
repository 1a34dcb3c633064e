"""SFT and DPO as notebooks 02 and 05 train, in this process or, under torchrun, in several: `together.py OUT`; then draws.

Writes {training: {"loss": [of each step], "sum": of |weights|, "processes": 1}} to OUT, a file for each rank, the weights that
were trained, and judgments. Parameters may follow: `together.py OUT micro_batch_size=1`. With STOP="dpo" in the environment the
processes die behind the first checkpoint of that training; the next start goes on from there.
"""

import json
import os
import sys
from pathlib import Path

from datasets import Dataset
from safetensors.torch import save_file
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import srlib
from srlib import config, models, prompts, sample, sft, shared_prompts
from srlib.data import world
from srlib.models import training

BASE = Path(srlib.__file__).parent.parent / "models" / "tiny-base"
STEPS, BATCH = 4, 4  # of 10 rows: over the end of an epoch

cfg = config.load(None, ["dtype=float32", "backend=transformers", "micro_batch_size=2", "gpus=2", *sys.argv[2:]])
examples = world.examples("train", 0, 5, care=0.5)
tokenizer = models.load_tokenizer(BASE)
texts = [prompts.completion(e.rationale, e.score) for e in examples]
pairs = [
    {"prompt": prompts.prompt_text(tokenizer, e, "brief"), "chosen": text, "rejected": f"The {word}: fail. [RESULT] 1"}
    for e, text in zip(examples, texts, strict=True)
    for word in ("day", "host and the guest")
]
single = [{"prompt": row["prompt"], "completion": row[side]} for row in pairs[::2] for side in ("chosen", "rejected")]
out, logs = Path(sys.argv[1]), {}


class Stops(TrainerCallback):
    def on_save(self, args, state, control, **_):
        if os.environ.get("STOP") == Path(args.output_dir).name and state.global_step == 2:
            os._exit(1)


for name in ("sft", "sft shared", "dpo shared", "dpo"):
    set_seed(0)
    policy, tokenizer = models.load(BASE, training=True, dtype=cfg.dtype, quantization=cfg.quantization)
    policy = models.add_lora(policy, quantization=cfg.quantization, seed=0)
    how = dict(output_dir=str(out / name), max_steps=STEPS, learning_rate=1e-3, max_length=None, seed=0)
    how |= training.arguments(cfg, batch_size=BATCH) | dict(save_strategy="steps", save_steps=2)
    rows = single if name.startswith("sft") else pairs
    rows, lengths, _ = sft.fitting(tokenizer, rows, 512)
    order = training.order(lengths, [row["prompt"] for row in rows], batch_size=BATCH, steps=STEPS, seed=0)
    rows = [rows[i] for i in order]
    collator = shared_prompts.share(policy, tokenizer, rows) if name.endswith("shared") else None
    assert bool(collator) == name.endswith("shared")
    if name.startswith("sft"):
        args = SFTConfig(**how, completion_only_loss=True)
        own = dict(train_dataset=Dataset.from_list(rows), processing_class=tokenizer, data_collator=collator)
        trainer = SFTTrainer(policy, args=args, **own)
    else:
        kind = dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], beta=0.1)
        args = DPOConfig(**how, **kind)
        data = training.dataset(rows, out / name / "rows")
        trainer = DPOTrainer(policy, args=args, train_dataset=data, processing_class=tokenizer, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Stops())
    trainer.train(resume_from_checkpoint=training.last_checkpoint(out / name))
    trained = {at: p.detach().contiguous() for at, p in policy.named_parameters() if p.requires_grad}
    save_file(trained, out / f"{name} {os.environ.get('RANK', 0)}.safetensors")
    total = sum(p.abs().sum().item() for p in trained.values())
    logs[name] = {"loss": [e["loss"] for e in training.log_of(trainer)], "sum": total}
    logs[name]["processes"] = trainer.accelerator.num_processes
how = dict(n=3, temperature=1.0, seed=1, max_new_tokens=60, batch_size=2, out=out / "draws.jsonl")
logs["draws"] = len(sample.judgments(*models.load(BASE), world.examples("test", 0, 12, care=0.5), **how))
(out / f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(logs))
