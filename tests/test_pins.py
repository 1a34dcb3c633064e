"""pyproject.toml is the one place of versions, and holds those that are installed; importing srlib is cheap."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import srlib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LISTS = [PROJECT["project"]["dependencies"], *EXTRAS.values(), *PROJECT["dependency-groups"].values()]
REQUIREMENTS = [Requirement(text) for texts in LISTS for text in texts]


def test_every_requirement_is_pinned_once_and_installed_as_pinned():
    assert len({requirement.name for requirement in REQUIREMENTS}) == len(REQUIREMENTS)
    installed = {dist.name.lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    for requirement in REQUIREMENTS:
        assert re.match(r"==|>=.*,<|<.*,>=", str(requirement.specifier)), requirement
        version = installed.get(requirement.name.lower().replace("_", "-"))
        assert version is None or requirement.specifier.contains(version.split("+")[0], prereleases=True), requirement
    missing = {r.name for r in map(Requirement, [*LISTS[0], *EXTRAS["dev"]])} - installed.keys()
    assert not missing
    assert sys.version.split()[0] in Requirement("python" + PROJECT["project"]["requires-python"]).specifier
    assert srlib.__version__ == PROJECT["project"]["version"]


def test_other_files_name_extras_and_no_version():
    names = "|".join(re.escape(requirement.name).replace("_", "[-_]") for requirement in REQUIREMENTS)
    for name in ("environment.yml", "Makefile", "README.md"):
        text = (ROOT / name).read_text()
        assert not re.search(rf"(?i)(?<![\w/.-])(?:{names})(?:\[[\w,]*\])?(?:\s*[=~!<>@]+| v?)\s*\d", text), name
        extras = re.findall(r"(?:\.|\bsrlib)\[([\w, -]+)\]|(?m:^EXTRAS := (.+)$)", text)
        assert {extra.strip() for found in extras for extra in "".join(found).split(",")} <= EXTRAS.keys(), name
    [pip] = [
        d["pip"] for d in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"] if isinstance(d, dict)
    ]
    assert f"EXTRAS := {pip[0].removeprefix('-e .[').removesuffix(']')}\n" in (ROOT / "Makefile").read_text()


def test_importing_srlib_loads_nothing_heavy():
    folders = [f"data.{path.stem}" for path in (ROOT / "srlib" / "data").glob("[a-z]*.py")]
    code = f"""import importlib, sys, time
start = time.process_time()
import srlib
print(time.process_time() - start)
for name in {["schema", "prompts", "config", "files", "curate", "cli", "stats", *folders]}:
    importlib.import_module(f"srlib.{{name}}")
print(*sys.modules)"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    seconds, loaded = out.splitlines()
    assert float(seconds) < 0.5  # processor time: other tests run beside this one
    heavy = set("torch transformers trl peft datasets papermill seaborn matplotlib pandas wandb unsloth".split())
    assert not heavy & {name.split(".")[0] for name in loaded.split()}
