"""N judgments a prompt: srlib.sample against transformers' generate, in turn in one process.

    python bench/sampling.py --shape tiny --prompt 190 --completion 45
    python bench/sampling.py --shape 25m --prompt 1000 --completion 200 --rows 2

`generate` is generate(num_return_sequences=N); `prefilled` computes the prompts once and copies their cache for each row before it
generates, transformers' own advice for many continuations. All judgments have exactly `--completion` tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import common


def ours(model: Any, prompts: list[list[int]], n: int, tokens: int) -> None:
    import numpy as np

    from srlib.sample import decode, uniforms

    owner = [i for i in range(len(prompts)) for _ in range(n)]
    draws = np.stack([uniforms(0, str(i), k, tokens) for k, i in enumerate(owner)])
    decode(model, prompts, owner, max_new_tokens=tokens, eos=-1, temperature=1.0, draws=draws)


def generate(model: Any, prompts: list[list[int]], n: int, tokens: int, cache: Any = None) -> None:
    import torch

    ids = torch.tensor(prompts, device=model.device)
    ids = ids if cache is None else ids.repeat_interleave(n, 0)
    with torch.inference_mode():
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, num_return_sequences=1 if cache is not None else n, max_new_tokens=tokens, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip


def prefilled(model: Any, prompts: list[list[int]], n: int, tokens: int) -> None:
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.get_text_config())
    with torch.inference_mode():
        model(input_ids=torch.tensor(prompts, device=model.device)[:, :-1], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(n)
    generate(model, prompts, n, tokens, cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=common.SHAPES)
    parser.add_argument("--prompt", type=int, default=190, help="tokens")
    parser.add_argument("--completion", type=int, default=45, help="tokens")
    parser.add_argument("--rows", type=int, default=16, help="prompts at once")
    parser.add_argument("--n", type=int, default=10, help="judgments a prompt")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    with common.temporary() as folder:
        path, facts = common.random_model(given.shape, folder), common.machine()
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map="cuda" if gpu else None).eval()
    model.generation_config.eos_token_id = None
    texts = [common.words(tokenizer, given.prompt, str(i)) for i in range(given.rows)]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert {len(ids) for ids in prompts} == {given.prompt}
    ways, clock = (
        {"srlib": ours, "generate": generate, "prefilled": prefilled},
        time.perf_counter if gpu else time.process_time,
    )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(given.rounds):
        for name in ways if i % 2 == 0 else reversed(ways):
            started = clock()
            ways[name](model, prompts, given.n, given.completion)
            if gpu:
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    ratios = {n: statistics.median(g / s for g, s in zip(seconds["generate"], seconds[n], strict=True)) for n in ways}
    judgments = given.rows * given.n
    lines = [[n, f"{judgments / statistics.median(s):,.1f}", f"{ratios[n]:.2f}"] for n, s in seconds.items()]
    result = {
        "command": f"python bench/sampling.py {' '.join(sys.argv[1:])}".strip(),
        "machine": facts,
        "seconds": seconds,
    }
    result |= {"ratios": ratios, **vars(given)}
    header = ["way", "judgments a second", "times as fast as generate"]
    note = f"{given.rows} prompts of {given.prompt} tokens at once, {given.n} judgments of {given.completion} tokens each; medians of "
    note += f"{given.rounds} rounds in turn. " + (
        "Times of the GPU." if gpu else "Processor time of one thread in fp32."
    )
    name = f"sampling-{'gpu' if gpu else 'cpu'}-{given.shape}-{given.prompt}-{given.completion}"
    print(common.write(name, result, f"Sampling N = {given.n}: {given.shape}", header, lines, note))


if __name__ == "__main__":
    main()
