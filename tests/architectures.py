"""Tiny random models of real architectures: `make("gemma2", directory, texts)` writes what a hub's snapshot holds. Their chat
templates are short ones with the properties that bite: who writes a BOS, what ends a turn, how spaces are encoded."""

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
TURNS = (  # Gemma
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = (  # Mistral
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} "
    "{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
WINDOW = {"sliding_window": 64, "query_pre_attn_scalar": 16}
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", None, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN = [None, "<|endoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GEMMA = ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"]
KINDS = {  # config class, its settings, template, special tokens (bos, eos, pad, ...), end of a turn, byte-level or pieces
    "llama": ("LlamaConfig", {}, HEADERS, LLAMA, "<|eot_id|>", True),
    "qwen2": ("Qwen2Config", {}, CHATML, QWEN, "<|im_end|>", True),
    "gemma2": ("Gemma2Config", WINDOW, TURNS, GEMMA, "<end_of_turn>", False),
    "gemma3": ("Gemma3TextConfig", WINDOW, TURNS, GEMMA, "<end_of_turn>", False),
    "mistral": (
        "MistralConfig",
        {"sliding_window": None},
        INST,
        ["<s>", "</s>", None, "[INST]", "[/INST]"],
        "</s>",
        False,
    ),
}


def make(kind: str, out: Path, texts: list[str]) -> Path:
    """A model directory of this kind; the tokenizer is trained on `texts`."""
    import torch
    import transformers

    config_class, options, template, (bos, eos, pad, *_), end, byte_level = KINDS[kind]
    tokenizer = _tokenizer(texts, [token for token in KINDS[kind][3] if token], bos, byte_level)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.chat_template = template
    fast.save_pretrained(out)
    ids = fast.convert_tokens_to_ids
    config = getattr(transformers, config_class)(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, initializer_range=0.2,
        bos_token_id=bos and ids(bos), eos_token_id=ids(eos), pad_token_id=pad and ids(pad), **options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = sorted({ids(eos), ids(end)})
    model.save_pretrained(out)
    return out


def _tokenizer(texts: list[str], special: list[str], bos: str | None, byte_level: bool):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:  # as sentencepiece: spaces are part of the pieces, and unknown characters are spelled in bytes
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(parts)
        pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[AddedToken(p, special=False) for p in pieces])
    tokenizer.train_from_iterator(texts, trainer)
    if not byte_level:  # they are pieces, not tokens of their own: else a text that spells one would become it
        tokenizer = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"added_tokens": []}))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos:
        first = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=first)
    return tokenizer
