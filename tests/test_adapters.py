"""The adapter is all that trains, and the judge on disk is the judge that was trained, in either form."""

import json
import shutil
from pathlib import Path

import pytest

from srlib import files as store
from srlib.models.load import ModelError, adapters
from srlib.models import load as models

pytestmark = pytest.mark.torch
LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture
def copy(adapter_judge, tmp_path) -> Path:
    return Path(shutil.copytree(adapter_judge, tmp_path / "judge"))


@pytest.fixture(scope="module")
def ids(rows, tiny):
    import torch

    from srlib import train

    made = [row["input_ids"] for row in train.sft_rows(tiny[1], rows[:4], "brief")]
    return torch.tensor([row[: min(map(len, made))] for row in made])


def logits(model, ids):
    import torch

    with torch.no_grad():
        return model(ids).logits


def edited(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------- what trains


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(base_dir, ids, tiny):
    import torch

    plain, _ = tiny
    model = adapters.add_lora(models.load(base_dir)[0], rank=4, alpha=8).eval()
    torch.testing.assert_close(logits(model, ids), logits(plain, ids), atol=0, rtol=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(LLAMA) * plain.config.num_hidden_layers
    assert all("lora_" in name for name in trained)


def test_all_linear_is_what_the_seven_projections_were_to_the_bit(base_dir):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    listed = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=listed, task_type="CAUSAL_LM")
    before = get_peft_model(models.load(base_dir)[0], config)
    now = dict(adapters.add_lora(models.load(base_dir)[0], rank=4, alpha=8, seed=3).named_parameters())
    assert now.keys() == dict(before.named_parameters()).keys()
    assert all(torch.equal(p, now[name]) for name, p in before.named_parameters())


def test_targets_are_named_and_never_the_output_head():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert not config.tie_word_embeddings
    assert adapters.targets(model) == LLAMA
    assert adapters.targets(model, "v_proj, q_proj") == ["q_proj", "v_proj"]
    for wanted, named in (("q_proj,lm_head", "lm_head"), ("qproj", "qproj"), (" , ", "")):
        with pytest.raises(ModelError, match=f"no linear layer {named} below its output head; write all-linear, or"):
            adapters.targets(model, wanted)
    few = adapters.add_lora(model, rank=2, alpha=2, lora_targets="q_proj")
    assert {n.split(".")[-4] for n, p in few.named_parameters() if p.requires_grad} == {"q_proj"}
    assert adapters.targets(few.get_base_model()) == LLAMA


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("quantization", ["none", "4bit"])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_judge_on_disk_is_the_one_that_was_trained(base_dir, ids, tiny, tmp_path, quantization, adapter):
    """Merged, the adapter goes into the unquantized weights; kept, it is read back onto what it was trained on."""
    import torch
    from transformers import AutoModelForCausalLM

    plain, tokenizer = tiny
    policy, _ = models.load(base_dir, quantization=quantization, training=True)
    policy = adapters.add_lora(policy, rank=4, alpha=8)
    torch.manual_seed(0)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, std=0.05)
    out = tmp_path / "judge"
    info = {"template": "prometheus"}
    adapters.save_judge(policy, tokenizer, out, source=base_dir, judge=info, adapter=adapter)

    if adapter:
        wanted = logits(policy.eval(), ids)
        judge, own_tokenizer = models.load(out, quantization=quantization)
    else:
        reference = adapters.add_lora(models.load(base_dir)[0], rank=4, alpha=8).eval()
        reference.load_state_dict({n: p.float() for n, p in policy.named_parameters() if "lora_" in n}, strict=False)
        wanted = logits(reference, ids)
        judge, own_tokenizer = models.load(out)
    assert (wanted - logits(plain, ids)).abs().max() > 0.1, "the adapter is meant to matter"
    torch.testing.assert_close(logits(judge, ids), wanted, atol=1e-4, rtol=0)
    assert own_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert own_tokenizer.chat_template == tokenizer.chat_template
    names = {"vocabulary": models.vocabulary(tokenizer), "base": str(base_dir)}
    assert models.judge_info(out) == {**models.DEFAULTS, **info, **names}
    assert bool(list(out.rglob("adapter*"))) == adapter == (models.base_of(out) is not None)
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors", ".jinja"}
    if quantization == "none":
        plainly = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        torch.testing.assert_close(logits(plainly, ids), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("judge_format", "quantization", "dtype", "source", "kept"),
    [
        ("auto", "none", "float32", "base_dir", False),
        ("auto", "none", "bfloat16", "base_dir", True),
        ("auto", "4bit", "float32", "base_dir", True),
        ("auto", "none", "float32", "adapter_judge", True),
        ("merged", "4bit", "bfloat16", "base_dir", False),
        ("adapter", "none", "float32", "base_dir", True),
    ],
)
def test_where_merging_would_round_the_adapter_is_kept(judge_format, quantization, dtype, source, kept, request):
    import torch

    place = request.getfixturevalue(source)
    assert adapters.keeps_adapter(judge_format, place, quantization, getattr(torch, dtype)) is kept


def test_an_unknown_format_is_named(base_dir):
    with pytest.raises(ModelError, match="judge_format 'zip' is not one of auto, merged, adapter"):
        adapters.keeps_adapter("zip", base_dir, "none", None)


# ---------------------------------------------------------------- one lineage


def test_a_judges_own_adapter_is_trained_on_and_nothing_is_stacked(adapter_judge, base_dir, ids, tiny):
    import torch

    policy, _ = models.load(adapter_judge, training=True)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    judge = logits(models.load(adapter_judge)[0], ids)
    assert (judge - logits(tiny[0], ids)).abs().max() > 0.1
    same = adapters.add_lora(policy, rank=4, alpha=32)
    assert same is policy
    torch.testing.assert_close(logits(same.eval(), ids), judge, atol=1e-5, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in same.named_parameters())
    assert list(policy.peft_config) == ["default"]
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == {n for n in before if "lora_" in n}
    for changes, named in (
        ({"rank": 8}, r"r 4 .* say 8"),
        ({"lora_targets": "q_proj"}, r"target_modules .* say \['q_proj'\]"),
    ):
        with pytest.raises(ModelError, match=f"the judge's adapter has {named}: a judge is trained on in"):
            adapters.add_lora(policy, **{"rank": 4, "alpha": 32, **changes})


def test_the_base_is_found_where_the_project_went(copy, base_dir):
    root = base_dir.parent.parent
    assert models.base_of(copy) == str(base_dir)
    edited(copy / "adapter_config.json", base_model_name_or_path="/was/here/models/tiny-base")
    edited(copy / "judge.json", base="models/tiny-base")
    assert models.base_of(copy) == str(root / "models" / "tiny-base")
    edited(copy / "judge.json", base="models/none")
    with pytest.raises(ModelError, match="is an adapter, and its base models/none is not there"):
        models.check_model(copy)
    edited(copy / "adapter_config.json", base_model_name_or_path="some-org/some-model")
    assert models.base_of(copy) == "some-org/some-model"


def test_an_adapter_that_lacks_a_weight_is_refused(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "adapter_model.safetensors")
    weights.pop(sorted(weights)[3])
    save_file(weights, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its adapter does not fit its base: .*missing adapter keys"):
        models.load(copy)
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it holds no weights \(adapter_model.safetensors\)"):
        models.load(copy)


def test_another_tokenizer_of_the_same_size_is_refused(copy):
    path = copy / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    one, other = (t for t in list(vocabulary)[700:702])
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(state))
    for load in (models.load, models.load_tokenizer):
        with pytest.raises(ModelError, match="not the one it was trained with, although it may have as many tokens"):
            load(copy)


# ---------------------------------------------------------------- the disk


@pytest.mark.parametrize("writer", ["safetensors", "torch"])
def test_a_full_disk_is_told_by_every_writer(tmp_path, writer):
    """Neither library raises an OSError; no file may grow beyond 64 kB here."""
    import resource

    import torch
    from safetensors.torch import save_file

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = {"safetensors": save_file, "torch": torch.save}[writer]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        with (
            pytest.raises(store.StoreError, match=r"judge: cannot be written .*free space"),
            adapters.saving(tmp_path / "judge"),
        ):
            save({"weight": torch.zeros(2**18)}, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("text", ["out of memory", "PytorchStreamReader failed: inline_container.cc"])
def test_what_is_no_matter_of_the_disk_keeps_its_name(tmp_path, text):
    with pytest.raises(RuntimeError, match=text) as caught, adapters.saving(tmp_path):
        raise RuntimeError(text)
    assert type(caught.value) is RuntimeError
