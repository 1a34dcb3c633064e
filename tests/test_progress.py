"""A bar for a person, a heartbeat for the pipeline."""

import json
import os
import sys

import pytest

from srlib import files as module
from srlib.files import progress


@pytest.fixture
def beat(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_PROGRESS", str(tmp_path / "beat.json"))
    return lambda: json.loads((tmp_path / "beat.json").read_text())


def test_a_heartbeat_instead_of_a_bar(beat, capsys, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.0)
    seen = []
    for item in progress("abc", desc="letters"):
        seen.append((item, beat()["done"]))
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert beat() == {"desc": "letters", "done": 3, "total": 3}
    assert capsys.readouterr().err == ""


def test_heartbeats_are_throttled_but_the_last_one_comes(beat, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 3600.0)
    with progress(total=10, desc="d") as bar:
        bar.update(4)
        assert beat()["done"] == 0
    assert beat() == {"desc": "d", "done": 4, "total": 10}


def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_PROGRESS", str(tmp_path / "missing" / "beat.json"))
    assert list(progress(iter([1, 2]))) == [1, 2]


@pytest.mark.parametrize("notebook", [False, True])
def test_a_plain_bar_without_the_variable(monkeypatch, capsys, notebook):
    monkeypatch.delenv("SRLIB_PROGRESS", raising=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # which training sets, for the bars of TRL
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    else:
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert list(progress([1, 2], desc="plain")) == [1, 2]
    assert "plain" in capsys.readouterr().err


def test_where_the_variable_is_empty_nothing_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("SRLIB_PROGRESS", "")
    assert list(progress([1, 2], desc="quiet")) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a POSIX test")
def test_only_a_file_is_written_over(tmp_path, monkeypatch):
    """Root could put a file in the place of /dev/null, for everybody."""
    os.mkfifo(tmp_path / "null")
    monkeypatch.setenv("SRLIB_PROGRESS", str(tmp_path / "null"))
    assert list(progress([1, 2])) == [1, 2]
    assert (tmp_path / "null").is_fifo()
