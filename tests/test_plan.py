"""The plan: sizes of known models, parts of memory, tokens of stages, verdicts, refusals. No torch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from srlib import cli
from srlib import config as params
from srlib.hardware import machine, memory, shapes
from srlib.hardware.machine import Card
from srlib.hardware.memory import Job
from srlib.run import plan

ROOT = Path(__file__).parent.parent
LLAMA = shapes.KNOWN["meta-llama/Llama-3.1-8B-Instruct"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the hub counts the tensors of model.safetensors
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ],
)
def test_known_models_have_their_size(name, parameters):
    assert shapes.of_model(name).parameters == parameters
    assert name in shapes.of_model(name).source


def test_a_directory_is_as_large_as_its_weights(base_dir):
    header = (base_dir / "model.safetensors").read_bytes()
    n = int.from_bytes(header[:8], "little")
    tensors = json.loads(header[8 : 8 + n])
    counted = sum(t["data_offsets"][1] - t["data_offsets"][0] for k, t in tensors.items() if k != "__metadata__") // 2
    assert shapes.of_model(base_dir).parameters == counted


def test_models_of_unknown_size_are_named(tmp_path):
    with pytest.raises(shapes.ShapeError, match=r"hf download some/model config\.json"):
        shapes.of_model("some/model")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(shapes.ShapeError, match="does not say how large"):
        shapes.of_model(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(shapes.ShapeError, match="cannot be read"):
        shapes.of_model(tmp_path)
    with pytest.raises(shapes.ShapeError, match="mixture of experts"):
        shapes.of_config({"num_local_experts": 8}, "m", "config.json")


def test_the_8b_in_numbers_worked_by_hand():
    """LoRA of rank 16 on all projections: 32 layers x 16 x (inputs + outputs), as PEFT prints it: 41,943,040."""
    assert LLAMA.lora(16) == 41_943_040
    assert memory.weights(LLAMA, Job("sft", 1, 1, gpu=True)) == 2 * LLAMA.parameters
    assert memory.weights(LLAMA, Job("sft", 1, 1)) == 4 * LLAMA.parameters
    four = memory.weights(LLAMA, Job("sft", 1, 1, gpu=True, four_bit=True))
    assert four == pytest.approx(0.516 * 6_979_321_856 + 2 * 1_050_939_392, rel=1e-3)
    cache = memory.sampling(LLAMA, Job("sample", 1, 1000, 0, 1, gpu=True))["KV cache"]
    assert cache == 1000 * 131072  # 128 KiB a token


def test_memory_moves_as_it_should():
    job = Job("dpo", 2, 1024, gpu=True)

    def held(**changes):
        return sum(memory.forecast(LLAMA, replace(job, **changes)).values())

    assert held(checkpointing=True) < 0.7 * held()
    assert held(four_bit=True) < held()
    assert held(kind="sft") < held() < held(rows=3)
    assert held(lora_rank=8) < held()
    assert held(dtype="float32") > held()
    assert held(lora_rank=0) - held() > 2.9 * 2 * LLAMA.parameters - 2**30  # gradient and two moments of every weight
    assert memory.weights(LLAMA, replace(job, lora_rank=0)) == 2 * memory.weights(LLAMA, job), (
        "all weights train in fp32"
    )
    sample = Job("sample", 4, 1000, 200, 10, gpu=True)
    assert memory.weights(LLAMA, replace(sample, lora_rank=0)) == memory.weights(LLAMA, sample)
    twice = replace(sample, n=20)
    shared = memory.sampling(LLAMA, twice)["KV cache"] / memory.sampling(LLAMA, sample)["KV cache"]
    assert 1.5 < shared < 2  # the prompts' part is there once


@pytest.mark.parametrize("name", ["memory", "memory-fp32"])
def test_the_forecast_is_within_a_quarter_of_what_was_measured(name):
    """The committed tables were measured (`srlib bench --memory`); the formulae are those of today."""
    from bench import bench_memory
    from bench.workload import Work

    table = json.loads((ROOT / "docs" / "bench" / f"{name}.json").read_text())
    assert {row["bf16"] for row in table["rows"]} == {name == "memory"}
    sizes = table["settings"]
    assert {(row["shape"], row["kind"]) for row in table["rows"]} == {
        (shape, kind) for shape in ("10m", "25m", "60m") for kind in ("sft", "dpo", "sample")
    }
    for row in table["rows"]:
        work = Work(row["kind"], "transformers", "", **sizes)
        job = bench_memory.job(work, gpu=table["gpu"], bf16=row["bf16"])
        forecast = sum(memory.forecast(shapes.RANDOM[row["shape"]], job).values()) / 2**20
        assert forecast == pytest.approx(row["forecast_mib"], rel=0.01), "run `srlib bench --memory` again"
        assert abs(forecast / row["measured_mib"] - 1) <= 0.25, row


def tiny(**changes):
    return params.load(ROOT / "params" / "tiny.yaml", [f"{k}={v}" for k, v in changes.items()])


def test_tokens_of_each_stage():
    found = plan.forecast(tiny(max_length=300, max_new_tokens=100, sft_steps=10, pairs_per_prompt=2), ROOT, rows=False)
    works = {work.stage: work for work in found.works}
    assert works["sft"].tokens == 10 * 16 * 300
    assert works["sample_1"].tokens == 800 * 200 + 800 * 10 * 100
    assert works["sample_2"].units == 400 * 10
    assert (works["dpo_1"].units, works["dpo_1"].tokens) == (1600, 2 * 1600 * 300)
    assert "at most" in found.lengths.how
    assert [name for name in works if name not in ("eval",)] == [
        "sft", "sample_1", "dpo_1", "sample_2", "dpo_2", "sft_score_only", "sft_careful_only", "sft_continued", "rft",
    ]  # fmt: skip


def test_lengths_come_from_the_rows_where_they_are_here(tmp_path):
    found = plan.forecast(tiny(), ROOT)
    assert found.lengths.how.startswith("mean of 200 rows")
    assert 100 < found.lengths.prompt < 300
    away = plan.forecast(tiny(data="owner/on-the-hub"), ROOT)
    assert "at most" in away.lengths.how


GPU = Card("GPU of 16 GB", 15 * 2**30)


def test_what_cannot_fit_is_refused_with_what_would_help():
    values = tiny(model="meta-llama/Llama-3.1-8B-Instruct")
    said = plan.refusal(values, ROOT, GPU)
    assert "cannot fit" in said
    assert "4bit" in said
    assert "--anyway" in said
    assert plan.refusal(tiny(), ROOT, GPU) is None
    assert plan.refusal(tiny(model="some/model-of-unknown-size"), ROOT, GPU) is None
    ram = Card("this machine's RAM", 2**28, gpu=False)
    assert "RAM" in plan.refusal(tiny(), ROOT, ram)


def test_judges_are_adapters_unless_merging_is_exact():
    found = plan.forecast(tiny(), ROOT, GPU, rows=False)
    assert (found.merges(gpu=False), found.merges(gpu=True)) == (True, False)
    assert not plan.forecast(tiny(quantization="4bit"), ROOT, GPU, rows=False).merges(gpu=False)
    assert replace(found, judge_format="merged").merges(gpu=True)


def test_the_gpu_is_asked_of_nvidia_smi(tmp_path, monkeypatch):
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
    assert machine.found().bytes > 2**28


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "params").glob("*.yaml")))
def test_every_recipe_can_be_planned(name, monkeypatch):
    monkeypatch.setattr(machine, "found", lambda: Card("this machine's RAM", 24 * 2**30, gpu=False))
    result = CliRunner().invoke(cli.app, ["plan", str(ROOT / "params" / name)])
    assert result.exit_code == 0, result.output
    for word in (
        "16 GB",
        "24 GB",
        "80 GB",
        "141 GB",
        "fit",
        "no GPU found, RAM 24 GB",
        "PFLOP",
        "Disk",
        "KV cache",
    ):
        assert word in result.output, word
    measured = name in ("tiny.yaml", "answers.yaml", "pairwise.yaml")  # docs/bench/cpu-tiny.json; others want a GPU
    assert ("no throughput measured" in result.output) == (not measured)
    assert "\x1b" not in result.output


def test_run_refuses_and_can_be_told_otherwise(monkeypatch):
    monkeypatch.setattr(machine, "found", lambda: GPU)
    from srlib.run import pipeline

    started = []
    monkeypatch.setattr(pipeline, "run", lambda *args: started.append(args) or [])
    large = ["run", str(ROOT / "params" / "paper.yaml"), "--run-dir", "nowhere", "--seeds", "0"]
    result = CliRunner().invoke(cli.app, large)
    assert (result.exit_code, started) == (2, [])
    assert "cannot fit" in result.output
    CliRunner().invoke(cli.app, [*large, "--anyway"])
    assert len(started) == 1


def test_time_is_known_where_it_was_measured(tmp_path):
    shape = shapes.of_model("models/tiny-base", ROOT)
    card = Card("NVIDIA H100 80GB HBM3", 8e10)
    measured = {"device": card.name, "parameters": shape.parameters, "plan": {"sft": {"per_second": 100.0}}}
    (tmp_path / "gpu-tiny.json").write_text(json.dumps(measured))
    assert plan.throughput(card.name, shape, tmp_path) == {"sft": 100.0}
    assert plan.throughput(card.name, LLAMA, tmp_path) == {}
    assert plan.throughput("another", shape, tmp_path) == {}


def test_what_a_process_that_computes_is_started_with(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # no GPU, whatever this machine has
    found = machine.environment(2)
    assert found.pop("GLIBC_TUNABLES").count("glibc.malloc.") == 3
    assert found == {"GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2"}
    assert "OMP_NUM_THREADS" not in machine.environment()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert "GLIBC_TUNABLES" not in machine.environment(2)
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(machine, "gpu", lambda: True)
    assert "GLIBC_TUNABLES" not in machine.environment(2)
