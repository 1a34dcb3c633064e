"""What a run consists of, when a part of it has to run again, and a stage from inside its notebook."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from throwaway import make_project, namespace, write_notebook

from srlib import config, files
from srlib.config import ParamError
from srlib.run import RunError, open_run, open_stage, stage, stages


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


def finish(notebook, **changes):
    """One stage from opening to manifest, as its notebook does it."""
    opened = open_stage(notebook, namespace(notebook, **changes))
    if not opened.done:
        (opened.path / "out.txt").write_text(opened.name)
    opened.finish(rows=1)
    return opened


def why(root, name, *overrides):
    cfg = config.load(None, overrides)
    chosen = next(one for one in stages.of(cfg) if one.name == name)
    run = root / "runs" / "tiny"
    return stages.reason(run / chosen.output, stages.parts(chosen, cfg, run))


def names(*overrides):
    return " ".join(one.name for one in stages.of(config.load(None, overrides)))


def test_all_arms_need_all_stages_and_inputs_come_first():
    cfg, made = config.load(None, ["diagnose=true"]), set()
    for one in stages.of(cfg):
        assert set(one.inputs) <= made
        made.add(one.output)
    assert names("diagnose=true").split() == [
        *("data", "sft", "sample_1", "curate_1", "dpo_1", "sample_2", "curate_2", "dpo_2"),
        *("sft_score_only", "sft_careful_only", "sft_continued", "rft", "eval", "diagnose"),
    ]
    inputs = {one.name: one.inputs for one in stages.of(cfg)}
    assert inputs["sample_2"] == ("data", "judges/sre_1", "judgments/1")
    assert inputs["dpo_2"] == ("data", "pairs/2", "judges/sre_1")
    assert inputs["rft"] == ("data", "judges/sft", "pairs/1", "pairs/2")


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ("base", "data sft eval"),
        ("sft_best_of_n,sft_self_consistency", "data sft eval"),
        ("sft_score_only", "data sft sft_score_only eval"),
        ("sre_1_self_consistency", "data sft sample_1 curate_1 dpo_1 eval"),
        ("rft", "data sft sample_1 curate_1 dpo_1 rft eval"),
    ],
)
def test_only_the_stages_that_the_arms_need(arms, expected):
    assert names("iterations=1", f"arms={arms}") == expected


def test_a_merge_is_made_of_two_adapters():
    assert names("sft_mode=merge", "arms=sft") == "data sft_pointwise sft_pairwise sft eval"
    sft = next(one for one in stages.of(config.load(None, ["sft_mode=merge"])) if one.name == "sft")
    assert sft.inputs == ("data", "judges/sft_pointwise", "judges/sft_pairwise")


@pytest.mark.parametrize("arm", ["sre_3", "sre_0", "dpo_1", "sft_pointwise", "nothing"])
def test_an_arm_without_a_judge_is_refused(arm):
    with pytest.raises(RunError, match=r"with iterations=2 there are base, sft, sre_1, sre_2, "):
        names(f"arms=sft,{arm}")


def test_a_stage_is_partial_until_it_is_finished(root, capsys):
    opened, run = open_stage("01_data", namespace("01_data")), root / "runs" / "tiny"
    assert (opened.path, opened.done, opened.run, opened.facts) == (run / "data.partial", False, run, {})
    opened.finish(rows=3)
    assert (opened.path, opened.done, opened.facts) == (run / "data", True, {"rows": 3})
    assert [path.name for path in run.iterdir() if not path.name.startswith(".")] == ["data"]
    made = files.read_json(run / "data" / "manifest.json")
    assert made["key"] == stages.key(made["parts"])
    assert made["params"] == {"seed": 0, "data": "", "micro_batch_size": 16}, "also what the cells read as cfg.name"
    assert 0 <= made["seconds"] < 60 < 2**20 < made["peak_memory"]
    assert {"python", "numpy"} <= made["versions"].keys()
    again = open_stage("01_data", namespace("01_data"))
    again.finish(rows=4)
    assert (again.done, again.path, again.facts) == (True, run / "data", {"rows": 3})
    assert files.read_json(run / "data" / "manifest.json") == made
    assert capsys.readouterr().out.splitlines() == ["data: runs (new)", "data: cached"]


def test_parameters_of_the_cell_go_before_those_of_the_run(root):
    files.write_text(root / "runs" / "tiny" / "params.yaml", "iterations: 3\nmicro_batch_size: 4\nseed: 7\n")
    opened = open_stage("01_data", namespace("01_data"))
    assert (opened.cfg.iterations, opened.cfg.micro_batch_size, opened.cfg.seed) == (3, 4, 0)
    with pytest.raises(ParamError, match="sft_steps is -1"):
        open_stage("02_sft", namespace("02_sft", sft_steps=-1))


def test_a_changed_parameter_goes_down_the_chain(root):
    finish("01_data")
    assert finish("02_sft").inputs == {"data": root / "runs" / "tiny" / "data"}
    assert why(root, "sft") is None, "notebook and pipeline compute the same key"
    assert why(root, "sft", "sft_steps=3") == "sft_steps 120 -> 3"
    assert why(root, "sft", "margin=7", "run_dir=runs/b", "wandb_mode=offline") is None
    assert why(root, "data", "micro_batch_size=8") == "micro_batch_size 16 -> 8"
    finish("01_data", seed=1)
    assert why(root, "sft", "seed=1") == "input data changed, seed 0 -> 1"
    finish("01_data")
    assert why(root, "sft") is None
    assert why(root, "eval") == "new"


def test_code_counts_without_comments_and_docstrings(root):
    finish("01_data")
    path = root / "srlib" / "schema.py"
    source = path.read_text()
    path.write_text(source.replace('"""', '"""Reworded. ', 1) + "\n# a remark\n")
    make_project(root, n01_data='# says more\nif not stage.done:\n    (stage.path / "out.txt").write_text(stage.name)')
    assert why(root, "data") == "code of 01_data changed"
    path.write_text(source + "\nX = 1\n")
    make_project(root)
    assert why(root, "data") == "code of srlib.schema changed"
    path.write_text(source)
    notebook = root / "notebooks" / "01_data.ipynb"
    nb = json.loads(notebook.read_text())
    nb["cells"][0]["source"] += "# the parameters cell counts by its values\n"
    nb["cells"].append(nb["cells"][1] | {"metadata": {"tags": ["setup"]}, "source": "%pip install nothing"})
    notebook.write_text(json.dumps(nb))
    assert why(root, "data") is None


def test_code_follows_imports_through_packages(tmp_path):
    package = tmp_path / "srlib"
    for name, text in {
        "__init__": "",
        "a": "def f():\n    from srlib import b\n",
        "b/__init__": "from .one import g\n",
        "b/one": "from .. import c\nfrom ..d.deep import x\ncfg.beta, stage.cfg.margin\n",
        "c": "import srlib.a\nimport json\n",
        "d/__init__": "",
        "d/deep": "x = 1\n",
        "run/__init__": "from srlib import unused\n",
        "unused": "",
    }.items():
        files.write_text(package / f"{name}.py", text)
    write_notebook(
        tmp_path / "x.ipynb", {"one": "%matplotlib inline\nif 1:\n    !ls\nfrom srlib import a, run\ncfg.seed"}
    )
    code, read = stages.code_of(tmp_path / "x.ipynb", package)
    assert sorted(code) == ["srlib", *(f"srlib.{name}" for name in ("a", "b", "b.one", "c", "d", "d.deep")), "x"]
    assert read == {"seed", "beta", "margin"}
    write_notebook(tmp_path / "x.ipynb", {"one": "import srlib.d.deep"})
    assert sorted(stages.code_of(tmp_path / "x.ipynb", package)[0]) == ["srlib", "srlib.d", "srlib.d.deep", "x"]
    write_notebook(tmp_path / "x.ipynb", {"one": "a b"})
    with pytest.raises(RunError, match=r"x\.ipynb: code line 1 is not Python"):
        stages.code_of(tmp_path / "x.ipynb", package)


def test_a_local_model_counts_by_its_content(root):
    finish("01_data")
    finish("02_sft")
    shutil.copytree(root / "models" / "tiny-base", root / "elsewhere")
    assert why(root, "sft", "model=elsewhere") is None
    (root / "models" / "tiny-base" / "weights").write_text("22")
    assert why(root, "sft") == "model changed"
    assert why(root, "sft", "model=org/hub") == "model changed"


def test_a_killed_stage_resumes_where_it_was(root):
    opened = open_stage("01_data", namespace("01_data"))
    (opened.path / "rows").write_text("half")
    opened.checkpoints.mkdir(parents=True)
    assert why(root, "data") == "incomplete"
    again = open_stage("01_data", namespace("01_data"))
    assert (again.path / "rows").read_text() == "half"
    assert again.checkpoints.exists()
    other = open_stage("01_data", namespace("01_data", seed=1))
    assert not (other.path / "rows").exists()
    assert not other.checkpoints.exists()
    other.finish()
    (root / "runs" / "tiny" / "data" / "manifest.json").unlink()
    assert why(root, "data") == "incomplete"


def test_a_kill_while_the_directory_is_replaced_loses_nothing(root):
    run = finish("01_data", seed=1).run
    (run / "data").rename(run / "data.partial")  # after the manifest, before the renaming
    (run / "data").mkdir()
    again = open_stage("01_data", namespace("01_data", seed=1))
    again.finish()
    assert (again.path / "out.txt").exists()
    assert sorted(path.name for path in run.iterdir() if path.name.startswith("data")) == ["data"]


def test_a_missing_input_names_the_notebook_that_makes_it(root):
    finish("01_data")
    with pytest.raises(RunError, match=r"judges/sft is missing in run tiny: run notebook 02 or 05"):
        open_stage("03_sample", namespace("03_sample"))
    with pytest.raises(RunError, match="judges/sre_2 is missing"):
        open_stage("03_sample", namespace("03_sample", iteration=3))
    with pytest.raises(RunError, match="eval is missing in run tiny: run notebook 06"):
        open_run({}, needs=("data", "eval"))
    assert open_run({"run_dir": "runs/tiny"}, needs=("data",)) == root / "runs" / "tiny"


def test_a_stage_is_open_in_one_process(root, monkeypatch):
    code = "from throwaway import *; from srlib.run import open_stage\n"
    code += "open_stage('01_data', namespace('01_data')); print('open', flush=True); input()"
    env = {"PYTHONPATH": f"{root}:{Path(__file__).parent}", "PATH": "/usr/bin:/bin"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=env, **pipes)
    assert other.stdout.readline() + other.stdout.readline() == "data: runs (new)\nopen\n"
    acquire = files.acquire
    monkeypatch.setattr(files, "acquire", lambda path, timeout: acquire(path, 0.1))
    with pytest.raises(RunError, match=f"stage data of tiny is open in process {other.pid}"):
        open_stage("01_data", namespace("01_data"))
    other.communicate("\n")
    assert not open_stage("01_data", namespace("01_data")).done


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ({"sft": 0.4, "sre_1": 0.6, "sre_2": 0.5, "rft": 0.9}, "judges/sre_1"),
        ({"sft": 0.6, "sre_1": 0.6, "sre_2": 0.6}, "judges/sft"),
        ({"sft": None, "sre_2": 0.1}, "judges/sre_2"),
    ],
)
def test_the_best_judge_on_validation_is_kept(tmp_path, accuracy, expected):
    rows = [{"arm": arm, "split": "validation", "metric": "accuracy", "value": v} for arm, v in accuracy.items()]
    rows += [rows[0] | {"split": "test", "value": 1.0}, rows[0] | {"metric": "pearson", "value": 1.0}]
    files.write_json(tmp_path / "results.json", rows)
    assert stage.kept(tmp_path, config.load(None, ["keep=best"])) == expected
    assert stage.kept(tmp_path, config.load(None, ["keep=last"])) == "judges/sre_2"
    files.write_json(tmp_path / "results.json", rows[-2:])
    with pytest.raises(RunError, match="arms must hold sft or sre_N"):
        stage.kept(tmp_path, config.load(None, ["keep=best"]))


def test_the_judge_to_take_home_follows_the_kept_one(root, monkeypatch):
    finish("01_data")
    finish("02_sft")
    run, cfg = root / "runs" / "tiny", config.load(None, ["arms=sft"])
    target = stage.take_home(run, cfg)
    (target / "out.txt").write_text("as it was")
    assert (stage.take_home(run, cfg) / "out.txt").read_text() == "as it was"
    finish("02_sft", sft_steps=3)
    monkeypatch.setenv("SRLIB_FORCE", "1")
    finish("02_sft", sft_steps=3)
    assert (stage.take_home(run, cfg) / "out.txt").read_text() == "sft"


SECRET = "5ec7e7" + "0123456789" * 3 + "abcd"  # the form of a real key: forty hexadecimal characters


def test_wandb_offline_asks_nobody_and_keeps_no_secret(root, monkeypatch):
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(root / "home" / name))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked something"))
    files.write_text(root / "runs" / "tiny" / "params.yaml", "wandb_mode: offline\n")
    opened = open_stage("01_data", namespace("01_data"))
    with opened.track() as run:
        run.log({"loss": 0.5})
        assert (run.group, run.job_type, run.name, run.config["beta"]) == ("tiny", "data", "tiny/data", 0.1)
    assert list(opened.run.glob("wandb/offline-run-*/*.wandb"))
    assert not [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    opened.finish()
    with opened.track() as run:
        assert run is None


def test_wandb_is_online_only_with_a_key(root, monkeypatch):
    seen = []
    fake = type("wandb", (), {"Settings": dict, "init": lambda **options: seen.append(options["mode"])})
    monkeypatch.setitem(sys.modules, "wandb", fake)
    opened = open_stage("01_data", namespace("01_data"))
    for key in (SECRET, ""):
        monkeypatch.setenv("WANDB_API_KEY", key)
        opened.track()
    opened.cfg = config.load(None, ["wandb_mode=disabled"])
    assert seen == ["online", "offline"]
    assert opened.track().enter_result is None


def test_import_is_light():
    heavy = ("torch", "transformers", "papermill", "nbconvert", "seaborn", "matplotlib", "sklearn", "wandb")
    code = f"import sys, srlib.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
