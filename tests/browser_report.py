"""report.html and judgments.html in a real browser: what a reader meets at both widths, in both themes, with the keyboard alone.

Not collected by `make test`; `make test-browser` runs it. Screenshots go to the directory in SRLIB_SCREENSHOTS, if set.
"""

import os
import shutil
from pathlib import Path

import pytest
from annotated import HOSTILE, write_reported

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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    write_reported(run := tmp_path_factory.mktemp("runs") / "tiny", 30)
    write_report(run)
    return run


@pytest.fixture
def browser(tmp_path):
    with sync_api.sync_playwright() as playwright:
        yield (browser := playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]))
        browser.close()


def opened(browser, path, width=1600, theme="light"):
    """A page that keeps the addresses it asked for and the errors of its script."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme).new_page()
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    if folder := os.environ.get("SRLIB_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{path.stem}-{theme}-{width}.png", full_page=True)
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", ["report.html", "judgments.html"])
def test_a_page_fits_is_readable_and_asks_for_nothing(run, browser, name, width, theme):
    page = opened(browser, run / name, width, theme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself must not scroll sideways"
    assert page.evaluate(CONTRAST) == []
    assert page.asked == [(run / name).as_uri()]
    assert page.errors == []
    assert page.evaluate("window.hacked") is None, "texts of models are shown, not run"
    assert HOSTILE[:30] in page.inner_text("main")
    assert page.locator("img[src=x]").count() == 0
    if name == "report.html" and width == 400:
        hint = "getComputedStyle(document.querySelector('.scroll:last-of-type'), '::before')"
        assert page.evaluate(f"{hint}.opacity") == "1", "a table that is wider than the page says that it scrolls"


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
