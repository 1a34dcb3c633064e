"""The seven notebooks as files: tagged, stripped, told more than coded, and of one mind about every parameter."""

import ast
import json
import re
from pathlib import Path

import pytest

from srlib import config as params
from srlib.hardware import shapes
from srlib.run import stages

ROOT = Path(__file__).parent.parent
STAGES = ["01_data", "02_sft", "03_sample", "04_curate", "05_dpo", "06_eval"]
NAMES = [*STAGES, "07_annotate"]  # which reads what the stages made
PARAMS = sorted(path.name for path in (ROOT / "params").glob("*.yaml"))


def notebook(name) -> dict:
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())


def cells(name, kind=None) -> list[dict]:
    return [cell for cell in notebook(name)["cells"] if kind in (None, cell["cell_type"])]


def source(cell) -> str:
    return "".join(cell["source"])


def is_tagged(cell, tag) -> bool:
    return tag in cell["metadata"].get("tags", [])


def test_there_are_these_seven():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_exactly_one_cell_is_tagged_parameters(name):
    tagged = [cell for cell in cells(name) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0]["cell_type"] == "code"
    before = cells(name)[: cells(name).index(tagged[0])]
    code = [ast.parse(source(cell)) for cell in before if cell["cell_type"] == "code" and not is_tagged(cell, "setup")]
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for tree in code for node in tree.body)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stripped(name):
    for cell in cells(name, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    metadata = notebook(name)["metadata"]
    assert set(metadata) <= {"kernelspec", "language_info"}
    assert metadata["kernelspec"]["name"] == "python3"
    assert all(set(cell["metadata"]) <= {"tags"} for cell in cells(name))
    assert not any(cell.get("attachments") for cell in cells(name))
    assert notebook(name)["nbformat"] == 4


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_has_an_id_of_its_own(name):
    ids = [cell["id"] for cell in cells(name)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_told(name):
    assert 15 <= len(cells(name)) <= 45
    assert len(cells(name, "markdown")) >= 0.3 * len(cells(name))
    assert all(source(cell).strip() for cell in cells(name))
    first, last = cells(name)[0], cells(name)[-1]
    assert first["cell_type"] == "markdown"
    assert re.match(rf"# {int(name[:2])} · \w+", source(first))
    assert "2410.05495" in source(first)
    assert re.search(r"section \d", source(first))
    assert last["cell_type"] == "code"
    assert isinstance(ast.parse(source(last)).body[-1], ast.Expr)  # it ends in something to look at


@pytest.mark.parametrize("name", NAMES)
def test_code_is_small_and_plain(name):
    for cell in cells(name, "code"):
        tree = ast.parse(source(cell))  # no magics, no shell
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno + 1 <= 5, (
                    f"{node.name} is {node.end_lineno - node.lineno + 1} lines"
                )
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"(/|~/)\w", node.value), node.value  # nobody else has this machine's paths


@pytest.mark.parametrize("name", STAGES)
def test_it_opens_its_own_stage_and_finishes_it(name):
    text = "\n".join(source(cell) for cell in cells(name, "code"))
    assert re.findall(r"runs\.open_stage\((.*)\)", text) == [f'"{name}", globals()']
    assert text.count("stage.finish(") == 1


def test_the_notebook_that_is_no_stage_reads_a_run_and_opens_nothing():
    text = "\n".join(source(cell) for cell in cells("07_annotate", "code"))
    assert re.findall(r"runs\.open_to_read\((.*)\)", text) == ['"07_annotate", globals(), needs=("data", "eval")']
    assert "open_stage" not in text
    assert "07_annotate" not in {stage.notebook for stage in stages.of({})}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_used(name):
    [tagged] = [cell for cell in cells(name) if "parameters" in cell["metadata"].get("tags", [])]
    code = [
        ast.parse(source(cell)) for cell in cells(name, "code") if cell is not tagged and cell["id"] != tagged["id"]
    ]
    used = {node.id for tree in code for node in ast.walk(tree) if isinstance(node, ast.Name)}
    by_the_stage = {"run_dir", "seed"}  # read by runs.open_stage from globals()
    assert set(params.of_notebook(name)) - used - by_the_stage == set()


def test_one_name_means_one_thing_and_all_have_help():
    known = params.declared()
    assert len(known) > 30
    for param in known.values():
        assert len(param.help) >= 10, param.name
        assert set(param.notebooks) <= set(NAMES)
    lines: dict[str, set[str]] = {}
    for name in NAMES:
        [tagged] = [source(cell) for cell in cells(name) if "parameters" in cell["metadata"].get("tags", [])]
        for match in re.finditer(r"(?m)^(\w+): .*$", tagged):
            lines.setdefault(match[1], set()).add(match[0])
    assert set(lines) == set(known)
    assert {name: found for name, found in lines.items() if len(found) > 1} == {}  # to the letter


def test_model_backend_and_quantization_are_where_they_belong():
    known = params.declared()
    for name in ("backend", "quantization"):
        assert {"02_sft", "03_sample", "05_dpo", "06_eval"} <= set(known[name].notebooks)
    assert known["backend"].constraint == "auto | unsloth | transformers"
    assert known["quantization"].constraint == "none | 4bit"


@pytest.mark.parametrize("name", PARAMS)
def test_parameter_files_load(name):
    values = params.load(ROOT / "params" / name)
    assert set(values) == set(params.declared())
    assert shapes.of_model(values["model"], ROOT).parameters > 0


def test_there_is_a_file_for_the_default_and_one_for_real_answers():
    assert {"tiny.yaml", "answers.yaml"} <= set(PARAMS)
    tiny, default = params.load(ROOT / "params" / "tiny.yaml"), params.load(None)
    assert tiny == default  # the defaults are the tiny profile
