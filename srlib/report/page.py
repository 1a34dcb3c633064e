"""report.html of a run: its executed notebooks 06 and 07 without their code, as one file that opens offline.

What models and data wrote is hostile: nothing of it becomes markup that loads, runs or styles anything, and a content
policy forbids scripts and requests on top. Light on paper and screen.
"""

import html
import re
from pathlib import Path

from srlib import files

TAGS = "a b blockquote br code div em h1 h2 h3 h4 hr i li ol p pre span strong sub sup table tbody td th thead tr ul".split()
ATTRIBUTES = {"*": ["class"], "a": ["href", "title"], "td": ["colspan", "rowspan"], "th": ["colspan", "rowspan"]}
SHOWN = {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg", "image/svg+xml"}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{ margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 64rem; font: 16px/1.55 system-ui, sans-serif; color: #222 }}
p, li {{ max-width: 46rem }} img {{ max-width: 100% }} pre {{ overflow-x: auto; font-size: .85rem; white-space: pre-wrap }}
div {{ overflow-x: auto }} a {{ color: #0173b2 }} .small {{ color: #6b6b6b; font-size: .85rem }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }}
th, td {{ padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #e3e3e3 }} tbody th {{ text-align: left }}
@media print {{ img, tr {{ break-inside: avoid }} }}
</style></head><body>
<h1>{title}</h1>
<p class="small">The executed notebooks: {links}</p>
{body}
</body></html>
"""


def write_report(run: Path) -> Path:
    """Write <run>/report.html from the executed notebooks; it stays as it is if it is newer than they are."""
    paths = [run / "notebooks" / f"{stage}.ipynb" for stage in ("eval", "diagnose")]
    paths, report = [path for path in paths if path.exists()], run / "report.html"
    if report.exists() and all(report.stat().st_mtime >= path.stat().st_mtime for path in paths):
        return report
    names = sorted(path.name for path in (run / "notebooks").glob("*.ipynb"))
    links = ", ".join(f'<a href="notebooks/{html.escape(name)}">{html.escape(name)}</a>' for name in names)
    body = "".join(_rendered(path) for path in paths)
    files.write_text(report, PAGE.format(title=html.escape(run.resolve().name), links=links, body=body))
    return report


def _rendered(path: Path) -> str:
    """A notebook as HTML without code, warnings, metadata, attachments and outputs that are no text, table or figure."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {}
    for i, cell in enumerate(notebook.cells):
        cell.update(metadata={}, id=f"cell-{i}", attachments={})
        cell.outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in cell.outputs:
            output.update(metadata={}, data={k: v for k, v in output.get("data", {}).items() if k in SHOWN})
    hidden = {"exclude_input": True, "exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="basic", sanitize_html=True, **hidden)
    exporter.register_filter("clean_html", clean)
    return exporter.from_notebook_node(notebook)[0]


def clean(text: object) -> str:
    """Markup with harmless tags only; all others are shown as text."""
    import bleach

    text = re.sub(r"(?is)<style\b.*?</style>", "", str(text))  # what pandas puts before a table
    return bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES)
