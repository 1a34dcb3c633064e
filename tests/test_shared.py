"""Training over shared prompts against standard TRL on the same pairs: losses, log-probabilities, gradients."""

import importlib.util
import sys
import types
from pathlib import Path

import architectures
import numpy as np
import pytest

from srlib import files as store
from srlib import shared_prompts as shared
from srlib import train
from srlib.models import adapters
from srlib.models import load as models

pytestmark = pytest.mark.torch

RAGGED = (1, 3, 2, 1)  # pairs of each prompt


@pytest.fixture(autouse=True)
def _exact(one_thread, fp32):
    pass


def pairs_of(k=RAGGED, seed=0, reuse=False) -> list[dict]:
    """Random tokens: prompts of 20 to 40, completions of 5 to 15; with `reuse` all pairs of a prompt have one chosen side."""
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return rng.integers(10, 250, rng.integers(low, high)).tolist()

    rows = []
    for n in k:
        prompt, chosen = tokens(20, 40), tokens(5, 15)
        for i in range(n):
            row = {"prompt_ids": prompt, "chosen_ids": chosen if reuse or i == 0 else tokens(5, 15)}
            rows.append(row | {"rejected_ids": tokens(5, 15)})
    return [row | {"length": 50} for row in rows]


def policy_of(base_dir, lora=True, quantization="none", **weights):
    import torch

    policy, tokenizer = models.load(base_dir, training=True, quantization=quantization, **weights)
    policy = adapters.add_lora(policy, quantization=quantization, rank=4 if lora else 0)
    torch.manual_seed(1)
    for name, p in policy.named_parameters():
        if "lora_B" in name:  # an adapter that does something, so that all its gradients do
            torch.nn.init.normal_(p.data, std=0.02)
    return policy, tokenizer


def trainer_of(kind, policy, tokenizer, rows, out, *, checkpointing=False, engine="cache", layout=None, **config):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    standard = kind == "standard"

    class Tokenized(DPOTrainer if standard else shared.dpo_trainer()):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

        def _precompute_ref_logps(self, dataset, name, batch_size):
            return dataset

    arguments = dict(
        output_dir=str(out), max_steps=1, per_device_train_batch_size=len(rows), learning_rate=1e-3, use_cpu=True,
        report_to="none", disable_tqdm=True, gradient_checkpointing=checkpointing, remove_unused_columns=False,
        max_length=None, beta=0.1, precompute_ref_log_probs=True, logging_steps=1, save_strategy="no", seed=0, max_grad_norm=1e9,
    )  # fmt: skip
    config = DPOConfig(**arguments | config)
    plan = [] if standard else [shared.Plan(engine, layout)]
    return Tokenized(
        *plan, model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def one_step(trainer, rows):
    """(loss, reference log-probabilities, gradients by name) of one batch of all rows."""
    import torch

    model = trainer.model
    model.train()
    model.zero_grad()
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        reference = torch.stack(
            trainer.compute_ref_log_probs(lambda **inputs: model(**inputs), batch)
        )  # as srlib.reference
    offset = (
        torch.arange(reference.numel()).view_as(reference) % 5 - 2.0
    )  # so that the loss is not that of a first step
    batch |= dict(zip(shared.REFERENCE, (reference + offset).unbind(), strict=True))
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), reference, gradients


def check_same(standard, ours, loss=2e-6, logps=1e-4, gradient=3e-5):
    assert ours[0] == pytest.approx(standard[0], abs=loss * max(1, abs(standard[0])))
    assert float((ours[1] - standard[1]).abs().max()) < logps
    assert ours[2].keys() == standard[2].keys()
    largest = max(float(g.abs().max()) for g in standard[2].values())
    assert largest > 1e-3, "there is a gradient to compare"
    for name, g in standard[2].items():
        assert float((ours[2][name] - g).abs().max()) < gradient * max(1, largest), name


@pytest.mark.parametrize(
    ("engine", "checkpointing", "lora", "reuse", "config"),
    [
        ("cache", False, True, False, {}),
        ("cache", False, False, True, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        ("cache", False, True, False, {"loss_type": "ipo"}),
        ("attention", False, True, True, {}),
        ("attention", True, True, False, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        ("attention", True, False, False, {"loss_type": "ipo"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_loss_logprobs_and_gradients_are_trls(base_dir, tmp_path, engine, checkpointing, lora, reuse, config):
    rows = pairs_of(reuse=reuse)
    how = dict(checkpointing=checkpointing, **config)
    found = {}
    for kind in ("standard", "shared"):
        policy, tokenizer = policy_of(base_dir, lora)
        found[kind] = one_step(trainer_of(kind, policy, tokenizer, rows, tmp_path, engine=engine, **how), rows)
    check_same(found["standard"], found["shared"])


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Tiny models of the families, two query heads to each key head."""
    texts = ["the host says that every guest brings bread"] * 20
    return {kind: architectures.make(kind, tmp_path_factory.mktemp(kind), texts) for kind in ("qwen2", "gemma2")}


@pytest.mark.parametrize(("kind", "engine"), [("qwen2", "cache"), ("qwen2", "attention"), ("gemma2", "cache")])
def test_other_architectures_too(families, tmp_path, kind, engine):
    """Gemma 2 has a window and soft caps: transformers' cache, masks and eager attention know them."""
    rows = [{**row, "prompt_ids": row["prompt_ids"] * 3} for row in pairs_of()]  # longer than Gemma's window of 64
    found = {}
    for path in ("standard", "shared"):
        policy, tokenizer = policy_of(families[kind])
        found[path] = one_step(trainer_of(path, policy, tokenizer, rows, tmp_path, engine=engine), rows)
    check_same(found["standard"], found["shared"], logps=5e-4)


def test_four_bit(base_dir, tmp_path):
    rows, found = pairs_of(), {}
    for kind in ("standard", "shared"):
        policy, tokenizer = policy_of(base_dir, quantization="4bit")
        found[kind] = one_step(trainer_of(kind, policy, tokenizer, rows, tmp_path), rows)
    check_same(
        found["standard"], found["shared"], loss=5e-3, logps=0.5, gradient=5e-2
    )  # its sums are rounded to 16 bit


def test_what_would_be_read_wrongly_is_refused(families, base_dir, tmp_path):
    gemma, _ = policy_of(families["gemma2"])
    assert shared.engine(gemma, checkpointing=False, longest=100) == "cache"
    with pytest.raises(shared.NotShareable, match=r"(?s)64 tokens.*gradient_checkpointing to false"):
        shared.engine(gemma, checkpointing=True, longest=100)
    with pytest.raises(shared.NotShareable, match="soft-caps"):
        shared.engine(gemma, checkpointing=True, longest=50)
    with pytest.raises(shared.NotShareable, match="its own kernel for that is not measured"):  # off unless asked for
        shared.engine(gemma, checkpointing=False, longest=100, unsloth_on_gpu=True)
    with pytest.raises(
        shared.NotShareable, match=r"64 tokens.*; set share_prompts to false, or backend to transformers"
    ):
        shared.engine(gemma, checkpointing=False, longest=100, unsloth_on_gpu=True, unsloth_kernel=True)
    policy, tokenizer = policy_of(base_dir)
    policy.config.output_router_logits, policy.config.router_aux_loss_coef = False, 0.001  # as a mixture of experts
    with pytest.raises(shared.NotShareable, match="loss of its routers"):
        shared.engine(policy, checkpointing=False, longest=100)
    policy.config.router_aux_loss_coef = 0.0
    assert shared.engine(policy, checkpointing=False, longest=100) == "cache"
    trainer = trainer_of("shared", policy, tokenizer, pairs_of(), tmp_path)
    policy.gradient_checkpointing_enable()
    trainer.model.train()
    with pytest.raises(shared.NotShareable, match="kept no cache"):  # transformers would only warn, and drop the prompt
        trainer.compute_loss(trainer.model, trainer.data_collator(pairs_of()))


@pytest.fixture
def unsloths_kernel(monkeypatch):
    """Unsloth's own labels of a row's tokens, without Unsloth around them; skips where it is not installed."""
    found = importlib.util.find_spec("unsloth")
    if found is None:
        pytest.skip("needs Unsloth")
    path = Path(found.submodule_search_locations[0]) / "utils" / "prefix_grouper_kernel.py"
    name = "unsloth.utils.prefix_grouper_kernel"
    spec = importlib.util.spec_from_file_location(name, path)
    kernel = importlib.util.module_from_spec(spec)
    for package in ("unsloth", "unsloth.utils"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, name, kernel)
    spec.loader.exec_module(kernel)
    return kernel


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_layout_for_unsloths_kernel_is_exact(base_dir, tmp_path, unsloths_kernel, loss):
    """By its own rule of what a token sees. Its compiled kernel needs a GPU, where the first step is checked again."""
    import torch
    from transformers import AttentionInterface

    def attend(module, query, key, value, mask, prefix_seg_info=None, scaling=None, **_):
        n, sees = query.shape[2], None
        if prefix_seg_info is not None:
            info = prefix_seg_info
            rule = unsloths_kernel._make_mask_mod(info.group_of_kv, info.is_prefix, info.suffix_of_kv)
            sees = rule(0, 0, torch.arange(n)[:, None], torch.arange(n)[None])
        how = dict(attn_mask=sees, is_causal=sees is None, scale=scaling)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **how).transpose(1, 2), None

    AttentionInterface.register("as_unsloth", attend)
    rows, found = pairs_of(), {}
    for kind in ("standard", "shared"):
        policy, tokenizer = policy_of(base_dir)
        trainer = trainer_of(kind, policy, tokenizer, rows, tmp_path, engine="segments", loss_type=loss)
        if kind == "shared":
            policy.set_attn_implementation("as_unsloth")
        found[kind] = one_step(trainer, rows)
    check_same(found["standard"], found["shared"])
    assert True not in trainer.unchecked, "the first pass was to be held against the standard way"


def test_a_model_that_does_not_pass_the_segments_on_is_found_out_at_the_first_step(base_dir, tmp_path, unsloths_kernel):
    policy, tokenizer = policy_of(base_dir)
    trainer = trainer_of("shared", policy, tokenizer, pairs_of(), tmp_path, engine="segments")
    with pytest.raises(shared.NotShareable, match=r"other log-probabilities than the standard way: [0-9.]+ nats"):
        one_step(trainer, pairs_of())


def settings(**changes) -> train.Settings:
    given = dict(batch_size=8, micro_batch_size=8, backend="transformers", lora_rank=4, learning_rate=1e-3, epochs=1)
    return train.Settings(**given | changes)


def dpo(base_dir, rows, out, nll_weight=0.5, **changes):
    """(steps, 3) of the log of a training."""
    log = train.dpo(base_dir, rows, out, settings(**changes), nll_weight=nll_weight)
    return np.array([[entry[name] for name in ("loss", "grad_norm", "rewards/margins")] for entry in log])


def test_fifty_steps_later_both_paths_are_together(families, tmp_path):
    rows = pairs_of((2, 2, 2, 2))
    how = dict(max_steps=50, learning_rate=5e-3)
    apart = dpo(families["qwen2"], rows, tmp_path / "apart", share_prompts=False, **how)
    once = dpo(families["qwen2"], rows, tmp_path / "once", **how)
    assert apart[-1, 0] < 0.8 * apart[0, 0], "something was learned"
    np.testing.assert_allclose(once, apart, rtol=2e-2, atol=2e-3)


def test_parts_of_a_step_weigh_what_their_pairs_weigh(families, tmp_path):
    """Eight pairs of five prompts at once, and in parts of one prompt or two with other numbers of pairs."""
    rows = pairs_of((3, 1, 2, 1, 1))
    whole = dpo(families["qwen2"], rows, tmp_path / "whole", nll_weight=0, max_steps=3)
    parts = dpo(families["qwen2"], rows, tmp_path / "parts", nll_weight=0, max_steps=3, micro_batch_size=1)
    np.testing.assert_allclose(parts[:, :2], whole[:, :2], rtol=1e-4)  # metrics are TRL's mean over parts


def test_computed_before_or_on_the_fly_the_reference_is_one(base_dir, tmp_path):
    rows, found = pairs_of(), []
    for precompute in (True, False):
        policy, tokenizer = policy_of(base_dir)
        trainer = trainer_of("shared", policy, tokenizer, rows, tmp_path, precompute_ref_log_probs=precompute)
        batch = trainer.data_collator(rows)
        if precompute:
            batch |= dict(zip(shared.REFERENCE, trainer.compute_ref_log_probs(trainer.model, batch), strict=True))
        found.append(float(trainer.compute_loss(trainer.model.train(), batch).detach()))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_of_sft_share_prompts_too(families, tmp_path, checkpointing):
    """Several chosen judgments of one prompt: the same losses as when each reads it, in fewer tokens."""
    pairs = pairs_of((3, 1, 2, 2))
    rows = [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["chosen_ids"]),
        }
        for row in pairs
    ]
    found = []
    for share in (False, True):
        how = settings(share_prompts=share, max_steps=4, gradient_checkpointing=checkpointing)
        log = train.sft(families["qwen2"], rows, tmp_path / str(share), how)
        found.append([[entry["loss"], entry["grad_norm"]] for entry in log])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_another_way_to_read_makes_another_reference(base_dir, tmp_path):
    """Cached log-probabilities are those of one engine: sums differ in their last bits."""
    rows = pairs_of()
    keys = set()
    for i, how in enumerate(({"share_prompts": False}, {}, {"gradient_checkpointing": True})):
        out = tmp_path / str(i)
        dpo(base_dir, rows, out, max_steps=1, **how)
        keys.add(store.read_json(out / "reference.json")["key"]["layout"])
    assert len(keys) == 3


def test_in_16_bit_policy_and_reference_start_as_one(families, tmp_path, monkeypatch):
    """Both read the same rows side by side, so no sum is rounded another way and the first margin is exactly 0."""
    import torch

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    log = train.dpo(families["qwen2"], pairs_of((3, 1, 2, 4, 1, 2)), tmp_path, settings(micro_batch_size=2), beta=5.0)
    assert log[0]["rewards/margins"] == 0.0
    assert log[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
