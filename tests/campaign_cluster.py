"""Kill parts of a Ray cluster while a stage works there, and compare what the run then makes with the same run alone.

    python tests/campaign_cluster.py --kills 10                  # ten each of worker, node, driver, Ctrl-C, leaf
    python tests/campaign_cluster.py --kills 10 --kinds driver   # goes on with the same table

The cluster has a head without cores and two nodes, all on this machine (it needs the extra `cluster`). A sweep of two seeds runs
there with notebooks of a few lines, whose SFT stage waits to be killed after it has written its first row; for a leaf, one of
the two processes that share the draws of the evaluation waits after its first judgment. Behind a killed worker, node or leaf the
same command has to go on by itself; behind a killed driver, or Ctrl-C, it is given once more. Then all files have to be those of
the runs alone, the stage has gone on and not begun again, and nothing may be left over. The table goes to
docs/results/campaign/cluster.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from campaign import leftovers  # noqa: E402
from test_cluster import SLOW, parent  # noqa: E402
from throwaway import make_project  # noqa: E402

KINDS = ("worker", "node", "driver", "Ctrl-C", "leaf")
FILES = ("data/out.txt", "judges/sft/rows", "eval/judgments.jsonl", "results.json", "judge/rows")
DRAWS = """\
import os, time
from srlib.sample import draws
from srlib.schema import Example, Rubric

rubric = Rubric(criterion="Is it polite?", levels={1: "no", 2: "yes"})
items = [Example(id=str(i), instruction="Greet me.", response="Hello.", rubric=rubric, score=1) for i in range(8)]

def source(work, k, together):
    for at, (item, missing) in enumerate(work[k::together]):
        if not missing:
            continue
        if at and k and (stage.run / "wait-leaf").exists():
            (stage.run / "pid.new").write_text(str(os.getpid()))
            os.replace(stage.run / "pid.new", stage.run / "pid-leaf")
            while (stage.run / "wait-leaf").exists():
                time.sleep(0.1)
        with open(stage.run / "drawn", "a") as file:
            file.write(f"{item.id} ")
        yield [draws.judgment(item, i, "It greets. [RESULT] 2", True) for i in missing]

draws.collect(source, items, 1, out=stage.path / "judgments.jsonl")
stage.first_only()
"""
RESUMED = "1 resumed "
OUT = ROOT / "docs" / "results" / "campaign" / "cluster.json"
PATIENT = {"RAY_agent_register_timeout_ms": "300000", "RAY_worker_register_timeout_seconds": "300"}  # beside other work


def ancestors(pid: int) -> list[int]:
    """The process, its parent, ..., without that of all: kernel, execute.py, Ray's worker, its node."""
    line = [pid]
    while (above := parent(line[-1])) > 1:
        line.append(above)
    return line


def below(pid: int) -> list[int]:
    """All processes that a process has started, and itself."""
    line = [pid]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if pid in ancestors(int(folder.name))[1:]:
                line.append(int(folder.name))
    return line


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(node: Any) -> bool:
    return all(process.process.poll() is None for process in node.all_processes["raylet"])


class Runs:
    """Sweeps of two seeds in a throwaway project, alone and on a cluster."""

    def __init__(self, root: Path) -> None:
        self.root = make_project(root, n02_sft=SLOW, n06_eval=DRAWS)
        (root / "runs").mkdir(exist_ok=True)
        self.environment = os.environ | {"PYTHONPATH": str(root)}
        assert self.start("alone").wait() == 0, (root / "log").read_text()

    def start(self, name: str, address: str = "") -> subprocess.Popen:
        command = [sys.executable, "-c", "from srlib.cli import app; app()", "run", "params/tiny.yaml", "--anyway"]
        command += ["-p", "arms=base,sft", "--seeds", "0,1", "--run-dir", self.root / "runs" / name]
        command += ["--cluster", address] if address else []
        with open(self.root / "log", "a") as log:
            how = dict(cwd=self.root, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored in a shell's background
            return subprocess.Popen(command, **how, preexec_fn=ctrl_c)

    def of(self, name: str) -> list[Path]:
        return [self.root / "runs" / f"{name}-{seed}" for seed in (0, 1)]

    def same(self, name: str) -> bool:
        """Whether the files are those of the runs alone, but for the row that says that the stage has gone on."""
        alone, there = (
            [(run / path).read_text() for run in self.of(name) for path in FILES] for name in ("alone", name)
        )
        return alone == [text.replace(RESUMED, "") for text in there]


def strike(kind: str, driver: subprocess.Popen, kernel: int) -> str:
    """Kill a part of the cluster that works on the stage of `kernel`; what was killed."""
    line = ancestors(kernel)
    if kind == "driver":
        driver.kill()
    elif kind == "Ctrl-C":
        driver.send_signal(signal.SIGINT)
    elif kind in ("worker", "leaf"):
        kill([line[2]])
    else:
        [node] = [pid for pid in line if "raylet" in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]]
        kill(everything := below(node))
        return f"node with {len(everything)} processes"
    return kind


def trial(runs: Runs, cluster: Any, kind: str, number: int) -> dict[str, Any]:
    name = f"{kind}-{number}"
    run = runs.of(name)[1]
    run.mkdir()
    wait, pid = (run / (f"{what}-leaf" if kind == "leaf" else what) for what in ("wait", "pid"))
    wait.touch()
    driver = runs.start(name, cluster.address)
    while not pid.exists():
        assert driver.poll() is None, (runs.root / "log").read_text()[-3000:]
        time.sleep(0.1)
    kernel = int(pid.read_text())
    execute, what, commands = parent(kernel), strike(kind, driver, kernel), 1
    started = time.monotonic()
    while any(Path(f"/proc/{pid}/exe").exists() for pid in (kernel, execute)) and time.monotonic() - started < 30:
        time.sleep(0.05)
    gone = round(time.monotonic() - started, 1)
    if kind in ("driver", "Ctrl-C"):
        driver.wait(60)
        wait.unlink()
        driver, commands = runs.start(name, cluster.address), 2
    else:
        while int(pid.read_text()) == kernel and driver.poll() is None:
            time.sleep(0.1)
        wait.unlink()
    status = driver.wait(600)
    row = {"killed": what, "commands": commands, "exit status": status, "seconds until the stage was gone": gone}
    left = [path for folder in runs.of(name) for path in leftovers(folder)]
    resumed = status == 0 and (run / "judges" / "sft" / "rows").read_text() == "1 begun " + RESUMED * (kind != "leaf")
    resumed = resumed and sorted((run / "drawn").read_text().split()) == [str(i) for i in range(8)]  # each once
    return row | {"resumed": resumed, "same": status == 0 and runs.same(name), "leftovers": left}


def good(row: dict[str, Any]) -> bool:
    return row["same"] and row["resumed"] and not row["leftovers"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=10, help="of each kind")
    arguments.add_argument("--kinds", default=",".join(KINDS))
    a = arguments.parse_args()
    os.environ |= PATIENT | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="srlib-cluster-", ignore_cleanup_errors=True) as folder:
        runs = Runs(Path(folder) / "project")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        rows: list[dict[str, Any]] = json.loads(OUT.read_text())["kills"] if OUT.exists() else []
        try:
            for kind in a.kinds.split(","):
                for number in range(sum(row["kind"] == kind for row in rows), a.kills):
                    while sum(alive(node) for node in cluster.worker_nodes) < 2:
                        cluster.add_node(num_cpus=2)
                    rows.append({"kind": kind} | trial(runs, cluster, kind, number))
                    print(json.dumps(rows[-1]), flush=True)
                    result = {
                        "command": f"python tests/campaign_cluster.py --kills {a.kills}",
                        "good": sum(map(good, rows)),
                    }
                    OUT.write_text(json.dumps(result | {"of": len(rows), "kills": rows}, indent=1) + "\n")
        finally:
            cluster.shutdown()
    print(f"{sum(map(good, rows))} of {len(rows)} kills without a trace: {OUT.relative_to(ROOT)}")
    sys.exit(not all(map(good, rows)))


if __name__ == "__main__":
    main()
