"""What this machine could do at best, beside what it does: the fewest seconds that N judgments of a prompt can take.

    peak = measured("float32")                                # {"flops": 8.4e10, "bytes": 2.6e10}, a second
    least(shape, peak, rows=16, n=10, prompt_tokens=190, completion_tokens=45, size=4)     # seconds

For a model that a processor's cache holds, this is no strict bound: its reads can be faster than a copy. A phase takes as
long as its arithmetic at the speed of a large matrix product, or as long as its reads at the speed of a copy, whichever is
longer (the roofline, https://doi.org/10.1145/1498765.1498785). Reading: every prompt once, the last layer only up to its
keys and values. Drawing: a step for each token, which reads the weights once, each prompt's keys and values once, and each
row's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from srlib.hardware.shapes import Shape


def measured(dtype: str) -> dict[str, float]:
    """Operations a second of a matrix product, and bytes read and written a second by a copy, at torch's present threads
    and on its GPU if there is one: the best of five."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side, length = (8192, 2**28) if device == "cuda" else (1024, 2**25)
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    source = torch.zeros(length, device=device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(6):  # the first one warms up
            started = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
        return min(found[1:])

    return {"flops": 2 * side**3 / best(lambda: a @ b), "bytes": 8 * length / best(lambda: target.copy_(source))}


def least(
    shape: Shape, peak: Mapping[str, float], *, rows: int, n: int, prompt_tokens: int, completion_tokens: int, size: int
) -> float:
    """Seconds below which N judgments each of `rows` prompts cannot be read and drawn; `size` is bytes of a number."""
    pair = 4 * shape.layers * shape.heads * shape.head_dim  # operations of one token that attends to one other
    cached = 2 * shape.layers * shape.kv_heads * shape.head_dim * size  # bytes of one token's keys and values
    weights = shape.linear * size
    full = 1 - 1 / shape.layers  # the share of the layers that a prompt goes through as a whole
    read = full * shape.linear + sum(math.prod(shape.matrices[name]) for name in ("k_proj", "v_proj"))
    reading = rows * prompt_tokens * (2 * read + full * pair * prompt_tokens / 2)
    drawn, seen = rows * n * completion_tokens, prompt_tokens + completion_tokens / 2
    drawing = drawn * (2 * (shape.linear + shape.vocab * shape.hidden) + pair * seen)
    step = weights + shape.vocab * shape.hidden * size + rows * cached * (prompt_tokens + n * completion_tokens / 2)
    return max(reading / peak["flops"], read * size / peak["bytes"]) + max(
        drawing / peak["flops"], completion_tokens * step / peak["bytes"]
    )
