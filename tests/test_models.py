"""Loading refuses what is no model, and what was trained is what lies on disk."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from srlib import files as store
from srlib.models.load import ModelError, adapters
from srlib.models import load as models

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture
def copy(base_dir, tmp_path) -> Path:
    return Path(shutil.copytree(base_dir, tmp_path / "model"))


def ids_of(rows, tokenizer, n=4):
    import torch

    from srlib import train

    made = [row["input_ids"] for row in train.sft_rows(tokenizer, rows[:n], "brief")]
    return torch.tensor([row[: min(map(len, made))] for row in made])


# ---------------------------------------------------------------- what is no model


def test_a_path_that_is_not_there_or_is_a_file(tmp_path, base_dir):
    with pytest.raises(ModelError, match=r"there is no such directory; give a model directory or a hub id"):
        models.load(tmp_path / "nothing")
    with pytest.raises(ModelError, match="there is no such directory"):
        models.load("runs/no/such/judge")
    with pytest.raises(ModelError, match=r"is a file; give the directory that holds config.json"):
        models.load(base_dir / "config.json")


@pytest.mark.parametrize(
    ("missing", "words"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer*", "no tokenizer")],
)
def test_a_directory_that_is_not_a_model_says_what_it_lacks(copy, missing, words):
    for path in copy.glob(missing):
        path.unlink()
    with pytest.raises(ModelError, match=f"is not a model directory: it holds {words}"):
        models.load(copy)


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


def test_weights_that_do_not_belong_to_the_config_are_refused(copy):
    """transformers fills a missing or misshapen weight with random numbers; such a judge would talk nonsense."""
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    name = next(n for n in weights if "layers.2" in n and "up_proj" in n)
    del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.2.*up_proj"):
        models.load(copy)


def test_a_tokenizer_of_another_model_is_refused(copy):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(400)])
    tokenizer.save_pretrained(copy)
    rows = json.loads((copy / "config.json").read_text())["vocab_size"]
    with pytest.raises(ModelError, match=f"has {len(tokenizer)} tokens and its embedding {rows} rows"):
        models.load(copy)


def test_a_tokenizer_that_cannot_end_or_pad(copy):
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in settings.items() if k != "pad_token"}))
    _, tokenizer = models.load(copy)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    path.write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        models.load(copy)


def test_unknown_settings_are_named(base_dir):
    with pytest.raises(ModelError, match="quantization '8bit', 'nf4' is not one of none, 4bit"):
        models.load(base_dir, quantization="8bit")
    with pytest.raises(ModelError, match="quantization '4bit', 'int4' is not one of"):
        models.load(base_dir, quantization="4bit", quant_type="int4")
    with pytest.raises(ModelError, match="backend 'jax' is not one of auto, unsloth, transformers"):
        models.load(base_dir, backend="jax")


def test_auto_computes_in_what_the_machine_is_made_for(monkeypatch):
    """A T4 has no bf16: torch emulates it, slowly, and says it is supported."""
    import torch

    assert models.torch_dtype() == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, wanted in ((False, torch.float16), (True, torch.bfloat16)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, n=native: including_emulation or n
        )
        assert models.torch_dtype() == wanted
    assert models.torch_dtype("float32") == torch.float32
    with pytest.raises(ModelError, match="dtype 'half' is not one of auto, float32, bfloat16, float16"):
        models.torch_dtype("half")


@pytest.mark.parametrize("content", ["[1]", '{"template": 3}', "{"])
def test_a_judge_json_that_says_nothing_is_refused(copy, content):
    assert models.judge_info(copy) == models.DEFAULTS
    (copy / "judge.json").write_text(content)
    with pytest.raises((ModelError, store.RowError), match=r"judge\.json"):
        models.judge_info(copy)


# ---------------------------------------------------------------- 4 bit, backends


def test_4bit_trains_after_a_forward_in_eval_mode(base_dir, rows, tiny):
    """bitsandbytes repacks its weights at the first forward in eval mode on CPUs with avx512_bf16, and the model is
    another one afterwards; see models._mend_4bit."""
    import torch

    plain, tokenizer = tiny
    model, _ = models.load(base_dir, quantization="4bit", training=True)
    assert sum(type(m).__name__ == "Linear4bit" for m in model.modules()) == 7 * plain.config.num_hidden_layers
    model = adapters.add_lora(model, rank=8, alpha=16)
    ids = ids_of(rows, tokenizer)

    def loss():
        return model(ids, labels=ids).loss

    with torch.no_grad():
        before = float(loss())
        exact = float(plain(ids, labels=ids).loss)
        model.eval()
        assert float(loss()) == pytest.approx(before, abs=1e-3)
        model.train()
        assert float(loss()) == pytest.approx(before, abs=1e-3)
    assert before == pytest.approx(exact, rel=0.1), "quantized weights are near the weights"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(6):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before - 0.1


@pytest.mark.parametrize(("quant_type", "dtype"), [("nf4", "float32"), ("fp4", "bfloat16")])
def test_4bit_judges(base_dir, rows, quant_type, dtype):
    from srlib.sample import decode as sample

    model, tokenizer = models.load(base_dir, quantization="4bit", quant_type=quant_type, dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}"
    quantized = model.get_decoder().layers[0].mlp.up_proj.weight.quant_state
    assert (quantized.quant_type, str(quantized.dtype)) == (quant_type, f"torch.{dtype}")
    found = sample.judgments(model, tokenizer, rows[:4], max_new_tokens=80)
    assert any(j.score is not None for j in found)


def test_auto_stays_with_transformers_where_trl_was_imported_first():
    """Unsloth patches trl, so it comes first or not at all."""
    code = "import trl; from srlib import models; print(models.resolve_backend('auto'))"
    assert _python(code).split()[-1] == "transformers"


def test_a_missing_unsloth_is_an_error_only_when_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", None)  # then `import unsloth` fails
    monkeypatch.delitem(sys.modules, "trl", raising=False)
    assert models.resolve_backend.__wrapped__("auto") == "transformers"
    with pytest.raises(ModelError, match="backend unsloth does not work here"):
        models.resolve_backend.__wrapped__("unsloth")


def _python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
