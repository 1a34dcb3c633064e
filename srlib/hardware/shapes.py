"""How large a model is, from its config alone: nothing is downloaded, and no weight is read.

Ground floor: imports nothing of ours. A shape comes from a model directory's config.json, from the hub's cache, or from
the table below, which holds what the hub's config.json says of the models that the recipes name.

    shape = of_model("meta-llama/Llama-3.1-8B-Instruct")
    shape.parameters -> 8030261248
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlib.schema import SrlibError

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ShapeError(SrlibError, ValueError):
    """A model whose size cannot be told. Says what is missing and what to do."""


@dataclass(frozen=True)
class Shape:
    """A dense decoder with gated MLPs (Llama, Mistral, Qwen, Gemma). All sizes are numbers of elements."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool  # input and output embedding are one matrix
    qkv_bias: bool = False
    max_positions: int = 2048
    source: str = ""  # where these figures come from

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear projections of one layer, by name."""
        attention, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, attention), "k_proj": (self.hidden, kv), "v_proj": (self.hidden, kv),
            "o_proj": (attention, self.hidden), "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate), "down_proj": (self.intermediate, self.hidden),
        }  # fmt: skip

    @property
    def linear(self) -> int:
        """Parameters of all linear projections: what 4-bit quantization shrinks."""
        return self.layers * sum(n_in * n_out for n_in, n_out in self.matrices.values())

    @property
    def embeddings(self) -> int:
        """Parameters of input and output embedding."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Projections, embeddings, biases and norms."""
        bias = self.layers * (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return self.linear + self.embeddings + bias + (2 * self.layers + 1) * self.hidden

    def lora(self, rank: int, targets: tuple[str, ...] = LINEAR) -> int:
        """Parameters of an adapter: A (inputs, rank) and B (rank, outputs) for each target (arXiv 2106.09685)."""
        return self.layers * sum(rank * sum(self.matrices[name]) for name in targets)


def _llama(name: str, hidden: int, layers: int, heads: int, kv: int, head_dim: int, mlp: int, tied: bool) -> Shape:
    source = f"https://huggingface.co/{name}/blob/main/config.json"
    return Shape(name, hidden, layers, heads, kv, head_dim, mlp, 128256, tied, False, 131072, source)


def _qwen(name: str, hidden: int, layers: int, heads: int, kv: int, mlp: int, vocab: int, tied: bool) -> Shape:
    source = f"https://huggingface.co/{name}/blob/main/config.json"
    return Shape(name, hidden, layers, heads, kv, 128 if hidden > 896 else 64, mlp, vocab, tied, True, 32768, source)


KNOWN = {
    shape.name: shape
    for shape in (
        _llama("meta-llama/Llama-3.2-1B-Instruct", 2048, 16, 32, 8, 64, 8192, True),
        _llama("meta-llama/Llama-3.2-3B-Instruct", 3072, 28, 24, 8, 128, 8192, True),
        _llama("meta-llama/Llama-3.1-8B-Instruct", 4096, 32, 32, 8, 128, 14336, False),
        _qwen("Qwen/Qwen2.5-0.5B-Instruct", 896, 24, 14, 2, 4864, 151936, True),
        _qwen("Qwen/Qwen2.5-1.5B-Instruct", 1536, 28, 12, 2, 8960, 151936, True),
        _qwen("Qwen/Qwen2.5-3B-Instruct", 2048, 36, 16, 2, 11008, 151936, True),
        _qwen("Qwen/Qwen2.5-7B-Instruct", 3584, 28, 28, 4, 18944, 152064, False),
    )
}

# Random models of these sizes are what `srlib bench` measures on, under these short names.
RANDOM = {
    "tiny": Shape("tiny", 128, 4, 4, 4, 32, 384, 1536, True, source="models/tiny-base"),
    "10m": Shape("10m", 256, 8, 4, 4, 64, 768, 8192, True),
    "25m": Shape("25m", 384, 10, 6, 2, 64, 1024, 16384, False),
    "60m": Shape("60m", 512, 12, 8, 4, 64, 1536, 32768, True),
    "llama-3.2-1b": KNOWN["meta-llama/Llama-3.2-1B-Instruct"],
    "llama-3.1-8b": KNOWN["meta-llama/Llama-3.1-8B-Instruct"],
}


def of_model(model: str | Path, root: Path | None = None) -> Shape:
    """The shape of a directory (below `root`, if it is relative), of a hub id in the cache, or of one in the table."""
    path = (root or Path()) / Path(model).expanduser()
    if path.is_dir():
        return of_config(_read(path / "config.json"), str(model), "config.json")
    cached = _cached(str(model))
    if cached is not None:
        return of_config(_read(cached), str(model), "config.json in the hub's cache")
    if str(model) in KNOWN:
        return KNOWN[str(model)]
    raise ShapeError(
        f"model {model}: its size is not known here; give a model directory, or fetch its config with "
        f"`hf download {model} config.json`"
    )


def of_config(config: Mapping[str, Any], name: str, source: str) -> Shape:
    """The shape that a config.json describes; a text model inside a larger one counts alone."""
    config = config.get("text_config", config)
    if any("expert" in key and value for key, value in config.items()):
        raise ShapeError(f"model {name} is a mixture of experts; only dense models can be planned for")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        family = str(config.get("model_type", ""))
        return Shape(
            name=name,
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", family.startswith("gemma"))),
            qkv_bias=bool(config.get("attention_bias", family == "qwen2")),
            max_positions=int(config.get("max_position_embeddings", 2048)),
            source=source,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ShapeError(
            f"model {name}: {source} does not say how large it is ({error!r}); choose another model"
        ) from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ShapeError(f"{path}: cannot be read ({error}); copy the model again") from None
    if not isinstance(found, dict):
        raise ShapeError(f"{path}: is not a model's config; copy the model again")
    return found


def _cached(model: str) -> Path | None:
    """config.json of a hub id in the local cache, without a question to the hub."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json")
    except (ImportError, ValueError):  # not installed; not a hub id
        return None
    return Path(found) if isinstance(found, str) else None
