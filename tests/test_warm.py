"""A kernel that is forked from a process with its imports behind it is a kernel like any other, and dies like one."""

import os
import socket
import sys
import time

import pytest

from srlib import warm

pytestmark = [pytest.mark.torch, pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")]


@pytest.fixture(scope="module")
def nursery():
    """One for this file, whose tests stand in the order of its life: its imports take some ten seconds."""
    made = warm.Nursery({"OMP_NUM_THREADS": "1"})
    yield made
    made.close()


def ended(forked, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while forked.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return forked.poll() is not None


def test_before_its_imports_are_done_an_ordinary_kernel_is_started_instead(nursery, tmp_path):
    assert nursery.fork(["-f", "connection.json"], os.environ, str(tmp_path), tmp_path / "log.txt") is None


def test_a_kernel_that_cannot_start_ends(nursery, tmp_path):
    """On its ordinary way out it would wait for ever: its iopub thread has begun, and nobody stops it."""
    from jupyter_client import write_connection_file

    file, about = write_connection_file(str(tmp_path / "connection.json"))
    with socket.socket() as other:
        other.bind((about["ip"], about["iopub_port"]))
        other.listen()
        forked = nursery.fork(["-f", file], os.environ, str(tmp_path), tmp_path / "log.txt", patience=120)
        assert ended(forked, 30)
    assert "Address already in use" in (tmp_path / "log.txt").read_text()


def test_a_forked_kernel_works_and_ends_with_its_nursery(nursery, tmp_path):
    from jupyter_client import BlockingKernelClient, write_connection_file

    file, _ = write_connection_file(str(tmp_path / "connection.json"))
    asked = (["-f", file], {**os.environ, "COLOUR": "blue"}, str(tmp_path), tmp_path / "log.txt")
    forked = nursery.fork(*asked, patience=120)
    client = BlockingKernelClient(connection_file=file)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        said = []
        told = client.execute_interactive(
            "import os, sys; print('trl' in sys.modules, 'srlib' in sys.modules, os.getcwd(), os.environ['COLOUR'])",
            output_hook=lambda message: said.append(message["content"].get("text", "")),
            timeout=60,
        )
    finally:
        client.stop_channels()
    assert told["content"]["status"] == "ok"
    assert "".join(said).split() == ["True", "False", str(tmp_path), "blue"]
    assert forked.poll() is None
    nursery.close()
    assert ended(forked, 20), "a kernel notices within a second or two that its parent is gone"
    assert nursery.fork(*asked) is None


def test_forks_are_for_training_without_unsloth(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert [warm.possible(b) for b in ("transformers", "auto", "unsloth", None)] == [True, False, False, False]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [warm.possible(b) for b in ("transformers", "auto", "unsloth", None)] == [True, True, False, False]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not warm.possible("transformers")
