"""report.html of a run: its outcome in one sentence, the arms, ten judgments, and the executed notebooks 06 and 07 without
their code, as one file that opens offline; beside it judgments.html, to search.
Text from models and data is untrusted: it is cleaned, and a content policy also forbids scripts and requests."""

import contextlib
import hashlib
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srlib import config, files
from srlib.evaluate.arms import CEILING, arm
from srlib.hardware import shapes
from srlib.report import browse, tables
from srlib.report.card import shown
from srlib.run import stages
from srlib.stats import comparison

TAGS = "a b br caption code div em h1 h2 h3 h4 hr i li ol p pre span strong table tbody td th thead tr ul".split()
ATTRIBUTES = {"*": ["class"], "a": ["href", "title"], "td": ["colspan", "rowspan"], "th": ["colspan", "rowspan"]}
SHOWN = {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg", "image/svg+xml"}
SCROLLS = r'<div class="scroll" tabindex="0" role="region" aria-label="table or figure">\g<0></div>'


def write_report(run: Path) -> Path:
    """Write report.html and judgments.html of a run; if they are newer than its results, they stay as they are."""
    notebooks, report = sorted((run / "notebooks").glob("*.ipynb")), run / "report.html"
    made = [*notebooks, *run.glob("results.json")]
    if not report.exists() or any(path.stat().st_mtime > report.stat().st_mtime for path in made):
        current = [p for p in notebooks[::-1] if p.stem in ("eval", "diagnose") and not stages.outdated(run, p.stem)]
        body = "".join(map(_rendered, current))
        body, head = re.sub(r"(?s)<table\b.*?</table>|<img\b[^>]*>", SCROLLS, body), None
        if (run / "params.yaml").exists() and (view := browse.judgments(run, cfg := config.load(run / "params.yaml"))):
            browse.write_viewer(run / "judgments.html", view)
            head = _head(run, cfg, view)
        names = dict(title=run.resolve().name, notebooks=[path.name for path in notebooks])
        files.write_text(report, browse.page("report.html", body=body, head=head, **names))
    return report


def _head(run: Path, cfg: config.Parameters, view: Mapping[str, Any]) -> dict[str, Any]:
    """What the first screen of report.html says: the last judge against the others, item by item, and where it comes from."""
    names, items, root = [of["name"] for of in view["arms"]], view["items"], config.project_root()
    chain = [name for name in names if arm(name).plain and (name == "sft" or arm(name).iteration)]
    last, right = [*names, *chain][-1], {name: [row["judged"][name]["right"] for row in items] for name in names}
    pairs = [(last, "sft"), (last, "base"), (CEILING, "sft"), ("base", "sft")]
    pairs = [pair for pair in pairs if right.keys() >= {*pair} and pair[0] != pair[1]]
    better = {(a, b): comparison.paired_difference(right[a], right[b], group=view["groups"]) for a, b in pairs}
    commit, describe = "unknown, no git repository", ["describe", "--always", "--dirty=, with changes", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(["git", "-C", str(root), *describe], capture_output=True, text=True, check=True)
        commit = told.stdout.strip()
    facts = dict(cfg=cfg, model=shown(cfg.model), size="", commit=commit, path=files.relative(run, root))
    facts |= {n: stages.manifest(run / n) for n in ("data", "eval", "judges/sft")} | dict(source=shown(cfg.data))
    rows = {(row["arm"], row["split"], row["metric"]): row for row in tables.load(run)}
    main = [of for of in view["arms"] if of["name"] in ("base", "sft", last, CEILING)]
    ten = sorted(items, key=lambda row: hashlib.sha256(row["id"].encode()).digest())[:10]  # a sample that nobody picked
    with contextlib.suppress(shapes.ShapeError):
        facts["size"] = f", {shapes.of_model(cfg.model, root).parameters / 1e6:,.1f} M parameters"
    facts |= dict(last=last, rounds=arm(last).iteration, ceiling=CEILING, better=better, rows=rows, main=main, ten=ten)
    return view | facts


def _rendered(path: Path) -> str:
    """A notebook as HTML without code, warnings, metadata, attachments, and outputs that are no text, table or figure."""
    import nbformat
    from nbconvert import HTMLExporter

    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError):  # a full disk, or a kill while it was saved
        return f"<p>{path.name} cannot be read: it was not saved to its end.</p>"
    notebook.metadata.clear()
    for i, cell in enumerate(notebook.cells):
        outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        outputs = [] if "open_stage(" in cell.source else outputs  # why it ran says nothing of the result
        for output in outputs:
            output.update(metadata={}, data={k: v for k, v in output.get("data", {}).items() if k in SHOWN})
        outputs = [output for output in outputs if output.data or output.output_type in ("stream", "error")]
        cell.update(metadata={}, id=f"cell-{i}", attachments={}, outputs=outputs)
    exporter = HTMLExporter(template_name="basic", sanitize_html=True, exclude_input=True, exclude_output_prompt=True)
    exporter.register_filter("clean_html", clean)
    exporter.log.setLevel("ERROR")  # it warns of figures without a description
    html, _ = exporter.from_notebook_node(notebook)
    said = f'"Figure of {path.stem}, described by the text above it"'
    return html.replace('"No description has been provided for this image"', said)


def clean(text: object) -> str:
    """Markup with harmless tags only; images and the styles of pandas go, all others are shown as text."""
    import bleach

    cleaned = bleach.clean(re.sub(r"(?is)<style\b.*?</style>|<img\b[^>]*>", "", str(text)), TAGS, ATTRIBUTES)
    return re.sub(r"<a\b[^>]*>\s*</a>", "", cleaned)  # what is left of a badge
