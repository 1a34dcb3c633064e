"""Notebook 01 where `google.colab` is loaded: its first cell installs, clones, mounts Drive, and the rest runs in the clone.

Nothing here reaches a network: `%pip` only prints its line, git takes the project's URL for this checkout, and `/content` and
Drive are folders of the test. What Colab's machine itself does is not shown by this.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.torch, pytest.mark.slow]
STARTUP = """
import pathlib
import google.colab
from IPython import get_ipython
from srlib.run import colab

get_ipython().register_magic_function(lambda line: print("%pip", line.strip()), magic_name="pip")
colab.Path = lambda *parts: pathlib.Path(*(str(part).replace("/content", {content!r}) for part in parts))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """(content folder, folder in which the kernel starts) of a machine like Colab's."""
    if subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("needs a git checkout")
    content, stubs = tmp_path / "content", tmp_path / "stubs"
    (content / "drive" / "MyDrive").mkdir(parents=True)
    (stubs / "google" / "colab").mkdir(parents=True)
    (stubs / "google" / "colab" / "__init__.py").touch()
    (stubs / "google" / "colab" / "drive.py").write_text("def mount(path):\n    print('mounted', path)\n")
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "colab.py").write_text(STARTUP.format(content=str(content)))
    urls = dict(url.split(", ") for url in importlib.metadata.metadata("srlib").get_all("Project-URL"))
    for name, value in {
        "PYTHONPATH": f"{stubs}{os.pathsep}{ROOT}",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": urls["Repository"],
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",  # no nvidia-smi, wherever the test runs
    }.items():
        monkeypatch.setenv(name, value)
    return content, tmp_path


@pytest.mark.parametrize("use_drive", [False, True])
def test_notebook_01_in_colab(machine, use_drive):
    content, home = machine
    notebook = nbformat.read(ROOT / "notebooks" / "01_data.ipynb", as_version=4)
    setup = next(cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", ()))
    if use_drive:
        setup.source = setup.source.replace("colab.setup()", "colab.setup(use_drive=True)")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(home)}}).execute()
    printed = "".join(output.get("text", "") for output in setup.outputs)
    assert "%pip install --quiet" in printed, printed
    assert "srlib[train,notebooks] @ git+https://" in printed, printed
    assert "No GPU" in printed, printed
    clone = content / "self-rationalization"
    runs = content / "drive" / "MyDrive" / "srlib-runs" if use_drive else clone / "runs"
    assert (runs / "tiny" / "data" / "train.jsonl").exists()
    assert (clone / "runs").is_symlink() == use_drive
    assert ("mounted" in printed) == use_drive


def test_runs_that_are_here_are_not_left_behind(tmp_path, monkeypatch):
    from srlib.run import colab

    for folder in ("content/self-rationalization/runs", "content/drive/MyDrive"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(colab, "Path", lambda path: tmp_path / path[1:] if path.startswith("/content") else Path(path))
    monkeypatch.setitem(sys.modules, "google.colab.drive", SimpleNamespace(mount=lambda _: None))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"move what runs holds to .*srlib-runs, delete runs"):
        colab.setup(use_drive=True)
