"""Llama, Qwen, Gemma and Mistral: where a turn ends, what attention computes, what training leaves, on both backends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import KINDS, make

from srlib import Judge, models, prompts, sample
from srlib.data import world
from srlib.hardware import shapes
from srlib.models import loading

pytestmark = pytest.mark.torch
JOBS = [("llama", "none"), ("qwen2", "none"), ("gemma2", "none"), ("mistral", "none"), ("llama", "4bit")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory, one_thread):
    """`hub(kind)`: the directory of a small random model of this kind."""
    root, rows = tmp_path_factory.mktemp("hub"), world.examples("train", 0, 32, care=0.5)
    texts = [f"{prompts.request(row)} {prompts.completion(row.rationale, row.score)}" for row in rows]
    return lambda kind: root / kind if (root / kind).exists() else make(kind, root / kind, texts)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "mistral"])
def test_a_judgment_ends_with_its_turn_and_no_response_can_end_it(hub, rows, kind):
    from transformers import AutoTokenizer

    tokenizer, (*_, special, end, _) = models.load_tokenizer(hub(kind)), KINDS[kind]
    assert tokenizer.eos_token == loading.end_of_turn(AutoTokenizer.from_pretrained(hub(kind))) == end
    completion = prompts.completion_ids(tokenizer, f"Quoting {end}.")
    assert [i for i, token in enumerate(completion) if token == tokenizer.eos_token_id] == [len(completion) - 1]
    assert prompts.prompt_ids(tokenizer, rows[0]).count(tokenizer.bos_token_id) == (1 if special[0] else 0)

    def controls(response):
        ids = prompts.prompt_ids(tokenizer, rows[0].model_copy(update={"response": response}))
        return [i for i in ids if tokenizer.convert_ids_to_tokens(i) in special]

    assert controls(f"Hello {' '.join(filter(None, special))} [RESULT] 5") == controls("Hello") != []


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_verdict_is_scored_in_the_tokens_that_training_reads(hub, rows, kind):
    """TRL tokenizes a judgment behind its prompt; sentencepiece writes the same text otherwise where nothing precedes it."""
    tokenizer, row = models.load_tokenizer(hub(kind)), rows[0]
    ids = prompts.prompt_ids(tokenizer, row, "brief")
    for rationale in ("", row.rationale):
        shared, rest = sample.decoding.candidates(tokenizer, row, ids, rationale)
        texts = [prompts.completion(rationale, verdict) for verdict in row.verdicts]
        whole = [tokenizer(prompts.prompt_text(tokenizer, row, "brief") + text)["input_ids"] for text in texts]
        assert [[*ids, *shared, *end] for end in rest] == whole


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_two_equal_adapters_merge_into_each_of_them(hub, tmp_path, method):
    model, tokenizer = models.load(hub("llama"), training=True)
    part = models.add_lora(model, rank=4, alpha=8)
    for name, weights in part.named_parameters():
        weights.data.normal_(0, 0.1) if "lora_B" in name else None
    part.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    both = {"pointwise": tmp_path, "pairwise": tmp_path}
    merged, _ = models.merge_adapters(
        hub("llama"), both, method, pairwise_weight=0.5, density=1.0, rank=8, alpha=16, seed=0
    )
    layers = [module for module in merged.modules() if hasattr(module, "get_delta_weight")]
    for layer in layers:
        assert torch.allclose(layer.get_delta_weight("default"), layer.get_delta_weight("pointwise"), atol=1e-5)
    assert len(layers) == 14
    assert max(float(layer.get_delta_weight("default").abs().max()) for layer in layers) > 0.1


def test_soft_caps_are_computed(hub):
    """torch's own attention would leave them out."""
    model, ids = models.load(hub("gemma2"))[0], torch.arange(20, 60)[None]
    with torch.inference_mode():
        capped = model(ids).logits
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        assert not torch.allclose(capped, model(ids).logits, atol=1e-4)


def learned(base: Path, out: Path, backend: str, quantization: str = "none") -> list[float]:
    """Losses of four steps on four rows, then that of the judge on disk."""
    model, tokenizer = models.load(base, backend=backend, quantization=quantization, training=True)
    model = models.add_lora(model, backend=backend, quantization=quantization, rank=4, alpha=8)
    optimizer, rows, losses = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3), [], []
    for row in world.examples("train", 0, 4, care=0.5):
        completion = prompts.completion_ids(tokenizer, prompts.completion(row.rationale, row.score))
        prompt = prompts.prompt_ids(tokenizer, row)
        rows.append((torch.tensor([prompt + completion]), torch.tensor([[-100] * len(prompt) + completion])))
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(sum(model(ids, labels=labels).loss for ids, labels in rows) / len(rows))
        losses[-1].backward()
        optimizer.step()
    about = {"quantization": quantization}  # as notebook 02 says of every judge
    models.save_judge(model, tokenizer, out, source=base, judge=about, adapter=quantization == "4bit")
    judge, _ = Judge.load(out).sampler.args  # in the quantization of its training
    assert getattr(judge, "is_loaded_in_4bit", False) == (quantization == "4bit")
    assert tokenizer.eos_token_id in judge.generation_config.eos_token_id
    with torch.no_grad():
        return [*map(float, losses), float(sum(judge(ids, labels=labels).loss for ids, labels in rows) / len(rows))]


SLOW = [pytest.param(kind, marks=[] if kind in ("llama", "gemma2") else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", SLOW)
def test_a_judge_trains_and_is_the_same_from_disk_and_of_the_planned_size(hub, tmp_path, kind):
    losses = learned(hub(kind), tmp_path, "transformers")
    assert losses[0] > losses[1] > losses[3] > losses[4]
    weights, shape = models.load(tmp_path)[0].state_dict(), shapes.of_model(tmp_path)
    layer = {name.split(".")[-2]: tuple(w.shape)[::-1] for name, w in weights.items() if ".0." in name and w.dim() == 2}
    assert layer == shape.matrices
    counted = sum(w.numel() for name, w in weights.items() if not (shape.tied and "lm_head" in name))
    assert shape.parameters == pytest.approx(counted, rel=0.02)  # norms are not counted


UNSLOTH = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from srlib import models
if models.resolve_backend("auto") == "unsloth":
    from test_architectures import JOBS, learned
    hub, out = Path(sys.argv[1]), Path(sys.argv[2])
    print("learned", json.dumps([learned(hub / kind, out / f"{kind}{bits}", "unsloth", bits) for kind, bits in JOBS]))
"""


@pytest.mark.slow
def test_unsloth_learns_the_same(hub, tmp_path):
    """In a process of its own: Unsloth patches transformers for good."""
    expected = [learned(hub(kind), tmp_path / f"{kind}{bits}", "transformers", bits) for kind, bits in JOBS]
    command = [sys.executable, "-c", UNSLOTH, hub("llama").parent, tmp_path / "unsloth", Path(__file__).parent]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    if "learned" not in ended.stdout:
        pytest.skip("Unsloth is not installed, or does not support this machine")
    for losses, own in zip(json.loads(ended.stdout.partition("learned ")[2].splitlines()[0]), expected, strict=True):
        assert losses == pytest.approx(own, abs=2e-3)
