"""What a run consists of, and when a part of it has to run again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from throwaway import make_project, namespace, write_notebook

from srlib import config as params
from srlib import files as store
from srlib.run import keys as fingerprint
from srlib.run import stage as runs
from srlib.run import stages
from srlib.run.stages import RunError

ARMS = ["base", "sft_score_only", "sft", "sft_careful_only", "sft_continued", "rft", "sft_self_consistency"]
ARMS += ["sft_best_of_n", "sre_1", "sre_2", "sre_2_self_consistency"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


def finish(root, notebook, **changes):
    """One stage, from opening to manifest, as its notebook does it."""
    stage = runs.open_stage(notebook, namespace(root, notebook, **changes), root)
    if not stage.done:
        (stage.path / "out.txt").write_text(stage.stage.name)
    stage.finish(rows=1)
    return stage


def values(root, *overrides):
    return params.load(None, overrides, root / "notebooks")


def why(root, name, *overrides, run="tiny"):
    chosen = values(root, *overrides)
    stage = next(stage for stage in stages.of(chosen) if stage.name == name)
    return stages.why(stage, chosen, root / "runs" / run, root)


def test_all_arms_need_all_stages_in_order():
    made = stages.of({"iterations": 2, "arms": ARMS})
    done, judges = set(), []
    for stage in made:
        assert set(stage.inputs) <= done
        done.add(stage.output)
        judges += [stage.output] if stage.output.startswith("judges/") else []
    assert [stage.name for stage in made] == [
        *("data", "sft", "sample_1", "curate_1", "dpo_1", "sample_2", "curate_2", "dpo_2"),
        *("sft_score_only", "sft_careful_only", "sft_continued", "rft", "eval"),
    ]
    by_name = {stage.name: stage for stage in made}
    assert by_name["sample_1"].inputs == ("data", "judges/sft")
    assert by_name["sample_2"].inputs == ("data", "judges/sre_1", "judgments/1")
    assert by_name["dpo_2"] == stages.Stage(
        "dpo_2", "05_dpo", {"iteration": 2}, ("data", "pairs/2", "judges/sre_1"), "judges/sre_2"
    )
    assert by_name["rft"].inputs == ("data", "judges/sft", "pairs/1", "pairs/2")
    assert by_name["eval"].inputs == ("data", *judges)


@pytest.mark.parametrize(
    ("arms", "names"),
    [
        (["base"], "data sft eval"),
        (["base", "sft_best_of_n", "sft_self_consistency"], "data sft eval"),
        (["sft_score_only"], "data sft sft_score_only eval"),
        (["sft_mean_of_n", "sft_median_of_n"], "data sft eval"),
        (["sre_1_median_of_n"], "data sft sample_1 curate_1 dpo_1 eval"),
        (["sre_1_self_consistency"], "data sft sample_1 curate_1 dpo_1 eval"),
        (["rft"], "data sft sample_1 curate_1 dpo_1 rft eval"),
    ],
)
def test_only_what_the_arms_need(arms, names):
    assert " ".join(stage.name for stage in stages.of({"iterations": 1, "arms": arms})) == names


@pytest.mark.parametrize("arm", ["sre_3", "sre_0", "sre_x", "dpo", "sre_1\n"])
def test_an_arm_that_cannot_be(arm):
    with pytest.raises(RunError, match=r"unknown|needs iteration"):
        stages.of({"iterations": 2, "arms": [arm]})


def test_a_stage_is_partial_until_it_is_finished(root):
    stage = runs.open_stage("01_data", namespace(root, "01_data"), root)
    run = root / "runs" / "tiny"
    assert (stage.path, stage.done, stage.run) == (run / "data.partial", False, run)
    assert (root / "runs" / "last").resolve() == run
    (stage.path / "out.txt").write_text("x")
    stage.finish(rows=3)
    assert (stage.path, stage.done) == (run / "data", True)
    assert sorted(p.name for p in run.iterdir() if not p.name.startswith(".")) == ["data"]
    made = store.read_json(run / "data" / "manifest.json")
    assert made["key"] == stage.key == stages.key(made["parts"])
    assert (made["stage"], made["facts"], made["inputs"]) == ("data", {"rows": 3}, {})
    assert made["params"] == {"data": "world", "seed": 0}
    assert {"python", "srlib", "numpy"} <= made["versions"].keys()
    assert 0 <= made["seconds"] < 60
    assert made["peak_memory"] > 2**20
    assert {"peak_gpu_memory", "energy"} <= made.keys()
    assert stage.used == {name: made[name] for name in runs.USED}
    again = runs.open_stage("01_data", namespace(root, "01_data"), root)
    assert again.done
    assert again.path == run / "data"
    assert again.used == stage.used
    again.finish(rows=4)
    assert store.read_json(run / "data" / "manifest.json") == made


def test_what_the_notebook_and_the_pipeline_compute_is_the_same(root):
    finish(root, "01_data")
    stage = finish(root, "02_sft", arm="sft")
    assert stage.inputs == {"data": root / "runs" / "tiny" / "data"}
    assert why(root, "sft") is None
    assert why(root, "sft", "lr=0.3") == "lr 0.1 -> 0.3"
    assert why(root, "sft", "margin=7") is None
    assert why(root, "eval") == "new"


def test_a_changed_parameter_goes_down_the_chain(root):
    finish(root, "01_data")
    finish(root, "02_sft")
    finish(root, "01_data", seed=1)
    assert why(root, "sft", "seed=1") == "input data changed, seed 0 -> 1"
    finish(root, "01_data")
    assert why(root, "sft") is None


def test_changed_code_is_named(root):
    finish(root, "01_data")
    (root / "srlib" / "store.py").touch()
    assert why(root, "data") is None
    with open(root / "srlib" / "store.py", "a") as file:
        file.write("\n# changed\n")
    assert why(root, "data") == "code of srlib.store changed"
    make_project(root, n01_data="x = 1")
    assert why(root, "data") == "code of 01_data changed, code of srlib.store changed"


def test_the_parameters_cell_counts_by_values_alone(root):
    finish(root, "01_data")
    path = root / "notebooks" / "01_data.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"][0]["source"] += "# a remark\n"
    nb["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "A story."})
    path.write_text(json.dumps(nb))
    assert why(root, "data") is None


def test_a_local_model_counts_by_its_content(root):
    (root / "base").mkdir()
    (root / "base" / "weights").write_text("1")
    finish(root, "01_data")
    finish(root, "02_sft")
    shutil.copytree(root / "base", root / "elsewhere")
    assert why(root, "sft", "model=elsewhere") is None
    (root / "base" / "weights").write_text("22")
    assert why(root, "sft") == "model changed"
    assert why(root, "sft", "model=org/hub") == "model changed"


def test_where_a_run_lives_is_not_what_it_is(root):
    finish(root, "01_data", run_dir="runs/a")
    assert why(root, "data", "run_dir=runs/b", run="a") is None


def test_a_killed_stage_resumes_where_it_was(root):
    stage = runs.open_stage("01_data", namespace(root, "01_data"), root)
    (stage.path / "rows").write_text("half")
    assert why(root, "data") == "incomplete"
    again = runs.open_stage("01_data", namespace(root, "01_data"), root)
    assert (again.path / "rows").read_text() == "half"
    other = runs.open_stage("01_data", namespace(root, "01_data", seed=1), root)
    assert not (other.path / "rows").exists()


def test_a_kill_while_the_directory_is_replaced_loses_nothing(root):
    run = finish(root, "01_data").run
    stage = finish(root, "01_data", seed=1)
    (run / "data").rename(run / "data.partial")  # as after the manifest, before the renaming
    (run / "data.old").mkdir()
    again = runs.open_stage("01_data", namespace(root, "01_data", seed=1), root)
    assert again.done
    assert (run / "data" / "out.txt").exists()
    assert store.read_json(run / "data" / "manifest.json")["key"] == stage.key
    assert not (run / "data.old").exists()
    assert not (run / "data.partial").exists()


def test_a_torn_manifest_is_no_manifest(root):
    finish(root, "01_data")
    (root / "runs" / "tiny" / "data" / "manifest.json").write_text('{"key": "a')
    assert why(root, "data") == "incomplete"


def test_the_first_missing_input_says_which_notebook_makes_it(root):
    finish(root, "01_data")
    with pytest.raises(RunError, match=r"judges/sft is not there .* run notebook 02_sft"):
        runs.open_stage("03_sample", namespace(root, "03_sample"), root)


def test_an_iteration_beyond_the_plan_can_be_made_by_hand(root):
    finish(root, "01_data")
    with pytest.raises(RunError, match="judges/sre_2 is not there"):
        runs.open_stage("03_sample", namespace(root, "03_sample", iteration=3), root)


def test_an_unknown_arm_names_the_known_ones(root):
    with pytest.raises(RunError, match=r"'arm': 'stf'.*sft_score_only"):
        runs.open_stage("02_sft", namespace(root, "02_sft", arm="stf"), root)


def test_bad_parameters_are_refused_in_the_notebook_too(root):
    with pytest.raises(params.ParamError, match="lr is -1"):
        runs.open_stage("02_sft", namespace(root, "02_sft", lr=-1), root)


def test_what_a_notebook_does_not_declare_comes_from_the_run(root):
    run = root / "runs" / "long"
    for name in ("data", "judges/sft", "pairs/1", "pairs/2"):
        store.write_json(run / name / "manifest.json", {"key": "k"})
    (run / "params.yaml").write_text("iterations: 3\n")
    with pytest.raises(RunError, match="pairs/3 is not there"):
        runs.open_stage("02_sft", namespace(root, "02_sft", arm="rft", run_dir="runs/long"), root)
    (run / "params.yaml").write_text("iterations: 2\n")
    stage = runs.open_stage("02_sft", namespace(root, "02_sft", arm="rft", run_dir="runs/long"), root)
    assert list(stage.inputs) == ["data", "judges/sft", "pairs/1", "pairs/2"]


def test_a_stage_is_open_in_one_process(root, monkeypatch):
    code = (
        "from throwaway import namespace; from pathlib import Path; from srlib import runs; r = Path.cwd()\n"
        "runs.open_stage('01_data', namespace(r, '01_data'), r); print('open', flush=True); input()"
    )
    env = {"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"}
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline().startswith("data: runs (new)")
    assert other.stdout.readline() == "open\n"
    acquire = store.acquire
    monkeypatch.setattr(store, "acquire", lambda path, timeout: acquire(path, 0.1))
    with pytest.raises(RunError, match=f"open in process {other.pid}"):
        runs.open_stage("01_data", namespace(root, "01_data"), root)
    other.communicate("\n")
    assert not runs.open_stage("01_data", namespace(root, "01_data"), root).done


def test_last_is_a_link_and_a_directory_of_that_name_stays(root):
    for name in ("a", "b"):
        (root / "runs" / name).mkdir(parents=True)
        runs.link_last(root / "runs" / name, root)
        assert (root / "runs" / "last").resolve() == root / "runs" / name
    assert (root / "runs" / "last").readlink() == Path("b")
    (root / "runs" / "last").unlink()
    (root / "runs" / "last").mkdir()
    runs.link_last(root / "runs" / "a", root)
    assert not (root / "runs" / "last").is_symlink()


def test_the_judge_to_take_home_follows_the_last_one(root):
    finish(root, "01_data")
    finish(root, "02_sft")
    run = root / "runs" / "tiny"
    target = runs.take_home(run, values(root))
    assert (target / "out.txt").read_text() == "sft"
    (target / "out.txt").write_text("as it was")
    runs.take_home(run, values(root))
    assert (target / "out.txt").read_text() == "as it was"
    finish(root, "02_sft", lr=0.2)
    runs.take_home(run, values(root))
    assert (target / "out.txt").read_text() == "sft"


def best(root, accuracy, **changes):
    """The judge that a run with `keep: best` takes home, by its accuracies on validation; others must not count."""
    run = root / "runs" / "t"
    rows = [dict(arm=arm, split="validation", metric="accuracy", value=value) for arm, value in accuracy.items()]
    rows += [dict(arm="sft", split="test", metric="accuracy", value=1.0)]
    rows += [dict(arm="sft", split="validation", metric="pearson", value=1.0)]
    rows += [dict(arm="sft_careful_only", split="validation", metric="accuracy", value=1.0)]
    store.write_json(run / "results.json", rows)
    return runs.kept(run, {"iterations": 2, "arms": ARMS, "keep": "best"} | changes)


def test_the_best_judge_on_validation_is_kept_where_that_is_asked(root):
    assert best(root, {"sft": 0.4, "sre_1": 0.6, "sre_2": 0.5}) == "judges/sre_1"
    assert best(root, {"sft": 0.4, "sre_1": 0.6, "sre_2": 0.7}) == "judges/sre_2"
    assert best(root, {"sft": 0.6, "sre_1": 0.6, "sre_2": 0.6}) == "judges/sft"  # of equals the earlier
    assert best(root, {"sft": 0.4, "sre_2": 0.5}) == "judges/sre_2"
    assert best(root, {"sft": 0.4, "sre_1": 0.6, "sre_2": 0.5}, keep="last") == "judges/sre_2"
    with pytest.raises(RunError, match="none of sft, sre_1, sre_2 was evaluated on the validation split"):
        best(root, {"sft": None})


def test_the_best_judge_is_copied_and_changing_the_mind_reruns_nothing(root):
    finish(root, "01_data")
    finish(root, "02_sft")
    for notebook in ("03_sample", "04_curate", "05_dpo"):
        finish(root, notebook)
    run, wanted = root / "runs" / "tiny", values(root, "arms=sft,sre_1")
    store.write_json(
        run / "results.json",
        [
            dict(arm=arm, split="validation", metric="accuracy", value=value)
            for arm, value in {"sft": 0.7, "sre_1": 0.6}.items()
        ],
    )
    assert (runs.take_home(run, wanted) / "out.txt").read_text() == "dpo_1"
    assert (runs.take_home(run, wanted | {"keep": "best"}) / "out.txt").read_text() == "sft"
    assert (runs.take_home(run, wanted) / "out.txt").read_text() == "dpo_1"


def test_what_an_alarm_says_changes_no_result():
    known = params.declared()
    assert [name for name in known if name.startswith("alarm_") or name == "stop_on_alarm"] == sorted(
        stages.ALARMS, key=list(known).index
    )
    assert {"keep", *stages.ALARMS} <= set(stages.NOT_IDENTITY)


def test_code_follows_imports_inside_functions_and_relative_ones(tmp_path):
    package = tmp_path / "srlib"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "a": "def f():\n    from srlib import b\n",
        "b": "from . import c\nfrom .d import x\n",
        "c": "import srlib.a\nimport json\n",
        "d": "x = 1\n",
        "unused": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "n").mkdir()
    write_notebook(tmp_path / "n" / "x.ipynb", {"one": "%matplotlib inline\n!ls\nfrom srlib import a"})
    assert sorted(fingerprint.code(tmp_path / "n" / "x.ipynb", package)) == [
        *("srlib", "srlib.a", "srlib.b", "srlib.c", "srlib.d", "x")
    ]
    write_notebook(tmp_path / "n" / "x.ipynb", {"one": "import numpy"})
    assert list(fingerprint.code(tmp_path / "n" / "x.ipynb", package)) == ["x"]
    write_notebook(tmp_path / "n" / "x.ipynb", {"one": "a b"})
    with pytest.raises(ValueError, match=r"x\.ipynb: code line 1"):
        fingerprint.code(tmp_path / "n" / "x.ipynb", package)


def test_import_is_light():
    heavy = ("torch", "papermill", "seaborn", "tqdm", "wandb")
    code = f"import sys, srlib.pipeline, srlib.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
