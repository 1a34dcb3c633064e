"""Tiny models of real architectures, from scratch: random weights, a tokenizer and a chat template of each one's kind.

`make("gemma2", directory)` writes what a hub's snapshot holds. The tokenizers are trained here, in a second; the chat
templates are short ones with the properties that bite: who writes a BOS, what ends a turn, which roles are refused.
"""

import json
from pathlib import Path

HEADERS = (  # Llama 3: the template writes the BOS, and so would the tokenizer
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (  # Qwen: no BOS anywhere, a system turn of its own
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
TURNS = STRICT + (  # Gemma
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = STRICT + (  # Mistral
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)

# config class, its own settings, template, special tokens (bos, eos, pad, ...), end of a turn, byte-level or with pieces
KINDS = {
    "llama": ("LlamaConfig", {}, HEADERS, ["<|begin_of_text|>", "<|end_of_text|>", None, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>", True),
    "qwen2": ("Qwen2Config", {}, CHATML, [None, "<|endoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", True),
    "gemma2": ("Gemma2Config", {"sliding_window": 64, "query_pre_attn_scalar": 16}, TURNS, ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>", False),
    "mistral": ("MistralConfig", {"sliding_window": None}, INST, ["<s>", "</s>", None, "[INST]", "[/INST]"], "</s>", False),
    # the same families again, where only the attention differs
    "qwen3": ("Qwen3Config", {}, CHATML, [None, "<|endoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", True),
    "gemma": ("GemmaConfig", {}, TURNS, ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>", False),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 64, "query_pre_attn_scalar": 16}, TURNS, ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>", False),
}  # fmt: skip
FAMILIES = ("llama", "qwen2", "gemma2", "mistral")


def config_of(kind: str, **settings):
    """The config of a model of this kind, with two small layers."""
    import transformers

    config_class, own, *_ = KINDS[kind]
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, head_dim=16)
    sizes |= dict(num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2, vocab_size=700)
    return getattr(transformers, config_class)(**sizes | own | settings)


def make(kind: str, out: Path, texts: list[str]) -> Path:
    """A model directory of this kind; the tokenizer is trained on `texts`."""
    import torch
    import transformers

    _, _, template, (bos, eos, pad, *_), end, byte_level = KINDS[kind]
    tokenizer = _tokenizer(texts, [t for t in KINDS[kind][3] if t], bos, byte_level)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.chat_template = template
    fast.save_pretrained(out)
    ids = fast.convert_tokens_to_ids
    tokens = dict(bos_token_id=bos and ids(bos), eos_token_id=ids(eos), pad_token_id=pad and ids(pad))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(kind, vocab_size=len(fast), **tokens))
    model.generation_config.eos_token_id = sorted({ids(eos), ids(end)})
    model.save_pretrained(out)
    return out


def _tokenizer(texts: list[str], special: list[str], bos: str | None, byte_level: bool):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:  # as sentencepiece: spaces are part of the pieces, what is unknown is spelled in bytes
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[AddedToken(p, special=False) for p in pieces])
    tokenizer.train_from_iterator(texts, trainer)
    if not byte_level:  # they are pieces, not tokens of their own: else a text that spells one would become it
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = []
        tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer
