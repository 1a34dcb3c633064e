"""report.html of a run: its executed notebooks 06 and 07 without their code, as one file that opens offline.
What models and data wrote is hostile: it is cleaned, and a content policy forbids scripts and requests on top."""

import html
import re
from pathlib import Path

from srlib import files

TAGS = "a b br code div em h1 h2 h3 h4 hr i li ol p pre span strong table tbody td th thead tr ul".split()
ATTRIBUTES = {"*": ["class"], "a": ["href", "title"], "td": ["colspan", "rowspan"], "th": ["colspan", "rowspan"]}
SHOWN = {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg", "image/svg+xml"}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{ margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 64rem; font: 16px/1.55 system-ui, sans-serif; color: #222 }}
p, li {{ max-width: 46rem }} img {{ max-width: 100% }} pre {{ font-size: .85rem; white-space: pre-wrap }}
div {{ overflow-x: auto }} .anchor-link {{ display: none }} table {{ border-collapse: collapse; font-size: .92rem }}
th, td {{ padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #e3e3e3 }} tbody th {{ text-align: left }}
</style></head><body><h1>{title}</h1><p>Executed notebooks: {links}</p>
{body}
</body></html>
"""


def write_report(run: Path) -> Path:
    """Write <run>/report.html from the executed notebooks; if it is newer than they are, it stays as it is."""
    notebooks, report = sorted((run / "notebooks").glob("*.ipynb")), run / "report.html"
    if not report.exists() or any(path.stat().st_mtime > report.stat().st_mtime for path in notebooks):
        links = ", ".join(f'<a href="notebooks/{name}">{name}</a>' for name in (html.escape(p.name) for p in notebooks))
        body = "".join(_rendered(path) for path in reversed(notebooks) if path.stem in ("eval", "diagnose"))
        files.write_text(report, PAGE.format(title=html.escape(run.resolve().name), links=links, body=body))
    return report


def _rendered(path: Path) -> str:
    """A notebook as HTML without code, warnings, metadata, attachments, and outputs that are no text, table or figure."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.clear()
    for i, cell in enumerate(notebook.cells):
        outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in outputs:
            output.update(metadata={}, data={k: v for k, v in output.get("data", {}).items() if k in SHOWN})
        outputs = [output for output in outputs if output.data or output.output_type in ("stream", "error")]
        cell.update(metadata={}, id=f"cell-{i}", attachments={}, outputs=outputs)
    exporter = HTMLExporter(template_name="basic", sanitize_html=True, exclude_input=True, exclude_output_prompt=True)
    exporter.register_filter("clean_html", clean)
    exporter.log.setLevel("ERROR")  # it warns of figures without a description
    return exporter.from_notebook_node(notebook)[0]


def clean(text: object) -> str:
    """Markup with harmless tags only; images and the styles of pandas go, all others are shown as text."""
    import bleach

    return bleach.clean(re.sub(r"(?is)<style\b.*?</style>|<img\b[^>]*>", "", str(text)), TAGS, ATTRIBUTES)
