"""Models: what is refused, what trains, and that the judge on disk is the judge that was trained, in every form."""

import json
import resource
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from srlib import files, models, prompts
from srlib.config import ParamError
from srlib.models import loading
from srlib.models.loading import ModelError

pytestmark = pytest.mark.torch
BASE = Path(__file__).parent.parent / "models" / "tiny-base"
LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def copy(one_thread, tmp_path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "model"))


@pytest.fixture
def judge(adapter_judge, tmp_path) -> Path:  # an adapter of rank 4
    return Path(shutil.copytree(adapter_judge, tmp_path / "judge"))


@pytest.fixture(scope="module")
def ids(rows, tiny):
    """Four training prompts as one tensor, cut to the shortest."""
    found = [prompts.prompt_ids(tiny[1], row) for row in rows[:4]]
    return torch.tensor([row[: min(map(len, found))] for row in found])


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_weight(path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    save_file({n: w for n, w in load_file(path).items() if name not in n}, path, metadata={"format": "pt"})


def trained(seed: int = 0, quantization: str = "none", **lora):
    """A model whose adapter changes something, as after training, and the tokenizer."""
    model, tokenizer = models.load(BASE, quantization=quantization, training=True)
    model, generator = models.add_lora(model, seed=seed, **lora), torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05, generator=generator)
    return model, tokenizer


def test_a_path_that_holds_no_model_is_refused(tmp_path, copy):
    for path in (tmp_path / "nothing", "runs/no/such/judge", BASE / "config.json"):
        with pytest.raises(ModelError, match="there is no such directory; give a model directory or a hub id"):
            models.check_model(path)
    for pattern in ("tokenizer*", "*.safetensors", "config.json"):
        for path in copy.glob(pattern):
            path.unlink()
        with pytest.raises(ModelError) as caught:
            models.check_model(copy)
        assert str(caught.value).endswith(f"it holds no {pattern}")


def test_a_broken_file_is_a_model_error_with_the_path(copy):
    half = (copy / "model.safetensors").read_bytes()[:1_000_000]  # as a stopped download leaves it
    unknown = b'{"model_type": "no_such_architecture"}'
    for name, content in {"model.safetensors": half, "config.json": unknown, "tokenizer.json": b"{}"}.items():
        (copy / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"model {copy} cannot be loaded"):
            models.load(copy)
    for content in ("[1]", '{"template": 3}', "{"):
        (copy / "judge.json").write_text(content)
        with pytest.raises((ModelError, files.RowError), match=r"judge\.json"):
            models.judge_info(copy)


def test_a_gated_model_says_what_to_do():
    advice = r"(?s)gated repo.*; ask for access on its page, then `hf auth login`, or take another"
    with pytest.raises(ModelError, match=advice), loading._as_model_error("meta-llama/Llama-3.1-8B-Instruct"):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at https://...")


def test_a_judge_on_the_hub_brings_its_judge_json(tmp_path, monkeypatch):
    asked, here = [], tmp_path / "judge.json"
    files.write_json(here, {"template": "brief", "score_step": 0.5})
    monkeypatch.setattr(loading, "hf_hub_download", lambda model, name: asked.append((model, name)) or str(here))
    assert models.judge_info("org/my-judge")["score_step"] == 0.5
    assert models.judge_info(tmp_path)["template"] == "brief"
    assert models.judge_info("")["template"] == "prometheus"
    assert asked == [("org/my-judge", "judge.json")], "only a hub id is asked for"
    for wrong in ({"template": "promethues"}, {"max_new_tokens": None}, []):
        files.write_json(here, wrong)
        with pytest.raises(ModelError, match="does not describe a judge"):
            models.judge_info(tmp_path)


def test_missing_weights_are_refused(copy, judge):
    """transformers fills them with random numbers, PEFT with its initial ones, and both only warn."""
    drop_weight(copy / "model.safetensors", "layers.2.mlp.up_proj")
    with pytest.raises(ModelError, match=r"lacks weights: .*layers\.2.*up_proj"):
        models.load(copy)
    drop_weight(judge / "adapter_model.safetensors", "layers.2.mlp.up_proj.lora_A")
    with pytest.raises(ModelError, match="missing adapter keys"):
        models.load(judge)


def test_the_tokenizer_of_another_model_and_one_without_an_end_are_refused(copy, judge):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(400)])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match=f"{len(tokenizer)} tokens, 1536 rows in its embedding"):
        models.load(copy)
    state = json.loads((judge / "tokenizer.json").read_text())
    one, other = list(state["model"]["vocab"])[700:702]  # exchanged: as many tokens as before
    state["model"]["vocab"] |= {one: state["model"]["vocab"][other], other: state["model"]["vocab"][one]}
    edit(judge / "tokenizer.json", **state)
    with pytest.raises(ModelError, match="not the one it was trained with"):
        models.load_tokenizer(judge)
    edit(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        models.load_tokenizer(copy)


@pytest.mark.parametrize(
    ("single", "template"), [("<bos> $A <eos>", False), ("$A <eos>", True), ("$A <eos> <eos>", False)]
)
def test_a_prompt_ends_where_the_judgment_begins(copy, tmp_path, rows, tiny, single, template):
    """Whatever the tokenizer adds behind a text; also in the judge's own directory, for any other program."""
    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer

    backend = Tokenizer.from_file(str(copy / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<bos>", 1), ("<eos>", 2)])
    backend.save(str(copy / "tokenizer.json"))
    edit(copy / "tokenizer_config.json", add_eos_token=True, add_bos_token=single.startswith("<bos>"))
    if not template:
        (copy / "chat_template.jinja").unlink()
    tokenizer = models.load_tokenizer(copy)
    ids, text = prompts.prompt_ids(tokenizer, rows[0]), prompts.prompt_text(tokenizer, rows[0])
    bare = tiny[1](text, add_special_tokens=False)["input_ids"]
    assert ids == [1] * single.startswith("<bos>") + bare
    tokenizer.save_pretrained(tmp_path / "judge")
    assert AutoTokenizer.from_pretrained(tmp_path / "judge")(text)["input_ids"] == ids


def test_an_empty_special_token_breaks_up_nothing(copy, rows, tiny):
    edit(copy / "tokenizer_config.json", unk_token="")
    assert prompts.prompt_ids(models.load_tokenizer(copy), rows[0]) == prompts.prompt_ids(tiny[1], rows[0])


def test_a_prompt_is_the_same_tomorrow(copy, rows):
    turn = "{{ messages[0]['content'] }} {{ bos_token }}"
    (copy / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }} " + turn + '{{ strftime_now( "%Y" ) }}')
    tokenizer = models.load_tokenizer(copy)
    assert prompts.prompt_text(tokenizer, rows[0]).startswith("26 Jul 2024 ### Instruction")
    assert "strftime_now" not in tokenizer.chat_template, "a server would write another date"
    assert tokenizer.chat_template.endswith('{{ "2024" }}')


REFUSED = {
    "{% set f = '%d' %}{{ strftime_now(f) }}{{ messages[0]['content'] }}": "writes the date of the day; change the template",
    "{{ raise_exception('Conversations begin with a system turn') }}": "refuses a single user turn .*begin with a system turn",
    "{{ messages[0]['content'] + 1 }}": "refuses a single user turn",
    "{% for part in messages[0]['content'] %}{{ part.text }}{% endfor %}": "leaves out what the user writes",
}


@pytest.mark.parametrize("template", REFUSED)
def test_a_template_that_cannot_write_the_prompt_is_refused_at_load(copy, template):
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=REFUSED[template]):
        models.load_tokenizer(copy)


@pytest.mark.parametrize(("kind", "refused"), [("RoFormerConfig", True), ("DogeConfig", False)])
def test_a_model_that_sees_its_future_is_refused_or_attends_otherwise(copy, kind, refused):
    """Doge's own mask is not causal with torch's attention; with eager attention it is."""
    import transformers

    sizes = dict(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.2
    )
    config = getattr(transformers, kind)(vocab_size=1536, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(copy)
    if refused:
        with pytest.raises(ModelError, match="its attention is not causal; take a causal language model"):
            models.load(copy)
    else:
        assert models.load(copy)[0].config._attn_implementation == "eager"


def test_a_deep_causal_model_is_loaded_in_16_bit(copy):
    """Two lengths of one text may differ by more than a tenth there, as kernels round by their shapes."""
    import transformers

    sizes = dict(hidden_size=128, intermediate_size=448, num_hidden_layers=48, num_attention_heads=2)
    config = transformers.LlamaConfig(vocab_size=1536, initializer_range=0.12, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(copy)
    model, _ = models.load(copy, dtype="bfloat16")
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    model.save_pretrained(copy)
    with pytest.raises(ModelError, match=r"its logits are not finite in .*bfloat16; set dtype: float32"):
        models.load(copy, dtype="bfloat16")


@pytest.mark.parametrize("native", [False, True])
def test_auto_is_the_dtype_that_the_machine_computes_in(monkeypatch, native):
    """A T4 has no bf16: torch emulates it, slowly, and says it is supported."""
    assert models.torch_dtype() == models.torch_dtype("float32") == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert models.torch_dtype() == (torch.bfloat16 if native else torch.float16)
    with pytest.raises(ModelError, match="'8bit' is neither none nor 4bit"):
        models.load(BASE, quantization="8bit")


def test_4bit_trains_after_a_forward_in_eval_mode(ids, tiny, monkeypatch):
    """On CPUs with avx512_bf16, bitsandbytes repacks its weights at that forward, and the model is another one afterwards."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model, _ = models.load(BASE, quantization="4bit", training=True)
    quantized = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert {module.weight.quant_state.quant_type for module in quantized} == {"nf4"}
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in quantized)
    model = models.add_lora(model, rank=8, alpha=16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    with torch.no_grad():
        before, exact = model(ids, labels=ids).loss.item(), tiny[0](ids, labels=ids).loss.item()
        assert model.eval()(ids, labels=ids).loss.item() == pytest.approx(before, abs=1e-3)
        assert model.train()(ids, labels=ids).loss.item() == pytest.approx(before, abs=1e-3)
    assert before == pytest.approx(exact, rel=0.15), "quantized weights are near the weights"
    for _ in range(6):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert model(ids, labels=ids).loss.item() < before - 0.1


def test_experts_that_would_stay_in_16_bit_are_refused(tmp_path, tiny):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = dict(
        hidden_size=64, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tiny[1]), **sizes)).save_pretrained(tmp_path)
    tiny[1].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its experts would stay in 16 bit; set quantization to none"):
        models.load(tmp_path, quantization="4bit")


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
    policy, _ = models.load(adapter_judge, training=True)
    before = logits(models.load(adapter_judge)[0], ids)
    assert (before - logits(tiny[0], ids)).abs().max() > 0.1
    assert models.add_lora(policy, rank=4, alpha=32) is policy
    torch.testing.assert_close(logits(policy.eval(), ids), before, atol=1e-5, rtol=0)
    assert list(policy.peft_config) == ["default"]
    policy.peft_config["default"].target_modules = r"(?:.*?(?:q_proj|v_proj)).*"  # as Unsloth writes it for some models
    assert models.add_lora(policy, rank=4, alpha=32) is policy
    assert {"lora_" in name for name, p in policy.named_parameters() if p.requires_grad} == {True}
    for changes in ({"rank": 8}, {"alpha": 8}, {"lora_targets": "q_proj"}):
        with pytest.raises(ModelError, match=r"the judge's adapter has .*'r': 4.* say"):
            models.add_lora(policy, **{"rank": 4, "alpha": 32, **changes})
    with pytest.raises(ModelError, match="lora_rank 0 trains all weights"):
        models.add_lora(tiny[0], quantization="4bit", rank=0)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_the_judge_on_disk_is_the_one_that_was_trained(ids, tiny, tmp_path, quantization, adapter):
    """Merged, the adapter is in the unquantized weights; kept, it is read back onto the weights that it was trained on."""
    from transformers import AutoModelForCausalLM

    policy, tokenizer = trained(quantization=quantization, rank=4, alpha=8)
    weights = {name: p.float() for name, p in policy.named_parameters() if "lora_" in name}
    models.save_judge(policy, tokenizer, tmp_path, source=BASE, judge={"template": "prometheus"}, adapter=adapter)
    if not adapter:
        policy = models.add_lora(models.load(BASE)[0], rank=4, alpha=8)
        torch.testing.assert_close(logits(policy.eval(), ids), logits(tiny[0], ids), atol=0, rtol=0)  # a fresh adapter
        policy.load_state_dict(weights, strict=False)
    expected = logits(policy.eval(), ids)
    assert (expected - logits(tiny[0], ids)).abs().max() > 0.1, "the adapter is meant to matter"
    loaded, own_tokenizer = models.load(tmp_path, quantization=quantization if adapter else "none")
    torch.testing.assert_close(logits(loaded, ids), expected, atol=1e-4, rtol=0)
    assert own_tokenizer.chat_template == tokenizer.chat_template
    info = {"template": "prometheus", "vocabulary": loading.vocabulary(tokenizer), "base": str(BASE)}
    assert models.judge_info(tmp_path) == loading.DEFAULTS | info
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".jinja"}
    assert bool(list(tmp_path.rglob("adapter*"))) == adapter == (models.base_of(tmp_path) is not None)
    assert models.keeps_adapter("auto", tmp_path, quantization, torch.float32) == (adapter or quantization == "4bit")
    if quantization == "none":
        plainly = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        torch.testing.assert_close(logits(plainly, ids), expected, atol=1e-4, rtol=0)


def test_the_base_is_found_after_the_project_moved(judge):
    edit(judge / "adapter_config.json", base_model_name_or_path="/was/here/models/tiny-base")
    edit(judge / "judge.json", base="models/tiny-base")
    assert models.base_of(judge) == str(BASE)
    edit(judge / "judge.json", base="models/none")
    with pytest.raises(ModelError, match="is an adapter, and its base models/none is missing"):
        models.check_model(judge)


def test_a_full_disk_is_named_whoever_writes(tmp_path):
    """Neither library raises an OSError; no file may grow beyond 64 kB here."""
    from safetensors.torch import save_file

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        for save in (save_file, torch.save):
            with pytest.raises(files.StoreError, match="free space"), models.saving(tmp_path):
                save({"weight": torch.zeros(2**18)}, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def parts(one_thread, tmp_path_factory) -> dict[str, Path]:
    """A pointwise and a pairwise adapter of rank 2 and alpha 4."""
    paths = {name: tmp_path_factory.mktemp("parts") / name for name in ("pointwise", "pairwise")}
    for seed, path in enumerate(paths.values()):
        models.save_judge(*trained(seed, rank=2, alpha=4), path, source=BASE, judge={}, adapter=True)
    return paths


def update(model) -> dict:
    """What an adapter changes in each weight of the base."""
    base, merged = models.load(BASE)[0].state_dict(), model.merge_and_unload().state_dict()
    return {name: merged[name] - weight for name, weight in base.items() if name.endswith("_proj.weight")}


def merged(parts, method="linear", weight=0.3, density=0.5, rank=4, seed=0, base=BASE):
    return models.merge_adapters(base, parts, method, weight, density, rank, 8, seed)


def test_a_linear_merge_is_the_weighted_sum_of_both_updates_and_an_adapter_like_any_other(parts, tmp_path):
    pointwise, pairwise = (update(models.load(path, training=True)[0]) for path in parts.values())
    models.save_judge(*merged(parts), tmp_path, source=BASE, judge={}, adapter=True)
    model = models.load(tmp_path, training=True)[0]
    assert models.add_lora(model, rank=4, alpha=8) is model  # refuses an adapter of another rank or alpha
    for name, value in update(model).items():
        torch.testing.assert_close(value, 0.7 * pointwise[name] + 0.3 * pairwise[name], atol=1e-6, rtol=1e-4)
    with pytest.raises(ModelError, match=r"ranks \[2, 2\], not half of lora_rank 5; set an even one"):
        merged(parts, rank=5)
    with pytest.raises(ModelError, match="sft_mode merge starts from a base"):
        merged(parts, base=tmp_path)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("method", ["dare_linear", "ties"])
def test_the_other_merges_drop_something_and_repeat_to_the_bit(parts, method):
    changes = ({}, {}, {"seed": 1}, {"density": 1.0}, {"method": "linear"})
    first, again, other, whole, plain = (update(merged(parts, **{"method": method} | change)[0]) for change in changes)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first) == (method == "dare_linear")
    assert any(float((first[name] - plain[name]).abs().max()) > 1e-3 for name in first)
    # With nothing dropped, dare_linear is linear: the sum of two updates of rank 2 has rank 4.
    assert method == "ties" or all(torch.allclose(whole[name], plain[name], atol=1e-5) for name in first)


def test_the_card_of_the_shipped_base_describes_its_weights(tiny):
    facts, card = json.loads((BASE / "pretraining.json").read_text()), (BASE / "README.md").read_text()
    assert files.sha256(BASE / "model.safetensors") == facts["sha256"]
    assert sum(p.numel() for p in tiny[0].parameters()) == facts["parameters"]
    assert all(text in card for text in (facts["sha256"], f"--steps {facts['steps']}", f"{facts['parameters']:,}"))
    text = "\x00 naïve 🙂\u200b<|x|> ﷽\n\ttie"  # any text goes through its tokenizer unchanged
    assert tiny[1].decode(tiny[1](text, add_special_tokens=False)["input_ids"]) == text


def test_a_backend_that_does_not_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", None)  # importing it fails
    assert models.resolve_backend("auto") == models.resolve_backend("transformers") == "transformers"
    with pytest.raises(ParamError, match="backend unsloth does not work here"):
        models.resolve_backend("unsloth")


def test_a_backend_that_works_trains_adapters_alone(monkeypatch):
    for name, module in {"unsloth": ModuleType("unsloth"), "trl": None}.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert [models.resolve_backend("auto", rank) for rank in (8, 0)] == ["unsloth", "transformers"]
    assert models.resolve_backend("auto", 8, "float32") == "transformers", "on a GPU, Unsloth computes it in bf16"
