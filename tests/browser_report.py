"""report.html and judgments.html in a real browser: what a reader meets at both widths, in both themes, with the keyboard alone.
Texts of models and data are hostile in every field, here and in the rendered notebook and model card: nothing of them runs.

Not collected by `make test`; `make test-browser` runs it. Screenshots go to the directory in SRLIB_SCREENSHOTS, if set.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from annotated import HOSTILE, NOTEBOOKS, write_reported

from srlib import config, files
from srlib.report.browse import marked
from srlib.report.page import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]' (make test-browser does)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
# WCAG 2.1 contrast of every visible text against the nearest opaque background behind it
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), weak = [];
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !e.checkVisibility() || /SCRIPT|STYLE|OPTION/.test(e.tagName)) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) weak.push([ratio.toFixed(2), texts.currentNode.data.trim().slice(0, 40)]);
  }
  return weak;
}"""

# Where each character of a word of ours stands, from left to right
PLACES = """(element, word) => {
  const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), range = document.createRange();
  for (let found = null; texts.nextNode();) {
    const at = texts.currentNode.data.lastIndexOf(word);
    if (at < 0) continue;
    return [...word].map((_, i) => { range.setStart(texts.currentNode, at + i); range.setEnd(texts.currentNode, at + i + 1);
      return range.getBoundingClientRect().left; });
  }
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    write_reported(run := tmp_path_factory.mktemp("runs") / "tiny", 30, also=HOSTILE)
    write_report(run)
    return run


@pytest.fixture
def browser(tmp_path):
    with sync_api.sync_playwright() as playwright:
        yield (browser := playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]))
        browser.close()


def opened(browser, path, width=1600, theme="light"):
    """A page that keeps the addresses it asked for, its dialogs and the errors of its script."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme).new_page()
    page.asked, page.errors, page.dialogs = [], [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    if folder := os.environ.get("SRLIB_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{path.stem}-{theme}-{width}.png", full_page=True)
    return page


def assert_inert(page, address):
    """The texts are there, and nothing of them was run, asked for or made part of the page."""
    for link in page.locator("a").all():
        link.dispatch_event("mouseover")
    assert HOSTILE[:30] in page.inner_text("main")
    assert page.asked == [address]
    assert page.dialogs == []
    assert page.evaluate("window.hacked") is None, "texts of models are shown, not run"
    assert (
        page.locator(
            "main :is(script, iframe, base, link, meta, svg, style, [onload], [onerror], [onmouseover])"
        ).count()
        == 0
    )
    assert page.locator("[src*=evil], [href*=evil], [style*=evil], a[href^=javascript], img[src=x]").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", ["report.html", "judgments.html"])
def test_a_page_fits_is_readable_and_asks_for_nothing(run, browser, name, width, theme):
    page = opened(browser, run / name, width, theme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself must not scroll sideways"
    assert page.evaluate(CONTRAST) == []
    assert page.errors == []
    assert_inert(page, (run / name).as_uri())
    ours = page.locator("summary" if name == "report.html" else "section > .label").first
    assert HOSTILE[:30] in ours.inner_text(), "the id of an item"
    assert ours.evaluate(PLACES, "gold") == sorted(ours.evaluate(PLACES, "gold")), "no override reaches our own words"
    if name == "report.html":
        assert page.locator("caption").inner_text() == "What it holds"
        assert "<caption" not in page.inner_text("main")
        assert page.locator("main .scroll > img").bounding_box()["height"] > 50
    if name == "report.html" and width == 400:
        for one in ("table", "img"):
            last = f"[...document.querySelectorAll('.scroll:has({one})')].at(-1)"
            hint = f"getComputedStyle({last}, '::before')"
            assert page.evaluate(f"{hint}.opacity") == "1", f"a {one} that is wider than the page says that it scrolls"


def test_the_first_judgment_is_one_click_away(run, browser):
    page = opened(browser, run / "report.html")
    assert page.locator("details[open] .says").count() == 2
    page.get_by_text("All judgments, to search and filter").click()
    assert page.url.split("#")[0] == (run / "judgments.html").as_uri()
    assert page.locator(".item").first.locator(".says").count() == 3


def test_judgments_are_searched_and_filtered_with_the_keyboard(run, browser):
    page = opened(browser, run / "judgments.html")
    hits = page.locator("#hits")
    assert hits.inner_text() == "30 of 30 test items"
    assert page.locator(".item").count() == 20
    page.locator("#more").press("Enter")
    assert page.locator(".item").count() == 30
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type("guest 17")
    assert hits.inner_text() == "1 of 30 test items"
    page.locator("button[type=reset]").press("Enter")
    page.wait_for_function("document.getElementById('hits').textContent.startsWith('30 of')")
    page.locator("[name=arm]").select_option("sre_2")
    page.locator("[name=outcome]").select_option("wrong")
    assert hits.inner_text() == "0 of 30 test items"
    page.locator("[name=arm]").select_option("sft")
    page.locator("[name=score]").select_option("3")
    assert hits.inner_text() == "30 of 30 test items"
    assert "arm=sft" in page.url, "a view can be sent as a link"
    page.locator("input[value=sre_1]").uncheck()
    assert page.locator(".item").first.locator(".says").count() == 2
    page.goto(f"{(run / 'judgments.html').as_uri()}#view=pairs")
    page.reload()
    assert hits.inner_text() == "1 of 1 pairs (1 in the run)"
    assert page.locator(".chosen mark").all_inner_texts() == ["pass.", "4"]
    assert page.locator(".rejected mark").all_inner_texts() == ["fail.", "1"]


def test_every_control_is_reached_with_tab_and_seen(run, browser):
    page, reached = opened(browser, run / "report.html"), set()
    for _ in range(40):
        page.keyboard.press("Tab")
        focus = "(() => { const e = document.activeElement; return [e.tagName, getComputedStyle(e).outlineStyle] })()"
        tag, outline = page.evaluate(focus)
        reached.add(tag)
        assert tag == "BODY" or outline != "none", f"{tag} does not show that it has the focus"
    assert reached >= {"A", "SUMMARY", "DIV"}


def page_of(body, path):
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><main>{body}</main>")
    return path


def test_a_notebook_shows_texts_of_models_as_text(browser, tmp_path):
    """Its outputs as they are, without the cleaning of the report: pairs in notebook 05, a data frame, printed text."""
    import pandas
    from IPython.core.interactiveshell import InteractiveShell
    from nbconvert import HTMLExporter
    from nbformat import v4

    cells = json.loads((NOTEBOOKS / "05_dpo.ipynb").read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {"rows": [{"chosen": f"One. {HOSTILE}", "rejected": f"{HOSTILE} Two."}], "marked": marked}
    exec(next(code for code in codes if "import" in code and "HTML" in code), names)
    [code] = [code for code in codes if code.endswith("HTML(shown)")]
    exec(code, names)
    frame = pandas.DataFrame({"text": [HOSTILE], HOSTILE: [1]}, index=[HOSTILE])
    formatted = [
        InteractiveShell.instance().display_formatter.format(one) for one in (names["HTML"](names["shown"]), frame)
    ]
    outputs = [v4.new_output("display_data", data) for data, _ in formatted]
    assert all("text/html" in output.data for output in outputs)
    outputs += [
        v4.new_output("stream", text=HOSTILE),
        v4.new_output("error", ename="E", evalue=HOSTILE, traceback=[HOSTILE]),
    ]
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(
        v4.new_notebook(cells=[v4.new_code_cell("", outputs=outputs)])
    )
    body = re.sub(r"(?s)<style scoped.*?</style>", "", body)  # that of pandas
    page = opened(browser, path := page_of(body, tmp_path / "notebook.html"))
    assert_inert(page, path.as_uri())


def test_a_model_card_is_text(run, browser, tmp_path):
    """As a strict reader of Markdown would show it, with all HTML in it."""
    markdown_it = pytest.importorskip("markdown_it")
    from srlib.report import card, export

    rows = [dict(arm="sre_1", split="test", metric="accuracy", value=0.6, ci_low=0.5, ci_high=0.7, n=9)]
    files.write_json((folder := tmp_path / "run") / "results.json", rows)
    cfg = config.load(None).model_copy(
        update={"data": HOSTILE, "model": HOSTILE, "rubric": HOSTILE, "strategy": HOSTILE}
    )
    text = str(card.card(folder, cfg, {"base": HOSTILE}, "merged", export.Gate(9, 9, 0.0, 0.1, [])))
    body = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("---", 2)[2])
    page = opened(browser, path := page_of(body, tmp_path / "card.html"))
    assert_inert(page, path.as_uri())
