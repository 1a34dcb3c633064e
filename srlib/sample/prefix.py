"""One copy of a prompt's keys and values for all the rows that continue it.

What transformers calls a cache, and an attention function over two parts: the prompt's keys, kept once for each prompt,
and a row's own. Both go through transformers' own interfaces, so the model itself stays as it is. Rows that have ended
leave, and the rows of other prompts enter. An architecture whose attention is not plain full attention (Gemma 2's soft
caps, windows shorter than the text, sinks) would be computed wrongly; it reads the prompt once, too, and then every row
gets a copy of what was read, and nothing enters. A model that keeps a running state beside its keys is refused.

    with reading(model, prompts, owner=[0, 0, 1, 1], longest=320) as past:    # two prompts, two rows each
        logits = past.read(ids, positions)    # (4, T), (4, T) -> (4, T, V)
        past.keep(rows)                       # the others have ended
        past.enter(more, owner=[0, 0])        # one more prompt, its two rows behind those that stayed
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from srlib.models import load as models

NAME = "srlib_shared_prefix"
ATTENTIONS = ("full_attention", "sliding_attention", "chunked_attention")  # kinds of layers, where a model has several
PREFILL = (
    2048  # tokens of prompts that are read at once: activations that stay in a processor's cache, and few on a GPU
)
BLOCK = 32  # room for so many further tokens of every row is made at once


class SharedPrefix:
    """Keys and values of P prompts, once each, and of R rows that continue them; what transformers calls a cache.

    prompt keys (P, Hkv, Tp, d) of `prompt_lengths` (P,) tokens, own keys (R, Hkv, T, d) of `lengths` (R,). `owner` (R,)
    names each row's prompt and is ascending. `slots` (P * M,) lists the rows of each prompt, padded with row 0, and `places`
    (R,) says where a row stands in there.
    """

    is_compileable = False

    def __init__(self, prompt: list[tuple[Any, Any]], prompt_lengths: Any, owner: Any) -> None:
        self.prompt, self.prompt_lengths = prompt, prompt_lengths
        keys = prompt[0][0]
        empty = keys.new_zeros(len(owner), keys.shape[1], 0, keys.shape[3])
        self.own = [(empty, empty) for _ in prompt]
        self.lengths = owner.new_zeros(len(owner))
        self.width, self.ragged = 0, False
        self.seat(owner)

    def seat(self, owner: Any) -> None:
        import torch

        self.owner = owner
        counts = torch.bincount(owner, minlength=len(self.prompt_lengths))
        first = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(owner), device=owner.device) - first[owner]
        self.widest = int(counts.max())
        self.places = owner * self.widest + rank
        self.slots = torch.zeros(len(counts) * self.widest, dtype=torch.long, device=owner.device)
        self.slots[self.places] = torch.arange(len(owner), device=owner.device)
        self.even = len(owner) == len(counts) * self.widest  # then both are the identity
        self.shortest = int(self.prompt_lengths.min())
        slots = torch.arange(self.shortest, self.prompt[0][0].shape[2], device=owner.device)
        beyond = slots >= self.prompt_lengths[:, None]
        self.hidden = beyond[:, None, None, :] if len(slots) else None  # (P, 1, 1, Tp - shortest): padding

    def keep(self, rows: Any) -> None:
        """Let all but `rows` (ascending) leave, and the prompts that nobody continues any more."""
        import torch

        self.lengths = self.lengths[rows]
        self.width = int(self.lengths.max())
        _change(self.own, lambda part: part[rows, :, : self.width])
        alive, owner = torch.unique(self.owner[rows], return_inverse=True)
        if len(alive) < len(self.prompt_lengths):
            self.prompt_lengths = self.prompt_lengths[alive]
            longest = max(1, int(self.prompt_lengths.max()))
            _change(self.prompt, lambda part: part[alive, :, :longest])
        self.seat(owner)

    def enter(self, other: SharedPrefix) -> None:
        """Add prompts that nobody has continued yet, and the rows that will."""
        import torch

        longest = max(self.prompt[0][0].shape[2], other.prompt[0][0].shape[2])
        for layer, pairs in enumerate(zip(self.prompt, other.prompt, strict=True)):
            both = zip(*pairs, strict=True)
            self.prompt[layer] = tuple(torch.cat([_widened(part, longest) for part in parts]) for parts in both)
        self.ragged = self.ragged or self.width > 0
        _change(self.own, lambda part: torch.cat([part, part.new_zeros(len(other.owner), *part.shape[1:])]))
        owner = torch.cat([self.owner, other.owner + len(self.prompt_lengths)])
        self.prompt_lengths = torch.cat([self.prompt_lengths, other.prompt_lengths])
        self.lengths = torch.cat([self.lengths, other.lengths])
        self.seat(owner)

    def expect(self, n_new: int) -> None:
        """Make room for `n_new` tokens of every row, and see which slots each of them must not attend to."""
        import torch

        if self.width + n_new > self.own[0][0].shape[2]:
            room = self.width + max(n_new, BLOCK)
            _change(self.own, lambda part: _widened(part, room))
        self.n_new, width = n_new, self.width + n_new
        places = self.lengths[:, None] + torch.arange(n_new, device=self.lengths.device)  # (R, Q)
        self.new = (torch.arange(len(places), device=places.device)[:, None], slice(None), places)
        self.ahead = None  # (R, 1, 1, Q, T): later tokens, and slots that a younger row has not filled
        if n_new > 1 or self.ragged:
            self.ahead = (torch.arange(width, device=places.device) > places[:, :, None])[:, None, None]

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        end = self.width + self.n_new
        for part, new in zip(self.own[layer_idx], (keys, values), strict=True):
            if self.ragged:
                part[self.new] = new.transpose(1, 2)
            else:
                part[:, :, self.width : end] = new
        return tuple(part[:, :, :end] for part in self.own[layer_idx])

    def advance(self) -> None:
        self.lengths, self.width = self.lengths + self.n_new, self.width + self.n_new

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.width

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.width


def _change(pairs: list[tuple[Any, Any]], change: Callable[[Any], Any]) -> None:
    """Layer by layer, so that no more than one of them is there twice."""
    for layer, (keys, values) in enumerate(pairs):
        pairs[layer] = (change(keys), change(values))


def _widened(part: Any, width: int) -> Any:
    """`(R, H, t, d) -> (R, H, width, d)` with zeros behind, which are hidden but must be numbers."""
    import torch

    return part if part.shape[2] == width else torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[2]))


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    scaling: float,
    shared: SharedPrefix | None = None,
    **how: Any,
):
    """Attention of R rows with Q new tokens each: (R, H, Q, d) -> (R, Q, H, d), one softmax over prompt and own part. The
    prompts themselves are read without a `shared`, by transformers' sdpa."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if shared is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **how)
    prompt_keys, prompt_values = shared.prompt[module.layer_idx]
    n_rows, n_heads, n_new, d = query.shape
    n_prompts, kv_heads, width, _ = prompt_keys.shape
    groups, m = n_heads // kv_heads, shared.widest

    seated = query if shared.even else query[shared.slots]  # (P * M, H, Q, d)
    seated = seated.reshape(n_prompts, m, kv_heads, groups * n_new, d).transpose(1, 2)
    seated = seated.reshape(n_prompts, kv_heads, m * groups * n_new, d)
    # In fp32, as torch's own kernels have it: keys of 16 bit have much in common, which a softmax does not see and a sum
    # of 16 bit does not survive.
    to_prompt = torch.matmul(seated.float(), prompt_keys.float().transpose(2, 3))
    if shared.hidden is not None:
        to_prompt[..., shared.shortest :].masked_fill_(shared.hidden, -math.inf)
    to_prompt = to_prompt.view(n_prompts, kv_heads, m, groups * n_new, width).transpose(1, 2)
    to_prompt = to_prompt.reshape(n_prompts * m, kv_heads, groups * n_new, width)
    to_prompt = to_prompt if shared.even else to_prompt[shared.places]

    own = query.reshape(n_rows, kv_heads, groups * n_new, d).float()
    to_own = torch.matmul(own, key.float().transpose(2, 3))
    if shared.ahead is not None:
        to_own = to_own.view(n_rows, kv_heads, groups, n_new, -1).masked_fill_(shared.ahead, -math.inf)
        to_own = to_own.view(n_rows, kv_heads, groups * n_new, -1)

    weights = torch.softmax(torch.cat([to_prompt, to_own], -1).mul_(scaling), -1).to(query.dtype)
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

        AttentionInterface.register(NAME, _attend)
        self.before = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self.before)


def not_shareable(model: Any, longest: int) -> str | None:
    """Why `_attend` would compute this model wrongly: a window or a chunk shorter than the text, soft-capped scores, sinks,
    compressed keys, layers of another kind."""
    config, name = model.config.get_text_config(), type(model).__name__
    others = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind not in ATTENTIONS})
    if others:
        return f"{name} has layers of {', '.join(others)}"
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and longest > chunk:
        return f"{name} attends within {chunk} tokens and a judgment needs {longest}"
    if getattr(config, "kv_lora_rank", None):
        return f"{name} compresses its keys and values"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and longest > window:
        return f"{name} attends to {window} tokens and a judgment needs {longest}"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{name} soft-caps its attention scores"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return f"{name} has attention sinks"
    return None


def not_copyable(model: Any) -> str | None:
    """Why nothing can go on from what this model has read but the row that read it: its cache holds more than keys and
    values, such as the state of a linear attention."""
    from transformers import DynamicCache

    layers = DynamicCache(config=model.config.get_text_config()).layers
    others = sorted({type(layer).__name__ for layer in layers if type(layer) not in _plain_layers()})
    return f"{type(model).__name__} keeps what it has read in {', '.join(others)}" if others else None


@contextlib.contextmanager
def reading(model: Any, rows: Sequence[Sequence[int]], owner: Sequence[int], longest: int) -> Iterator[Any]:
    """What has been read so far, of P prompts (lists of token ids, all but the last of each) and of the R rows that go on
    from them; `owner` (R,) ascending names each row's prompt, and every prompt has a row. No text gets longer than `longest`
    tokens, prompt and all, those that enter later included. Raises ModelError on a model that has to read a prompt for each
    row."""
    why = not_copyable(model)
    if why is not None:
        raise models.ModelError(
            f"{why}: several draws cannot go on from there; judge with it through an endpoint or vLLM"
        )
    why = not_shareable(model, longest)
    if why is not None:
        warnings.warn(f"{why}: each draw gets a copy of its prompt's keys and values, which is slower", stacklevel=2)
        yield Copies(model, rows, owner)
        return
    with sharing(model):
        yield Shared(model, rows, owner)


class Shared:
    """Rows that attend to one copy of their prompt."""

    takes_more = True

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], owner: Sequence[int]) -> None:
        self.model, self.cache = model, prefill(model, rows, owner)
        self.keep = self.cache.keep

    @property
    def n_prompts(self) -> int:
        return len(self.cache.prompt_lengths)

    @property
    def width(self) -> int:
        """Tokens of the row that has been here longest."""
        return self.cache.width

    def enter(self, rows: Sequence[Sequence[int]], owner: Sequence[int]) -> None:
        self.cache.enter(prefill(self.model, rows, owner))

    def read(self, ids: Any, positions: Any) -> Any:
        self.cache.expect(ids.shape[1])
        logits = self.model(
            input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, shared=self.cache
        ).logits
        self.cache.advance()
        return logits


class Copies:
    """The same for any architecture, through its own cache and its own attention: one copy of the prompt a row."""

    takes_more = False

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], owner: Sequence[int]) -> None:
        import torch

        width = max(1, max(map(len, rows)) - 1)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):  # at the right end, from which a window counts back
            if len(row) > 1:
                ids[i, 1 - len(row) :] = torch.tensor(row[:-1])
                mask[i, 1 - len(row) :] = 1
        owners = torch.tensor(owner, device=model.device)
        self.model, ids, mask = model, ids.to(model.device), mask.to(model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = cache_of(
            model.config, model.get_decoder(), input_ids=ids, attention_mask=mask, position_ids=positions
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


class _AllRead(Exception):
    """The last layer has the keys and values of its prompt."""


def _plain_layers() -> tuple[type, ...]:
    """The layers of a cache that are keys and values and nothing else; others keep more, and write it later."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return DynamicLayer, DynamicSlidingWindowLayer


@functools.cache
def _cache_class() -> type:
    from transformers import DynamicCache

    plain = _plain_layers()

    class UntilAllRead(DynamicCache):
        all_read = False

        def update(self, keys: Any, values: Any, layer_idx: int, *given: Any, **how: Any) -> tuple[Any, Any]:
            found = super().update(keys, values, layer_idx, *given, **how)
            if not self.all_read and layer_idx == len(self.layers) - 1 and type(self.layers[-1]) in plain:
                raise _AllRead
            return found

    return UntilAllRead


def cache_of(config: Any, forward: Callable[..., Any], **inputs: Any) -> Any:
    """The keys and values of some prompts, as transformers' DynamicCache; `forward` is the model or its decoder. It stops as
    soon as the last layer has its own: that layer's attention and MLP would only be on the way to logits that nobody asks
    for. In a model of four layers they are a fifth of the work."""
    cache = _cache_class()(config=config.get_text_config())
    with contextlib.suppress(_AllRead):
        forward(**inputs, past_key_values=cache, use_cache=True)
    cache.all_read = True  # from here on it is a cache like any other
    return cache


def prefill(model: Any, rows: Sequence[Sequence[int]], owner: Sequence[int]) -> SharedPrefix:
    """Read all but the last token of every prompt, PREFILL tokens at once; that last one is the first input of the rows."""
    import torch

    device = model.device
    lengths = [len(row) - 1 for row in rows]
    width = max(1, *lengths)  # a model reads at least one token; it is hidden like padding
    at_once, prompt = max(1, PREFILL // width), []
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        ids = torch.zeros(len(part), width, dtype=torch.long)
        for i, row in enumerate(part):
            ids[i, : len(row) - 1] = torch.tensor(row[:-1])
        # Right padding under causal attention needs no mask: no token sees what stands behind it.
        cache = cache_of(model.config, model.get_decoder(), input_ids=ids.to(device))
        read = [(layer.keys, layer.values) for layer in cache.layers]
        prompt = prompt or [tuple(p.new_empty(len(rows), *p.shape[1:]) for p in pair) for pair in read]
        for whole, own in zip(prompt, read, strict=True):
            for table, tensor in zip(whole, own, strict=True):
                table[start : start + at_once] = tensor
    return SharedPrefix(prompt, torch.tensor(lengths, device=device), torch.tensor(owner, device=device))
