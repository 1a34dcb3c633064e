"""Notebook 08 in a real browser: JupyterLab is started, Chromium goes through ten items with keys and mouse.

Not collected by `make test`; `make test-browser` runs it. Screenshots go to the directory in SRLIB_SCREENSHOTS, if set.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from annotated import HOSTILE, write_run

from srlib import files
from srlib.annotate import Answer

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]' (make test-browser does)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
QUIET = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
PAGE = ".srlib-annotate"


def set_parameters(notebook: Path, **values: object) -> None:
    """Edit the parameters cell, as a user does."""
    cells = json.loads(notebook.read_text())
    [cell] = [cell for cell in cells["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    lines = "".join(cell["source"]).splitlines()
    for name, value in values.items():
        [at] = [i for i, line in enumerate(lines) if line.startswith(f"{name}:")]
        lines[at] = f"{lines[at].split(' = ')[0]} = {value!r}  # set by the test"
    cell["source"] = "\n".join(lines)
    notebook.write_text(json.dumps(cells))


@pytest.fixture
def lab(project, tmp_path):
    """The address of notebook 08 in a JupyterLab of its own, with a run of twelve items."""
    write_run(project / "runs" / "last")
    set_parameters(project / "notebooks" / "08_annotate.ipynb", annotator="anna", n_items=10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    announcements = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    files.write_json(tmp_path / "config" / "labconfig" / "page_config.json", announcements)
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = f"--no-browser --allow-root --port={port} --ServerApp.port_retries=0 --IdentityProvider.token=secret"
    where = [f"--ServerApp.root_dir={project}", f"--LabApp.workspaces_dir={tmp_path}/workspaces"]
    command, url = [sys.executable, "-m", "jupyterlab", *options.split(), *where], f"http://127.0.0.1:{port}"
    with open(tmp_path / "lab.log", "w") as log:
        environment = os.environ | folders | {"PYTHONPATH": str(project)}
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=project, env=environment)
    try:
        wait_for(lambda: server.poll() is not None or answers_http(f"{url}/api?token=secret"))
        assert server.poll() is None, (tmp_path / "lab.log").read_text()
        yield f"{url}/lab/tree/notebooks/08_annotate.ipynb?token=secret"
    finally:
        server.terminate()
        server.wait(30)


def answers_http(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def wait_for(condition, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.fixture
def page(tmp_path):
    with sync_api.sync_playwright() as playwright:
        viewport = {"width": 1400, "height": 1600}
        options = dict(executable_path=CHROMIUM, args=QUIET.split(), viewport=viewport)
        context = playwright.chromium.launch_persistent_context(tmp_path / "profile", **options)
        context.set_default_timeout(120_000)  # milliseconds: the machine may be busy
        page = context.new_page()
        page.dialogs, page.asked = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("dialog", lambda dialog: (page.dialogs.append(dialog.type), dialog.accept()))
        yield page
        shoot(page, "last")  # also after a failure
        context.close()


def shoot(page, name: str) -> None:
    if folder := os.environ.get("SRLIB_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def run_all(page, menu: str = "Run", entry: str = "Run All Cells") -> None:
    """As soon as the kernel is idle: a cell that is run before is silently skipped."""
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("(ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=entry, exact=True).click()


def test_ten_items_with_keys_and_mouse(project, lab, page):
    file = project / "runs" / "last" / "annotations" / "test-sre_2-sft" / "anna.jsonl"

    def rows() -> list[Answer]:
        return files.read_rows(file, Answer) if file.exists() else []

    page.goto(lab)
    run_all(page)
    frame = page.locator(PAGE)
    frame.wait_for()
    page.get_by_text("Item 1 of 10").wait_for()

    # Nothing that people or models wrote became markup.
    assert page.locator(f"{PAGE} .card .text").count() == 2
    assert HOSTILE in page.locator(f"{PAGE} .card .text").first.inner_text()
    assert page.locator(f"{PAGE} :is(script, img, style, b)").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
    frame.scroll_into_view_if_needed()
    shoot(page, "1-first-item")

    # Item 1 with the mouse: each click is on disk before the next.
    for i in range(6):
        side = ("Left", "Right")[i % 2]
        page.locator(f"{PAGE} .question").nth(i).get_by_role("button", name=side).click()
        wait_for(lambda n=i + 1: len(rows()) == n)
    page.locator(f"{PAGE} .foot").get_by_role("button", name="Next").click()
    page.get_by_text("Item 2 of 10").wait_for()
    for name, number in (("Back", 1), ("Next", 2)):  # Enter clicks the button that has the focus
        page.locator(f"{PAGE} .foot").get_by_role("button", name=name).press("Enter")
        page.get_by_text(f"Item {number} of 10").wait_for()

    # Items 2 to 4 with the keys, a slip corrected; JupyterLab takes no digit (0 0 would restart the kernel).
    frame.focus()
    for number, keys in {2: ["2", "ArrowUp", "1", *"10210"], 3: "102102", 4: "102102"}.items():
        for key in keys:
            page.keyboard.press(key)
        page.get_by_text(f"{number} done").wait_for()
        page.keyboard.press("Enter")
        page.get_by_text(f"Item {number + 1} of 10").wait_for()
    assert page.locator(".jp-Dialog").count() == 0
    assert len(rows()) == 6 + 1 + 6 + 12
    assert [(row.criterion, row.choice) for row in rows()[6:8]] == [("faithful", "right"), ("faithful", "left")]

    # A page that is reloaded, with a new kernel, goes on at item 5.
    page.reload()
    run_all(page, "Kernel", "Restart Kernel and Run All Cells…")
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.get_by_text("Item 5 of 10").wait_for()
    page.keyboard.press("Escape")
    page.locator(PAGE).focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Item 4 of 10").wait_for()
    assert [text[0] for text in page.locator(f"{PAGE} [aria-pressed=true]").all_inner_texts()] == list("102102")
    for number in range(5, 11):
        page.keyboard.press("ArrowRight")
        page.get_by_text(f"Item {number} of 10").wait_for()
        for key in "111111":
            page.keyboard.press(key)
        page.get_by_text(f"{number} done").wait_for()
    page.get_by_text("All items are done").wait_for()
    shoot(page, "2-all-done")

    # The results: hidden until now, shown on the next run.
    assert "the results are hidden until then" in page.locator(".jp-Notebook").inner_text()
    run_all(page)
    page.get_by_text("60 answers; 0 more").wait_for()
    page.locator("td", has_text="people, ties half").scroll_into_view_if_needed()
    shoot(page, "3-results")
    assert page.evaluate("window.hacked") is None
    badge = "colab.research.google.com"  # in the notebook's own first cell
    assert {urlsplit(url).netloc for url in page.asked} <= {urlsplit(lab).netloc, badge, ""}  # "": data and blobs
    assert set(page.dialogs) <= {"beforeunload"}  # the reload of a page with unsaved cells; no alert
    assert len(rows()) == 25 + 36
    assert len({(row.example_id, row.criterion) for row in rows()}) == 60
    assert not {"sft", "sre_2"} & set(file.read_text().split('"'))
