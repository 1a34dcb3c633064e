"""Judgments a second: srlib.sample against transformers' `generate(num_return_sequences=N)`, in one run, alternating.

    python scripts/bench_sampling.py runs/tiny/judges/sft                  # prompts of the built-in world
    python scripts/bench_sampling.py runs/tiny/judges/sft --data rows.jsonl --out docs/bench/sampling.json
    python scripts/bench_sampling.py                                       # random 0.9M Llama, random prompts

Prints one JSON object: medians over the rounds, and the ratio round by round, which a busy neighbour moves less.
`generate` gets the best of several batch sizes, found in a round of its own. With a judge both sides end a judgment at
its end-of-sequence token; the random model's is switched off, so that every judgment has exactly `--new-tokens` tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

NO_EOS = -1  # an id that no token has


def random_setup(n: int, length: int) -> tuple[Any, list[list[int]], int]:
    """(model, prompts, eos): d = 128, 4 layers, 4 heads, vocabulary 1300; `n` prompts of about `length` tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1300, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384,
        max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    rng = random.Random(0)
    lengths = [length + rng.randint(-length // 9, length // 9) for _ in range(n)]
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None  # NO_EOS for generate
    return model, [[rng.randrange(3, 1300) for _ in range(k)] for k in lengths], NO_EOS


def judge_setup(judge: Path, data: Path | None, n: int) -> tuple[Any, list[list[int]], int]:
    """(model, prompts, eos) of a trained judge and `n` rows of a file, or of the built-in world."""
    from srlib import models, prompts, store, world
    from srlib.schema import Example

    model, tokenizer = models.load(judge)
    template = models.judge_info(judge)["template"]
    examples = store.read_rows(data, Example)[:n] if data else world.examples("train", 0, n)
    return model, [prompts.prompt_ids(tokenizer, e, template) for e in examples], tokenizer.eos_token_id


def ours(model: Any, prompts: list[list[int]], eos: int, n: int, new_tokens: int, batch: int) -> int:
    """Draw n judgments of each prompt with srlib.sample; returns the number of generated tokens."""
    import numpy as np

    from srlib import sample

    tokens, ordered = 0, sorted(prompts, key=len, reverse=True)
    for start in range(0, len(ordered), batch):
        rows = ordered[start : start + batch]
        owner = [i for i in range(len(rows)) for _ in range(n)]
        draws = np.stack(
            [sample.uniforms(0, str(start + i), k, new_tokens) for i in range(len(rows)) for k in range(n)]
        )
        found = sample.decode(model, rows, owner, max_new_tokens=new_tokens, eos=eos, temperature=1.0, draws=draws)
        tokens += sum(len(draw.token_ids) for draw in found)
    return tokens


def theirs(model: Any, prompts: list[list[int]], eos: int, n: int, new_tokens: int, batch: int) -> int:
    """The same with left padding and `generate`; every default that generation_config could bring is set by hand."""
    import torch

    tokens, ordered = 0, sorted(prompts, key=len, reverse=True)
    for start in range(0, len(ordered), batch):
        rows = ordered[start : start + batch]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, num_return_sequences=n, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=None if eos == NO_EOS else eos,
            )[:, width:]  # fmt: skip
        ended = out == eos
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1])
        tokens += int(lengths.sum())
    return tokens


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("judge", type=Path, nargs="?", help="a judge's directory; without it, a random model")
    arguments.add_argument("--data", type=Path, help="rows to judge, such as runs/tiny/data/train.jsonl")
    arguments.add_argument("--prompts", type=int, default=64)
    arguments.add_argument("--prompt-tokens", type=int, default=175, help="of a random prompt, +- 11%%")
    arguments.add_argument("--new-tokens", type=int, default=60)
    arguments.add_argument("--n", type=int, default=10, help="judgments of each prompt")
    arguments.add_argument("--batch", type=int, default=48, help="prompts side by side, srlib.sample")
    arguments.add_argument("--generate-batch", type=int, nargs="+", default=[8, 16, 32], help="the same, generate")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--out", type=Path, help="also write the JSON there, such as docs/bench/sampling.json")
    a = arguments.parse_args()
    if a.data and not a.judge:
        arguments.error("--data needs a judge to read it")
    if a.prompts < 1 or a.rounds < 1:
        arguments.error("--prompts and --rounds are at least 1")

    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    import torch

    torch.set_num_threads(a.threads)
    setup = judge_setup(a.judge, a.data, a.prompts) if a.judge else random_setup(a.prompts, a.prompt_tokens)
    model, prompts, eos = setup
    warm = prompts[:2]
    ours(model, warm, eos, a.n, 4, 2), theirs(model, warm, eos, a.n, 4, 2)

    tokens: dict[str, float] = {}

    def speed(name: str, batch: int) -> float:
        draw = ours if name == "srlib" else theirs
        started = time.perf_counter()
        made = draw(model, prompts, eos, a.n, a.new_tokens, batch)
        tokens[name] = made / (len(prompts) * a.n)
        return len(prompts) * a.n / (time.perf_counter() - started)

    tried = {batch: speed("generate", batch) for batch in a.generate_batch} if len(a.generate_batch) > 1 else {}
    batches = {"srlib": a.batch, "generate": max(tried, key=tried.get, default=a.generate_batch[0])}
    rounds: dict[str, list[float]] = {"srlib": [], "generate": []}
    for i in range(a.rounds):
        for name in ("srlib", "generate") if i % 2 == 0 else ("generate", "srlib"):
            rounds[name].append(speed(name, batches[name]))
    ratios = [x / y for x, y in zip(rounds["srlib"], rounds["generate"], strict=True)]
    result = {
        "judgments_per_second": {name: round(statistics.median(values), 1) for name, values in rounds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(r, 2) for r in ratios],
        "mean_tokens": {name: round(value, 1) for name, value in tokens.items()},
        "mean_prompt_tokens": round(statistics.mean(map(len, prompts)), 1),
        "prompts": len(prompts),
        "n": a.n,
        "parameters": model.num_parameters(),
        "batch": batches,
        "generate_by_batch": {str(batch): round(value, 1) for batch, value in tried.items()},
        "threads": a.threads,
        "device": str(model.device),
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
