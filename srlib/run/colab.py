"""The second cell of every notebook in Google Colab: the project, Unsloth if there is a GPU, runs on Drive."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path


def setup(use_drive: bool = False) -> None:
    """Clone the project and work inside it; with a GPU, install Unsloth. `use_drive` keeps the runs on Google Drive."""
    here, drive = Path("/content/self-rationalization"), Path("/content/drive/MyDrive")
    if not here.exists():
        urls = dict(url.split(", ") for url in importlib.metadata.metadata("srlib").get_all("Project-URL"))
        subprocess.run(["git", "clone", "--quiet", "--depth=1", urls["Repository"], here], check=True)
    os.chdir(here)
    if use_drive and not Path("runs").is_symlink():
        importlib.import_module("google.colab.drive").mount("/content/drive")
        (drive / "srlib-runs").mkdir(exist_ok=True)
        if Path("runs").exists():
            raise RuntimeError(f"move what runs holds to {drive / 'srlib-runs'}, delete runs, then run this cell again")
        Path("runs").symlink_to(drive / "srlib-runs")
    if shutil.which("nvidia-smi"):
        group = tomllib.loads(Path("pyproject.toml").read_text())["dependency-groups"]["unsloth"]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *group], check=True)
    else:
        print("No GPU: the tiny model needs none. For a larger one: Runtime > Change runtime type > T4 GPU")
