"""What a run consists of, when a part of it has to run again, and a stage from inside its notebook."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from offline import tracked
from throwaway import make_project, write_notebook

from srlib import config, files
from srlib.run import RunError, open_run, open_stage, stage, stages
from srlib.schema import SrlibError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


def opened(notebook, **changes):
    """A stage as its notebook opens it, with the defaults in its parameters cell."""
    return open_stage(notebook, {name: config.FIELDS[name].default for name in config.declared_in(notebook)} | changes)


def finish(notebook, **changes):
    one = opened(notebook, **changes)
    if not one.done:
        read = [(path / "out.txt").read_text() for path in one.inputs.values()]
        (one.path / "out.txt").write_text(f"{one.name} {changes or ''} of {read}")
    one.finish(rows=1)
    return one


def why(root, name, *overrides):
    cfg, run = config.load(None, overrides), root / "runs" / "notes"
    chosen = next(one for one in stages.of(cfg) if one.name == name)
    return stages.reason(run / chosen.output, stages.parts(chosen, cfg, run))


def test_all_arms_need_all_stages_and_inputs_come_first():
    made, inputs = set(), {}
    for one in stages.of(config.load(None, ["diagnose=true"])):
        assert set(one.inputs) <= made
        made.add(one.output)
        inputs[one.name] = one.inputs
    assert list(inputs)[:8] == "data sft sample_1 curate_1 dpo_1 sample_2 curate_2 dpo_2".split()
    assert list(inputs)[8:] == "sft_score_only sft_careful_only sft_continued rft eval diagnose".split()
    assert inputs["sample_2"] == ("data", "judges/sre_1", "judgments/1")
    assert inputs["dpo_2"] == ("data", "pairs/2", "judges/sre_1")
    assert inputs["rft"] == ("data", "judges/sft", "pairs/1", "pairs/2")


def test_only_the_stages_that_the_arms_need():
    def names(arms, **changes):
        cfg = config.load(None, ["iterations=1", f"arms={arms}"]).model_copy(update=changes)
        return " ".join(one.name for one in stages.of(cfg))

    assert names("base") == "data sft eval"
    assert names("sft_score_only,sft_best_of_n") == "data sft sft_score_only eval"
    assert names("sre_1_self_consistency") == "data sft sample_1 curate_1 dpo_1 eval"
    assert names("rft") == "data sft sample_1 curate_1 dpo_1 rft eval"
    assert names("grpo") == "data sft sample_1 curate_1 dpo_1 grpo eval"
    *_, grpo, last = stages.of(config.load(None, ["arms=grpo"]))
    assert grpo.inputs == ("data", "judges/sft", "judgments/1", "judgments/2")
    assert "judges/grpo" in last.inputs
    assert names("sft", sft_mode="merge") == "data sft_pointwise sft_pairwise sft eval"
    for unknown in ("sre_2", "dpo_1", "sft_pointwise"):
        with pytest.raises(RunError, match=rf"'{unknown}', and with iterations=1 there are base, sft, sre_1, "):
            names(f"sft,{unknown}")


def test_a_stage_is_partial_until_it_is_finished(root, capsys):
    files.write_text(root / "runs" / "notes" / "params.yaml", "iterations: 3\nmicro_batch_size: 4\n")
    one, run = opened("01_data"), root / "runs" / "notes"
    assert (one.cfg.iterations, one.cfg.seed) == (3, 0)
    assert (one.path, one.done, one.run, one.facts) == (run / "data.partial", False, run, {})
    one.finish(rows=3)
    assert (one.path, one.done, one.facts) == (run / "data", True, {"rows": 3})
    made = files.read_json(run / "data" / "manifest.json")
    assert made["key"] == stages.key(made["parts"])
    assert made["params"] == {"seed": 0, "data": "", "micro_batch_size": 4}, "also what the cells read as cfg.name"
    assert 0 <= made["seconds"] < 60 < 2**20 < made["peak_memory"]
    again = opened("01_data")
    again.finish(rows=4)
    assert (again.done, again.path, again.facts) == (True, one.path, {"rows": 3})
    assert capsys.readouterr().out.splitlines() == ["data: runs (new)", "data: cached"]
    with pytest.raises(config.ParamError, match="sft_steps is -1"):
        opened("02_sft", sft_steps=-1)


def test_a_parameters_cell_left_at_its_defaults_takes_those_of_the_run(root, capsys):
    """So a notebook that is opened and run loads what the run has made, whatever its YAML file or seed."""
    files.write_text(root / "runs" / "notes" / "params.yaml", "seed: 7\nsft_steps: 9\n")
    cell = {name: config.FIELDS[name].default for name in config.declared_in("01_data")}
    one = open_stage("01_data", cell)
    assert (one.cfg.seed, cell["seed"]) == (7, 7), "the cells below read the same value"
    assert capsys.readouterr().out.startswith("runs/notes/params.yaml sets seed = 7\n")
    assert open_stage("01_data", cell | {"seed": 3}).cfg.seed == 3, "the cell was edited"
    assert open_stage("01_data", cell | {"seed": 0, "In": ["# Parameters\nseed = 0"]}).cfg.seed == 0, (
        "papermill said so"
    )


def test_so_does_a_notebook_that_is_no_stage(root, capsys):
    files.write_text(root / "runs" / "notes" / "params.yaml", "seed: 7\nmodel: runs\nbeta: 0.3\nn_boot: 300\n")
    cell = {"run_dir": "runs/notes", "seed": 0, "beta": 0.1, "n_boot": 100, "model": config.FIELDS["model"].default}
    open_run(cell)
    assert cell == {"run_dir": "runs/notes", "seed": 7, "beta": 0.3, "n_boot": 100, "model": "runs"}
    assert capsys.readouterr().out == "runs/notes/params.yaml sets seed = 7, model = 'runs', beta = 0.3\n"
    open_run(cell := cell | {"seed": 0, "In": ["# Parameters\nseed = 0"]})
    assert cell["seed"] == 0, "papermill said so"
    with pytest.raises(config.ParamError, match="-p sede: there is no parameter 'sede'; did you mean seed"):
        open_run(cell | {"sede": 1, "In": ["# Parameters\nsede = 1"]})
    injected = {"margin": 1.0, "In": ["# Parameters\nmargin = 1.0"]}
    recorded = root / "runs" / "notes" / "params.yaml"
    assert config.load(recorded, namespace=injected).model_dump() == config.load(recorded, ["margin=1"]).model_dump()


def test_a_notebook_uses_the_first_of_the_gpus_that_it_may_see(root, monkeypatch):
    for given, used in (("3,5", "3"), ("", ""), (None, "0")):  # transformers would take rows for each of them
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given) if given is not None else monkeypatch.delenv(
            "CUDA_VISIBLE_DEVICES"
        )
        opened("01_data")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == used


def test_a_changed_parameter_goes_down_the_chain(root):
    finish("01_data")
    assert finish("02_sft").inputs == {"data": root / "runs" / "notes" / "data"}
    assert why(root, "sft") is None, "notebook and pipeline compute the same key"
    assert why(root, "sft", "sft_steps=3") == "sft_steps 360 -> 3"
    assert why(root, "sft", "margin=7", "run_dir=runs/b", "wandb_mode=offline") is None
    assert why(root, "data", "micro_batch_size=8") == "micro_batch_size 16 -> 8"
    shutil.copytree(root / "models" / "notes-base", root / "elsewhere")
    assert why(root, "sft", "model=elsewhere") is None, "a model counts by its content"
    (root / "models" / "notes-base" / "weights").write_text("22")
    assert (why(root, "sft"), why(root, "sft", "model=org/hub")) == ("model changed", "model changed")
    finish("01_data", seed=1)
    assert why(root, "sft", "seed=1", "model=elsewhere") == "input data changed"
    finish("01_data")
    assert (why(root, "sft", "model=elsewhere"), why(root, "eval")) == (None, "new")
    before = stages.manifest(root / "runs" / "notes" / "data")
    files.write_text(root / "runs" / "notes" / "params.yaml", "micro_batch_size: 8\n")
    finish("01_data")
    after = stages.manifest(root / "runs" / "notes" / "data")
    assert (before["key"] == after["key"], before["content"] == after["content"]) == (False, True), "the same files"


def finished(root, *notebooks):
    """The chain of one iteration by hand, and what the last opening printed."""
    for notebook in notebooks or ("01_data", "02_sft", "03_sample", "04_curate", "05_dpo", "06_eval"):
        finish(notebook, **({"arms": ["base", "sft", "sre_1"]} if notebook == "06_eval" else {}))


def test_an_evaluation_is_not_cached_if_what_it_came_from_was_replaced(root, capsys):
    files.write_text(root / "runs" / "notes" / "params.yaml", "iterations: 1\narms: [base, sft, sre_1]\n")
    finished(root)
    finished(root, "06_eval")
    assert capsys.readouterr().out.splitlines()[-1] == "eval: cached"
    finish("04_curate", margin=1.0)
    printed = capsys.readouterr().out.splitlines()
    command = "srlib run runs/notes/params.yaml --run-dir runs/notes"
    assert printed[0] == "curate_1: runs (margin 2.0 -> 1.0)"
    assert (
        printed[1] == f"After that, run again what depends on pairs/1: dpo_1, eval, or all with `{command} -p margin=1`"
    )
    assert (
        printed[2]
        == "To keep runs/notes, stop now and copy it: `cp -r runs/notes runs/notes-2`, and set run_dir to runs/notes-2"
    )
    with pytest.raises(
        RunError,
        match=rf"judges/sre_1 of run notes is stale, for pairs/1 has changed since.*notebook 02, 05 or 13.*{command}`",
    ):
        finished(root, "06_eval")
    finish("05_dpo")
    finished(root, "06_eval")
    assert "eval: runs (input judges/sre_1 changed)" in capsys.readouterr().out
    one = opened("01_data")  # once more with the same parameters, but another result, as a server may give
    shutil.rmtree(one.path)
    (root / "runs" / "notes" / "sample").mkdir()
    one = opened("01_data")
    (one.path / "out.txt").write_text("other rows")
    one.finish()
    assert why(root, "sft") == "input data changed"
    shutil.rmtree(root / "runs" / "notes" / "judgments" / "1")
    with pytest.raises(RunError, match="judges/sft of run notes is stale, for data has changed"):
        finished(root, "06_eval")


def test_a_mistyped_strategy_is_refused_before_training(root):
    make_project(
        root,
        n04_curate="def shortest(item, judgments, margin):\n    return []\nfrom rules import a, b\nc = cfg.strategy\n",
    )
    (root / "rules.py").write_text("def mine(item, judgments, margin):\n    return []\n")
    for good in ("meta_judge", "shortest", "a", "b", "c", "rules.py:mine"):
        stages.check_strategy(good)
    for bad in ["", *"meta_jugde short rules.py:min rules.py:mine2 rule.py:mine rules.py:meta_judge return".split()]:
        problem = "there is no file .*/rule.py" if bad == "rule.py:mine" else ".* defines no function .*"
        with pytest.raises(SrlibError, match=rf"^strategy {bad}: {problem}; built-in rules: correct"):
            stages.check_strategy(bad)
    files.write_text(root / "runs" / "notes" / "params.yaml", "strategy: meta_jugde\n")
    with pytest.raises(SrlibError, match="strategy meta_jugde"):
        opened("01_data")
    files.write_text(root / "runs" / "notes" / "params.yaml", "strategy: rules.py:mine\n")
    for notebook in ("01_data", "02_sft", "03_sample", "04_curate"):
        finish(notebook)
    assert why(root, "curate_1", "strategy=rules.py:mine") is None
    (root / "rules.py").write_text("def mine(item, judgments, margin):\n    return [1]\n")
    assert why(root, "curate_1", "strategy=rules.py:mine") == "code of rules.py changed"


def test_a_notebook_that_is_no_stage_says_so(root):
    write_notebook(root / "notebooks" / "08_annotate.ipynb", {"parameters": "seed = 0\n"})
    with pytest.raises(RunError, match=r"notebook 08_annotate is no stage of this run: use open_run\(globals\(\)\)"):
        opened("08_annotate")
    with pytest.raises(
        RunError, match="notebook 02_sft is no stage of this run: arm sft_pointwise, sft_mode pointwise"
    ):
        opened("02_sft", arm="sft_pointwise")


def test_code_counts_without_comments_and_docstrings(root):
    finish("01_data")
    path, notebook = root / "srlib" / "schema.py", root / "notebooks" / "01_data.ipynb"
    source, nb = path.read_text(), json.loads(notebook.read_text())
    path.write_text(source.replace('"""', '"""Reworded. ', 1) + "\n# a remark\n")
    nb["cells"][0]["source"] += "# the parameters cell counts by its values\n"
    nb["cells"].append(nb["cells"][1] | {"metadata": {"tags": ["setup"]}, "source": "%pip install nothing"})
    notebook.write_text(json.dumps(nb))
    assert why(root, "data") is None
    make_project(root, n01_data="x = 1")
    path.write_text(source + "\nX = 1\n")
    assert why(root, "data") == "code of 01_data changed, code of srlib.schema changed"


def test_code_follows_imports_through_packages(tmp_path):
    for name, text in {
        "__init__": "", "a": "def f():\n    from srlib import b\n", "b/__init__": "from .one import g\n",
        "b/one": "from .. import c\nfrom ..d.deep import x\ncfg.beta, stage.cfg.margin\n", "c": "import srlib.a, json\n",
        "d/__init__": "", "d/deep": "x = 1\n", "run/__init__": "from srlib import unused\n", "unused": "",
    }.items():  # fmt: skip
        files.write_text(tmp_path / "srlib" / f"{name}.py", text)
    write_notebook(
        tmp_path / "x.ipynb", {"one": "%matplotlib inline\nif 1:\n    !ls\nfrom srlib import a, run\ncfg.seed"}
    )
    code, read = stages.code_of(tmp_path / "x.ipynb", tmp_path / "srlib")
    assert sorted(code) == ["srlib", *(f"srlib.{name}" for name in ("a", "b", "b.one", "c", "d", "d.deep")), "x"]
    assert read == {"seed", "beta", "margin"}
    found = []
    for field in ("beta: float = 0.1", "gamma: float = 1", "pass\n\ndef h():\n    pass"):
        files.write_text(tmp_path / "srlib" / "c.py", f"import srlib.a, json\nclass Parameters:\n    {field}\n")
        found.append(stages.code_of(tmp_path / "x.ipynb", tmp_path / "srlib")[0]["srlib.c"])
    assert found[0] == found[1] != found[2], "parameters count by their values"
    write_notebook(tmp_path / "x.ipynb", {"one": "a b"})
    with pytest.raises(RunError, match=r"x\.ipynb: code line 1 is not Python"):
        stages.code_of(tmp_path / "x.ipynb", tmp_path / "srlib")


def test_a_killed_stage_resumes_where_it_was(root):
    one, run = opened("01_data"), root / "runs" / "notes"
    (one.path / "rows").write_text("half")
    one.checkpoints.mkdir(parents=True)
    assert why(root, "data") == "incomplete"
    again = opened("01_data")
    assert (again.path / "rows").read_text() == "half"
    again.finish()
    assert not again.checkpoints.exists()
    assert files.read_json(run / "data" / "manifest.json")["seconds"] is None, "the killed session's are not known"
    (run / "data").rename(run / "data.partial")  # a kill after the manifest, before the renaming
    (run / "data").mkdir()
    opened("01_data").finish()
    assert (run / "data" / "rows").exists()
    opened("01_data", seed=1).finish()
    assert not (run / "data" / "rows").exists()
    assert not (run / "data.partial").exists()


def test_what_only_other_arms_read_trains_no_arm_again(tmp_path):
    def changed(name, *overrides):
        before, after = (config.load(None, ["sft_mode=merge", *some]) for some in ([], overrides))
        chosen = next(one for one in stages.of(after) if one.name == name)
        return stages.parts(chosen, before, tmp_path) != stages.parts(chosen, after, tmp_path)

    for other in ("dpo_epochs=2", "continued_learning_rate=0.001"):
        assert [changed(name, other) for name in ("sft_pointwise", "sft", "sft_continued")] == [False, False, True]
    assert [changed(name, "merge_method=ties") for name in ("sft_pointwise", "sft")] == [False, True]
    assert changed("sft_pointwise", "sft_epochs=7")


def test_a_missing_input_names_the_notebook_that_makes_it(root):
    finish("01_data")
    with pytest.raises(RunError, match=r"judges/sft is missing in run notes: run notebook 02, 05 or 13"):
        opened("03_sample")
    with pytest.raises(RunError, match="eval is missing in run notes: run notebook 06"):
        open_run({}, needs=("data", "eval"))
    assert open_run({"run_dir": "runs/notes"}, needs=("data",)) == root / "runs" / "notes"
    files.write_json(root / "runs" / "notes" / "eval" / "manifest.json", {"key": "k", "parts": {"input data": "older"}})
    with pytest.raises(
        RunError,
        match="eval of run notes is stale, for data has changed since: run notebook 06 again, or all with `srlib run runs/notes/",
    ):
        open_run({}, needs=("data", "eval"))


def test_a_stage_is_open_in_one_process(root, monkeypatch):
    lock, acquire = root / "runs" / "notes" / ".locks" / "data", files.acquire
    files.write_text(lock, "4711")
    monkeypatch.setattr(files, "acquire", lambda path, timeout: acquire(path, 0.1))
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="stage data of notes is open in process 4711"):
            opened("01_data")
    assert not opened("01_data").done


def test_the_judge_to_take_home(root, monkeypatch):
    run, best, last = root / "runs" / "notes", config.load(None, ["keep=best"]), config.load(None, ["arms=sft"])
    for accuracy, kept in (((0.4, 0.6, 0.5), "sre_1"), ((0.6, 0.6, 0.6), "sft"), ((None, None, 0.1), "sre_2")):
        scores = dict(zip(("sft", "sre_1", "sre_2", "rft"), (*accuracy, 0.9), strict=True))
        rows = [{"arm": arm, "split": "validation", "metric": "accuracy", "value": v} for arm, v in scores.items()]
        others = [rows[0] | {"split": "test", "value": 1.0}, rows[0] | {"metric": "pearson", "value": 1.0}]
        files.write_json(run / "results.json", rows + others)
        assert stage.kept(run, best) == f"judges/{kept}"
    files.write_json(run / "results.json", others)
    with pytest.raises(RunError, match="arms must hold sft or sre_N"):
        stage.kept(run, best)
    finish("01_data")
    finish("02_sft")
    home = stage.take_home(run, last) / "out.txt"
    row = {"arm": "sft", "split": "validation", "metric": "parse_rate", "value": 0.75}
    rows = [row, row | {"arm": "sre_1", "value": 0.1}, row | {"split": "test", "value": 0.2}, row | {"metric": "mae"}]
    files.write_json(run / "results.json", [*rows, row | {"metric": "prompt_nll_highest", "value": 3.5}])
    files.write_json(run / "judge" / "judge.json", {"template": "brief"})
    stage.take_home(run, last)
    validation = {"parse_rate": 0.75, "prompt_nll_highest": 3.5}
    assert files.read_json(run / "judge" / "judge.json") == {
        "template": "brief",
        "validation": validation,
    }
    home.write_text("as it was")
    assert (stage.take_home(run, last) / "out.txt").read_text() == "as it was"
    monkeypatch.setenv("SRLIB_FORCE", "1")
    finish("02_sft")
    assert (stage.take_home(run, last) / "out.txt").read_text().startswith("sft")


def test_wandb_asks_nobody_and_keeps_no_secret(root, monkeypatch):
    secret, modes = "5ec7e7" + "0123456789" * 3 + "abcd", []  # the form of a real key: forty hexadecimal characters
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(root / "home" / name))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked something"))
    monkeypatch.setenv("WANDB_API_KEY", secret)
    one = opened("01_data")
    one.cfg = config.load(None, ["wandb_mode=offline"])
    with one.track() as run:
        run.log({"loss": 0.5})
        stage.log_rows(run, "judgments/sft", [{"id": "e1", "score": 4.0}, {"score": None, "id": "e2"}])
        stage.log_rows(None, "judgments", [{"id": "e1"}])
        assert (run.group, run.job_type, run.name, run.config["beta"]) == ("notes", "data", "notes/data", 0.1)
    [kept] = tracked(one.run / "wandb")
    assert (kept["group"], kept["job_type"], kept["history"][0]["loss"]) == ("notes", "data", 0.5)
    assert (kept["config"]["seed"], kept["config"]["beta"]) == (0, 0.1), "runs can be grouped by them"
    assert kept["tables"]["judgments/sft"]["data"] == [["e1", 4.0], ["e2", None]]
    assert not [path for path in root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    monkeypatch.setattr("wandb.init", lambda **options: modes.append(options["mode"]))
    one.cfg = config.load()
    one.track()
    monkeypatch.delenv("WANDB_API_KEY")
    one.track()
    one.finish()
    with one.track() as run:
        assert (run, modes) == (None, ["online", "offline"])


def test_a_notebook_opened_beside_its_file_works_in_the_project(root, monkeypatch):
    """JupyterLab starts a kernel in notebooks/; a model's path is relative to the project."""
    monkeypatch.chdir(root / "notebooks")
    opened("01_data")
    assert Path.cwd() == root
