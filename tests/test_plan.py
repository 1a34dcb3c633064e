"""Will it fit: sizes of models, parts of memory, tokens of stages, cards, refusals, and the recipes. No torch."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
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


def test_known_models_have_their_size_and_others_are_named(tmp_path):
    assert LLAMA.parameters == pytest.approx(8_030_261_248, rel=1e-3)  # of the weights on the hub
    assert LLAMA.lora(16) == 41_943_040  # as PEFT prints it
    assert shapes.of_model("Qwen/Qwen2.5-1.5B-Instruct").parameters == pytest.approx(1_543_714_304, rel=1e-3)
    with pytest.raises(shapes.ShapeError, match=r"hf download some/model config\.json"):
        shapes.of_model("some/model")
    for content in ("{}", "[1]", "[1", '{"num_local_experts": 8}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(shapes.ShapeError, match=r"does not say how large|is a mixture of experts"):
            shapes.of_model(tmp_path)


def test_the_8b_in_numbers_worked_by_hand():
    def part(name, **job):
        return memory.forecast(LLAMA, Job(**{"kind": "sft", "rows": 1, "tokens": 1000, "gpu": True} | job))[name]

    assert part("weights") == 2 * LLAMA.parameters
    assert part("weights", gpu=False) == part("weights", lora_rank=0) == 4 * LLAMA.parameters
    assert part("weights", four_bit=True) == pytest.approx(0.516 * 6_979_321_856 + 2 * 1_050_673_152, rel=1e-3)
    assert part("activations", checkpointing=True) < 0.1 * part("activations")
    assert part("optimizer") == 12 * 41_943_040
    assert part("optimizer", lora_rank=0) == 12 * LLAMA.parameters
    assert part("logits", kind="dpo", rows=3) == 6000 * 128256 * 12
    assert part("KV cache", kind="sample", new_tokens=100 - memory.BLOCK) == 1100 * 131072  # 128 KiB a token
    assert part("KV cache", kind="sample", new_tokens=100 - memory.BLOCK, n=20) == 3000 * 131072  # the prompt once


@pytest.mark.parametrize("name", ["memory", "memory-fp32"])
def test_the_forecast_is_within_a_quarter_of_the_measured_peaks(name):
    sizes = {"10m": (256, 8, 4, 4, 64, 768, 8192, True), "25m": (384, 10, 6, 2, 64, 1024, 16384, False)}
    sizes["60m"] = (512, 12, 8, 4, 64, 1536, 32768, True)
    table = json.loads((ROOT / "docs" / "bench" / f"{name}.json").read_text())
    prompt, completion = table["settings"]["prompt_tokens"], table["settings"]["completion_tokens"]
    assert len(table["rows"]) == 9
    for row in table["rows"]:
        job = Job(row["kind"], table["settings"]["rows"], prompt + completion, bf16=row["bf16"])
        if row["kind"] == "sample":
            job = replace(job, tokens=prompt, new_tokens=completion, n=table["settings"]["n"])
        forecast = sum(memory.forecast(shapes.Shape(row["shape"], *sizes[row["shape"]]), job).values()) / 2**20
        assert abs(forecast / row["measured_mib"] - 1) <= 0.25, row


def measured_on_a_gpu(step):
    """{(measurement, row): its numbers} of a step of bench/gpu.py."""
    measurements = json.loads((ROOT / "docs" / "bench" / f"gpu-{step}.json").read_text())["measurements"]
    return {(m["name"], row["what"]): row for m in measurements for row in m["rows"]}


def test_the_forecast_is_within_15_percent_of_the_peaks_measured_on_a_gpu():
    """Prompt 1,000 + judgment 200 tokens of Llama-3.1-8B in 4 bit; step 5 forecasts its smaller shapes by itself."""
    jobs = {("TRL", f"k = {k}"): (3, Job("dpo", k, 1200)) for k in (1, 3, 5)}
    jobs["shared prompts", "k = 1"] = (
        3,
        Job("dpo", 1, 1200, 200),
    )  # k = 3, 5: one pair a prompt is assumed, so it is less
    jobs["nf4", "srlib, 16 prompts x 10"] = 4, Job("sample", 16, 1000, 200, 10)
    jobs["llama-3.1-8b", "sft"] = 5, Job("sft", 4, 1200)
    for where, (step, job) in jobs.items():
        job = replace(job, gpu=True, four_bit=True, checkpointing=True)
        forecast = sum(memory.forecast(LLAMA, job).values())
        assert abs(forecast / measured_on_a_gpu(step)[where]["peak"] - 1) <= 0.15, where
    small = {"llama-3.2-1b": (2048, 16, 32, 8, 64, 8192, 128256), "smollm2-135m": (576, 30, 9, 3, 64, 1536, 49152)}
    for name, sizes in small.items():
        for job in (Job("sft", 4, 1200), Job("dpo", 1, 1200), Job("sample", 8, 1000, 32, 10)):
            parts = memory.forecast(shapes.Shape(name, *sizes, True), replace(job, gpu=True, checkpointing=True))
            assert abs(sum(parts.values()) / measured_on_a_gpu(5)[name, job.kind]["peak"] - 1) <= 0.15, (name, job)


def test_the_hours_of_a_plan_follow_the_rates_measured_on_a_gpu():
    slowest = min(
        measured_on_a_gpu(3)[way, "k = 1"]["pairs_per_second"] for way in ("TRL", "shared prompts", "Unsloth")
    )
    sampling = measured_on_a_gpu(4)["nf4", "srlib, 16 prompts x 10"]["seconds"]
    rates = {"dpo": slowest * 4 * 1200, "sample": 16 * (1000 + 10 * 200) / sampling / 160}
    assert rates == pytest.approx(plan.MEASURED, rel=0.02)
    recipe = config.load(ROOT / "params" / "workstation.yaml")
    rates["sample"] *= recipe.sample_batch_size * recipe.n_samples  # a step takes as long as with 160 rows
    with (console := Console(width=160)).capture() as capture:
        console.print(plan.show(plan.forecast(recipe, ROOT, GPU)))
    said = re.search(r"hours at the rates of an H200 .*: sample_1 ([\d.]+), dpo_1 ([\d.]+), ", capture.get())
    tokens = plan.forecast(recipe, ROOT, GPU).tokens
    for given, name in zip(said.groups(), ("sample_1", "dpo_1"), strict=True):
        assert float(given) == pytest.approx(tokens[name] / rates[name.split("_")[0]] / 3600, abs=0.06)


@pytest.mark.torch
def test_the_batches_are_those_of_the_sampler():
    from srlib.sample import decoding, prefix

    sampler = (decoding.ROWS, decoding.PROMPTS, decoding.PROMPT_TOKENS, prefix.PREFILL, prefix.BLOCK)
    assert sampler == (memory.ROWS, memory.PROMPTS, memory.PROMPT_TOKENS, memory.PREFILL, memory.BLOCK)


def test_the_gpu_is_the_first_of_those_that_a_process_may_see(monkeypatch):
    listed = SimpleNamespace(stdout="0, GPU-a1, Tesla T4, 15360\n1, GPU-b2, NVIDIA H100 80GB HBM3, 81559\n")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: listed)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    small, large = Card("Tesla T4", 15360 * 2**20), Card("NVIDIA H100 80GB HBM3", 81559 * 2**20)
    for visible, cards in (
        ("0", [small]),
        ("1", [large]),
        ("1,0", [large, small]),
        ("GPU-b2", [large]),
        ("MIG-7", [small, large]),
        ("0,", [small]),
        ("NoDevFiles", []),  # of SLURM, for a job without a GPU
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.gpus() == cards
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert (machine.found(), machine.gpus()) == (small, [small, large])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not machine.found().gpu
    assert 10 * 2**20 < machine.peak_memory() < machine.found().bytes
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert 2**30 < machine.found().bytes < 2**50
    assert machine.peak_memory() is None


def test_tokens_of_each_stage():
    values = dict(max_length=300, max_new_tokens=100, sft_steps=10, pairs_per_prompt=2, diagnose="true", audit_items=5)
    tokens = plan.forecast(tiny(**values, arms="base,sft,sft_best_of_n,rft,sre_2,grpo"), ROOT, GPU).tokens
    assert tokens == {
        "sft": 10 * 16 * 300,
        "sample_1": 800 * (200 + 10 * 100),
        "dpo_1": 1600 * 2 * 2 * 300,  # two sides, and both once more for the reference
        "sample_2": 400 * (200 + 10 * 100),
        "dpo_2": 800 * 2 * 2 * 300,
        "rft": (1600 + 800) * 2 * 300,
        "grpo": (800 + 400) * (200 + 10 * (100 + 300)),
        "eval": (100 + 400 + 300 + 2 * 200) * (5 * 300 + 200 + 8 * 100),
        "diagnose": (5 * 8 * 2 + 400) * 300,  # the chain sft, sre_2; the base reads every test response
    }
    grouped = plan.jobs_of(tiny(**values, arms="grpo", grpo_batch_size=3), LLAMA)["grpo"]
    assert (grouped.rows, grouped.n) == (3 * 10, 1), (
        "TRL generates all of a step at once, each behind a prompt of its own"
    )
    merge = plan.forecast(tiny(sft_mode="merge", sft_steps=0, n_train_pairwise=160, arms="sft"), ROOT, GPU).tokens
    assert [merge[name] for name in ("sft_pointwise", "sft_pairwise", "sft")] == [800 * 512, 160 * 512, 0]


def test_a_run_that_does_not_fit_is_refused_with_what_would_help():
    llama = dict(model="meta-llama/Llama-3.1-8B-Instruct")
    reason = plan.refusal(tiny(**llama), ROOT, GPU)
    assert re.match(r"this run does not fit: stage dpo .* about \d+\.\d GiB and GPU of 16 GB has 15.0 GiB", reason)
    assert "lower micro_batch_size" in reason
    assert "set quantization: 4bit" in reason
    has = dict(quantization="4bit", gradient_checkpointing=True, micro_batch_size=1)
    assert ": choose a smaller model;" in plan.refusal(tiny(**llama, **has, max_length=40_000), ROOT, GPU)
    assert "sample_batch_size" in plan.refusal(tiny(**llama, micro_batch_size=1, max_length=16), ROOT, GPU)
    one = dict(micro_batch_size=1, max_length=16, sample_batch_size=1)
    assert "sample_batch_size" not in plan.refusal(tiny(**llama, **one), ROOT, GPU), "a batch has one prompt at least"
    assert "4bit" not in plan.refusal(tiny(**llama, lora_rank=0), ROOT, GPU), "all weights train in fp32"
    assert plan.refusal(tiny(model="Qwen/Qwen2.5-7B-Instruct"), ROOT, GPU).startswith("this run does not fit")
    assert plan.refusal(tiny(), ROOT, GPU) is None
    assert plan.refusal(tiny(model="some/model-of-unknown-size"), ROOT, GPU) is None
    assert "RAM" in plan.refusal(tiny(), ROOT, RAM)


def test_shared_prompts_need_logits_of_judgments_alone():
    cfg = dict(micro_batch_size=4, max_length=512, max_new_tokens=100)
    parts = [plan.forecast(tiny(**cfg, share_prompts=s), ROOT, RAM).parts(gpu=False)["dpo"] for s in (True, False)]
    assert parts[0]["logits"] / parts[1]["logits"] == pytest.approx(101 / 512)
    assert parts[0]["activations"] / parts[1]["activations"] == pytest.approx(612 / 1024)


def test_the_plan_shows_parts_tokens_and_cards():
    def text(card, **changes):
        with (console := Console(width=160)).capture() as capture:
            console.print(plan.show(plan.forecast(tiny(**changes), ROOT, card)))
        return capture.get()

    for words in ("on a GPU", "on a CPU", "KV cache", "allocator", "sample_1", "Tokens, M, at most", "Time on a GPU"):
        assert words in text(RAM, arms="sft,sre_1", iterations=1)
    assert re.search(r"T4, 16 GB +15.0 GiB  fits\n(.*\n)*.*RAM +0.2 GiB  does not fit", text(RAM))


@pytest.mark.parametrize(("name", "card"), [("colab", 0), ("workstation", 1), ("paper", 2), ("h100", 2)])
def test_a_recipe_fits_its_card_and_carries_its_forecast(name, card):
    path = ROOT / "params" / f"{name}.yaml"
    forecast = plan.forecast(config.load(path), ROOT, machine.CARDS[card])
    assert forecast.verdict(forecast.card) == "fits"
    memory_line = ", ".join(f"{stage} {sum(p.values()) / 2**30:.1f}" for stage, p in forecast.parts(gpu=True).items())
    comment = f"#   GPU memory, GiB: {memory_line}\n#   {sum(forecast.tokens.values()) / 1e6:,.0f} M tokens at most\n"
    assert comment in path.read_text(), f"{name}.yaml drifted; its forecast is now\n{comment}"
    assert name != "colab" or config.load(path).dtype == "auto", "a T4 has no bf16"


def test_the_papers_recipe_says_where_each_value_comes_from():
    path = ROOT / "params" / "paper.yaml"
    values = [line for line in path.read_text().splitlines() if re.match(r"\w+:", line)]
    assert [line for line in values if not re.search(r"# (stated|default)", line)] == [] != values
    stated = dict(iterations=2, sample_prompts=5000, sample_prompts_later=500, temperature=1.0, margin=2.0)
    assert config.load(path).model_dump(include=set(stated)) == stated
