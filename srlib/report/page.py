"""One HTML file, by itself: sections of figures with a sentence each, tables, the executed notebooks beside it.

No scripts, and a content policy that allows none; nothing is requested from anywhere. Text that a model or a data file
wrote is escaped wherever it stands. Light and dark follow the reader's system, and it prints.

    text = page("tiny", [section("Is it better?", [Part("Accuracy", figure, "sre_2 is right on 62 %.")])])
    save(Path("report.html"), text)
"""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from srlib.report import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Part(NamedTuple):
    """A figure under its title, and what it shows in one sentence, computed from the same numbers."""

    title: str
    figure: Figure
    reading: str = ""


def page(title: str, body: Sequence[str]) -> str:
    return PAGE.format(title=escape(title), css=CSS, body="\n".join(body))


def section(question: str, parts: Sequence[Part]) -> str:
    shown = []
    for part in parts:
        reading = f"<p class=reading>{escape(part.reading)}</p>" if part.reading else ""
        shown.append(f"<h3>{escape(part.title)}</h3>{reading}<figure>{svg(part.figure, part.title)}</figure>")
    return f"<section><h2>{escape(question)}</h2>{''.join(shown)}</section>"


def table(header: Sequence[str], lines: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """`lines` are (class, HTML of the row's head, HTML of its cells with their tags); what they hold is escaped already."""
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    rows = "\n".join(
        f"<tr{f' class={kind}' if kind else ''}><th>{name}</th>{''.join(cells)}</tr>" for kind, name, cells in lines
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"


def links(run_dir: Path) -> str:
    """The executed notebooks of a run, linked, and rendered to HTML where nbconvert is installed."""
    items = []
    for path in sorted((run_dir / "notebooks").glob("*.ipynb"), key=_stage):
        name, url = escape(path.stem), f"notebooks/{quote(path.stem)}"
        link = f'<a href="{url}.html">{name}</a> ' if rendered(path) else f"{name} "
        items.append(f'<li>{link}<a class=small href="{url}.ipynb">.ipynb</a></li>')
    return f"<section><h2>Executed notebooks</h2><ul>{''.join(items)}</ul></section>" if items else ""


def _stage(path: Path) -> tuple[int, int, int, str]:
    """data, sft, then sample, curate, dpo of each iteration, then eval."""
    phases = {"data": (0, 0), "sft": (0, 1), "sample": (1, 0), "curate": (1, 1), "dpo": (1, 2), "eval": (2, 0)}
    name = re.sub(r"^\d+_", "", path.stem)
    iteration = re.search(r"_(\d+)$", name)
    phase, place = phases.get(name.split("_")[0], (3, 0))
    return phase, int(iteration[1]) if iteration else 0, place, path.stem


def rendered(notebook: Path) -> bool:
    """<stage>.html beside <stage>.ipynb, sanitized and without scripts; False where nbconvert is not installed."""
    target = notebook.with_suffix(".html")
    if target.exists() and target.stat().st_mtime >= notebook.stat().st_mtime:
        return True
    try:
        import bleach
        from nbconvert import HTMLExporter
    except ImportError:
        return False

    def clean(text: str) -> str:  # nbconvert's own cleaning would escape headings and table heads
        text = re.sub(r"<style\b.*?</style>", "", str(text), flags=re.DOTALL | re.IGNORECASE)  # what pandas adds
        return bleach.clean(text, tags=HARMLESS, attributes={"*": ["class", "id"], "a": ["href", "title"]})

    exporter = HTMLExporter(sanitize_html=True)
    exporter.register_filter("clean_html", clean)
    page, _ = exporter.from_filename(str(notebook))
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL | re.IGNORECASE)  # the template's own
    save(target, page.replace("<head>", f"<head>{POLICY}", 1))
    return True


def svg(figure: Figure, title: str) -> str:
    """A figure as inline SVG whose ink and grid follow the reader's light or dark."""
    import matplotlib

    buffer, nothing = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    same = [
        text for text in figure.findobj(matplotlib.text.Text) if text.get_text() == title
    ]  # the heading says it already
    with matplotlib.rc_context(
        {"svg.fonttype": "path", "svg.hashsalt": title}
    ):  # the salt: ids that no other figure has
        for text in same:
            text.set_visible(False)
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        for text in same:
            text.set_visible(True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(canvas.INK, "currentColor").replace(canvas.GRID, "var(--grid)")
    width = round(figure.get_figwidth() * 100)
    size = f'style="width:100%;max-width:{width}px;min-width:{min(width, max(440, round(width * 0.7)))}px"'
    tag = re.sub(r'\s(width|height)="[^"]*"', "", svg[: svg.index(">")])
    return f'{tag} {size} role="img" aria-label="{escape(title)}"{svg[svg.index(">") :]}'


def escape(text: object) -> str:
    """Text as text, wherever in the page it stands."""
    return html.escape(str(text), quote=True)


def save(path: Path, text: str) -> Path:
    """All of it or nothing."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # two processes may render one page
    part.write_text(text, "utf-8")
    os.replace(part, path)
    return path


HARMLESS = [
    "a", "b", "blockquote", "br", "code", "div", "em", "h1", "h2", "h3", "h4", "hr", "i", "li", "ol", "p", "pre",
    "span", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
]  # fmt: skip
POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:\">"
)
CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --soft: #6b6b6b; --grid: #e3e3e3;
  --tint: #0173b212; --link: #0173b2 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e6e6e6; --soft: #9a9a9a; --grid: #34383d; --tint: #56b4e91c; --link: #56b4e9 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem }
p { max-width: 46rem }
.lead { font-size: 1.1rem; margin: .4rem 0 0 }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; font-weight: 600 }
.reading { margin: 0 0 .5rem }
.alarm { border-left: 3px solid #d55e00; padding-left: .7rem }
.small, small { color: var(--soft); font-size: .8rem }
.scroll, figure { overflow-x: auto; margin: 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .38rem .8rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--grid) }
thead th { color: var(--soft); font-weight: 500 }
tr > :first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--paper) }
tbody th { font-weight: 500 }
td small, th small { display: block; font-weight: 400; font-size: .74rem }
th small { white-space: normal; max-width: 16rem; line-height: 1.3 }
.ours td { background: var(--tint) }
a { color: var(--link) }
pre { overflow-x: auto; font-size: .85rem }
ul { padding-left: 1.1rem }
details { margin-top: 2.4rem }
summary { cursor: pointer; font-weight: 600 }
@media print { body { max-width: none; padding: 0 } section, figure, tr { break-inside: avoid } .scroll { overflow: visible }
  th, td { padding: .25rem .4rem; font-size: .8rem } }
@media (max-width: 40rem) { th small { display: none } th, td { padding: .38rem .5rem } }
"""
PAGE = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    + POLICY
    + '\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
    + "<style>{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
)
