"""DPO and SFT with shared prompts compute what TRL computes: losses, log-probabilities, gradients, trained weights."""

import shutil

import pytest

pytest.importorskip("torch")
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from srlib import shared_prompts
from srlib.models import training

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def pairs():
    """Four prompts of different lengths with 3, 1, 2 and 2 pairs, whose sides differ in length, too."""
    rows = []
    for p, k in enumerate((3, 1, 2, 2)):
        prompt = f"Write a notice {'for the picnic of the club ' * (2 + p)}with the day and the host {p}.\n"
        for i in range(k):
            chosen = f"The day is Monday{', as asked' * (i + p)}: pass. [RESULT] {1 + i}"
            rows.append(
                {"prompt": prompt, "chosen": chosen, "rejected": f"The host: fail. [RESULT] {5 - i - (p == 3)}"}
            )
    return rows


SIZES = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
CONFIGS = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "soft caps": ("Gemma2Config", {"query_pre_attn_scalar": 16}),  # 50, which hardly matters to scores near 0
    "a short window": ("MistralConfig", {"sliding_window": 8}),
    "afmoe": ("AfmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "xglm": ("XGLMConfig", {"ffn_dim": 96}),
    "gptj": ("GPTJConfig", {"rotary_dim": 8}),
    "codegen": ("CodeGenConfig", {"rotary_dim": 8}),
} | {
    name.lower(): (f"{name}Config", {})
    for name in ("GPT2", "Phi3", "StableLm", "Nemotron", "Falcon", "Bloom", "Mpt", "Doge", "DiffLlama", "Mamba")
}  # fmt: skip
APART = (
    "soft caps",
    "a short window",
    "stablelm",
    "nemotron",
    "falcon",
    "bloom",
    "mpt",
    "gptj",
    "codegen",
    "xglm",
    "doge",
    "mamba",
)


def model_of(kind, tokenizer, lora=True):
    config_class, own = CONFIGS[kind]
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager"} if kind in ("soft caps", "doge") else {}  # as models.load loads them
    sizes = {name: size for name, size in SIZES.items() if (kind, name) != ("falcon", "head_dim")}
    config = getattr(transformers, config_class)(**sizes, vocab_size=len(tokenizer), **own)
    model = AutoModelForCausalLM.from_config(config, **eager)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p.data, std=0.05)
    return model


@pytest.fixture(scope="module")
def tokenizer(base_dir, one_thread):
    return AutoTokenizer.from_pretrained(base_dir)


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.of = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_step(model, tokenizer, pairs, out, share, settings):
    """The first log entry, the gradients and the reference's log-probabilities of one optimizer step over all pairs."""
    collator = shared_prompts.share(model, tokenizer, pairs) if share else None
    assert (collator is not None) == share
    defaults = dict(
        max_steps=1, learning_rate=1e-3, per_device_train_batch_size=len(pairs), precompute_ref_log_probs=True,
        max_length=None, use_cpu=True, bf16=False, gradient_checkpointing=False, loss_type=["sigmoid", "sft"],
        loss_weights=[1, 0.5], report_to="none", disable_tqdm=True, remove_unused_columns=False, save_strategy="no",
        train_sampling_strategy="sequential", logging_steps=1,
    )  # fmt: skip
    gradients = Gradients()
    trainer = DPOTrainer(
        model, args=DPOConfig(str(out), **{**defaults, **settings}), train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer, data_collator=collator, callbacks=[gradients],
    )  # fmt: skip
    trainer.train()
    columns = [c for c in ("ref_chosen_logps", "ref_rejected_logps") if c in trainer.train_dataset.column_names]
    log = {name: float(value) for name, value in trainer.state.log_history[0].items()}
    return log, gradients.of, torch.tensor([trainer.train_dataset[name] for name in columns])


@pytest.mark.parametrize(
    ("kind", "lora", "settings"),
    [
        ("llama", True, {}),
        ("qwen3", True, {"gradient_checkpointing": True}),
        ("llama", False, {"loss_type": "ipo", "loss_weights": None}),
        ("llama", True, {"precompute_ref_log_probs": False, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
    ],
    ids=["lora", "checkpointing", "all weights, ipo", "accumulation, reference in the step"],
)  # fmt: skip
def test_equals_trl(kind, lora, settings, pairs, tokenizer, tmp_path):
    plain, shared = (
        one_step(model_of(kind, tokenizer, lora), tokenizer, pairs, tmp_path / str(share), share, settings)
        for share in (False, True)
    )
    for name in ("loss", "logps/chosen", "logps/rejected", "rewards/margins"):
        assert shared[0][name] == pytest.approx(plain[0][name], rel=1e-5, abs=1e-5), name
    assert abs(plain[0]["rewards/margins"]) < 1e-5
    assert plain[1].keys() == shared[1].keys()
    for name, gradient in plain[1].items():
        assert float((gradient - shared[1][name]).abs().max()) <= 1e-5, name
    assert max(float(g.abs().max()) for g in plain[1].values()) > 1e-3
    assert torch.allclose(plain[2], shared[2], rtol=1e-6, atol=1e-4)


def test_a_dpo_that_was_killed_goes_on_from_the_weights_of_its_checkpoint(pairs, tokenizer, tmp_path):
    """TRL keeps its reference beside the policy in a checkpoint, and transformers then loads the reference alone."""
    weights = []
    for _ in ("whole", "resumed"):
        model = model_of("llama", tokenizer)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        args = DPOConfig(
            str(tmp_path), max_steps=4, learning_rate=1e-2, per_device_train_batch_size=2, precompute_ref_log_probs=False,
            max_length=None, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, remove_unused_columns=False,
            save_strategy="steps", save_steps=2, train_sampling_strategy="sequential", gradient_checkpointing=False,
        )  # fmt: skip
        collator = shared_prompts.share(model, tokenizer, pairs)
        own = dict(
            args=args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer, data_collator=collator
        )
        trainer = DPOTrainer(model, **own)
        trainer.train(resume_from_checkpoint=training.last_checkpoint(tmp_path))
        weights.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
        assert trainer.state.global_step == 4
        shutil.rmtree(tmp_path / "checkpoint-4")
    assert max(float((p - start[name]).abs().max()) for name, p in weights[0].items()) > 1e-2
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())


@pytest.mark.parametrize(("kind", "checkpointing"), [("llama", False), ("qwen3", True)])
def test_sft_equals_trl(kind, checkpointing, pairs, tokenizer, tmp_path):
    """Loss, token accuracy and gradients of a step over parts in which prompts have three, one, two and two judgments."""
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    logs, found = [], []
    for share in (False, True):
        model, gradients = model_of(kind, tokenizer), Gradients()
        collator = shared_prompts.share(model, tokenizer, rows) if share else None
        assert (collator is not None) == share
        args = SFTConfig(
            str(tmp_path / str(share)), max_steps=1, learning_rate=1e-3, per_device_train_batch_size=4, max_length=None,
            gradient_accumulation_steps=2, use_cpu=True, bf16=False, gradient_checkpointing=checkpointing,
            completion_only_loss=True, report_to="none", disable_tqdm=True, remove_unused_columns=False,
            save_strategy="no", train_sampling_strategy="sequential", logging_steps=1,
        )  # fmt: skip
        trainer = SFTTrainer(
            model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, data_collator=collator,
            callbacks=[gradients],
        )  # fmt: skip
        trainer.train()
        logs.append(trainer.state.log_history[0])
        found.append(gradients.of)
    for name in ("loss", "entropy", "mean_token_accuracy"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-5), name
    assert logs[1]["num_tokens"] < 0.8 * logs[0]["num_tokens"]
    assert found[0].keys() == found[1].keys()
    assert max(float((gradient - found[1][name]).abs().max()) for name, gradient in found[0].items()) <= 1e-5
    assert max(float(g.abs().max()) for g in found[0].values()) > 1e-3


def test_a_batch_holds_each_prompt_once(pairs, tokenizer):
    rows = [
        {f"{name}_ids": tokenizer(text, add_special_tokens=name == "prompt")["input_ids"] for name, text in row.items()}
        for row in pairs
    ]
    batch = shared_prompts.Collator(pad_token_id=0)(rows)
    layout = batch["shared"]
    n_prompt = sum(len(prompt) for prompt in {tuple(row["prompt_ids"]) for row in rows})
    n_sides = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    assert layout["ids"].shape == (1, n_prompt + n_sides)
    assert batch["input_ids"].shape[0] == 2 * len(rows)
    # Behind its prompt's last token every completion continues at the prompt's length.
    starts = layout["positions"][0, layout["completion_slots"][:, 0]]
    assert starts.tolist() == [len(row["prompt_ids"]) for row in rows] * 2
    wanted = layout["ids"][0, layout["wanted"]].view(2 * len(rows), -1)
    masked = batch["attention_mask"].bool()
    assert torch.equal(wanted[masked], batch["input_ids"][masked])


@pytest.mark.parametrize("kind", CONFIGS)
def test_steps_aside_where_it_would_be_wrong(kind, pairs, tokenizer, capsys):
    """The proof finds that the logits differ, or that the forward pass fails; then the model is left as it was."""
    model = model_of(kind, tokenizer, lora=kind in ("llama", "soft caps"))
    causal = model.get_base_model() if kind in ("llama", "soft caps") else model
    attention, forward = causal.config._attn_implementation, causal.forward
    collator, line = shared_prompts.share(model, tokenizer, pairs), capsys.readouterr().out
    assert (collator is None) == (kind in APART) == (f"prompts are not shared: {type(causal).__name__} " in line)
    assert (causal.config._attn_implementation == attention) == (causal.forward == forward) == (kind in APART)


def test_a_proof_for_which_there_is_no_room_stops_no_training(pairs, tokenizer, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = model_of("llama", tokenizer)
    attention = model.config._attn_implementation
    monkeypatch.setattr(shared_prompts, "_logprobs", full)
    assert shared_prompts.share(model, tokenizer, pairs) is None
    assert model.config._attn_implementation == attention
    assert "LlamaForCausalLM fails with OutOfMemoryError: 'CUDA out of memory'" in capsys.readouterr().out


def test_without_a_layout_the_model_is_what_it_was(pairs, tokenizer):
    model = model_of("llama", tokenizer)
    ids = tokenizer([pairs[0]["prompt"]], return_tensors="pt")
    with torch.no_grad():
        before = model(**ids).logits
        assert shared_prompts.share(model, tokenizer, pairs) is not None
        assert torch.allclose(model(**ids).logits, before, atol=1e-5)
