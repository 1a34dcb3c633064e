"""Attention over one copy of a prompt: precision, and which models it would compute wrongly."""

import pytest

pytestmark = pytest.mark.torch


def model_of(kind: str, **settings):
    import torch
    import transformers

    given = dict(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**given | settings)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize(("dtype", "offset"), [("bfloat16", 0), ("bfloat16", 10), ("float16", 25)])
def test_what_all_keys_share_costs_no_precision(dtype, offset):
    """As the biases of Qwen 2 have it. Two prompts, three rows each, one token after the prompt's 30: no worse than twice
    torch's own kernel."""
    import types

    import torch

    from srlib.sample import prefix

    torch.manual_seed(0)
    half = getattr(torch, dtype)
    shift = offset * torch.randn(2, 1, 2, 1, 16)
    keys, own_keys = ((torch.randn(n, 2, t, 16) + shift[0]).to(half) for n, t in ((2, 30), (6, 1)))
    values, own_values = (torch.randn(n, 2, t, 16).to(half) for n, t in ((2, 30), (6, 1)))
    query = (torch.randn(6, 4, 1, 16) + shift[1].repeat_interleave(2, 1)).to(half)
    owner = torch.arange(2).repeat_interleave(3)
    shared = prefix.SharedPrefix([(keys, values)], torch.tensor([30, 30]), owner)
    shared.expect(1)
    layer = types.SimpleNamespace(layer_idx=0)
    found, _ = prefix._attend(layer, query, *shared.update(own_keys, own_values, 0), None, 0.25, shared=shared)
    whole = [torch.cat(pair, 2) for pair in ((keys[owner], own_keys), (values[owner], own_values))]
    whole = [part.repeat_interleave(2, 1) for part in whole]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    exact = sdpa(query.double(), *(part.double() for part in whole), scale=0.25).transpose(1, 2)
    torchs = sdpa(query, *whole, scale=0.25).transpose(1, 2)
    assert (found - exact).norm() < 2 * (torchs - exact).norm()


CHUNKED = dict(attention_chunk_size=16, num_local_experts=2)
COMPRESSED = dict(
    n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8,
    v_head_dim=16, qk_nope_head_dim=16, moe_intermediate_size=32, head_dim=8, num_key_value_heads=4,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        ("LlamaConfig", {}, None),
        ("Llama4TextConfig", CHUNKED, "within 16 tokens"),
        ("DeepseekV3Config", COMPRESSED, "compresses its keys"),
        ("Gemma3TextConfig", {"sliding_window": 16}, "attends to 16 tokens"),
    ],
)
def test_every_architecture_gives_the_log_probabilities_of_a_text_alone(kind, settings, why):
    """Those that the shared way would compute wrongly get a copy for each row, and a warning."""
    import contextlib

    import torch

    from srlib.sample import decode as sample

    model = model_of(kind, **settings)
    contexts = [list(range(5, 35)), list(range(40, 58))]
    continuations = [[[7, 8, 9], [11, 12]], [[60, 61]]]
    with pytest.warns(UserWarning, match=why) if why else contextlib.nullcontext():
        found = sample.score_candidates(model, contexts, continuations)
    for context, options, numbers in zip(contexts, continuations, found, strict=True):
        for option, number in zip(options, numbers, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([context + option]), use_cache=False).logits[0, len(context) - 1 : -1]
            alone = logits.log_softmax(-1).gather(1, torch.tensor(option)[:, None]).sum()
            assert number == pytest.approx(float(alone), abs=2e-3)


def test_a_running_state_is_refused():
    """No several rows can go on from what such a model has read, and in one long row it would read them one after another."""
    from srlib import shared_prompts as shared
    from srlib.models import load as models
    from srlib.sample import decode as sample
    from srlib.sample import prefix

    model = model_of("Lfm2Config", layer_types=["conv", "full_attention"])
    assert "conv" in prefix.not_shareable(model, 60) or "linear_attention" in prefix.not_shareable(model, 60)
    with pytest.raises(models.ModelError, match=r"keeps what it has read in \w+.*endpoint or vLLM"):
        sample.score_candidates(model, [[5, 6, 7]], [[[8], [9]]])
    for checkpointing in (False, True):
        with pytest.raises(shared.NotShareable, match=r"keeps what it has read in \w+; set share_prompts to false"):
            shared.engine(model, checkpointing, longest=60)
