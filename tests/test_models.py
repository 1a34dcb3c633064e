"""Models: what is refused, what trains, and that the judge on disk is the judge that was trained, in every form."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlib import files, models, prompts
from srlib.models import loading
from srlib.models.loading import ModelError

pytestmark = pytest.mark.torch
BASE = Path(__file__).parent.parent / "models" / "tiny-base"
LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "model"))


@pytest.fixture
def judge(adapter_judge, tmp_path) -> Path:
    """A copy of a judge that is an adapter of rank 4."""
    return Path(shutil.copytree(adapter_judge, tmp_path / "judge"))


@pytest.fixture(scope="module")
def ids(rows, tiny):
    """Four training rows as one tensor, cut to the shortest."""
    import torch

    tokenizer = tiny[1]
    texts = [(row, prompts.completion(row.rationale, row.score)) for row in rows[:4]]
    found = [prompts.prompt_ids(tokenizer, row) + prompts.completion_ids(tokenizer, text) for row, text in texts]
    return torch.tensor([row[: min(map(len, found))] for row in found])


def logits(model, ids):
    import torch

    with torch.no_grad():
        return model(ids).logits


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(path: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def with_random_adapter(base: Path, seed: int, **how):
    """A model that trains, whose adapter changes something."""
    import torch

    model, tokenizer = models.load(base, training=True)
    model = models.add_lora(model, seed=seed, **how)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1, generator=generator)
    return model, tokenizer


# ---------------------------------------------------------------- refused


def test_a_path_that_holds_no_model_is_refused(tmp_path, copy):
    for path in (tmp_path / "nothing", "runs/no/such/judge", BASE / "config.json"):
        with pytest.raises(ModelError, match="there is no such directory; give a model directory or a hub id"):
            models.check_model(path)
    for pattern in ("tokenizer*", "*.safetensors", "config.json"):
        for path in copy.glob(pattern):
            path.unlink()
        with pytest.raises(ModelError) as caught:
            models.load(copy)
        assert str(caught.value).endswith(f"it holds no {pattern}")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{not json"),
        ("config.json", b'{"model_type": "no_such_architecture"}'),
        ("model.safetensors", None),  # cut in half, as a stopped download leaves it
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_broken_file_is_a_model_error_with_the_path(copy, file, content):
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        models.load(copy)
    assert str(copy) in str(caught.value)


def test_missing_weights_are_refused(copy, judge):
    """transformers and PEFT fill them with random numbers or zeros, and only warn."""
    change_weights(copy / "model.safetensors", lambda weights: weights.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks weights: .*layers\.2.*up_proj"):
        models.load(copy)
    change_weights(judge / "adapter_model.safetensors", lambda weights: weights.pop(sorted(weights)[3]))
    with pytest.raises(ModelError, match="missing adapter keys"):
        models.load(judge)


def test_the_tokenizer_of_another_model_is_refused(copy, judge):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(400)])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match=f"{len(tokenizer)} tokens, 1536 rows in its embedding"):
        models.load(copy)
    state = json.loads((judge / "tokenizer.json").read_text())  # as many tokens, two of them exchanged
    vocabulary = state["model"]["vocab"]
    one, other = list(vocabulary)[700:702]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    edit(judge / "tokenizer.json", **state)
    with pytest.raises(ModelError, match="not the one it was trained with"):
        models.load_tokenizer(judge)


def test_a_tokenizer_that_cannot_end_is_refused_and_one_that_cannot_pad_pads_with_its_end(copy):
    path = copy / "tokenizer_config.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in options.items() if name != "pad_token"}))
    tokenizer = models.load_tokenizer(copy)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    path.write_text(json.dumps({name: value for name, value in options.items() if name != "eos_token"}))
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        models.load_tokenizer(copy)


@pytest.mark.parametrize("content", ["[1]", '{"template": 3}', "{"])
def test_a_judge_json_that_describes_no_judge_is_refused(copy, content):
    assert models.judge_info(copy) == loading.DEFAULTS
    (copy / "judge.json").write_text(content)
    with pytest.raises((ModelError, files.RowError), match=r"judge\.json"):
        models.judge_info(copy)


# ---------------------------------------------------------------- dtypes, 4 bit, backends


def test_auto_is_the_dtype_that_the_machine_computes_in(monkeypatch):
    """A T4 has no bf16: torch emulates it, slowly, and says it is supported."""
    import torch

    assert models.torch_dtype() == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, expected in ((False, torch.float16), (True, torch.bfloat16)):
        supported = lambda including_emulation=True, native=native: including_emulation or native  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        assert models.torch_dtype() == expected
    assert models.torch_dtype("float32") == torch.float32
    with pytest.raises(ModelError, match="dtype 'half' is not one of auto, float32, bfloat16, float16"):
        models.torch_dtype("half")
    with pytest.raises(ModelError, match="'8bit' is neither none nor 4bit"):
        models.load(BASE, quantization="8bit")


def test_4bit_trains_after_a_forward_in_eval_mode(ids, tiny):
    """On CPUs with avx512_bf16, bitsandbytes repacks its weights at that forward, and the model is another one afterwards."""
    import torch

    model, _ = models.load(BASE, quantization="4bit", quant_type="fp4", training=True)
    quantized = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert len(quantized) == 7 * model.config.num_hidden_layers
    assert {module.weight.quant_state.quant_type for module in quantized} == {"fp4"}
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in quantized)
    model = models.add_lora(model, rank=8, alpha=16)

    def loss():
        return model(ids, labels=ids).loss

    with torch.no_grad():
        before, exact = float(loss()), float(tiny[0](ids, labels=ids).loss)
        model.eval()
        assert float(loss()) == pytest.approx(before, abs=1e-3)
        model.train()
        assert float(loss()) == pytest.approx(before, abs=1e-3)
    assert before == pytest.approx(exact, rel=0.15), "quantized weights are near the weights"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(6):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before - 0.1


def test_a_missing_unsloth_is_an_error_only_if_it_was_requested(monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", None)  # then `import unsloth` fails
    monkeypatch.delitem(sys.modules, "trl", raising=False)
    assert loading.resolve_backend.__wrapped__("auto") == "transformers"
    with pytest.raises(ModelError, match="backend unsloth does not work here"):
        loading.resolve_backend.__wrapped__("unsloth")


@pytest.mark.slow
def test_auto_stays_with_transformers_if_trl_was_imported_first():
    code = "import trl; from srlib import models; print(models.resolve_backend('auto'))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert ended.stdout.split()[-1:] == ["transformers"], ended.stderr[-3000:]


# ---------------------------------------------------------------- the adapter


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(ids, tiny):
    import torch

    model = models.add_lora(models.load(BASE)[0], rank=4, alpha=8).eval()
    torch.testing.assert_close(logits(model, ids), logits(tiny[0], ids), atol=0, rtol=0)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(LLAMA) * model.config.num_hidden_layers
    assert all("lora_" in name for name in trained)
    with pytest.raises(ModelError, match="lora_rank 0 trains all weights"):
        models.add_lora(models.load(BASE)[0], quantization="4bit", rank=0)
    assert all(weight.requires_grad for weight in models.add_lora(models.load(BASE)[0], rank=0).parameters())


def test_targets_are_named_and_never_the_output_head():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=False, **sizes))
    assert models.lora_targets(model) == LLAMA
    assert models.lora_targets(model, "v_proj, q_proj") == ["q_proj", "v_proj"]
    for wanted, unknown in (("q_proj,lm_head", "lm_head"), ("qproj", "qproj"), (" , ", "")):
        with pytest.raises(ModelError, match=f"no linear layer {unknown}; write all-linear, or some of down_proj, "):
            models.lora_targets(model, wanted)
    few = models.add_lora(model, rank=2, alpha=2, lora_targets="q_proj")
    assert {name.split(".")[-4] for name, p in few.named_parameters() if p.requires_grad} == {"q_proj"}
    assert models.lora_targets(few) == LLAMA


def test_a_judges_own_adapter_is_trained_on_and_nothing_is_stacked(adapter_judge, ids, tiny):
    import torch

    policy, _ = models.load(adapter_judge, training=True)
    before = logits(models.load(adapter_judge)[0], ids)
    assert (before - logits(tiny[0], ids)).abs().max() > 0.1
    assert models.add_lora(policy, rank=4, alpha=32) is policy
    torch.testing.assert_close(logits(policy.eval(), ids), before, atol=1e-5, rtol=0)
    assert list(policy.peft_config) == ["default"]
    assert {"lora_" in name for name, p in policy.named_parameters() if p.requires_grad} == {True}
    for changes in ({"rank": 8}, {"alpha": 8}, {"lora_targets": "q_proj"}):
        with pytest.raises(ModelError, match=r"the judge's adapter has .*'r': 4.* say"):
            models.add_lora(policy, **{"rank": 4, "alpha": 32, **changes})


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("quantization", "adapter"), [("none", False), ("none", True), ("4bit", False), ("4bit", True)]
)
def test_the_judge_on_disk_is_the_one_that_was_trained(ids, tiny, tmp_path, quantization, adapter):
    """Merged, the adapter is in the unquantized weights; kept, it is read back onto the weights that it was trained on."""
    import torch
    from transformers import AutoModelForCausalLM

    policy, tokenizer = models.load(BASE, quantization=quantization, training=True)
    policy = models.add_lora(policy, rank=4, alpha=8)
    torch.manual_seed(0)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.05)
    out, trained = tmp_path / "judge", {n: p.float() for n, p in policy.named_parameters() if "lora_" in n}
    models.save_judge(policy, tokenizer, out, source=BASE, judge={"template": "prometheus"}, adapter=adapter)
    if not adapter:
        policy = models.add_lora(models.load(BASE)[0], rank=4, alpha=8)
        policy.load_state_dict(trained, strict=False)
    expected = logits(policy.eval(), ids)
    assert (expected - logits(tiny[0], ids)).abs().max() > 0.1, "the adapter is meant to matter"
    loaded, loaded_tokenizer = models.load(out, quantization=quantization if adapter else "none")
    torch.testing.assert_close(logits(loaded, ids), expected, atol=1e-4, rtol=0)
    assert loaded_tokenizer.chat_template == tokenizer.chat_template
    info = {"template": "prometheus", "vocabulary": loading.vocabulary(tokenizer), "base": str(BASE)}
    assert models.judge_info(out) == loading.DEFAULTS | info
    assert bool(list(out.rglob("adapter*"))) == adapter == (models.base_of(out) is not None)
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors", ".jinja"}
    if quantization == "none":
        plainly = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        torch.testing.assert_close(logits(plainly, ids), expected, atol=1e-4, rtol=0)


def test_the_adapter_is_kept_if_merging_would_round_it(adapter_judge):
    import torch

    kept = models.keeps_adapter
    assert not kept("auto", BASE, "none", torch.float32)
    assert kept("auto", BASE, "none", torch.bfloat16)
    assert kept("auto", BASE, "4bit", torch.float32)
    assert kept("auto", adapter_judge, "none", torch.float32)
    assert not kept("merged", BASE, "4bit", torch.bfloat16)
    assert kept("adapter", BASE, "none", torch.float32)


def test_the_base_is_found_after_the_project_moved(judge):
    assert models.base_of(judge) == str(BASE)
    edit(judge / "adapter_config.json", base_model_name_or_path="/was/here/models/tiny-base")
    edit(judge / "judge.json", base="models/tiny-base")
    assert models.base_of(judge) == str(BASE)
    edit(judge / "judge.json", base="models/none")
    with pytest.raises(ModelError, match="is an adapter, and its base models/none is missing"):
        models.check_model(judge)
    edit(judge / "adapter_config.json", base_model_name_or_path="some-org/some-model")
    assert models.base_of(judge) == "some-org/some-model"


@pytest.mark.parametrize("writer", ["safetensors", "torch"])
def test_a_full_disk_is_named_whoever_writes(tmp_path, writer):
    """Neither library raises an OSError; no file may grow beyond 64 kB here."""
    import resource

    import torch
    from safetensors.torch import save_file

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = {"safetensors": save_file, "torch": torch.save}[writer]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        with pytest.raises(files.StoreError, match="free space"), models.saving(tmp_path / "judge"):
            save({"weight": torch.zeros(2**18)}, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for text in ("out of memory", "PytorchStreamReader failed: inline_container.cc"):
        with pytest.raises(RuntimeError, match=text), models.saving(tmp_path):
            raise RuntimeError(text)


# ---------------------------------------------------------------- two adapters become one


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    """A pointwise and a pairwise adapter of rank 2 and alpha 4."""
    paths = {name: tmp_path_factory.mktemp("parts") / name for name in ("pointwise", "pairwise")}
    for seed, path in enumerate(paths.values()):
        model, tokenizer = with_random_adapter(BASE, seed, rank=2, alpha=4)
        models.save_judge(model, tokenizer, path, source=BASE, judge={}, adapter=True)
    return paths


@pytest.fixture(scope="module")
def weights():
    return {name: weight.clone() for name, weight in models.load(BASE)[0].state_dict().items()}


def update(model, weights) -> dict:
    """What an adapter changes in each weight of the base."""
    merged = model.merge_and_unload().state_dict()
    return {name: merged[name] - weight for name, weight in weights.items() if name.endswith("_proj.weight")}


def merged(parts, method="linear", weight=0.5, density=0.5, rank=4, seed=0):
    return models.merge_adapters(BASE, parts, method, weight, density, rank, 8, seed)[0]


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_linear_merge_is_the_weighted_sum_of_both_updates(parts, weights, weight):
    import torch

    pointwise, pairwise = (update(models.load(path, training=True)[0], weights) for path in parts.values())
    found = update(merged(parts, weight=weight), weights)
    for name, value in found.items():
        assert float((pointwise[name] - pairwise[name]).abs().max()) > 1e-3
        expected = (1 - weight) * pointwise[name] + weight * pairwise[name]
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("method", ["dare_linear", "ties"])
def test_the_other_merges_drop_something_and_repeat_to_the_bit(parts, weights, method):
    import torch

    first, again, other, whole, plain = (
        update(merged(parts, **how), weights)
        for how in (
            dict(method=method),
            dict(method=method),
            dict(method=method, seed=1),
            dict(method=method, density=1.0),
            {},
        )
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first) == (method == "dare_linear")
    assert any(float((first[name] - plain[name]).abs().max()) > 1e-3 for name in first)
    if method == "dare_linear":  # nothing is dropped, and the sum of two updates of rank 2 has rank 4
        assert all(torch.allclose(whole[name], plain[name], atol=1e-5) for name in first)


def test_a_merged_adapter_is_like_any_other(parts, weights, tmp_path):
    model, tokenizer = models.merge_adapters(BASE, parts, "linear", 0.3, 0.5, 4, 8, 0)
    models.save_judge(model, tokenizer, tmp_path / "judge", source=BASE, judge={}, adapter=True)
    loaded, _ = models.load(tmp_path / "judge", training=True)
    assert models.add_lora(loaded, rank=4, alpha=8) is loaded  # refuses an adapter of another rank or alpha
    expected, found = update(merged(parts, weight=0.3), weights), update(loaded, weights)
    assert all(float((found[name] - expected[name]).abs().max()) < 1e-5 for name in expected)
    with pytest.raises(ModelError, match=r"ranks \[2, 2\], not half of lora_rank 5; set an even one"):
        merged(parts, rank=5)
    with pytest.raises(ModelError, match="starts from a base, and"):
        models.merge_adapters(parts["pairwise"], parts, "linear", 0.5, 0.5, 4, 8, 0)


# ---------------------------------------------------------------- the shipped base


def test_the_card_of_the_base_describes_its_weights():
    facts = json.loads((BASE / "pretraining.json").read_text())
    content, card = (BASE / "model.safetensors").read_bytes(), (BASE / "README.md").read_text()
    assert len(content) <= 4_000_000
    assert hashlib.sha256(content).hexdigest() == facts["sha256"]
    assert facts["sha256"] in card
    assert f"--steps {facts['steps']}" in card
    assert f"{facts['parameters']:,}" in card
    assert sum(p.numel() for p in models.load(BASE)[0].parameters()) == facts["parameters"]
    assert {path.suffix for path in BASE.iterdir()} <= {".json", ".safetensors", ".md", ".jinja"}


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_survives_its_tokenizer(tiny, text):
    tokenizer = tiny[1]
    if not any(token in text for token in tokenizer.all_special_tokens):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
