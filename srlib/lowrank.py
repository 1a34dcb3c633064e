"""How a LoRA layer computes on a processor, where its matrix is small: the update is added to the weight.

PEFT adds W x and s B (A x) for every token (arXiv 2106.09685, section 4.1): three products and two passes over the result, and as
many again backwards. Where W is small, so is the work of updating it: W + s B A first, then one product, and backwards one for x
and one for the weight, from which the gradients of A and B are small products. The linear layers of a judge of a million
parameters take a fifth less time so, without a gradient a third; from some 256 x 256 on, the product for the weight costs more
than it saves (docs/LOG.md).

    install(model)      # a PeftModel in fp32 that trains on a CPU; larger, quantized or dropped-out layers stay PEFT's
"""

from __future__ import annotations

import functools
from typing import Any

LARGEST = 2**16  # entries of W


def install(model: Any) -> int:
    """Let the small LoRA layers of the model compute so; returns how many there are."""
    import torch
    from peft.tuners.lora import Linear

    found = 0
    for layer in model.modules():
        # By type: quantized layers and variants of LoRA are classes of their own, or kept in lora_variant.
        if type(layer) is not Linear or layer.lora_variant or list(layer.lora_A) != ["default"]:
            continue
        weight, dropout = layer.base_layer.weight, layer.lora_dropout["default"]
        plain = isinstance(dropout, torch.nn.Identity) and layer.lora_B["default"].bias is None
        if plain and weight.dtype == torch.float32 and weight.numel() <= LARGEST:
            layer.forward = functools.partial(_forward, layer)
            found += 1
    return found


def _forward(layer: Any, x: Any, *given: Any, **how: Any) -> Any:
    """(..., in) -> (..., out), what `peft.tuners.lora.Linear.forward` gives, up to rounding."""
    import torch

    ours = layer.active_adapters == ["default"] and not (layer.disable_adapters or layer.merged or given or how)
    if not ours or torch.is_autocast_enabled("cpu"):
        return type(layer).forward(layer, x, *given, **how)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = torch.addmm(layer.base_layer.weight, b, a, alpha=layer.scaling["default"])
    return torch.nn.functional.linear(x, weight, layer.base_layer.bias)
