"""How the judgments that continue a prompt read it: the fastest way that computes what a plain forward pass does.

Shared  one copy of the prompt for all its judgments (prefix.py)
Copies  a copy of the prompt, in the model's own cache, for each judgment
Plain   no cache: the whole text again for every token, which is right for any causal model

Each model is tried once, on two short prompts. If a model needs a slower way than Shared, one line says so."""

import contextlib
import inspect
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from srlib import files
from srlib.models.attention import attends_within, ordinary_tokens
from srlib.sample.prefix import NAME, PREFILL, Prompts, Shared

EXACT, HALF = 1e-4, 0.5  # largest error of a likely token's log-probability in fp32 and in 16 bit, in nats
KEPT = [1, 3]  # rows of the trial that stay
_ONE = threading.RLock()  # a model that reads is in a state of its own, so threads take turns


class Copies:
    """Prompts are padded at the left end, because a window counts back from the right one."""

    says = "each judgment gets a copy of its prompt's cache (slower)"

    def __init__(self, model: Any, prompts: Prompts, owner: Sequence[int]) -> None:
        width = max(1, *(len(ids) - 1 for ids in prompts))
        rows = torch.tensor([[*[-1] * (width + 1 - len(ids)), *ids[:-1]] for ids in prompts], device=model.device)
        mask, owner = (rows >= 0).long(), torch.as_tensor(owner, device=model.device)
        self.model, self.mask, self.cache = model, mask, DynamicCache(config=model.config.get_text_config())
        self._forward(model.get_decoder(), rows.clamp(min=0), (mask.cumsum(-1) - 1).clamp(min=0))
        self.keep(owner)

    def _forward(self, part: Any, ids: Tensor, positions: Tensor) -> Any:
        inputs = {"position_ids": positions} if _takes(part, "position_ids") else {}  # others count along the mask
        return part(input_ids=ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **inputs)

    def read(self, ids: Tensor, positions: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        return self._forward(self.model, ids, positions).logits

    def keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]


class Plain:
    """Rows of one length at a time, without padding and without a mask."""

    says = "each token of a judgment reads the whole text again (much slower)"

    def __init__(self, model: Any, prompts: Prompts, owner: Sequence[int]) -> None:
        self.model, self.rows = model, [list(prompts[i][:-1]) for i in owner]
        self.few = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}

    def read(self, ids: Tensor, positions: Tensor) -> Tensor:
        return torch.stack([self._next(column) for column in ids.T.tolist()], 1)

    def _next(self, tokens: list[int]) -> Tensor:
        self.rows = [[*row, token] for row, token in zip(self.rows, tokens, strict=True)]
        order, parts = sorted(range(len(tokens)), key=lambda i: len(self.rows[i])), []
        for length, same in itertools.groupby([self.rows[i] for i in order], key=len):
            rows = torch.tensor(list(same), device=self.model.device)
            chunks = rows.split(max(1, PREFILL // length))
            parts += [self.model(input_ids=some, **self.few).logits[:, -1] for some in chunks]
        return torch.cat(parts)[np.argsort(order)]

    def keep(self, rows: Tensor) -> None:
        self.rows = [self.rows[i] for i in rows.tolist()]


def _takes(module: Any, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


@contextlib.contextmanager
def reading(model: Any, prompts: Prompts, owner: Sequence[int], longest: int) -> Iterator[Shared | Copies | Plain]:
    """Read all but the last token of P prompts, for R rows that continue them; `owner` (R,), ascending, names the prompt of
    each row. `longest` is the most tokens of a prompt and its continuation. Threads take turns."""
    with _ONE:
        within = attends_within(model)
        ways, beyond = vars(model).setdefault("_srlib_ways", {}), longest > within
        if beyond not in ways:
            ways[beyond] = _fastest(model, within, longest)
        with _opened(ways[beyond], model, prompts, owner) as past:
            yield past


@contextlib.contextmanager
def _opened(way: Any, model: Any, prompts: Prompts, owner: Sequence[int]) -> Iterator[Any]:
    """The prompts, read; the model's attention is another one until they are left, if `way` is Shared."""
    before = model.config._attn_implementation
    if way is Shared:
        model.set_attn_implementation(NAME)
    try:
        yield way(model, prompts, owner)
    finally:
        if way is Shared:
            model.set_attn_implementation(before)


@torch.inference_mode()
def _fastest(model: Any, within: float, longest: int) -> type:
    """The fastest way whose log-probabilities are those of Plain, for two prompts with two continuations each: short ones, or
    if the texts are longer than the model's window, such that cross it, and then without Shared."""
    ways, reason, size = [Shared, Copies], "", 12
    if longest > within:
        ways, reason = [Copies], f"it attends within {within:g} tokens and a text has {longest}"
        size = max(size, int(within) - 1)
    tokens = ordinary_tokens(model, size)
    prompts, rests = [tokens, tokens[5:9]], [tokens[3:6], tokens[7:4:-1]] * 2
    plain = _tried(Plain, model, prompts, rests)
    likely = plain.topk(5).indices  # of unlikely tokens, 16 bit tell little

    def error(other: Tensor) -> float:
        return float((other - plain).gather(-1, likely).abs().max())

    effect = error(_tried(Plain, model, [prompt[-1:] for prompt in prompts], rests))  # of all before its last token
    allowed = min(EXACT if next(model.parameters()).dtype == torch.float32 else HALF, effect / 5)
    for way in ways:
        try:
            off = error(_tried(way, model, prompts, rests))
        except Exception as failure:  # models raise anything
            reason = reason or f"{type(failure).__name__}: {files.shorten(str(failure), 100)}"
            continue
        if off <= allowed:
            break
        reason = reason or f"a token's log-probability would be off by {off:.2g} nats"
    else:
        way = Plain
    if way is not Shared:
        print(f"{type(model).__name__} does not share a prompt ({reason}): {way.says}")
    return way


def _tried(way: Any, model: Any, prompts: Prompts, rests: Prompts) -> Tensor:
    """(10, V) log-probabilities behind each prompt and the first token of each of four rests, then the second of two of them."""
    ids = torch.tensor([[prompts[i // 2][-1], *rest] for i, rest in enumerate(rests)], device=model.device)
    start = torch.tensor([[len(prompts[i // 2]) - 1] for i in range(4)], device=model.device)
    with _opened(way, model, prompts, [0, 0, 1, 1]) as past:
        first = past.read(ids[:, :2], torch.cat([start, start + 1], 1))
        past.keep(torch.tensor(KEPT, device=model.device))
        second = past.read(ids[KEPT, 2:3], start[KEPT] + 2)
    return torch.cat([first.flatten(0, 1), second[:, 0]]).float().log_softmax(-1)
