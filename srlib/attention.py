"""Attention for training on a processor in bf16: two products and a softmax, by blocks of queries.

torch's flash kernel for processors pays off for long texts. For those of a judge the products that oneDNN computes in bf16 are
1.3 to 2.2 times as fast, forwards and backwards (docs/LOG.md), and a block of queries leaves out the keys ahead of it.

    install(model)    # a transformers model that trains under torch.autocast("cpu", dtype=torch.bfloat16)
"""

from __future__ import annotations

from typing import Any

NAME = "srlib_blocks"
BLOCK = 128  # queries; larger ones compute more of what lies ahead of them, smaller ones are slower products


def install(model: Any) -> None:
    """Let the model attend so, where it would use torch's own attention; any other kind (eager, flex) stays."""
    if model.config._attn_implementation != "sdpa":
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)


def blocks(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
    """Causal attention in bf16: (B, H, Q, d), (B, H, K, d) twice -> (B, H, Q, d); the queries are the last Q of K tokens.

    `mask` is True where a query looks, (B or 1, 1, Q, K), never ahead of itself; None where it looks at all before it. A
    query that sees nothing, which is padding, gets a mean of values.
    """
    import torch

    # No softmax sees what all keys share, and in 8 bits the rest is lost beside it.
    key = key - key.detach().mean(2, keepdim=True)
    query, key, value = (part.to(torch.bfloat16) for part in (query * scale, key, value))
    n_queries, n_keys = query.shape[2], key.shape[2]
    if mask is None:
        mask = torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n_queries)
    hidden = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    found = []
    with torch.autocast("cpu", enabled=False):
        for start in range(0, n_queries, BLOCK):
            end = min(start + BLOCK, n_queries)
            seen = n_keys - n_queries + end
            scores = torch.matmul(query[:, :, start:end], key[:, :, :seen].transpose(2, 3))
            weights = torch.softmax(scores + hidden[:, :, start:end, :seen], -1)
            found.append(torch.matmul(weights, value[:, :, :seen]))
    return torch.cat(found, 2)


def _attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, dropout: float = 0.0, **how: Any):
    """(B, H, Q, d) -> (B, Q, H, d), as transformers asks for it."""
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    causal = how.get("is_causal")
    if dropout or not (getattr(module, "is_causal", True) if causal is None else causal):
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, dropout=dropout, **how)
    groups = query.shape[1] // key.shape[1]
    found = blocks(query, repeat_kv(key, groups), repeat_kv(value, groups), mask, scaling)
    if not torch.is_autocast_enabled("cpu"):
        found = found.to(query.dtype)
    return found.transpose(1, 2).contiguous(), None


def _mask(*given: Any, attention_mask: Any = None, **how: Any) -> Any:
    from transformers.masking_utils import sdpa_mask

    causal = not how.get("allow_is_bidirectional_skip")
    if causal and attention_mask is not None and bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all()):
        attention_mask = None  # padded at the right end only, where no token of the text looks
    return sdpa_mask(*given, attention_mask=attention_mask, **how)
