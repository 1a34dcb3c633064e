"""pyproject.toml is the one place of versions, and holds those that are installed; importing srlib is cheap."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import srlib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LISTS = [PROJECT["project"]["dependencies"], EXTRAS["dev"], *EXTRAS.values(), *PROJECT["dependency-groups"].values()]
REQUIREMENTS = {Requirement(text).name: Requirement(text) for texts in LISTS for text in texts}


def test_every_requirement_is_pinned_once_and_installed_as_pinned():
    assert len(REQUIREMENTS) == sum(map(len, LISTS)) - len(EXTRAS["dev"])
    installed = {dist.name.lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    for name, requirement in REQUIREMENTS.items():
        assert re.match(r"==|>=.*,<|<.*,>=", str(requirement.specifier)), requirement
        version = installed.get(name.lower().replace("_", "-"))
        assert version is None or requirement.specifier.contains(version.split("+")[0], prereleases=True), requirement
    assert not {Requirement(text).name for text in LISTS[0] + LISTS[1]} - installed.keys()
    assert sys.version.split()[0] in Requirement("python" + PROJECT["project"]["requires-python"]).specifier
    assert srlib.__version__ == PROJECT["project"]["version"]


def test_the_lock_holds_the_pins_with_hashes_and_no_index():
    text = (ROOT / "requirements.lock").read_text()
    locked = re.findall(r"^([\w.-]+)==(\S+)[^\n]*\\\n +--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(locked) == len(re.findall(r"^[a-z]", text, re.MULTILINE)), "a package without a hash"
    assert "://" not in text
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(t for e in ("train", "notebooks", "lab", "dev") for t in EXTRAS[e]),
    ]
    for requirement in map(Requirement, wanted):
        version = dict(locked).get(requirement.name, "none" if requirement.name != "torch" else "2.13.0")
        assert version in requirement.specifier, f"{requirement.name}: run `make lock`"


def test_other_files_name_extras_and_no_version():
    names = "|".join(re.escape(name).replace("_", "[-_]") for name in REQUIREMENTS)
    texts = {name: (ROOT / name).read_text() for name in ("environment.yml", "Makefile", "README.md")}
    for name, text in texts.items():
        assert not re.search(rf"(?i)(?<![\w/.-])(?:{names})(?:\[[\w,]*\])?(?:\s*[=~!<>@]+| v?)\s*\d", text), name
    [extras] = re.findall(r"^EXTRAS := (.+)$", texts["Makefile"], re.MULTILINE)
    assert set(extras.split(",")) <= EXTRAS.keys()
    assert f"-e .[{extras}]\n" in texts["environment.yml"]


def test_importing_srlib_loads_nothing_heavy():
    names = ["schema", "prompts", "config", "files", "curate", "cli", "stats"]
    names += [f"data.{path.stem}" for path in (ROOT / "srlib" / "data").glob("[a-z]*.py")]
    code = "\n".join(["import sys", *(f"import srlib.{name}" for name in names), "print(*sys.modules)"])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    [loaded] = out.splitlines()
    heavy = {
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "papermill",
        "pandas",
        "matplotlib",
        "wandb",
        "ray",
        "unsloth",
    }
    assert not heavy & {name.split(".")[0] for name in loaded.split()}


def test_the_repository_is_named_alike_and_every_file_of_the_package_is_shipped():
    url, citation = PROJECT["project"]["urls"]["Repository"], (ROOT / "CITATION.cff").read_text()
    assert f'"{url}"' in citation
    assert f"version: {srlib.__version__}\n" in citation
    assert url in (ROOT / "CONTRIBUTING.md").read_text()
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["srlib"]
    data = [
        path.relative_to(ROOT / "srlib") for path in (ROOT / "srlib").rglob("*.*") if path.suffix not in (".py", ".pyc")
    ]
    assert {path.suffix for path in data} >= {".yaml", ".md", ".html", ".css", ".js"}
    assert [path for path in data if not any(path.match(pattern) for pattern in patterns)] == []


def test_a_wheel_is_whole_and_outside_of_a_clone_it_says_what_to_clone(tmp_path):
    pytest.importorskip("setuptools")
    shutil.copytree(ROOT / "srlib", (source := tmp_path / "source") / "srlib")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-c", "from setuptools.build_meta import build_wheel; build_wheel('..')"]
    subprocess.run(build, cwd=source, capture_output=True, check=True)
    [wheel] = tmp_path.glob("srlib-*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    shipped = {path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*.*")}
    assert {path.relative_to(ROOT) for path in (ROOT / "srlib").rglob("*.*") if path.suffix != ".pyc"} <= shipped
    (tmp_path / "tiny.yaml").write_text("seed: 1\n")
    where = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path / "site")}}
    code = "from srlib.cli import app; app()"
    ended = subprocess.run([sys.executable, "-c", code, "run", "tiny.yaml"], capture_output=True, text=True, **where)
    assert ended.returncode == 2, ended.stderr
    assert f"`git clone {PROJECT['project']['urls']['Repository']}`" in ended.stderr
