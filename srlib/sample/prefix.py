"""One copy of a prompt's keys and values for all the judgments that continue it.

P prompts are read once and continued by R rows. Each row attends to the keys of its prompt and to its own, with one softmax
over both, in an attention function registered with transformers; the model stays as it is."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from srlib.models.attention import check_arguments

NAME = "srlib_shared_prefix"
PREFILL = 2048  # prompt tokens in one forward pass: activations stay in a CPU's cache, and small on a GPU
HEAD = 64  # shortest common beginning of all prompts that is read once: a second pass costs more than fewer tokens save
BLOCK = 32  # the rows' own keys and values grow by so many tokens at a time

Prompts = Sequence[Sequence[int]]  # token ids


class Shared:
    """P prompts once, and R rows that continue them: `prompt` holds keys and values (P, Hkv, Tp, d) of each layer, `own` those of
    the rows (R, Hkv, T, d), `width` tokens of them filled. All rows of a prompt meet its keys in one matrix product: each
    has one of P x M seats, where M is the most rows of any prompt. Empty seats repeat row 0."""

    def __init__(self, model: Any, prompts: Prompts, owner: Sequence[int]) -> None:
        self.model, self.prompt, self.width = model, _prefill(model, prompts), 0
        self.lengths = torch.tensor([len(ids) - 1 for ids in prompts], device=model.device)
        self._seat(torch.as_tensor(owner, device=model.device))
        self.own = [tuple(part[self.owner, :, :0] for part in layer) for layer in self.prompt]

    def _seat(self, owner: Tensor) -> None:
        self.owner, rows, counts = owner, torch.arange(len(owner), device=owner.device), torch.bincount(owner)
        self.seats = int(counts.max())
        self.seat_of_row = owner * self.seats + rows - (counts.cumsum(0) - counts)[owner]
        self.row_of_seat = rows.new_zeros(len(counts) * self.seats)
        self.row_of_seat[self.seat_of_row] = rows
        self.shortest = int(self.lengths.min())
        columns = torch.arange(self.shortest, self.prompt[0][0].shape[2], device=owner.device)
        self.padding = (columns >= self.lengths[:, None])[:, None, None]  # (P, 1, 1, Tp - shortest)

    def seated(self, x: Tensor) -> Tensor:
        """(R, H, Q, d) -> (P, H, M * Q, d)"""
        return x[self.row_of_seat].unflatten(0, (-1, self.seats)).transpose(1, 2).flatten(2, 3)

    def in_rows(self, x: Tensor) -> Tensor:
        """(P, H, M * Q, d) -> (R, H, Q, d)"""
        return x.unflatten(2, (self.seats, -1)).transpose(1, 2).flatten(0, 1)[self.seat_of_row]

    def read(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Logits (R, T, V) behind the tokens `ids` (R, T), which stand at `positions` (R, T) of each text."""
        self.end = self.width + ids.shape[1]
        if (missing := self.end - self.own[0][0].shape[2]) > 0:
            _replace(self.own, lambda part: torch.nn.functional.pad(part, (0, 0, 0, max(missing, BLOCK))))
        self.later = torch.ones(ids.shape[1], self.end, dtype=torch.bool, device=ids.device).triu(self.width + 1)
        logits = self.model(input_ids=ids, position_ids=positions, use_cache=False, shared=self).logits
        self.width = self.end
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending), and the prompts that none of them continues."""
        _replace(self.own, lambda part: part[rows, :, : self.width])
        alive, owner = torch.unique(self.owner[rows], return_inverse=True)
        if len(alive) < len(self.lengths):
            self.lengths = self.lengths[alive]
            longest = max(1, int(self.lengths.max()))
            _replace(self.prompt, lambda part: part[alive, :, :longest])
        self._seat(owner)


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, shared: Any = None, **rest: Any
) -> tuple[Tensor, None]:
    """Attention of R rows with Q new tokens each, (R, H, Q, d) -> (R, Q, H, d); without `shared`, that of the prompts. Scores
    are summed in fp32 as in torch's own kernels: what all keys have in common costs a 16-bit sum its precision."""
    if shared is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    check_arguments(attention_mask=attention_mask, **rest)
    (prompt_keys, prompt_values), own = shared.prompt[module.layer_idx], shared.own[module.layer_idx]
    for part, new in zip(own, (key, value), strict=True):
        part[:, :, shared.width : shared.end] = new
    key, value = (part[:, :, : shared.end] for part in own)
    n_rows, n_heads, n_new, d = query.shape
    query = query.reshape(n_rows, key.shape[1], -1, d).float()  # heads that share keys in one: (R, Hkv, G * Q, d)
    to_prompt = shared.seated(query) @ prompt_keys.float().transpose(2, 3)
    to_prompt[..., shared.shortest :].masked_fill_(shared.padding, -math.inf)
    to_own = query @ key.float().transpose(2, 3)
    if n_new > 1:
        to_own.unflatten(2, (-1, n_new)).masked_fill_(shared.later, -math.inf)
    scores = torch.cat([to_prompt, shared.seated(to_own)], -1).mul_(scaling)
    on_prompt, on_own = scores.softmax(-1).to(value.dtype).split([to_prompt.shape[-1], to_own.shape[-1]], -1)
    out = shared.in_rows(on_prompt @ prompt_values) + shared.in_rows(on_own) @ value
    return out.reshape(n_rows, n_heads, n_new, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)


def _prefill(model: Any, prompts: Prompts) -> list[tuple[Tensor, ...]]:
    """Keys and values of each layer, (P, Hkv, Tp, d), of all but the last token of every prompt: that one is the rows' first.
    What all prompts begin with, such as the examples of a few-shot prompt, is read once, if the model can."""
    texts = [list(ids[:-1]) for ids in prompts]
    alike = list(itertools.takewhile(lambda column: len({*column}) == 1, zip(*texts, strict=False)))
    shares = len(texts) > 1 and len(alike) >= HEAD and _reads_on(model, [ids[: len(alike) + 8] for ids in texts[:2]])
    return _read(model, texts, texts[0][: len(alike)] if shares else [])


def _reads_on(model: Any, texts: Prompts) -> bool:
    """Whether the model computes the same of two texts if it reads what they begin with once; tried once a model."""
    if not hasattr(model, "_srlib_reads_on"):
        try:
            once, each = (_read(model, texts, texts[0][:n]) for n in (HEAD, 0))
            parts = zip(itertools.chain(*once), itertools.chain(*each), strict=True)
            off = max(float((a - b)[:, :, HEAD:].float().square().mean().sqrt() / b.float().std()) for a, b in parts)
            model._srlib_reads_on = off < (1e-3 if each[0][0].dtype == torch.float32 else 0.1)
        except Exception:  # models raise anything
            model._srlib_reads_on = False
    return model._srlib_reads_on


def _read(model: Any, texts: Prompts, head: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Keys and values of texts that all begin with `head`, which is read once. Padding is at the right end, unseen."""
    decoder, cache = model.get_decoder(), DynamicCache(config=model.config.get_text_config())
    if head:
        decoder(input_ids=torch.tensor([head], device=model.device), past_key_values=cache, use_cache=True)
    width = max(1, *(len(ids) - len(head) for ids in texts))  # a model reads at least one token; it counts as padding
    seen = torch.ones(width, len(head) + width, dtype=torch.bool, device=model.device).tril(len(head))[None, None]
    step, layers = max(1, PREFILL // width), []
    for start in range(0, len(texts), step):
        padded = [[*ids[len(head) :], *[0] * (len(head) + width - len(ids))] for ids in texts[start : start + step]]
        rows, own = torch.tensor(padded, device=model.device), copy.deepcopy(cache)
        if head:
            own.batch_repeat_interleave(len(rows))
        decoder(input_ids=rows, attention_mask=seen if head else None, past_key_values=own, use_cache=True)
        read = [(layer.keys, layer.values) for layer in own.layers]
        layers = layers or [tuple(part.new_empty(len(texts), *part.shape[1:]) for part in layer) for layer in read]
        for layer, new in zip(layers, read, strict=True):
            layer[0][start : start + step], layer[1][start : start + step] = new
    return layers


def _replace(layers: list[tuple[Tensor, ...]], change: Callable[[Tensor], Tensor]) -> None:
    """Replace one layer at a time, so at most one is duplicated in memory."""
    for i, layer in enumerate(layers):
        layers[i] = tuple(map(change, layer))
