"""Static gates for the notebooks: parameters as in srlib.config, the method visible, short, stripped. No torch."""

import ast
import importlib
import json
import math
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from srlib import config

ROOT = Path(__file__).parent.parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SETUP = f"""\
import sys

if "google.colab" in sys.modules:  # on any other machine this cell does nothing
    %pip install --quiet "srlib[train,notebooks] @ git+{REPOSITORY}"
    from srlib.run import colab

    colab.setup()"""
SHOWS = {
    "02_sft": ["SFTTrainer(", "LoraConfig(", "FastLanguageModel.", ".train("],
    "03_sample": ["generate("],
    "05_dpo": ["DPOTrainer(", "DPOConfig(", ".train("],
    "13_grpo": ["GRPOTrainer(", "GRPOConfig(", ".train("],
}
FREE_OF_TORCH = ("config", "curate", "files", "prompts", "schema")


def cells_of(name: str) -> list[dict]:
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tagged(name: str, tag: str) -> list[str]:
    return [source(cell) for cell in cells_of(name) if tag in cell["metadata"].get("tags", [])]


def code_of(name: str) -> list[str]:
    """Code cells, without the setup cell, whose %pip is no Python."""
    return [source(cell) for cell in cells_of(name) if cell["cell_type"] == "code" and source(cell) != SETUP]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_config(name):
    [cell] = tagged(name, "parameters")
    assert len(cell.splitlines()) <= 12
    for node in ast.parse(cell).body:  # beta: float = 0.1  # inverse temperature of the DPO loss
        field = config.FIELDS[node.target.id]
        kind = "list[str]" if isinstance(field.default, list) else type(field.default).__name__
        assert (ast.unparse(node.annotation), ast.literal_eval(node.value)) == (kind, field.default), node.target.id
        assert cell.splitlines()[node.end_lineno - 1].partition("  # ")[2] == field.description
    assert set(re.findall(r"\bcfg\.(\w+)", "\n".join(code_of(name)))) <= {*config.FIELDS, "model_dump"}


def test_a_session_in_jupyterlab_leaves_no_change_behind(tmp_path):
    """`make clean-notebooks` but for nbstripout, which takes the outputs."""
    path = Path(shutil.copy(ROOT / "notebooks" / "05_dpo.ipynb", tmp_path))
    notebook = json.loads(path.read_text())
    notebook["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    notebook["metadata"]["language_info"] |= {"version": "3.11.7", "codemirror_mode": {"name": "ipython", "version": 3}}
    path.write_text(json.dumps(notebook, indent=1))
    subprocess.run([sys.executable, ROOT / "scripts" / "kernelspec.py", path], check=True)
    assert path.read_bytes() == (ROOT / "notebooks" / "05_dpo.ipynb").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stripped_and_every_cell_has_an_id(name):
    cells, ids = cells_of(name), {cell["id"] for cell in cells_of(name)}
    assert len(ids) == len(cells)
    kept = ["tags", "jupyter"]  # the second folds code that is not the point
    assert all(set(cell["metadata"]) <= {*kept} and not cell.get("attachments") for cell in cells)
    assert all(cell["metadata"].get("jupyter", {"source_hidden": True}) == {"source_hidden": True} for cell in cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_explained(name):
    cells, code = cells_of(name), code_of(name)
    assert tagged(name, "setup") == [SETUP]
    assert 15 <= len(cells) <= 35
    assert sum(cell["cell_type"] == "markdown" for cell in cells) >= 0.4 * (len(cells) - 1)  # the setup cell aside
    assert sum(bool(line.strip()) for text in code for line in text.splitlines()) <= 150
    assert re.match(rf"# {int(name[:2])} · \w+", source(cells[0]))
    opened = next(i for i, cell in enumerate(cells) if re.search(r"open_(stage|run)\(", source(cell)))
    for before, cell in pairwise(cells[opened:]):  # a claim, one cell, its output
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown", source(cell)
            assert "print(" in source(cell) or isinstance(ast.parse(source(cell)).body[-1], ast.Expr), source(cell)
    assert any(isinstance(node, ast.Expr) for node in ast.walk(ast.parse(code[-1]).body[-1]))  # it ends in an output
    for node in ast.walk(ast.parse("\n".join(code))):
        assert not isinstance(node, ast.ClassDef)
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 6, node.name
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.match(r"(/|~/)\w", node.value), f"{node.value}: a path of one machine"


@pytest.mark.parametrize("name", NAMES)
def test_styled_tables_escape_texts(name):
    """Unlike a frame, pandas' Styler renders texts as HTML unless told not to."""
    code = "\n".join(code_of(name))
    assert ".style" not in code or re.search(r'"styler\.format\.escape", "html"|escape="html"', code)


@pytest.mark.parametrize("name", NAMES)
def test_the_names_that_it_uses_exist_and_the_method_is_visible(name):
    code = "\n".join(code_of(name))
    for module, attribute in re.findall(rf"(?<![\w.])({'|'.join(FREE_OF_TORCH)})\.(\w+)", code):
        assert hasattr(importlib.import_module(f"srlib.{module}"), attribute), f"{module}.{attribute}"
    assert set(re.findall(r"open_stage\(\"(\w+)\"", code)) <= {name}
    assert [text for text in SHOWS.get(name, []) if text not in code] == []


def test_parameter_files_load_and_the_defaults_are_those_of_make_run():
    loaded = {path.stem: config.load(path) for path in (ROOT / "params").glob("*.yaml")}
    assert loaded.pop("notes") == config.load()
    assert "answers" in loaded


@pytest.mark.parametrize("name", [name for name in NAMES if "warmup" in "".join(code_of(name))])
def test_a_training_of_one_step_has_its_learning_rate(name):
    """A warm-up that is as long as the training starts and ends at 0."""
    [warmup] = {text for code in code_of(name) for text in re.findall(r"math\.ceil\(0\.1 [^,\n]*", code)}
    assert [eval(warmup, {"math": math, "steps": n, "n_steps": n}) for n in (1, 2, 25)] == [0, 1, 3]
