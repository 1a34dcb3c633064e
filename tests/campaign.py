"""Kill whole runs at many moments, and compare what the same command then makes with a run that nobody disturbed.

    python tests/campaign.py moments --kills 50     # SIGKILL of every process of a run, at random times
    python tests/campaign.py renames --kills 50     # SIGKILL of one process where a file is about to get its name

Both use the smallest run of tests/test_notebooks.py, five kills a run, then the command once more without one. Afterwards
results.json and the judge's weights have to be those of the undisturbed run, no process may still work for the run, and no
lock, temporary file or partial folder may be left. The table goes to docs/results/campaign/NAME.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_notebooks import SMALL, results  # noqa: E402
from throwaway import srlib_run  # noqa: E402

KILLS = 5  # in a run, before it may end
PATCH = '''"""Counts the renames of all processes of a run, and kills the one that is about to make rename number SRLIB_KILL_AT."""
import os, signal

def counted(rename):
    def renamed(*args, **options):
        with open(os.environ["SRLIB_COUNT"], "ab", buffering=0) as file:
            file.write(b".")
            number = file.tell()
        if number == int(os.environ.get("SRLIB_KILL_AT", 0)):
            with open(os.environ["SRLIB_COUNT"] + ".where", "a") as file:
                file.write(f"{args[-1]}\\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(*args, **options)
    return renamed

os.replace, os.rename = counted(os.replace), counted(os.rename)
'''


def processes(run: Path) -> list[int]:
    """Processes that work for a run: its name stands in their environment or command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            if f"/runs/{run.name}/".encode() in text or f"runs/{run.name}\0".encode() in text:
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def leftovers(run: Path, wait: float = 5.0) -> list[str]:
    """What a finished run should not have: processes (after a moment), partial folders, temporary files, checkpoints."""
    deadline = time.monotonic() + wait
    while (alive := processes(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    paths = [path for path in run.rglob("*") if path.name.endswith(".partial") or path.name == ".judge.tmp"]
    paths += [path for path in run.rglob(".*") if path.is_dir() and len(path.suffix) == 9]
    paths += [*(run / ".checkpoints").glob("*")]
    return [f"process {pid}" for pid in alive] + [str(path.relative_to(run)) for path in paths]


def outcome(run: Path) -> Any:
    """What has to be the same: the rows of results.json, and the weights of the judge that the run takes home."""
    return results(run), (run / "judge" / "model.safetensors").read_bytes()


def stage_of(run: Path) -> str:
    """The stages that were running, for the table."""
    return " ".join(sorted(path.name for path in run.rglob("*.partial") if path.is_dir())) or "between stages"


class Campaign:
    """Runs in one copy of the project, disturbed in one way."""

    def __init__(self, project: Path, kind: str, seed: int) -> None:
        self.project, self.kind, self.rng, self.rows = project, kind, random.Random(f"{kind} {seed}"), []
        for name in ("srlib", "notebooks", "params", "models"):
            shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        (project / "patch").mkdir()
        (project / "patch" / "sitecustomize.py").write_text(PATCH)
        os.environ["PYTHONPATH"] = f"{project / 'patch'}{os.pathsep}{project}" if kind == "renames" else str(project)
        os.environ["SRLIB_COUNT"] = str(project / "count")
        started = time.monotonic()
        assert self.go("whole").wait() == 0, "the undisturbed run failed"
        self.seconds = time.monotonic() - started
        self.renames = (project / "count").stat().st_size if kind == "renames" else 0
        self.whole = outcome(project / "runs" / "whole")

    def go(self, name: str, kill_at: int = 0) -> Any:
        (self.project / "count").unlink(missing_ok=True)
        os.environ["SRLIB_KILL_AT"] = str(kill_at)
        process = srlib_run(self.project, f"runs/{name}", **SMALL)
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
        return process

    def disturb(self, name: str, share: float) -> str | None:
        """Start the run and kill it once, within that share of what an undisturbed run takes; where that was, None if it ended."""
        if self.kind == "moments":
            process, wait = self.go(name), self.rng.uniform(0.5, share * self.seconds)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait)
                return None
            where = f"{wait:.1f} s, {stage_of(self.project / 'runs' / name)}"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return where
        mark = self.project / "count.where"
        mark.unlink(missing_ok=True)
        self.go(name, number := self.rng.randint(1, max(1, round(share * self.renames)))).wait()
        return f"rename {number}, {mark.read_text().strip().rpartition('/')[2]}" if mark.exists() else None

    def run(self, number: int, kills: int) -> None:
        """One run: killed so many times, then left alone, then compared."""
        name = f"disturbed-{number:03d}-x"
        run = self.project / "runs" / name
        where = list(filter(None, (self.disturb(name, 2 / (kills + 1)) for _ in range(kills))))
        process = self.go(name)
        row = {"run": number, "kills": where, "exit status": process.wait()}
        same = row["exit status"] == 0 and outcome(run) == self.whole
        self.rows.append(row | {"same": same, "leftovers": leftovers(run) if run.exists() else ["no run"]})
        print(json.dumps(self.rows[-1]), flush=True)
        if same and not self.rows[-1]["leftovers"]:
            shutil.rmtree(run)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("kind", choices=["moments", "renames"])
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--keep", action="store_true", help="keep the runs that differ, and say where")
    a = arguments.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    folder = Path(tempfile.mkdtemp(prefix="srlib-campaign-"))
    campaign = Campaign(folder / "project", a.kind, a.seed)
    while (left := a.kills - sum(len(row["kills"]) for row in campaign.rows)) > 0:
        campaign.run(len(campaign.rows), min(KILLS, left))
    same = sum(len(row["kills"]) for row in campaign.rows if row["same"])
    left = sum(len(row["leftovers"]) for row in campaign.rows)
    result = {"command": f"python tests/campaign.py {a.kind} --kills {a.kills} --seed {a.seed}", "kills": a.kills}
    result |= {"seconds of a whole run": round(campaign.seconds, 1), "in runs with the same results": same}
    result |= {"leftovers": left, "runs": campaign.rows}
    out = ROOT / "docs" / "results" / "campaign" / f"{a.kind}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{same} of {a.kills} kills in runs with the same results, {left} leftovers: {out.relative_to(ROOT)}")
    if a.keep:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(same != a.kills or left > 0)


if __name__ == "__main__":
    main()
