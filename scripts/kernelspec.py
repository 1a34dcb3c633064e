"""Give notebooks the kernel that they are committed with; JupyterLab writes the one that it used: kernelspec.py NOTEBOOK..."""

import json
import sys
from pathlib import Path

KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

for path in map(Path, sys.argv[1:]):
    notebook = json.loads(path.read_text("utf-8"))
    notebook["metadata"] |= KERNEL
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
