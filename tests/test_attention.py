"""Attention in blocks against torch's own."""

import pytest

pytestmark = pytest.mark.torch


def _model(attention):
    """A random model whose heads share keys and values, and whose attention is not next to uniform."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    config._attn_implementation = attention
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def _parts(n_queries, n_keys, heads=4, kv_heads=4):
    import torch

    torch.manual_seed(0)
    sizes = ((heads, n_queries), (kv_heads, n_keys), (kv_heads, n_keys))
    return [torch.randn(3, h, n, 16, dtype=torch.bfloat16).requires_grad_() for h, n in sizes]


@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 40), (40, 40), (128, 128), (300, 300), (150, 290)])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_are_attention(n_queries, n_keys, padded):
    """Forwards and backwards, within what bf16 can tell apart; left padding as a cache has it."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from srlib import attention

    parts = _parts(n_queries, n_keys)
    causal = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries)
    pads = torch.tensor([0, 5, 17] if padded else [0, 0, 0])
    mask = causal & (torch.arange(n_keys) >= pads[:, None])[:, None, None, :]
    looks = mask.any(-1, keepdim=True)  # the queries that are padding are looked at by nobody
    found = attention.blocks(*parts, mask if padded else None, 0.25) * looks
    exact = [part.detach().float().requires_grad_() for part in parts]
    wanted = sdpa(*exact, attn_mask=mask | ~looks, scale=0.25) * looks
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.02)
    weights = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad((found.float() * weights).sum(), parts),
        torch.autograd.grad((wanted * weights).sum(), exact),
        strict=True,
    ):
        assert (one.float() - other).norm() < 0.01 * other.norm()


def test_what_all_keys_share_costs_no_precision():
    """As the biases of Qwen 2 have it: no softmax sees it, and in bf16 it would cover what differs. As near as torch's own."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from srlib import attention

    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 4, 60, 16) for _ in range(3))
    offset = 10 * torch.randn(2, 1, 4, 1, 16)
    exact = query + offset[0], key + offset[1], value
    half = [part.bfloat16() for part in exact]
    wanted = sdpa(*exact, is_causal=True, scale=0.25)
    torchs = sdpa(*half, is_causal=True, scale=0.25)
    assert (attention.blocks(*half, None, 0.25) - wanted).norm() < 1.2 * (torchs - wanted).norm()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_model_attends_in_blocks(side):
    """Under autocast, rows of unequal length, shared key heads: the logits of the text are those of torch's attention."""
    import torch

    from srlib import attention

    model = _model("sdpa")
    ids = torch.randint(3, 60, (2, 140))
    mask = torch.ones_like(ids)
    mask[1, 100:] = 0
    mask = mask if side == "right" else mask.flip(1)
    given = dict(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    with torch.no_grad():
        wanted = model(**given).logits
        attention.install(model)
        assert model.config._attn_implementation == attention.NAME
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(**given).logits.float()
            model.set_attn_implementation("sdpa")
            torchs = model(**given).logits.float()
    text = mask == 1
    assert (found - wanted)[text].norm() < 1.2 * (torchs - wanted)[text].norm() < 0.05 * wanted[text].norm()


def test_eager_attention_stays():
    from srlib import attention

    model = _model("eager")
    attention.install(model)
    assert model.config._attn_implementation == "eager"
