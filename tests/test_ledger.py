"""What a run cost, from the manifests that its stages left; what nobody measured stays empty."""

import sys
import types

import pytest

from srlib import files as store
from srlib.evaluate import cost as ledger
from srlib.hardware import machine
from srlib.run import stage as runs


def stage(run, output, name, created="2026-01-01T00:00:00", facts=None, **used):
    used = {"seconds": 1.0, "peak_memory": 100, "peak_gpu_memory": None, "energy": None} | used
    store.write_json(run / output / "manifest.json", {"stage": name, "created": created, "facts": facts or {}, **used})


@pytest.fixture
def run(tmp_path):
    for i, name in enumerate(["sft", "sft_score_only", "sft_continued", "rft", "sre_1", "sre_2"]):
        store.write_json(tmp_path / "judges" / name / "train.json", {"seconds": 10**i, "tokens": 7 * 10**i})
        stage(tmp_path, f"judges/{name}", name.replace("sre", "dpo"), peak_memory=1000 + i, energy=2.0**i)
    for t in (1, 2):
        facts = {"seconds": 3 * t, "tokens": 50 * t, "prompt_tokens": 9 * t}
        stage(tmp_path, f"judgments/{t}", f"sample_{t}", facts=facts, peak_memory=2000, energy=100.0)
    return tmp_path


def test_an_arm_pays_for_its_whole_lineage(run):
    judges = {"base": None, "sft": "sft", "sft_self_consistency": "sft", "sft_score_only": "sft_score_only"}
    judges |= {"sft_continued": "sft_continued", "rft": "rft", "sre_1": "sre_1", "sre_2_self_consistency": "sre_2"}
    rows = ledger.arms(run, judges)
    assert [row["arm"] for row in rows] == list(judges)
    assert [row["training s"] for row in rows] == [0, 1, 1, 10, 101, 1001, 10_001, 110_001]
    assert [row["training tokens"] for row in rows] == [7 * row["training s"] for row in rows]
    assert [row["drawing s"] for row in rows] == [0, 0, 0, 0, 0, 3, 3, 9]
    assert [row["drawn tokens"] for row in rows] == [0, 0, 0, 0, 0, 50, 50, 150]
    assert [row["prompt tokens read"] for row in rows] == [0, 0, 0, 0, 0, 9, 9, 27]
    assert [row["peak memory"] for row in rows] == [None, 1000, 1000, 1001, 1002, 2000, 2000, 2000]
    assert [row["energy"] for row in rows] == [None, 1, 1, 2, 5, 109, 117, 249]


def test_one_unknown_makes_a_sum_unknown(run):
    stage(run, "judgments/1", "sample_1", facts={"seconds": 3, "tokens": 50, "prompt_tokens": None}, energy=None)
    first, second = ledger.arms(run, {"sft": "sft", "sre_1": "sre_1"})
    assert (first["energy"], second["energy"], second["prompt tokens read"]) == (1, None, None)
    assert second["drawn tokens"] == 50


def test_stages_stand_in_the_order_in_which_they_ended(tmp_path):
    stage(tmp_path, "judgments/1", "sample_1", "2026-01-02", facts={"tokens": 8, "prompt_tokens": 5}, seconds=4.0)
    stage(tmp_path, "data", "data", "2026-01-01", facts={"rows": {"train": 4}})
    stage(tmp_path, "judges/sft", "sft", "2026-01-03", facts={"tokens": 9}, peak_gpu_memory=7, energy=1.5)
    for copy in ("judge", "judges/rft.partial", "eval.old"):
        stage(tmp_path, copy, "twice")
    assert [tuple(row.values()) for row in ledger.stages(tmp_path)] == [
        ("data", None, None, 1.0, 100, None, None),
        ("sample_1", 5, 8, 4.0, 100, None, None),
        ("sft", 9, None, 1.0, 100, 7, 1.5),
    ]
    assert ledger.USED == runs.USED


def test_peak_memory_is_that_of_a_process_with_numpy_in_it():
    assert 10 * 2**20 < machine.peak_memory() < 2**40


def counter(*millijoules, fails=False):
    """A stand-in for NVIDIA's module, which works on its hardware alone."""

    class NVMLError(Exception):
        pass

    def total(handle):
        if fails:
            raise NVMLError("Not Supported")
        return millijoules[handle]

    names = dict(NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: len(millijoules))
    names |= dict(nvmlDeviceGetHandleByIndex=lambda i: i, nvmlDeviceGetTotalEnergyConsumption=total)
    return types.SimpleNamespace(**names)


def test_energy_is_in_joules_of_the_visible_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", counter(4000, 500))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.energy() == 4.5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.energy() == 0.5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.energy() is None


def test_energy_that_is_not_counted_is_not_zero(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", counter(1, fails=True))
    assert machine.energy() is None
    monkeypatch.setitem(sys.modules, "pynvml", counter())
    assert machine.energy() is None  # a driver and no GPU
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.energy() is None
