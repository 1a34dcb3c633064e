"""The bench on a model of a few thousand parameters: every kind of work really runs, through every way to run it."""

import json
import socket
from pathlib import Path

import pytest
from bench.workload import Work

from bench import bench, bench_sharing, bench_stages, roofline, workload
from srlib import files as store
from srlib.hardware import shapes
from srlib.hardware.machine import Card
from srlib.run import plan

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parent.parent
FEW = dict(rows=1, prompt_tokens=12, completion_tokens=6, n=2, steps=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory, one_thread) -> Path:
    shape = shapes.Shape("small", 64, 2, 4, 2, 32, 96, 2048, False)
    directory = workload.random_model(shape, tmp_path_factory.mktemp("small"), ROOT / "models" / "tiny-base")
    assert shapes.of_model(directory).parameters == shape.parameters
    return directory


def test_text_for_a_trainer_of_its_own_is_as_long_as_our_ids(small):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small)
    [ids] = workload._ids(Work("dpo", "trl", str(small)), 1, 200, "prompt")
    assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids
    assert len(set(ids)) > 50


def test_sampling_is_measured_in_a_process_of_its_own(small):
    done = workload.run(Work("sample", ",".join(workload.SAMPLERS), str(small), **FEW))
    assert {name: len(seconds) for name, seconds in done["seconds"].items()} == dict.fromkeys(workload.SAMPLERS, 2)
    assert done["tokens"] == 2 * 6
    assert done["peak"]["flops"] > 1e9
    assert done["peak"]["bytes"] > 1e8


def test_the_least_time_by_hand():
    """Two layers of width 4, one head: 1 prompt of 10 tokens, of which the second layer makes keys and values, 2 judgments
    of 3."""
    shape = shapes.Shape("hand", 4, 2, 1, 1, 4, 8, 16, True)
    assert shape.linear == 2 * (4 * 4 * 4 + 3 * 4 * 8)
    reading = 10 * (2 * (160 + 2 * 4 * 4) + 16 * 10 / 2)
    drawing = 6 * (2 * (320 + 64) + 2 * 16 * 11.5)
    sizes = dict(rows=1, n=2, prompt_tokens=10, completion_tokens=3, size=4)
    only_arithmetic = roofline.least(shape, {"flops": 100.0, "bytes": 1e12}, **sizes)
    assert only_arithmetic == pytest.approx((reading + drawing) / 100)
    step = (320 + 64) * 4 + 2 * 2 * 4 * 4 * (10 + 2 * 3 / 2)
    only_reads = roofline.least(shape, {"flops": 1e12, "bytes": 100.0}, **sizes)
    assert only_reads == pytest.approx(((160 + 2 * 4 * 4) * 4 + 3 * step) / 100)


def test_a_run_stage_by_stage(tmp_path):
    run = tmp_path / "runs" / "small"
    begun = {"data": 0, "sft": 5, "sample_1": 30, "eval": 59}
    for name, second in begun.items():
        output = {"sft": "judges/sft", "sample_1": "judgments/1"}.get(name, name)
        facts = {"seconds": 20.0} if name in ("sft", "sample_1") else {}
        store.write_json(run / output / "manifest.json", {"stage": name, "created": f"{second:02}", "facts": facts})
        clock = {"start_time": f"2026-01-01T00:00:{second:02}", "end_time": f"2026-01-01T00:01:{second:02}"}
        notebook = {"metadata": {"papermill": clock}, "cells": []}
        store.write_json(run / "notebooks" / f"{name}.ipynb", notebook)
    for arm in ("base", "sft"):
        store.write_json(run / "eval" / arm / "test.done", {"seconds": 4.0, "tokens": 9})
    text = bench_stages.stages(run, tmp_path / "out")
    assert "| sft | 60.0 | 20.0 | 40.0 |" in text
    assert "| eval | 60.0 | 8.0 |  |" in text
    found = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert found["seconds"] == 119.0
    assert found["command"] == "srlib bench --stages runs/small"
    (run / "notebooks" / "sft.ipynb").unlink()
    with pytest.raises(bench.BenchError, match="no executed notebook"):
        bench_stages.stages(run, tmp_path / "out")
    (run / "eval" / "manifest.json").unlink()
    with pytest.raises(bench.BenchError, match="there is no eval in it"):
        bench_stages.stages(run, tmp_path / "out")


def test_a_failing_process_is_named(small):
    with pytest.raises(workload.WorkError, match="rest with srlib failed: ValueError: kind 'rest' is not one of"):
        workload.run(Work("rest", "srlib", str(small), **FEW))


def test_a_bench_on_random_weights_writes_figures_that_plan_reads(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(bench, "TRAINERS", ("transformers", "trl"))  # Unsloth would patch the process of the tests
    measured = {}

    def run(work):
        measured[work.kind, work.variant] = workload.measure(work)
        return measured[work.kind, work.variant]

    monkeypatch.setattr(workload, "run", run)
    shape = shapes.Shape("small", 64, 2, 4, 2, 32, 96, 2048, False)
    monkeypatch.setitem(shapes.RANDOM, "10m", shape)
    text = bench.bench("10m", tmp_path, ROOT, random_weights=True, rounds=1, **FEW)
    assert text == (tmp_path / "cpu-10m.md").read_text()
    for word in ("TRL alone", "tokens/s", "pairs/s", "judgments/s", "generate(num_return_sequences=2)", "load average"):
        assert word in text
    for kind, tokens in (("sft", 18), ("dpo", 36)):
        for variant in ("transformers", "trl"):
            done = measured[kind, variant]
            assert len(done["seconds"]) == FEW["steps"]
            assert done["tokens"] == tokens
            assert done["peak_bytes"] >= 0
    found = json.loads((tmp_path / "cpu-10m.json").read_text())
    assert found["sft"]["transformers"]["speed_against_transformers"] == 1.0
    ours, theirs = found["sample"]["srlib"], found["sample"]["generate"]
    assert ours["per_second"] > 0 < theirs["per_second"]
    assert found["command"].startswith("srlib bench --shape 10m --random-weights")
    raw = json.dumps(found)
    assert socket.gethostname() not in raw
    assert str(tmp_path) not in raw
    rates = plan.throughput(found["device"], shape, tmp_path)
    assert set(rates) == {"sft", "dpo", "sample"}


def test_a_variant_that_fails_takes_no_other_with_it(tmp_path, monkeypatch, one_thread):
    def run(work):
        if work.kind != "sample":
            raise workload.WorkError(f"{work.kind} with {work.variant} failed: on purpose")
        return workload.measure(work)

    monkeypatch.setattr(workload, "run", run)
    text = bench.bench("tiny", tmp_path, ROOT, rounds=1, **FEW)
    assert "on purpose" in text
    assert "judgments/s" in text
    assert set(json.loads((tmp_path / "cpu-tiny.json").read_text())["plan"]) == {"sample"}


def test_what_cannot_be_measured_here_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(bench.machine, "found", lambda: Card("this machine's RAM", 2e10, gpu=False))
    for shape, random_weights, why in [
        ("huge", True, "is not one of"),
        ("10m", False, "add --random-weights"),
        ("llama-3.1-8b", True, "there is none here"),
    ]:
        with pytest.raises(bench.BenchError, match=why):
            bench.bench(shape, tmp_path, ROOT, random_weights)


def test_the_committed_figures_name_no_machine_but_its_processor():
    committed = sorted((ROOT / "docs" / "bench").glob("*.json"))
    assert committed
    for path in committed:
        found = json.loads(path.read_text())
        if found["command"].startswith("srlib bench"):
            assert found["load_average"]
        assert not any(place in path.read_text() for place in ("/home/", "/tmp/", "/root/", "/work/"))


def test_sharing_reads_one_prompt_at_once_where_two_are_long():
    assert [bench_sharing.pairs_at_once(k, 234) for k in bench_sharing.KS] == [2, 6, 10]
    assert [bench_sharing.pairs_at_once(k, 1200) for k in bench_sharing.KS] == [2, 6, 10]
    assert [bench_sharing.pairs_at_once(k, 2300) for k in bench_sharing.KS] == [2, 3, 5]


def test_sharing_keeps_its_table_where_unsloth_fails(monkeypatch):
    def run(work):
        if work.variant == "unsloth":
            raise workload.WorkError("dpo with unsloth failed: no kernel")
        each = 1.0 if work.share_prompts else 4.0
        return {"seconds": [each, each], "peak_bytes": int(each * 2**20), "versions": {"trl": "1"}}

    monkeypatch.setattr(workload, "run", run)
    monkeypatch.setattr(bench_sharing.importlib.util, "find_spec", lambda name: name)
    work = workload.Work(
        "dpo", "transformers", "nowhere", 6, prompt_tokens=100, completion_tokens=20, pairs_per_prompt=3
    )
    *rows, failed = bench_sharing._measured(work, 3, versions := {}, gpu=False)
    assert [(row["way"], row["speed"], row["peak"]) for row in rows] == [
        ("apart", 1.0, 1.0), ("shared", 4.0, 0.25), ("apart, checkpointing", 1.0, 1.0), ("shared, checkpointing", 4.0, 0.25)
    ]  # fmt: skip
    assert rows[1]["ideal"] == round(2 * 3 * 120 / (100 + 2 * 3 * 20), 2)
    assert failed == {"k": 3, "way": "apart, Unsloth", "failed": "dpo with unsloth failed: no kernel"}
    assert versions == {"trl": "1"}
