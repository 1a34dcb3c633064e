"""What a model attends to: whether only to the tokens before, up to which length, and with more than plain attention."""

import math
import re
from typing import Any

import numpy as np
import torch

_LIMIT = re.compile(r"(window|window_size|chunk_size|index_topk)$")  # sliding_window, attention_chunk_size, ...
_WITHOUT_EFFECT = ("scaling", "dropout", "is_causal", "position_ids", "sliding_window")  # a window: see attends_within


def attends_within(model: Any) -> float:
    """Tokens of the longest text in which each token surely attends to all before it, in the same way: the shortest window,
    chunk or choice of keys in the model's settings. A comparison on short texts says nothing about longer ones."""
    settings = model.config.get_text_config().to_dict()
    limits = [size for name, size in settings.items() if _LIMIT.search(name) and type(size) is int and size > 0]
    if re.search("dynamic|longrope", str(settings.get("rope_parameters"))):  # other frequencies for longer texts
        written = re.findall(r"'original_max_position_embeddings': (\d+)", str(settings))
        limits += map(int, written or [settings["max_position_embeddings"]])
    return min(limits, default=math.inf)


def check_arguments(**arguments: Any) -> None:
    """Refuse what plain causal attention, as ours computes it, leaves out: a mask of its own, soft caps, sinks, a bias."""
    used = [name for name, value in arguments.items() if value is not None and value is not False]
    if others := [name for name in used if name not in _WITHOUT_EFFECT]:
        raise NotImplementedError(f"attention with {', '.join(others)}")


def ordinary_tokens(model: Any, n: int) -> list[int]:
    """n token ids, none of which pads, begins or ends a text."""
    config, size = model.config.get_text_config(), model.get_input_embeddings().num_embeddings
    special = {token for name in ("pad", "bos", "eos") for token in np.ravel(getattr(config, f"{name}_token_id", None))}
    some = [token for token in range(size // 4, size) if token not in special][:89]
    return [some[7 * i % len(some)] for i in range(n)]


@torch.no_grad()
def looks_ahead(model: Any) -> bool:
    """Whether logits depend on later tokens. Doge's do with torch's attention, because its own mask is not causal."""
    ids = torch.tensor([ordinary_tokens(model, 12)], device=model.device)
    one, other = (model(input_ids=text).logits[0, :6].float() for text in (ids, torch.cat([ids[:, :6], ids[:, :6]], 1)))
    if not one.isfinite().all():
        raise ValueError(f"its logits are not finite in {model.dtype}; set dtype: float32")
    return not float((one - other).std()) <= 0.1 * float(one.std())  # both of one length: kernels round by shape
