"""The notebooks declare, one YAML decides; whatever does not fit is refused before anything runs."""

import json
import time

import pytest

from srlib import config as params
from srlib.config import Param, ParamError

CELL = """\
# what DPO needs
beta: float = 0.1  # inverse temperature of the DPO loss [> 0]
temperature: float = 1.0  # sampling temperature [0 .. 10]
n_samples: int = 10  # judgments drawn for each prompt [1 ..]
backend: str = "auto"  # where training runs [auto | unsloth | transformers]
arms: list[str] = [
    "base",
    "sft",
]  # what is evaluated [base | sft | rft]
packing: bool = False  # pack sequences
model: str = "assets/base"  # path or hub name (say "org/name")
"""


def notebook(folder, name, source, tags=("parameters",)):
    cells = [{"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source.splitlines(keepends=True)}]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))


@pytest.fixture
def folder(tmp_path):
    notebook(tmp_path / "notebooks", "05_dpo", CELL)
    return tmp_path / "notebooks"


def yaml(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_cell_is_read_without_being_run(folder):
    found = params.of_notebook("05_dpo", folder)
    assert found["beta"] == Param("beta", "float", 0.1, "inverse temperature of the DPO loss", "> 0", ("05_dpo",))
    assert found["arms"].default == ["base", "sft"]
    assert found["arms"].constraint == "base | sft | rft"
    assert (found["packing"].constraint, found["model"].help) == ("", 'path or hub name (say "org/name")')
    assert list(found) == ["beta", "temperature", "n_samples", "backend", "arms", "packing", "model"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import os", "expected `name: type"),
        ("beta = 0.1  # no type", "expected `name: type"),
        ("beta: float = 0.1", "no help"),
        ("beta: complex = 1  # c", "type complex"),
        ("beta: float = 2 * 3  # c", "written out"),
        ("beta: float = __import__('os').getcwd()  # c", "written out"),
        ("beta: float = 0.0  # c [> 0]", "default of beta is 0.0; it must be > 0"),
        ("beta: float = 1.0  # c [positive]", "[positive] is not"),
        ("beta: int = True  # c", "it must be int"),
        ("beta: int = 1  # c\nbeta: int = 1  # c", "declared twice"),
        ("beta: int = (", "line 1 of the parameters cell"),
    ],
)
def test_a_bad_declaration_names_notebook_and_line(tmp_path, source, message):
    notebook(tmp_path / "n", "05_dpo", source)
    with pytest.raises(ParamError) as error:
        params.of_notebook("05_dpo", tmp_path / "n")
    assert message in str(error.value)
    assert "05_dpo.ipynb, line " in str(error.value)


def test_exactly_one_cell_is_tagged(tmp_path):
    notebook(tmp_path / "n", "05_dpo", CELL, tags=())
    with pytest.raises(ParamError, match="0 code cells are tagged"):
        params.of_notebook("05_dpo", tmp_path / "n")


def test_one_name_means_one_thing(folder):
    notebook(folder, "03_sample", "beta: float = 0.1  # inverse temperature of the DPO loss [> 0]\n")
    assert params.declared(folder)["beta"].notebooks == ("03_sample", "05_dpo")
    notebook(folder, "03_sample", "beta: float = 0.2  # inverse temperature of the DPO loss [> 0]\n")
    with pytest.raises(ParamError, match=r"default is 0.2 in 03_sample and 0.1 in 05_dpo"):
        params.declared(folder)


def test_defaults_then_yaml_then_overrides(folder, tmp_path):
    path = yaml(tmp_path, "# a run\nbeta: 5e-6\ntemperature: 2\narms: [sft]\nbackend: transformers\n")
    found = params.load(path, ["n_samples=4", "packing=true", "beta=3e-1"], folder)
    assert found == {
        "beta": 0.3,
        "temperature": 2.0,
        "n_samples": 4,
        "backend": "transformers",
        "arms": ["sft"],
        "packing": True,
        "model": "assets/base",
    }
    assert isinstance(found["temperature"], float)
    assert params.load(path, (), folder)["beta"] == 5e-6
    assert params.load(path, ["arms=base, sft"], folder)["arms"] == ["base", "sft"]
    assert params.load(yaml(tmp_path, ""), (), folder)["beta"] == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 0.1\nbetta: 0.3\n", "line 2: 'betta' is no parameter; the nearest is beta"),
        ("n_samples: 2.5", "line 1: n_samples is 2.5; it must be int"),
        ("n_samples: true", "it must be int"),
        ("n_samples: 0", "n_samples is 0; it must be 1 .."),
        ("temperature: 11", "it must be 0 .. 10"),
        ("beta: 0", "it must be > 0"),
        ("beta: .nan", "finite"),
        ("beta: .inf", "finite"),
        ("beta: '5e-6'", "it must be float"),
        ("beta: high", "it must be float"),
        ("beta: 1" + "0" * 400, "finite"),
        ("backend: on", "put quotes around it"),
        ("backend: vllm", "one of auto, unsloth, transformers"),
        ("arms: [sft, dpo]", "arms is 'dpo'; it must be one of"),
        ("arms: sft", "it must be list[str]"),
        ("beta:", "it must be float"),
        ("packing: 1", "it must be bool"),
        ("beta: 0.1\nbeta: 0.2\n", "line 2: beta is there a second time"),
        ("beta: 0.1\n\ttemperature: 1\n", "line 2: a tab"),
        ("beta: {a: 1}", "beta is nested"),
        ("arms: [[sft]]", "arms is nested"),
        ("arms: " + "[" * 5000, "some.yaml"),
        ("- beta\n", "not a list of `name: value` lines"),
        ("beta: 'open", "not YAML"),
        ("beta: 0.1\n---\nbeta: 0.2\n", "not YAML"),
        ("beta: !!python/object/apply:os.getcwd []", "not YAML"),
        (b"beta: \xff\n", "UTF-8"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(folder, tmp_path, text, message):
    with pytest.raises(ParamError) as error:
        params.load(yaml(tmp_path, text), (), folder)
    assert message in str(error.value)
    assert "some.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("betta=1", "the nearest is beta"),
        ("beta", "write -p NAME=VALUE"),
        ("beta=nan", "finite"),
        ("beta=-1", "it must be > 0"),
        ("n_samples=2.0", "it must be int"),
        ("packing=maybe", "it must be bool"),
        ("n_samples=", "it must be int"),
    ],
)
def test_a_bad_override_is_refused(folder, override, message):
    with pytest.raises(ParamError) as error:
        params.load(None, [override], folder)
    assert message in str(error.value)


def test_a_missing_file_is_named(folder, tmp_path):
    with pytest.raises(ParamError, match=r"none\.yaml: cannot be read"):
        params.load(tmp_path / "none.yaml", (), folder)


def test_check_reads_the_namespace_of_a_notebook(folder):
    namespace = {name: param.default for name, param in params.declared(folder).items()} | {"beta": 1, "x": 5}
    assert params.check("05_dpo", namespace, folder)["beta"] == 1.0
    with pytest.raises(ParamError, match="notebook 05_dpo: beta is 'much'"):
        params.check("05_dpo", namespace | {"beta": "much"}, folder)
    with pytest.raises(ParamError, match="run the cell tagged `parameters` first"):
        params.check("05_dpo", {}, folder)


def test_check_refuses_what_papermill_injected_and_nobody_declares(folder):
    notebook(folder, "01_data", "seed: int = 0  # of everything\n")
    namespace = {name: param.default for name, param in params.declared(folder).items()}
    params.check("05_dpo", namespace | {"In": ["", "# Parameters\nseed = 1\nbeta = 0.1\n"]}, folder)
    with pytest.raises(ParamError, match="'betta' is no parameter; the nearest is beta"):
        params.check("05_dpo", namespace | {"In": ["", "# Parameters\nbetta = 0.1\n"]}, folder)


def test_the_root_is_found_from_below(folder, tmp_path, monkeypatch):
    notebook(folder, "01_data", "seed: int = 0  # of everything\n")
    (tmp_path / "srlib").mkdir()
    (tmp_path / "runs" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "deep")
    assert params.project_root() == tmp_path


def test_reading_six_notebooks_is_quick(tmp_path):
    for i in range(6):
        notebook(tmp_path / "n", f"0{i}", "".join(f"p{j}: float = 0.1  # help of {j} [> 0]\n" for j in range(25)))
    params.declared(tmp_path / "n")
    start = time.perf_counter()
    params.declared(tmp_path / "n")
    assert time.perf_counter() - start < 0.1
