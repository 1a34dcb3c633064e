"""The sampling stage through a server against the same stage in this process: do they draw alike?

    python bench/serve_check.py runs/tiny/judges/sft                           # 40 prompts of the world, 4 draws each
    python bench/serve_check.py runs/tiny/judges/sft --data runs/tiny/data/train.jsonl --out docs/bench/serve.json
    python bench/serve_check.py MODEL.gguf --url http://127.0.0.1:8471/v1      # a server that runs already, llama.cpp say

Without `--url` it starts `transformers serve` on loopback (needs the dev extra). It draws N judgments of each prompt in both
places and prints, as one JSON object, the parse rate, the share of right scores, the mean score and the tokens a judgment of each,
with the 95% interval of the paired difference over prompts. Exit status 1 when the interval of a difference leaves out zero.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The URL of a `transformers serve` that loads what it is asked for, on a CPU, offline."""
    import httpx

    with contextlib.closing(socket.socket()) as free, tempfile.TemporaryDirectory() as home:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": home}
        command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
        with open(Path(home) / "log.txt", "w") as log:
            server = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    httpx.get(f"http://127.0.0.1:{port}/health")
                    break
                if server.poll() is not None:
                    raise SystemExit(
                        f"transformers serve did not start:\n{(Path(home) / 'log.txt').read_text()[-2000:]}"
                    )
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(30)


def by_prompt(judged: Sequence[Any], examples: Sequence[Any], n: int) -> dict[str, np.ndarray]:
    """(prompts,) means over the draws of each prompt."""
    gold = np.repeat([np.nan if e.score is None else e.score for e in examples], n)
    scores = np.array([np.nan if j.score is None else j.score for j in judged])
    values = {
        "parse_rate": np.isfinite(scores),
        "right": scores == gold,
        "score": scores,
        "tokens": np.array([j.tokens for j in judged]),
    }
    values = {name: of_draws.astype(float).reshape(-1, n) for name, of_draws in values.items()}
    with np.errstate(invalid="ignore"):  # of a prompt without any score
        return {name: np.nansum(rows, 1) / np.isfinite(rows).sum(1) for name, rows in values.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("judge", help="a judge's directory, or a GGUF file")
    arguments.add_argument("--url", help="a server that runs already; else `transformers serve` is started")
    arguments.add_argument("--name", help="the judge's name there; else its directory")
    arguments.add_argument("--max-new-tokens", type=int, default=128)
    arguments.add_argument("--data", type=Path, help="rows to judge; without it, prompts of the built-in world")
    arguments.add_argument("--prompts", type=int, default=40)
    arguments.add_argument("--n", type=int, default=4, help="judgments of each prompt")
    arguments.add_argument("--concurrency", type=int, default=4)
    arguments.add_argument("--out", type=Path, help="also write the JSON there")
    a = arguments.parse_args()

    from srlib import data
    from srlib.data import world
    from srlib.judge import Judge
    from srlib.schema import Example
    from srlib.stats import comparison

    rows = (row for _, _, row, _ in data.read_rows(a.data)) if a.data else iter(world.examples("train", 0, a.prompts))
    examples = list(itertools.islice((row for row in rows if isinstance(row, Example)), a.prompts))
    how: dict[str, Any] = dict(n=a.n, temperature=1.0, distributions=False, max_new_tokens=a.max_new_tokens)
    server = "the server" if a.url else "transformers serve"
    started = time.perf_counter()
    here = Judge.load(a.judge).score_many(examples, **how, seed=1)
    seconds = {"this process": time.perf_counter() - started}
    with contextlib.nullcontext(a.url) if a.url else served() as url:
        judge = Judge.load(url, model=a.name or a.judge, concurrency=a.concurrency)
        started = time.perf_counter()
        there = judge.score_many(examples, **how, seed=2)
        seconds[server] = time.perf_counter() - started
    mine, theirs = by_prompt(here, examples, a.n), by_prompt(there, examples, a.n)
    compared: dict[str, Any] = {}
    for name in mine:
        known = np.isfinite(mine[name]) & np.isfinite(theirs[name])
        if not known.any():
            compared[name] = {"this process": None, server: None, "difference": None, "equal": True}
            continue
        difference = comparison.paired_difference(theirs[name][known], mine[name][known])
        compared[name] = {
            "this process": round(float(mine[name][known].mean()), 4),
            server: round(float(theirs[name][known].mean()), 4),
            "difference": [round(float(x), 4) for x in (difference.value, difference.low, difference.high)],
            "equal": bool(difference.low <= 0 <= difference.high),
        }
    result = compared | {
        "command": f"python bench/serve_check.py JUDGE --prompts {a.prompts} --n {a.n}"
        + (" --url URL" if a.url else ""),
        "prompts": len(examples),
        "n": a.n,
        "judgments_per_second": {place: round(len(here) / s, 2) for place, s in seconds.items()},
        "what the server does otherwise": judge.server.summary(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(text + "\n")
    sys.exit(0 if all(value["equal"] for value in compared.values()) else 1)


if __name__ == "__main__":
    main()
