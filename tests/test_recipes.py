"""Recipes, set-up cells, badges and environment.yml stay in step with pyproject.toml and with the forecast. No torch."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_notebooks_static import NAMES, PARAMS, cells, is_tagged, source

from srlib import config as params
from srlib.hardware import machine
from srlib.run import keys as fingerprint
from srlib.run import plan
from srlib.run import stage as runs

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RECIPES = ["colab.yaml", "h100.yaml", "paper.yaml", "workstation.yaml"]
REPOSITORY = PROJECT["project"]["urls"]["Repository"]


def planned(name) -> plan.Plan:
    return plan.forecast(params.load(ROOT / "params" / name), ROOT)


def test_the_recipes_are_there():
    assert set(RECIPES) <= set(PARAMS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_carries_its_forecast(name):
    """When this fails, put what `srlib plan params/<name> --comment` prints at the head of the file."""
    now = plan.header(planned(name))
    assert now in (ROOT / "params" / name).read_text(), f"{name} drifted; its forecast is now\n{now}"


@pytest.mark.parametrize(
    ("name", "card", "verdict"),
    [("colab.yaml", 0, "fits"), ("workstation.yaml", 1, "fits"), ("paper.yaml", 2, "fits"), ("h100.yaml", 2, "fits")],
)
def test_a_recipe_fits_the_card_it_is_for(name, card, verdict):
    assert planned(name).verdict(machine.CARDS[card]) == verdict


def test_the_papers_recipe_says_of_each_value_where_it_comes_from():
    text = (ROOT / "params" / "paper.yaml").read_text()
    values = [line for line in text.splitlines() if re.match(r"\w+:", line)]
    assert len(values) > 30
    assert [line for line in values if not re.search(r"# (stated|default)", line)] == []
    loaded = params.load(ROOT / "params" / "paper.yaml")
    stated = dict(iterations=2, sample_prompts=5000, sample_prompts_later=500, temperature=1.0, margin=2.0)
    assert {name: loaded[name] for name in stated} == stated
    assert (loaded["model"], loaded["n_samples"]) == ("meta-llama/Llama-3.1-8B-Instruct", 10)


@pytest.mark.parametrize("name", RECIPES)
def test_the_t4_is_not_asked_for_bf16(name):
    text = (ROOT / "params" / name).read_text()
    assert not (name == "colab.yaml" and re.search(r"(?m)^[# ]*dtype:\s*bfloat16", text))


@pytest.mark.parametrize("name", NAMES)
def test_the_badge_opens_this_notebook_of_this_repository(name):
    owner = REPOSITORY.removeprefix("https://github.com/")
    target = f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/{name}.ipynb"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    assert f"[![Open in Colab]({image})]({target})" in source(cells(name)[0])
    assert source(cells(name)[0]).count("colab.research.google.com/github") == 1


def setup(name) -> str:
    [cell] = [cell for cell in cells(name) if is_tagged(cell, "setup")]
    assert cell is cells(name)[1] or cell == cells(name)[1]
    return source(cell)


@pytest.mark.parametrize("name", NAMES)
def test_one_set_up_cell_the_same_everywhere(name):
    assert setup(name) == setup(NAMES[0])


def test_outside_of_colab_the_set_up_cell_only_imports():
    body = ast.parse(setup(NAMES[0])).body
    assert all(isinstance(node, ast.Import) for node in body[:-1])
    assert isinstance(body[-1], ast.If)
    assert ast.unparse(body[-1].test) == "'google.colab' in sys.modules"
    assert not body[-1].orelse
    ran = subprocess.run([sys.executable, "-c", setup(NAMES[0])], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def in_colab(monkeypatch, tmp_path, setup_text, gpu) -> tuple[list, str]:
    """Run the set-up cell as Colab would, with the commands written down instead of run."""
    commands, said = [], []

    def run(command, check):
        commands.append(command)
        if command[0] == "git":
            Path(command[-1], "srlib").mkdir(parents=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi" if gpu else None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(compile(setup_text, "setup", "exec"), {"print": said.append})
    return commands, " ".join(said)


def test_in_colab_it_clones_installs_and_says_that_the_gpu_is_missing(monkeypatch, tmp_path):
    commands, said = in_colab(monkeypatch, tmp_path, setup(NAMES[0]), gpu=False)
    assert commands[0][:2] == ["git", "clone"]
    assert REPOSITORY in commands[0]
    installs = [command[5:] for command in commands[1:]]
    assert ["-e", ".[train,notebooks]"] in installs
    assert ["--no-deps", "--group", "unsloth"] in installs
    assert "No GPU" in said
    assert Path.cwd().name == "project"
    again, _ = in_colab(monkeypatch, tmp_path, setup(NAMES[0]), gpu=True)  # a new kernel in the same place
    assert all(command[0] != "git" for command in again)


def test_with_a_gpu_it_says_nothing(monkeypatch, tmp_path):
    assert in_colab(monkeypatch, tmp_path, setup(NAMES[0]), gpu=True)[1] == ""


def test_its_extras_and_groups_exist_and_it_holds_no_version():
    text = setup(NAMES[0])
    [extras] = re.findall(r"\.\[([\w,]+)\]", text)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert '"--group", "unsloth"' in text
    assert "unsloth" in PROJECT["dependency-groups"]
    assert not re.search(r"[=<>~]=\s*\d", text)


def test_conda_says_both_commands():
    text = (ROOT / "environment.yml").read_text()
    assert "conda env create -f environment.yml" in text
    assert "pip install --no-deps --group unsloth" in text


def test_a_changed_set_up_cell_makes_nothing_run_again(tmp_path):
    before = fingerprint.code(ROOT / "notebooks" / "02_sft.ipynb", ROOT / "srlib")
    text = (ROOT / "notebooks" / "02_sft.ipynb").read_text()
    changed = tmp_path / "02_sft.ipynb"
    changed.write_text(text.replace("use_drive = False", "use_drive = True"))
    assert changed.read_text() != text
    assert fingerprint.code(changed, ROOT / "srlib") == before


def test_a_run_may_live_outside_of_the_project(tmp_path):
    """As it does on Google Drive."""
    drive = tmp_path / "drive" / "MyDrive" / "run 1"
    assert runs.open_run(str(drive), ROOT) == drive.resolve()
    assert drive.is_dir()
