"""One copy of a prompt's keys and values for all the rows that continue it.

What transformers calls a cache, and an attention function over two parts: the prompt's keys, kept once for each prompt,
and a row's own. Both go through transformers' own interfaces, so the model itself stays as it is. An architecture whose
attention is not plain full attention (Gemma 2's soft caps, windows shorter than the text, sinks) would be computed
wrongly; it reads the prompt once, too, and then every row gets a copy of what was read.

    with reading(model, prompts, owner=[0, 0, 1, 1], capacity=120) as past:    # two prompts, two rows each
        logits = past.read(ids, positions)    # (4, T), (4, T) -> (4, T, V)
        past.keep(rows)                       # the others have ended
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

ATTENTION = "srlib_shared_prefix"
CHUNK = 2048  # tokens of prompts that are read at once: activations that stay in a processor's cache, and few on a GPU


class SharedPrefix:
    """Keys and values of P prompts, once each, and of R rows that continue them; what transformers calls a cache.

    prompt keys (P, Hkv, Tp, d), own keys (R, Hkv, T, d). `owner` (R,) names each row's prompt and is ascending. `slots`
    (P, M) lists the rows of each prompt, padded with row 0, and `places` (R,) says where a row stands in there.
    """

    is_compileable = False

    def __init__(self, prompt: list[tuple[Any, Any]], lengths: Any, owner: Any, capacity: int) -> None:
        import torch

        self.prompt = prompt
        width = self.prompt[0][0].shape[2]
        beyond = torch.arange(width, device=lengths.device)[None, :] >= lengths[:, None]
        self.hidden = beyond[:, None, None, :] if bool(beyond.any()) else None  # (P, 1, 1, Tp): padding
        keys = self.prompt[0][0]
        shape = (len(owner), keys.shape[1], capacity, keys.shape[3])
        self.own = [(keys.new_empty(shape), keys.new_empty(shape)) for _ in self.prompt]
        self.length = 0
        self.seat(owner)

    def seat(self, owner: Any) -> None:
        import torch

        self.owner = owner
        counts = torch.bincount(owner, minlength=len(self.prompt[0][0]))
        first = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(owner), device=owner.device) - first[owner]
        self.widest = int(counts.max())
        self.places = owner * self.widest + rank
        self.slots = torch.zeros(len(counts) * self.widest, dtype=torch.long, device=owner.device)
        self.slots[self.places] = torch.arange(len(owner), device=owner.device)
        self.even = len(owner) == len(counts) * self.widest  # then both are the identity

    def keep(self, rows: Any) -> None:
        """Let all but `rows` (ascending) leave, and the prompts that nobody continues any more."""
        import torch

        t = self.length
        self.own = [tuple(_grown(part[rows, :, :t], part.shape[2]) for part in pair) for pair in self.own]
        alive, owner = torch.unique(self.owner[rows], return_inverse=True)
        if len(alive) < len(self.prompt[0][0]):
            self.prompt = [(keys[alive], values[alive]) for keys, values in self.prompt]
            self.hidden = None if self.hidden is None else self.hidden[alive]
        self.seat(owner)

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        own_keys, own_values = self.own[layer_idx]
        start, end = self.length, self.length + keys.shape[2]
        own_keys[:, :, start:end], own_values[:, :, start:end] = keys, values
        return own_keys[:, :, :end], own_values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length


def _grown(part: Any, capacity: int) -> Any:
    """`(R, H, t, d) -> (R, H, capacity, d)`, the rest not yet written."""
    full = part.new_empty((*part.shape[:2], capacity, part.shape[3]))
    full[:, :, : part.shape[2]] = part
    return full


def _attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, shared: SharedPrefix, **_: Any):
    """Attention of R rows with Q new tokens each: (R, H, Q, d) -> (R, Q, H, d), one softmax over prompt and own part."""
    import torch

    prompt_keys, prompt_values = shared.prompt[module.layer_idx]
    n_rows, n_heads, n_new, d = query.shape
    n_prompts, kv_heads, width, _ = prompt_keys.shape
    groups, m = n_heads // kv_heads, shared.widest

    seated = query if shared.even else query[shared.slots]  # (P * M, H, Q, d)
    seated = seated.reshape(n_prompts, m, kv_heads, groups * n_new, d).transpose(1, 2)
    seated = seated.reshape(n_prompts, kv_heads, m * groups * n_new, d)
    to_prompt = torch.matmul(seated, prompt_keys.transpose(2, 3))
    if shared.hidden is not None:
        to_prompt.masked_fill_(shared.hidden, -math.inf)
    to_prompt = to_prompt.view(n_prompts, kv_heads, m, groups * n_new, width).transpose(1, 2)
    to_prompt = to_prompt.reshape(n_prompts * m, kv_heads, groups * n_new, width)
    to_prompt = to_prompt if shared.even else to_prompt[shared.places]

    grouped = query.reshape(n_rows, kv_heads, groups * n_new, d)
    to_own = torch.matmul(grouped, key.transpose(2, 3))
    if n_new > 1:  # several new tokens at once see each other causally
        length = key.shape[2]
        future = torch.ones(n_new, length, dtype=torch.bool, device=key.device).triu(length - n_new + 1)
        to_own = to_own.view(n_rows, kv_heads, groups, n_new, length).masked_fill(future, -math.inf)
        to_own = to_own.view(n_rows, kv_heads, groups * n_new, length)

    weights = torch.softmax(torch.cat([to_prompt, to_own], -1).mul_(scaling).float(), -1).to(query.dtype)
    from_own = torch.matmul(weights[..., width:], value)
    on_prompt = weights[..., :width] if shared.even else weights[..., :width][shared.slots]
    on_prompt = on_prompt.reshape(n_prompts, m, kv_heads, groups * n_new, width).transpose(1, 2)
    from_prompt = torch.matmul(on_prompt.reshape(n_prompts, kv_heads, m * groups * n_new, width), prompt_values)
    from_prompt = from_prompt.view(n_prompts, kv_heads, m, groups * n_new, d).transpose(1, 2)
    from_prompt = from_prompt.reshape(n_prompts * m, kv_heads, groups * n_new, d)
    from_prompt = from_prompt if shared.even else from_prompt[shared.places]
    out = (from_prompt + from_own).reshape(n_rows, n_heads, n_new, d)
    return out.transpose(1, 2).contiguous(), None


class sharing:
    """Within this block the model attends over a SharedPrefix; its own attention comes back afterwards."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, _attend)
        self.before = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self.before)


def not_shareable(model: Any, longest: int) -> str | None:
    """Why `_attend` would compute this model wrongly: a window shorter than the text, soft-capped scores, sinks."""
    config, name = model.config.get_text_config(), type(model).__name__
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and longest > window:
        return f"{name} attends to {window} tokens and a judgment needs {longest}"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{name} soft-caps its attention scores"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return f"{name} has attention sinks"
    return None


@contextlib.contextmanager
def reading(model: Any, rows: Sequence[Sequence[int]], owner: Sequence[int], capacity: int) -> Iterator[Any]:
    """What has been read so far, of P prompts (lists of token ids, all but the last of each) and of the R rows that go on
    from them by at most `capacity` tokens; `owner` (R,) ascending names each row's prompt."""
    why = not_shareable(model, max(map(len, rows)) + capacity)
    if why is not None:
        warnings.warn(f"{why}: each draw gets a copy of its prompt's keys and values, which is slower", stacklevel=2)
        yield Copies(model, rows, owner)
        return
    shared = prefill(model, rows, owner, capacity)
    with sharing(model):
        yield _Shared(model, shared)


class _Shared:
    def __init__(self, model: Any, cache: SharedPrefix) -> None:
        self.model, self.cache, self.keep = model, cache, cache.keep

    def read(self, ids: Any, positions: Any) -> Any:
        logits = self.model(
            input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, shared=self.cache
        ).logits
        self.cache.length += ids.shape[1]
        return logits


class Copies:
    """The same for any architecture, through its own cache and its own attention: one copy of the prompt a row."""

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], owner: Sequence[int]) -> None:
        import torch
        from transformers import DynamicCache

        width = max(1, max(map(len, rows)) - 1)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):  # at the right end, from which a window counts back
            if len(row) > 1:
                ids[i, 1 - len(row) :] = torch.tensor(row[:-1])
                mask[i, 1 - len(row) :] = 1
        owners = torch.tensor(owner, device=model.device)
        self.model, ids, mask = model, ids.to(model.device), mask.to(model.device)
        self.cache = DynamicCache(config=model.config.get_text_config())
        model.get_decoder()(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache.batch_select_indices(owners)
        self.mask = mask[owners]

    def read(self, ids: Any, positions: Any) -> Any:
        import torch

        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        return self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).logits

    def keep(self, rows: Any) -> None:
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]


def prefill(model: Any, rows: Sequence[Sequence[int]], owner: Sequence[int], capacity: int) -> SharedPrefix:
    """Read all but the last token of every prompt, CHUNK tokens at once; that last one is the first input of the rows."""
    import torch
    from transformers import DynamicCache

    device = model.device
    lengths = [len(row) - 1 for row in rows]
    width = max(1, *lengths)  # a model reads at least one token; it is hidden like padding
    at_once, parts = max(1, CHUNK // width), []
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        ids = torch.zeros(len(part), width, dtype=torch.long)
        for i, row in enumerate(part):
            ids[i, : len(row) - 1] = torch.tensor(row[:-1])
        # Right padding under causal attention needs no mask: no token sees what stands behind it.
        cache = DynamicCache(config=model.config.get_text_config())
        model.get_decoder()(input_ids=ids.to(device), past_key_values=cache, use_cache=True)
        parts.append([(layer.keys, layer.values) for layer in cache.layers])
    prompt = [tuple(torch.cat(pieces) for pieces in zip(*layers, strict=True)) for layers in zip(*parts, strict=True)]
    return SharedPrefix(
        prompt, torch.tensor(lengths, device=device), torch.tensor(owner, dtype=torch.long, device=device), capacity
    )
