"""wandb offline beside the run, nobody asked for a key, and no key in any file."""

import http.server
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from srlib.run import tracking

SECRET = "5ec7e7" + "0123456789" * 3 + "abcd"  # the form of a real key: forty hexadecimal characters


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The requests that reach the address at which wandb would look for its server; all it keeps lies in tmp_path."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(500)

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name))
    monkeypatch.setenv("WANDB_SILENT", "true")  # so that what track() sets is undone
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked something"))
    yield requests
    server.shutdown()
    server.server_close()


def stage_in(tmp_path, done=False):
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    return SimpleNamespace(
        run=run, done=done, stage=SimpleNamespace(name="dpo_1"), params=SimpleNamespace(beta=0.1, arms=["base", "sft"])
    )


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_offline_asks_nobody_and_keeps_no_secret(tmp_path, asked):
    stage = stage_in(tmp_path)
    with tracking.track(stage, "offline") as run:
        run.log({"loss": 0.5})
        tracking.log_table(run, "results", [{"arm": "sft", "value": 0.5}, {"arm": "sre_1"}])
        run.summary.update({"pairs": 412})
        assert (run.group, run.job_type, run.name) == ("tiny", "dpo_1", "tiny/dpo_1")
        assert dict(run.config) == {"beta": 0.1, "arms": ["base", "sft"]}
    [record] = stage.run.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 20  # wandb's own process writes the last bytes a moment after finish()
    while b"loss" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"loss" in record.read_bytes()  # the curve is there
    assert asked == []
    for path in files(tmp_path):
        assert SECRET.encode() not in path.read_bytes(), path


def test_an_error_inside_ends_the_run_and_goes_on(tmp_path, asked):
    import wandb

    with pytest.raises(ZeroDivisionError), tracking.track(stage_in(tmp_path), "offline"):
        raise ZeroDivisionError
    assert wandb.run is None
    assert asked == []


@pytest.mark.parametrize(("mode", "done"), [("disabled", False), ("disabled", True), ("offline", True), ("auto", True)])
def test_disabled_and_a_done_stage_make_nothing(tmp_path, asked, monkeypatch, mode, done):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    stage = stage_in(tmp_path, done)
    with tracking.track(stage, mode) as run:
        assert run is None
        tracking.log_table(run, "results", [{"arm": "sft"}])
    assert files(stage.run) == []
    assert asked == []


def test_auto_is_online_only_with_a_key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert tracking._mode("auto") == "online"
    assert tracking._mode("offline") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert tracking._mode("auto") == "offline"
    monkeypatch.delenv("WANDB_API_KEY")
    assert tracking._mode("auto") == "offline"
