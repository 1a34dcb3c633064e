"""Stages on a Ray cluster: what a node has to share, and runs that end there as they do alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from throwaway import make_project

pytest.importorskip("fcntl")  # not on Windows
from srlib import files
from srlib.run import cluster

SLOW = """\
import os, time
with open(stage.path / "rows", "a") as file:
    file.write(f"{cfg.seed} {'resumed' if file.tell() else 'begun'} ")
(stage.run / "pid.new").write_text(str(os.getpid()))
os.replace(stage.run / "pid.new", stage.run / "pid")  # whoever waits for it reads all of it
while (stage.path / "rows").read_text().count(" ") < 3 and (stage.run / "wait").exists():
    time.sleep(0.1)
"""


def test_a_node_sees_the_directory_and_its_locks(tmp_path):
    root, probe = make_project(tmp_path), tmp_path / "runs" / "probe"
    here, name = cluster._seen(str(root)), str(probe.parent)
    assert here.keys() >= {"python", "machine", "code", "numpy"}
    assert cluster._seen(str(root), probe) == here | {name: "another directory"}
    files.acquire(probe)
    assert cluster._seen(str(root), probe) == here | {name: cluster.SHARED}
    files.release(probe)
    assert cluster._seen(str(root), probe) == here | {name: "without the locks of other nodes"}
    (root / "notebooks" / "01_data.ipynb").write_text("another version")
    other = cluster._seen(str(root))
    [difference] = cluster.differences(here, other)
    assert difference == f"code is {other['code']} there and {here['code']} here"
    assert cluster.differences({"trl": "1.14.2"}, {"ray": "2"}) == [
        "ray is 2 there and missing here", "trl is missing there and 1.14.2 here"
    ]  # fmt: skip


@pytest.mark.slow
def test_runs_on_a_cluster_end_as_they_do_alone(tmp_path):
    """A worker is killed on the way. SRLIB_TEST_CLUSTER names a running cluster; else one is started."""
    pytest.importorskip("ray")
    root = make_project(tmp_path, n02_sft=SLOW)
    command = [sys.executable, "-c", "from srlib.cli import app; app()", "run", "params/tiny.yaml", "--anyway"]
    command += ["-p", "arms=base,sft", "--seeds", "0,1"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    alone, there = root / "runs" / "alone", root / "runs" / "there"
    subprocess.run([*command, "--run-dir", alone], cwd=root, env=environment, check=True, timeout=900)
    run = there.with_name("there-1")
    files.write_text(run / "wait", "")
    command += ["--run-dir", there, "--cluster", os.environ.get("SRLIB_TEST_CLUSTER", "local")]
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    while not (run / "pid").exists() and process.poll() is None:
        time.sleep(0.2)
    kernel = int((run / "pid").read_text())
    execute = parent(kernel)
    os.kill(parent(execute), signal.SIGKILL)  # the worker; its children end, and the task starts again
    while int((run / "pid").read_text()) == kernel and process.poll() is None:
        time.sleep(0.2)
    assert not Path(f"/proc/{execute}/cmdline").exists() or not Path(f"/proc/{execute}/cmdline").read_bytes()
    (run / "wait").unlink()
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    assert "there-0 sft" in printed
    assert (run / "judges" / "sft" / "rows").read_text() == "1 begun 1 resumed "
    for seed in "01":
        for path in ("data/out.txt", "judges/sft/rows", "eval/out.txt", "results.json", "judge/rows"):
            a, b = (folder.with_name(f"{folder.name}-{seed}") / path for folder in (alone, there))
            assert a.read_text() == b.read_text().replace(f"{seed} resumed ", "")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
