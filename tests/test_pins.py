"""Versions stand in pyproject.toml alone, what is installed is what stands there, and importing srlib is cheap."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"]
ALWAYS = [*PROJECT["project"]["dependencies"], *EXTRAS["dev"]]  # whoever runs this test has these
OTHERS = [r for name, own in (EXTRAS | GROUPS).items() if name != "dev" for r in own]
REQUIREMENTS = [*ALWAYS, *OTHERS]
NAMES = sorted({re.match(r"[\w.-]+", r)[0].lower() for r in REQUIREMENTS})
FILES = ["environment.yml", "Makefile", "README.md", ".ci/run"]


def text_of(name) -> str:
    return (ROOT / name).read_text()


def versions_in(text: str) -> list[str]:
    """Every package of ours that `text` writes with a version, in any of the ways that pip, conda and people have."""
    names = "|".join(re.escape(name).replace("_", "[-_]") for name in NAMES)
    bound = r"(?:\[[\w,]*\])?\s*(?:[=~!<>]=?=?|@|\bv(?=\d))\s*v?\d[\w.*]*"
    return [
        match[0] for match in re.finditer(rf"(?i)(?<![\w/.-])(?:{names}){bound}|(?<![\w/.-])(?:{names}) \d+\.\d+", text)
    ]


@pytest.mark.parametrize(
    "line",
    ["torch==2.10", "trl=1.14.2", "- numpy >=2", "peft~=0.2", "wandb[media]==0.3", "trl 1.14", "Torch<3", "trl@1"],
)
def test_the_search_finds_what_it_is_for(line):
    assert len(versions_in(line)) == 1


@pytest.mark.parametrize("line", ["python>=3.11,<3.15", "pip>=25.1", "torch-backend=auto", "about torch and 2 cores"])
def test_and_nothing_else(line):
    assert versions_in(line) == []


@pytest.mark.parametrize("name", FILES)
def test_no_version_stands_outside_of_pyproject(name):
    assert versions_in(text_of(name)) == []


@pytest.mark.parametrize("name", FILES)
def test_only_extras_and_groups_that_exist_are_named(name):
    text = text_of(name)
    extras = re.findall(r"(?:-e\s*['\"]?\.|\bsrlib)\[([\w, -]+)\]", text) + re.findall(
        r"(?m)^EXTRAS\s*:?=\s*(.+)$", text
    )
    extras += re.findall(r"--extra[= ]([\w-]+)", text)
    assert {e.strip() for group in extras for e in group.split(",")} <= set(EXTRAS)
    assert set(re.findall(r"--group[= ]([\w-]+)", text)) <= set(GROUPS)
    if name in ("environment.yml", "Makefile"):
        assert extras  # something was looked at


def test_conda_and_make_install_the_same():
    import yaml

    [pip] = [d["pip"] for d in yaml.safe_load(text_of("environment.yml"))["dependencies"] if isinstance(d, dict)]
    made = re.search(r"(?m)^EXTRAS\s*:?=\s*(.+)$", text_of("Makefile"))[1].strip()
    assert pip == [f"-e .[{made}]"]


def test_every_requirement_is_pinned_or_bounded_once():
    names = [re.match(r"[\w.-]+", r)[0].lower() for r in REQUIREMENTS]
    assert len(names) == len(set(names))
    for requirement in REQUIREMENTS:
        assert "==" in requirement or re.search(r">=.*,\s*<", requirement), requirement


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_what_is_installed_is_what_is_pinned(requirement):
    name, rest = re.match(r"([\w.-]+)(.*)", requirement).groups()
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        assert requirement not in ALWAYS, f"{name} is not installed"
        pytest.skip(f"{name} is not installed here")
    if rest.startswith("=="):
        assert installed.split("+")[0] == rest.removeprefix("==")  # torch calls its CPU build 2.13.0+cpu
    else:
        low, high = (tuple(map(int, v.split("."))) for v in re.match(r">=([\d.]+),<([\d.]+)$", rest).groups())
        assert low <= tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < high


def test_this_python_is_a_supported_one():
    low, high = re.match(r">=3\.(\d+),<3\.(\d+)$", PROJECT["project"]["requires-python"]).groups()
    assert sys.version_info[0] == 3
    assert int(low) <= sys.version_info[1] < int(high)
    assert f"python{PROJECT['project']['requires-python']}" in text_of("environment.yml")


def test_the_version_is_written_twice_and_the_same():
    import srlib

    assert srlib.__version__ == PROJECT["project"]["version"]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_srlib_is_quick():
    """Processor time, not the clock's: other tests run beside this one."""
    code = "import time; t = time.process_time(); import srlib; print(time.process_time() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.5


HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "papermill",
    "seaborn",
    "matplotlib",
    "wandb",
    "unsloth",
    "sklearn",
)
MODULES = sorted(path.stem for path in (ROOT / "srlib").glob("*.py") if path.stem != "__init__")


def test_importing_any_module_loads_nothing_heavy():
    code = (
        f"import sys, importlib\nfor name in {MODULES}: importlib.import_module('srlib.' + name)\nprint(*sys.modules)"
    )
    loaded = {name.split(".")[0] for name in run_python(code).split()}
    assert "srlib" in loaded
    assert not loaded & set(HEAVY)
