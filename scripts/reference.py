"""Render the executed notebooks of a run as markdown with plots, for docs/reference/.

python scripts/reference.py runs/tiny docs/reference
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

STAGES = ("data", "sft", "sample_1", "curate_1", "dpo_1", "eval")  # one of each notebook


def render(notebook: Path, out: Path) -> None:
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter()
    text, resources = exporter.from_filename(
        str(notebook), resources={"output_files_dir": notebook.stem, "unique_key": notebook.stem}
    )
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
