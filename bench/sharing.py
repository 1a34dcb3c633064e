"""DPO or SFT with each prompt computed once against TRL's own way: seconds a pair and peak memory, side by side.

    python bench/sharing.py --shape 25m --prompt 1000 --completion 200 --k 1 3 5
    python bench/sharing.py --shape tiny --prompt 175 --completion 59 --k 1 3 5 --rounds 3 --checkpointing
    python bench/sharing.py --shape 25m --prompt 280 --completion 32 --k 2 3 --sft

Both ways run trl.DPOTrainer on the same pairs; the shared one adds the collator of srlib.shared_prompts. `ideal` is the ratio
of tokens read, n(P + C) / (P + nC) for the n = 2k judgments in k pairs of a prompt. With --sft it is trl.SFTTrainer, on
n = k judgments of a prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import common

AT_ONCE = 24_000  # tokens of TRL's way in one step


def measure(work: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds a pair and peak bytes of some steps, the first left out; on a CPU, of processor time of one thread."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from srlib import shared_prompts

    gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype="auto", device_map="cuda" if gpu else None)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    rows = []
    for i in range(work["pairs"] * work["steps"]):
        prompt, sides = i // work["k"], work["completion"] - 1  # TRL adds the end-of-sequence token
        row = {"prompt": common.words(tokenizer, work["prompt"] - 2, f"prompt {prompt}") + "\n"}
        names = ("completion",) if work["sft"] else ("chosen", "rejected")
        rows.append(row | {name: common.words(tokenizer, sides, f"{name} {i}") for name in names})
    collator = shared_prompts.share(model, tokenizer, rows[:4]) if work["shared"] else None
    if work["shared"] and collator is None:
        raise SystemExit("this model cannot share prompts")
    settings = dict(
        output_dir=work["out"], max_steps=work["steps"], learning_rate=1e-5, per_device_train_batch_size=work["pairs"],
        max_length=None, use_cpu=not gpu, bf16=gpu, gradient_checkpointing=work["checkpointing"], report_to="none",
        disable_tqdm=True, save_strategy="no", remove_unused_columns=False, train_sampling_strategy="sequential",
        logging_strategy="no",
    )  # fmt: skip
    if work["sft"]:
        args = SFTConfig(completion_only_loss=True, **settings)
    else:
        args = DPOConfig(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], **settings)
    marks, clock = [], time.perf_counter if gpu else time.process_time

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            marks.append(clock())

    trainer = (SFTTrainer if work["sft"] else DPOTrainer)(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, data_collator=collator,
        callbacks=[Clock()],
    )  # fmt: skip
    before = common.forget_peak()
    trainer.train()
    seconds = [b - a for a, b in zip(marks[1:], [*marks[2:], clock()], strict=True)]
    return {"ms_per_pair": 1000 * statistics.median(seconds) / work["pairs"], "peak_bytes": common.peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=common.SHAPES)
    parser.add_argument("--prompt", type=int, default=175, help="tokens")
    parser.add_argument("--completion", type=int, default=59, help="tokens")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3, 5], help="pairs of a prompt")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of processes; medians are kept")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of a process, the first is not counted")
    parser.add_argument("--sft", action="store_true", help="SFT on k judgments of a prompt in place of DPO on k pairs")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing, both ways")
    given = parser.parse_args()
    rows, tokens = [], given.prompt + given.completion
    with common.temporary() as folder:
        model = common.random_model(given.shape, f"{folder}/model")
        facts = common.machine()
        for k in given.k:
            n = k if given.sft else 2 * k  # judgments of a prompt
            pairs = k * (2 if 2 * n * tokens <= AT_ONCE else 1)
            work = dict(model=model, out=f"{folder}/out", k=k, pairs=pairs, steps=given.steps, prompt=given.prompt)
            work |= dict(completion=given.completion, checkpointing=given.checkpointing, sft=given.sft)
            rounds = []
            for i in range(given.rounds):
                order = [False, True] if i % 2 == 0 else [True, False]
                rounds.append({shared: common.in_process("sharing.py", work | {"shared": shared}) for shared in order})
            speed = statistics.median(r[False]["ms_per_pair"] / r[True]["ms_per_pair"] for r in rounds)
            memory = statistics.median(r[True]["peak_bytes"] / r[False]["peak_bytes"] for r in rounds)
            ideal = n * tokens / (given.prompt + n * given.completion)
            rows.append({"k": k, "pairs": pairs, "ideal": ideal, "speed": speed, "memory": memory, "rounds": rounds})
            print(k, round(speed, 2), round(ideal, 2), round(memory, 2), flush=True)
    lines = [
        [r["k"], r["pairs"], *(f"{statistics.median(x[s]['ms_per_pair'] for x in r['rounds']):,.0f}" for s in (False, True)),
         f"{r['speed']:.2f}", f"{r['ideal']:.2f}", f"{r['speed'] / r['ideal']:.2f}", f"{r['memory']:.2f}"]
        for r in rows
    ]  # fmt: skip
    name = f"sharing-{'sft-' if given.sft else ''}{'gpu' if facts['gpu'] else 'cpu'}-{given.shape}-{given.prompt}-{given.completion}"
    name += "-checkpointing" if given.checkpointing else ""
    result = {"command": f"python bench/sharing.py {' '.join(sys.argv[1:])}", "machine": facts, "rows": rows}
    unit = "judgment" if given.sft else "pair"
    header = ["k", f"{unit}s a step", f"ms a {unit}, TRL", f"ms a {unit}, shared", "times as fast", "ideal", "of ideal"]
    header += ["memory, of TRL's"]
    note = f"Prompt {given.prompt} + judgment {given.completion} tokens, k {unit}s of a prompt, LoRA rank 16. "
    note += "Times of the GPU." if facts["gpu"] else "Processor time of one thread in fp32."
    title = f"{'SFT' if given.sft else 'DPO'} with shared prompts: {given.shape}"
    print(common.write(name, result, title, header, lines, note))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        main()
