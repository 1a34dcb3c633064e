"""Which models can read a prompt once for several continuations, and which need a copy or cannot at all.

not_shareable(model, longest=320)    # None, or "MistralForCausalLM attends to 20 tokens and the text has 320"
not_copyable(model)                  # None, or "Lfm2ForCausalLM keeps a running state (LinearAttentionLayer)"
"""

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)  # cache layers that hold nothing else
ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")


def not_shareable(model: Any, longest: int) -> str | None:
    """Why plain full attention over texts of up to `longest` tokens is not what this model computes, or None.

    Reasons: a window or chunk shorter than the text, soft-capped scores, sinks, compressed keys, layers without attention.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(ATTENTION_LAYERS))
    if others:
        return f"{name} has layers of {', '.join(others)}"
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and longest > chunk:
        return f"{name} attends within {chunk} tokens and the text has {longest}"
    if getattr(config, "kv_lora_rank", None):
        return f"{name} compresses its keys and values"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and longest > window:
        return f"{name} attends to {window} tokens and the text has {longest}"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{name} soft-caps its attention scores"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return f"{name} has attention sinks"
    return None


def not_copyable(model: Any) -> str | None:
    """Why several rows cannot continue from one cache of this model, or None: beside keys and values the cache holds a
    running state, such as that of a linear attention."""
    layers = DynamicCache(config=model.config.get_text_config()).layers
    others = sorted({type(layer).__name__ for layer in layers if type(layer) not in KEYS_AND_VALUES})
    return f"{type(model).__name__} keeps a running state ({', '.join(others)})" if others else None
