"""What srlib.shared does, without a cache: prompts and completions one behind the other in one row, without padding.

An attention function knows which completion sees which prompt. Gradient checkpointing, which computes a layer twice and has
no cache the second time, works so; plain full attention only.

    install(model)
    s = lay_out(prompts, completions, owner)      # ids, positions, wanted, and the places of the row in tables
    logits = read(model, s)                       # (U, T, V) behind [last prompt token, completion]
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

NAME = "srlib_shared_training"


def install(model: Any) -> None:
    """Give the model the attention function. It may stay: without a layout it is transformers' sdpa without a mask, which
    is right for rows that are padded at their right end, if at all."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    model.set_attn_implementation(NAME)


def lay_out(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], owner: Sequence[int]) -> dict:
    """One row of L tokens: all prompts, then the U completions, of which `owner` (U,) names the prompts.

    `wanted` (U, T) says where the logits of [last prompt token, completion] stand in the row, the last prompt token again
    where a completion is shorter than the longest. `*_slots` say where each token of a padded (rows, longest) table stands
    in the row, L for padding, and `back` where each token of the row stands in the tables.
    """
    import torch

    sizes = [len(p) for p in prompts], [len(c) for c in completions]
    n_prompt, total = sum(sizes[0]), sum(sizes[0]) + sum(sizes[1])
    prompt_slots, own_slots = _slots(sizes[0], 0, total), _slots(sizes[1], n_prompt, total)
    slots = torch.cat([prompt_slots.flatten(), own_slots.flatten()])
    back = torch.empty(total + 1, dtype=torch.long)
    back[slots] = torch.arange(len(slots))
    owners, starts = torch.tensor(owner), torch.tensor(sizes[0])
    width = own_slots.shape[1]
    sees = torch.cat(
        [
            (prompt_slots != total)[owners][:, None].expand(-1, width, -1),
            torch.ones(width, width, dtype=torch.bool).tril().expand(len(owner), -1, -1),
        ],
        dim=2,
    )
    last = (starts.cumsum(0) - 1)[owners][:, None]
    wanted = torch.cat([last, torch.where(own_slots == total, last, own_slots)], 1)
    positions = [torch.arange(n) for n in sizes[0]]
    positions += [sizes[0][g] + torch.arange(n) for g, n in zip(owner, sizes[1], strict=True)]
    return {
        "ids": torch.tensor([[token for row in (*prompts, *completions) for token in row]]),
        "positions": torch.cat(positions)[None],
        "wanted": wanted,
        "prompt_slots": prompt_slots,
        "own_slots": own_slots,
        "back": back[:total],
        "owner": owners,
        "sees": sees[:, None],
    }


def _slots(sizes: list[int], start: int, padding: int) -> Any:
    import torch

    table = torch.full((len(sizes), max(sizes)), padding)
    for i, n in enumerate(sizes):
        table[i, :n] = torch.arange(start, start + n)
        start += n
    return table


def read(model: Any, s: dict[str, Any]) -> Any:
    """(U, T, V) logits; the head computes those places alone."""
    layout = {name: s[name] for name in ("prompt_slots", "own_slots", "back", "owner", "sees")}
    wanted = s["wanted"]
    out = model(
        input_ids=s["ids"],
        position_ids=s["positions"],
        use_cache=False,
        logits_to_keep=wanted.flatten(),
        shared=layout,
    )
    return out.logits.view(*wanted.shape, -1)


def _attend(module: Any, query: Any, key: Any, value: Any, mask: Any, shared: dict | None = None, **how: Any):
    """Attention over one row of L tokens, (1, H, L, d) -> (1, L, H, d): prompts causally among themselves, completions over
    their prompt and causally over themselves."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if shared is None:
        return sdpa_attention_forward(module, query, key, value, mask, **how)
    heads, d = query.shape[1], query.shape[3]
    groups = heads // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    prompt_slots, own_slots, owner, scale = shared["prompt_slots"], shared["own_slots"], shared["owner"], how["scaling"]
    slots = torch.cat([prompt_slots.flatten(), own_slots.flatten()])
    row = torch.cat([part[0].transpose(0, 1) for part in (query, key, value)], 1).flatten(1)  # (L, 3 H d)
    tables = _mover()(row, slots, shared["back"]).unflatten(1, (3, heads, d))

    def parts(rows: Any, like: Any) -> list[Any]:  # three of (rows, H, T, d)
        return list(rows.unflatten(0, like.shape).permute(2, 0, 3, 1, 4))

    q, k, v = parts(tables[: prompt_slots.numel()], prompt_slots)
    own_q, own_k, own_v = parts(tables[prompt_slots.numel() :], own_slots)
    keys, values = torch.cat([k[owner], own_k], 2), torch.cat([v[owner], own_v], 2)
    with torch.autocast(query.device.type, enabled=False):
        of_prompts = sdpa(*(x.to(query.dtype) for x in (q, k, v)), is_causal=True, scale=scale)
        of_own = sdpa(*(x.to(query.dtype) for x in (own_q, keys, values)), attn_mask=shared["sees"], scale=scale)
    parted = [part.to(query.dtype).transpose(1, 2).flatten(0, 1).flatten(1) for part in (of_prompts, of_own)]
    out = torch.cat(parted)
    return _mover()(out, shared["back"], slots).view(1, -1, heads, d), None


@functools.cache
def _mover() -> Any:
    import torch

    class Move(torch.autograd.Function):
        """Rows of a table by index, zeros where the index is behind its end. The gradient is a lookup too, in the inverse
        index: an indexed sum would be many times slower."""

        @staticmethod
        def forward(ctx: Any, rows: Any, index: Any, inverse: Any) -> Any:
            ctx.save_for_backward(inverse)
            return torch.nn.functional.pad(rows, (0, 0, 0, 1))[index]

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return torch.nn.functional.pad(gradient, (0, 0, 0, 1))[ctx.saved_tensors[0]], None, None

    return Move.apply
