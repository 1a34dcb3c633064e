"""Notebook 07 in a real browser: JupyterLab is started, Chromium goes through ten items with keys and mouse.

Not collected by `make test`; `make test-browser` runs it. Screenshots go to the directory in SRLIB_SCREENSHOTS, if it is set.
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

import pytest
from annotated import HOSTILE, write_run

from srlib import files as store
from srlib.annotate import session as annotate

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="pip install -e '.[browser]' first (make test-browser does)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SLOW = 120_000  # milliseconds: the machine may be busy
FRAME = ".srlib-annotate"


def set_parameters(notebook: Path, **values: object) -> None:
    """Edit the parameters cell, as a user does; only what no other notebook declares may differ there."""
    made = json.loads(notebook.read_text())
    [cell] = [cell for cell in made["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    lines = "".join(cell["source"]).splitlines()
    for name, value in values.items():
        [at] = [i for i, line in enumerate(lines) if line.startswith(f"{name}:")]
        lines[at] = f"{lines[at].split(' = ')[0]} = {value!r}  # set by the test"
    cell["source"] = "\n".join(lines)
    notebook.write_text(json.dumps(made))


@pytest.fixture
def lab(project, tmp_path):
    """The address of notebook 07 in a JupyterLab of its own, with a run of twelve items."""
    write_run(project / "runs" / "last")
    set_parameters(project / "notebooks" / "07_annotate.ipynb", annotator="anna", n_items=10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "config" / "labconfig"
    config.mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (config / "page_config.json").write_text(json.dumps(quiet))
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
        "--IdentityProvider.token=secret", f"--ServerApp.root_dir={project}", f"--LabApp.workspaces_dir={tmp_path}/workspaces",
    ]  # fmt: skip
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=project, env=os.environ | places | {"PYTHONPATH": str(project)}
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/api?token=secret", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
                time.sleep(0.5)
        yield f"{url}/lab/tree/notebooks/07_annotate.ipynb?token=secret"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def page(tmp_path):
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=FLAGS, viewport={"width": 1400, "height": 1600}
        )
        context.set_default_timeout(SLOW)
        page = context.new_page()
        page.dialogs = []
        page.on("dialog", lambda dialog: (page.dialogs.append(dialog.type), dialog.accept()))
        yield page
        shoot(page, "last")  # also where the test failed
        context.close()


def shoot(page, name: str) -> None:
    if folder := os.environ.get("SRLIB_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def run_all(page) -> None:
    """As soon as the kernel is there: a cell that runs before is silently not run."""
    page.get_by_text("(ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def head(page) -> str:
    return page.locator(f"{FRAME} .head").inner_text()


def answers(project) -> list[dict]:
    return [json.loads(line) for line in answers_file(project).read_text().splitlines()]


def answers_file(project) -> Path:
    return project / "runs" / "last" / "annotations" / "test-sre_2-sft" / "anna.jsonl"


def wait_for(what, *, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_ten_items_with_keys_and_mouse(project, lab, page):
    page.goto(lab)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    run_all(page)
    frame = page.locator(FRAME)
    frame.wait_for()
    assert "Item 1 of 10" in head(page)

    # Nothing that people or models wrote became markup, and nothing names an arm.
    card = page.locator(f"{FRAME} .card .text")
    assert card.count() == 2
    assert HOSTILE in card.first.inner_text()
    assert page.locator(f"{FRAME} :is(script, img, style, b)").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
    frame.scroll_into_view_if_needed()
    shoot(page, "1-first-item")

    # Item 1 with the mouse: each click is on disk before the next.
    for question in range(6):
        page.locator(f"{FRAME} .question").nth(question).get_by_role(
            "button", name=("Left", "Right")[question % 2]
        ).click()
        wait_for(lambda n=question + 1: answers_file(project).exists() and len(answers(project)) == n)
    page.locator(f"{FRAME} .foot").get_by_role("button", name="Next").click()
    page.get_by_text("Item 2 of 10").wait_for()

    # Items 2 to 4 with the keys, a typing slip corrected.
    frame.focus()
    page.keyboard.press("2")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("1")
    for number in (2, 3, 4):
        for key in "10210" if number == 2 else "102102":
            page.keyboard.press(key)
        wait_for(lambda n=number: f"{n} done" in head(page))
        page.keyboard.press("Enter")
        page.get_by_text(f"Item {number + 1} of 10").wait_for()
    shoot(page, "2-fifth-item")
    assert page.locator(".jp-Dialog").count() == 0  # JupyterLab took no key for its own: 0 0 would restart the kernel
    given = answers(project)
    assert len(given) == 6 + 1 + 6 + 12
    second = [row for row in given if row["example_id"] == given[6]["example_id"]]
    assert [(row["criterion"], row["choice"]) for row in second[:2]] == [("faithful", "right"), ("faithful", "left")]

    # A page that is reloaded, with a kernel that is started anew, goes on at item 5.
    page.reload()
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("(ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Restart Kernel and Run All Cells…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.locator(FRAME).wait_for()
    page.get_by_text("Item 5 of 10").wait_for()
    assert "4 done" in head(page)
    assert len(answers(project)) == 25
    page.keyboard.press("Escape")
    page.locator(FRAME).focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Item 4 of 10").wait_for()
    pressed = page.locator(f"{FRAME} [aria-pressed=true]").all_inner_texts()
    assert [text[0] for text in pressed] == list("102102")
    page.keyboard.press("ArrowRight")
    page.get_by_text("Item 5 of 10").wait_for()

    for number in range(5, 11):
        page.get_by_text(f"Item {number} of 10").wait_for()
        for key in "111111":
            page.keyboard.press(key)
        wait_for(lambda n=number: f"{n} done" in head(page))
        page.keyboard.press("Enter")
    page.get_by_text("All items are done").wait_for()
    shoot(page, "3-all-done")

    # The results: blind until now, shown on the next run.
    notebook = page.locator(".jp-Notebook")
    assert "results are shown behind the last one" in notebook.inner_text()
    run_all(page)
    page.get_by_text("60 answers; 0 more").wait_for()
    page.locator("th", has_text="people, ties half").scroll_into_view_if_needed()
    shoot(page, "4-results")
    assert page.evaluate("window.hacked") is None
    assert set(page.dialogs) <= {"beforeunload"}  # the reload of a page with unsaved cells; no alert

    rows = store.read_rows(answers_file(project), annotate.Answer)
    assert len(rows) == 25 + 36
    assert len({row.example_id for row in rows}) == 10
    kept = {(row.example_id, row.criterion): row.choice for row in rows}
    assert len(kept) == 60
    text = answers_file(project).read_text()
    assert "sft" not in text
    assert "sre_2" not in text
