"""Will it fit: sizes of models, parts of memory, tokens of stages, cards, refusals, and the recipes. No torch but for one."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import KINDS, config_of
from rich.console import Console

from srlib import config
from srlib.hardware import machine, memory, shapes
from srlib.hardware.machine import Card
from srlib.hardware.memory import Job
from srlib.run import plan

ROOT = Path(__file__).parent.parent
LLAMA = shapes.of_model("meta-llama/Llama-3.1-8B-Instruct")
GPU, RAM = Card("GPU of 16 GB", 15 * 2**30), Card("this machine's RAM", 2**28, gpu=False)


def tiny(**changes) -> config.Parameters:
    return config.load(ROOT / "params" / "tiny.yaml", [f"{name}={value}" for name, value in changes.items()])


# ---------------------------------------------------------------- sizes and formulas


def test_known_models_have_the_size_of_their_weights_on_the_hub():
    assert LLAMA.parameters == pytest.approx(8_030_261_248, rel=1e-3)
    assert shapes.of_model("Qwen/Qwen2.5-1.5B-Instruct").parameters == pytest.approx(1_543_714_304, rel=1e-3)
    assert LLAMA.lora(16) == 41_943_040  # as PEFT prints it


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_a_config_has_the_size_that_transformers_builds(kind, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    kind_config = config_of(kind)
    kind_config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(kind_config)
    shape = shapes.of_model(tmp_path)
    linear = {
        name: (p.shape[1], p.shape[0]) for name, p in model.named_parameters() if "layers.0." in name and p.dim() == 2
    }
    assert {name.split(".")[-2]: size for name, size in linear.items()} == shape.matrices
    assert shape.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.02)


def test_models_of_unknown_size_are_named(tmp_path):
    with pytest.raises(shapes.ShapeError, match=r"hf download some/model config\.json"):
        shapes.of_model("some/model")
    contents = {"{}": "does not say how large", "[1]": "does not say", "[1": "does not say"}
    contents['{"num_local_experts": 8}'] = "is a mixture of experts"
    for content, message in contents.items():
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(shapes.ShapeError, match=message):
            shapes.of_model(tmp_path)


def test_the_8b_in_numbers_worked_by_hand():
    def part(name, **job):
        return memory.forecast(LLAMA, Job(**{"kind": "sft", "rows": 1, "tokens": 1000, "gpu": True} | job))[name]

    assert part("weights") == 2 * LLAMA.parameters
    assert part("weights", gpu=False) == 4 * LLAMA.parameters
    assert part("weights", four_bit=True) == pytest.approx(0.516 * 6_979_321_856 + 2 * 1_050_673_152, rel=1e-3)
    assert part("weights", lora_rank=0) == 4 * LLAMA.parameters, "all weights train in fp32"
    assert part("optimizer") == 12 * 41_943_040
    assert part("optimizer", lora_rank=0) == 12 * LLAMA.parameters
    assert part("logits", kind="dpo", rows=3) == 6000 * 128256 * 16
    assert part("KV cache", kind="sample", new_tokens=100 - memory.BLOCK) == 1100 * 131072  # 128 KiB a token
    assert part("KV cache", kind="sample", new_tokens=100 - memory.BLOCK, n=20) == 3000 * 131072  # the prompt once


def test_memory_falls_and_grows_with_its_knobs():
    job = Job("dpo", 2, 1024, gpu=True)

    def held(**changes):
        return sum(memory.forecast(LLAMA, replace(job, **changes)).values())

    assert held(checkpointing=True) < 0.7 * held()
    assert held(kind="sft") < held() < held(rows=3)
    assert held(lora_rank=8) < held() < held(dtype="float32")
    assert held(four_bit=True) < held() < held(gpu=False)
    assert held(targets=("q_proj",)) < held()


@pytest.mark.parametrize("name", ["memory", "memory-fp32"])
def test_the_forecast_is_within_a_quarter_of_the_measured_peaks(name):
    measured = {
        "10m": shapes.Shape("10m", 256, 8, 4, 4, 64, 768, 8192, True),
        "25m": shapes.Shape("25m", 384, 10, 6, 2, 64, 1024, 16384, False),
        "60m": shapes.Shape("60m", 512, 12, 8, 4, 64, 1536, 32768, True),
    }
    table = json.loads((ROOT / "docs" / "bench" / f"{name}.json").read_text())
    work = table["settings"]
    assert len(table["rows"]) == 9
    for row in table["rows"]:
        job = Job(row["kind"], work["rows"], work["prompt_tokens"], bf16=row["bf16"])
        if row["kind"] == "sample":
            job = replace(job, new_tokens=work["completion_tokens"], n=work["n"])
        else:
            job = replace(job, tokens=work["prompt_tokens"] + work["completion_tokens"])
        forecast = sum(memory.forecast(measured[row["shape"]], job).values()) / 2**20
        assert abs(forecast / row["measured_mib"] - 1) <= 0.25, row


def test_the_batches_are_those_of_the_sampler():
    pytest.importorskip("torch")
    from srlib.sample import decoding, prefix

    assert (memory.ROWS, memory.PROMPTS, memory.PROMPT_TOKENS) == (
        decoding.ROWS,
        decoding.PROMPTS,
        decoding.PROMPT_TOKENS,
    )
    assert (memory.PREFILL, memory.BLOCK) == (prefix.PREFILL, prefix.BLOCK)


def test_the_gpu_is_the_largest_that_nvidia_smi_lists(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Tesla T4, 15360'\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.found() == Card("NVIDIA H100 80GB HBM3", 81559 * 2**20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not machine.found().gpu
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert machine.found().name == "this machine's RAM"
    assert machine.found().bytes > 2**28 < 2**30 * 1.0
    assert 10 * 2**20 < machine.peak_memory() < 2**40


# ---------------------------------------------------------------- a run


def test_tokens_of_each_stage():
    values = dict(
        max_length=300, max_new_tokens=100, sft_steps=10, pairs_per_prompt=2, arms="base,sft,sft_best_of_n,rft,sre_2"
    )
    tokens = plan.forecast(tiny(**values, diagnose="true", audit_items=5), ROOT, GPU).tokens
    assert list(tokens) == ["sft", "sample_1", "dpo_1", "sample_2", "dpo_2", "rft", "eval", "diagnose"]
    assert tokens["sft"] == 10 * 16 * 300
    assert tokens["sample_1"] == 800 * (200 + 10 * 100)
    assert tokens["sample_2"] == 400 * (200 + 10 * 100)
    assert tokens["dpo_1"] == 1600 * 2 * 2 * 300  # two sides, and both once more for the reference
    assert tokens["rft"] == (1600 + 800) * 2 * 300
    assert tokens["eval"] == (100 + 400 + 300 + 2 * 200) * (4 * 300 + 200 + 8 * 100)
    assert tokens["diagnose"] == 5 * 8 * 2 * 300
    merge = plan.forecast(tiny(sft_mode="merge", sft_steps=0, n_train_pairwise=160, arms="sft"), ROOT, GPU).tokens
    assert [merge[name] for name in ("sft_pointwise", "sft_pairwise", "sft")] == [800 * 512, 160 * 512, 0]


def test_a_run_that_does_not_fit_is_refused_with_what_would_help():
    llama = dict(model="meta-llama/Llama-3.1-8B-Instruct")
    reason = plan.refusal(tiny(**llama), ROOT, GPU)
    assert re.match(
        r"this run does not fit: stage dpo .* needs about \d+\.\d GiB and GPU of 16 GB has 15.0 GiB", reason
    )
    assert "4bit" in reason
    assert "--anyway" in reason
    assert "sample_batch_size" in plan.refusal(
        tiny(**llama, micro_batch_size=1, max_length=16, max_new_tokens=8), ROOT, GPU
    )
    assert plan.refusal(tiny(), ROOT, GPU) is None
    assert plan.refusal(tiny(model="some/model-of-unknown-size"), ROOT, GPU) is None
    assert "RAM" in plan.refusal(tiny(), ROOT, RAM)


def test_judges_are_adapters_unless_merging_is_exact():
    def kept(card, **changes):
        return next(iter(plan.forecast(tiny(**changes), ROOT, card).disk()))

    assert kept(RAM).endswith("merged judges")
    assert kept(RAM, quantization="4bit").endswith("adapters")
    assert kept(GPU).endswith("adapters")
    assert kept(GPU, judge_format="merged").endswith("merged judges")
    assert kept(GPU, lora_rank=0).endswith("merged judges")


def test_the_plan_shows_every_part_and_card():
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan.show(plan.forecast(tiny(), ROOT, RAM)))
    text = console.export_text()
    for word in (
        "on a GPU",
        "on a CPU",
        "KV cache",
        "allocator",
        "rows x tokens",
        "sample_2",
        "checkpoint",
        "80 GB",
        "RAM",
    ):
        assert word in text
    assert re.search(r"T4, 16 GB +15.0 GiB  fits", text)
    assert re.search(r"this machine's RAM +0.2 GiB  does not fit", text)


# ---------------------------------------------------------------- the recipes


@pytest.mark.parametrize(("name", "card"), [("colab", 0), ("workstation", 1), ("paper", 2), ("h100", 2)])
def test_a_recipe_fits_its_card_and_carries_its_forecast(name, card):
    cfg, text = config.load(ROOT / "params" / f"{name}.yaml"), (ROOT / "params" / f"{name}.yaml").read_text()
    forecast = plan.forecast(cfg, ROOT, machine.CARDS[card])
    assert forecast.verdict(forecast.card) == "fits"
    memory_line = ", ".join(f"{stage} {sum(p.values()) / 2**30:.1f}" for stage, p in forecast.parts(gpu=True).items())
    comment = f"#   GPU memory, GiB: {memory_line}\n#   {sum(forecast.tokens.values()) / 1e6:,.0f} M tokens at most\n"
    assert comment in text, f"{name}.yaml drifted; its forecast is now\n{comment}"
    assert "dtype: bfloat16" not in text or name != "colab", "a T4 has no bf16"


def test_the_papers_recipe_says_where_each_value_comes_from():
    text = (ROOT / "params" / "paper.yaml").read_text()
    values = [line for line in text.splitlines() if re.match(r"\w+:", line)]
    assert len(values) > 30
    assert [line for line in values if not re.search(r"# (stated|default)", line)] == []
    cfg = config.load(ROOT / "params" / "paper.yaml")
    assert (cfg.model, cfg.iterations, cfg.n_samples) == ("meta-llama/Llama-3.1-8B-Instruct", 2, 10)
    assert (cfg.sample_prompts, cfg.sample_prompts_later, cfg.temperature, cfg.margin) == (5000, 500, 1.0, 2.0)
