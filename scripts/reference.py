"""Render the executed notebooks of a run as markdown with plots, for docs/reference/.

python scripts/reference.py runs/notes docs/reference
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from srlib import config, files

STAGES = ("data", "sft", "sample_1", "curate_1", "dpo_1", "eval")  # one of each notebook


def render(notebook: Path, out: Path) -> None:
    """One page: title, what was run and how to read it, the first figure, then the cells; no setup cell, no warnings."""
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    cells = nbformat.read(notebook, as_version=4)
    cells.cells = [cell for cell in cells.cells if "setup" not in cell.metadata.get("tags", [])]
    for cell in [cell for cell in cells.cells if cell.cell_type == "code"]:
        cell.metadata.tags = ["folded"] * ("jupyter" in cell.metadata)
        cell.outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    names = {"output_files_dir": notebook.stem, "unique_key": notebook.stem}
    folded = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"folded"}}})
    text, resources = MarkdownExporter(config=folded).from_notebook_node(cells, resources=names)
    run = notebook.parent.parent
    date = files.read_json(run / "eval" / "manifest.json")["created"][:10]
    seed = config.load(run / "params.yaml").seed
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h"], capture_output=True, text=True, check=True
    ).stdout.strip()
    read = f"Executed by `srlib run params/{run.resolve().name}.yaml`, seed {seed}, {date}; rendered at commit {commit}: each cell, then its output."
    title, _, rest = text.partition("\n")
    figure = re.search(r"^!\[\w+\]\(\S+\)$", text, re.MULTILINE)
    about = f"![The first figure of {notebook.stem}]{figure[0].partition(']')[2]}" if figure else ""
    text = "\n\n".join(filter(None, [title, read, about, rest.lstrip()]))
    text = re.sub(r"(?m)^\[!\[Open in Colab\].*\n", "", text)  # of the notebook, not of its page
    text = re.sub(r"<style\b.*?</style>", "", text, flags=re.DOTALL)  # of pandas; markdown viewers show it as text
    text = re.sub(r' id="T_[^"]*"| class="(?:col|row|data|blank|level|index_name|dataframe)[^"]*"', "", text)
    folder = out / notebook.stem
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in resources["outputs"].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    (out / f"{notebook.stem}.md").write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def main() -> None:
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        render(run / "notebooks" / f"{stage}.ipynb", out)
    shutil.copy(run / "results.json", out / "results.json")


if __name__ == "__main__":
    main()
