"""Disturb whole runs in many ways, and compare what the same command then makes with a run that nobody disturbed.

    python tests/campaign.py moments --kills 50     # SIGKILL of every process of a run, at random times
    python tests/campaign.py renames --kills 50     # SIGKILL of one process where a file is about to get its name
    python tests/campaign.py exhaust                # no disk, memory, locks or right to write; Ctrl-C, SIGTERM, two runs at once
    python tests/campaign.py threads                # 1,600 judgments of one judge from eight threads
    python tests/campaign.py repeat                 # what is the same to the bit, and what is not, and how often

The first three use the smallest run of tests/test_notebooks.py, disturb it several times, then give the command once more.
Afterwards results.json and the judge's weights have to be those of the undisturbed run, no process may still work for the run,
and no lock, temporary file or partial folder may be left. The table goes to docs/results/campaign/NAME.json; `moments` and
`renames` go on with what is there until it holds so many kills.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_notebooks import SMALL, results  # noqa: E402
from throwaway import srlib_run  # noqa: E402

KILLS = {"moments": 5, "renames": 10}  # in a run, before it may end
STAGES = {
    "data": "data",
    "sft": "judges/sft",
    "sample_1": "judgments/1",
    "curate_1": "pairs/1",
    "dpo_1": "judges/sre_1",
    "eval": "eval",
}  # and their directories
SPACE = 600  # MB of the file system that gets full
THREADS = 8
PATCH = '''"""Counts the renames of all processes of a run, and kills the one that is about to make rename number SRLIB_KILL_AT.
With SRLIB_NO_LOCKS the file system has no locks, with SRLIB_CLOCK_BACK the clock jumps back an hour after three seconds."""
import errno, fcntl, os, signal, time

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

def no_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

def jumping(clock, hour, jump=time.monotonic() + 3):
    return lambda: clock() - hour * (time.monotonic() > jump)

if "SRLIB_KILL_AT" in os.environ:
    os.replace, os.rename = counted(os.replace), counted(os.rename)
if "SRLIB_NO_LOCKS" in os.environ:
    fcntl.flock = no_locks
if "SRLIB_CLOCK_BACK" in os.environ:
    time.time, time.time_ns = jumping(time.time, 3600), jumping(time.time_ns, 3600 * 10**9)
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
        self.project, self.kind, self.seed, self.rows, self.faults = project, kind, seed, [], []
        for name in ("srlib", "notebooks", "params", "models"):
            shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        (project / "patch").mkdir()
        (project / "runs").mkdir()
        (project / "patch" / "sitecustomize.py").write_text(PATCH)
        os.environ["PYTHONPATH"] = f"{project / 'patch'}{os.pathsep}{project}"
        os.environ["SRLIB_COUNT"] = str(project / "count")

    def first(self) -> None:
        """The run that nobody disturbs."""
        started = time.monotonic()
        assert self.go("whole").wait() == 0, "the undisturbed run failed"
        self.seconds = time.monotonic() - started
        self.renames = (self.project / "count").stat().st_size if self.kind == "renames" else 0
        self.whole = outcome(self.project / "runs" / "whole")

    def go(self, name: str, kill_at: int = 0, limit: int = 0, **changes: str) -> Any:
        """Start the run, with a kill at a rename, so many MB of memory, or changes of the environment; what it says is in `said`
        once `heard` has been joined."""
        (self.project / "count").unlink(missing_ok=True)
        changes |= {"SRLIB_KILL_AT": str(kill_at)} if self.kind == "renames" else {}
        os.environ.update(changes)

        def before() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if limit:
                resource.setrlimit(resource.RLIMIT_AS, (limit * 2**20,) * 2)

        process = srlib_run(self.project, f"runs/{name}", before, **SMALL)
        for variable in changes:
            del os.environ[variable]

        def hear() -> None:  # a full pipe would stop it
            process.said = process.stdout.read()

        process.heard = threading.Thread(target=hear, daemon=True)
        process.heard.start()
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
        name, self.rng = f"disturbed-{number:03d}-x", random.Random(f"{self.kind} {self.seed} {number}")
        where = list(filter(None, (self.disturb(name, 2 / (kills + 1)) for _ in range(kills))))
        self.end(name, {"run": number, "kills": where})

    def end(self, name: str, row: dict[str, Any], **changes: str) -> None:
        """The command once more, and what it has made beside what the undisturbed run has made."""
        run, process = self.project / "runs" / name, self.go(name, **changes)
        row |= {"exit status": process.wait()}
        row["same"] = row["exit status"] == 0 and outcome(run) == self.whole
        self.rows.append(row | {"leftovers": leftovers(run) if run.exists() else ["no run"]})
        print(json.dumps(self.rows[-1]), flush=True)
        if row["same"] and not self.rows[-1]["leftovers"]:
            shutil.rmtree(run)

    def kill(self, kills: int) -> dict[str, Any]:
        """So many kills, with those that the table holds already."""
        while (left := kills - sum(len(row["kills"]) for row in self.rows)) > 0:
            self.run(len(self.rows), min(KILLS[self.kind], left))
        same = sum(len(row["kills"]) for row in self.rows if row["same"])
        return {"kills": kills, "seconds of a whole run": round(self.seconds, 1), "in runs with the same results": same}

    def exhaust(self, parts: list[str]) -> dict[str, Any]:
        """Runs that are each stopped several times: by a full disk, by other shortages, by signals."""
        self.rng, runs = random.Random(f"exhaust {self.seed}"), self.project / "runs"
        for part in parts:
            self.faults = [row for row in self.faults if row["run"] != part]
            self.rows = [row for row in self.rows if row["run"] != part]
            getattr(self, part)(runs, runs / part)
        return {
            "as it should": sum(row["as it should"] for row in self.faults),
            "of": len(self.faults),
            "faults": self.faults,
        }

    def note(self, run: Path, what: str, process: Any, says: str, *statuses: int) -> None:
        """Wait for a run that has been disturbed: it has to say one thing, without a traceback, and leave no process."""
        status = process.wait()
        process.heard.join()
        usual = r"(?m)^\S+ +(runs: .*|cached|done in .*|train \S+ \d.*|sample \d.*)\n"
        said = re.sub(usual, "", process.said).replace(str(self.project), "PROJECT").strip()
        fine = status in statuses and re.search(says, said) is not None and "Traceback" not in said
        left = leftovers(run) if status != 2 else []  # 2: refused, as another run is there
        alive = [one for one in left if one.startswith("process")]
        row = {"run": run.name, "what": what, "exit status": status, "says": said[-600:], "left alive": alive}
        self.faults.append(row | {"as it should": fine and not alive})
        print(json.dumps(self.faults[-1]), flush=True)

    def until(self, process: Any, path: Path) -> None:
        """Wait for a file of a run."""
        while process.poll() is None and not path.exists():
            time.sleep(0.01)

    def disk(self, runs: Path, run: Path) -> None:
        """Once the stage before a stage is done, there is room for a part of what this one writes."""
        for stage, before in zip([*STAGES, "judge and report"], [None, *STAGES.values()], strict=True):
            made = runs / "whole" / STAGES.get(stage, "judge")
            room = round(self.rng.random() * sum(p.stat().st_size for p in made.rglob("*") if p.is_file()))
            process = self.go(run.name)
            self.until(process, run / before / "manifest.json" if before else run / "params.yaml")
            with open(runs / "filler", "wb") as file:
                free = os.statvfs(runs).f_bavail * os.statvfs(runs).f_frsize
                os.posix_fallocate(file.fileno(), 0, max(1, free - room))
            says = r"No space left on device.*the same command then resumes"
            self.note(run, f"room for {room} bytes in {stage}", process, f"(?s){says}", 1)
            (runs / "filler").unlink()
        self.end(run.name, {"run": run.name})

    def short(self, runs: Path, run: Path) -> None:
        """No right to write, no locks, no memory, a second run in the same directory; and at last a clock that goes back."""

        def mounted(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", runs], check=True)

        mounted("ro")
        self.note(
            run, "read-only, nothing done", self.go(run.name), "Read-only file system.*choose another run directory", 1
        )
        mounted("rw")
        process = self.go(run.name, SRLIB_NO_LOCKS="1")
        self.note(run, "no locks", process, "No locks available.*choose another run directory", 1)
        for limit in (1000, 1500):  # MB of addresses: torch takes more to load
            process = self.go(run.name, limit=limit)
            self.note(run, f"{limit} MB of memory", process, r"Free memory.*the same command then resumes", 1)
        process = self.go(run.name)
        self.until(process, run / "judges" / "sft.partial" / "manifest.json")
        resident = {
            pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes(run) if pid != process.pid
        }
        os.kill(max(resident, key=resident.get), signal.SIGKILL)
        says = r"Free memory.*the same command then resumes"
        self.note(run, "the largest process of a stage killed, as for lack of memory", process, says, 1)
        mounted("ro")
        self.note(
            run, "read-only, half done", self.go(run.name), "Read-only file system.*choose another run directory", 1
        )
        mounted("rw")
        process = self.go(run.name)
        self.until(process, run / ".lock")
        time.sleep(1)
        self.note(run, "a second run there", self.go(run.name), r"process \d+ is running there; wait for it", 2)
        process.send_signal(signal.SIGINT)
        self.note(run, "the first of them, stopped", process, "stopped; the same command resumes", 130)
        self.end(run.name, {"run": run.name}, SRLIB_CLOCK_BACK="1")

    def signals(self, runs: Path, run: Path) -> None:
        """Ctrl-C and SIGTERM by turns, at random moments after the run has begun."""
        for number in range(6):
            one, wait = (signal.SIGTERM, signal.SIGINT)[number % 2], self.rng.uniform(0, self.seconds / 4)
            process = self.go(run.name)
            while not (run / ".lock").exists() or (run / ".lock").read_text() != str(process.pid):
                time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait)
            what = f"{one.name} after {wait:.1f} s, {stage_of(run)}"
            process.send_signal(one)
            self.note(run, what, process, "stopped; the same command resumes", 130)
        self.end(run.name, {"run": run.name})


def threads(judge: Any, calls: int, many: int) -> dict[str, int]:
    """Eight threads share a judge. Each makes the same `calls`, one after the other, from another one on: by turns one response,
    greedily or with a draw, `many` at once, and two side by side. Their judgments beside those that one thread makes."""
    from srlib.data import world

    names = ("instruction", "response", "rubric", "reference_answer")
    rows, pairs = world.examples("train", 0, calls * many, care=0.5), world.comparisons(0, calls)

    def call(i: int) -> list[Any]:
        fields = {name: getattr(rows[i], name) for name in names}
        if i % 4 == 1:
            return judge.score_many(rows[i * many : (i + 1) * many], temperature=1.0, seed=i)
        if i % 4 == 3:
            sides = {name: getattr(pairs[i], name) for name in ("instruction", "response_a", "response_b", "rubric")}
            return [judge.compare(**sides)]
        return [judge.score(**fields, **({"temperature": 1.0, "seed": i} if i % 4 else {}))]

    def attempt(i: int) -> tuple[int, list[Any], str]:
        try:
            return i, call(i), ""
        except Exception as error:  # any is one too many
            return i, [], f"call {i}: {type(error).__name__}: {error}"

    alone = [call(i) for i in range(calls)]
    begin = threading.Barrier(THREADS)

    def work(k: int) -> list[tuple[int, list[Any], str]]:
        begin.wait()
        return [attempt((i + k * calls // THREADS) % calls) for i in range(calls)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [one for of_thread in pool.map(work, range(THREADS)) for one in of_thread]
    same = sum(a == b for i, got, _ in found for a, b in zip(alone[i], got, strict=False))
    counts = {"threads": THREADS, "calls": len(found), "judgments": sum(len(got) for _, got, _ in found)}
    counts |= {"with a verdict": sum(j.verdict is not None for _, got, _ in found for j in got)}
    return counts | {"equal to the serial ones": same, "errors": [error for *_, error in found if error]}


def repeat(path: Path, folder: Path, n_items: int = 60, n: int = 8) -> dict[str, Any]:
    """One judge draws the same judgments again, in other batches and otherwise, and the tiny base is trained again."""
    import torch
    from safetensors.torch import load_file

    from srlib import models, sample
    from srlib.data import world
    from srlib.sample import ways

    model, tokenizer = models.load(path)
    items = world.examples("test", 1, n_items, care=0.5)

    def draw(threads: int = 1, way: Any = ways.Shared, **settings: int) -> list[Any]:
        torch.set_num_threads(threads)
        model._srlib_ways = {False: way}
        return sample.judgments(model, tokenizer, items, n=n, temperature=1.0, distributions=False, **settings)

    first, draws, trained = draw(), {}, {}
    for name, settings in {
        "once more": {},
        "batch_size 7": {"batch_size": 7},
        "batch_size 1": {"batch_size": 1},
        "two threads": {"threads": 2},
        "a copy of its prompt for each judgment": {"way": ways.Copies},
    }.items():
        pairs = list(zip(first, draw(**settings), strict=True))
        alike = [(a, b) for a, b in pairs if a.text == b.text]
        draws[name] = {
            "judgments": len(pairs),
            "equal to the last digit": sum(a == b for a, b in pairs),
            "with another text": len(pairs) - len(alike),
            "with another verdict": sum(a.verdict != b.verdict for a, b in pairs),
            "nats per token, at most": max(abs(a.logprob - b.logprob) for a, b in alike),
        }
        print(name, draws[name], flush=True)

    def train(name: str, threads: int = 1, *settings: str) -> dict[str, Any]:
        (folder / name).mkdir()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, ROOT / "tests" / "together.py", folder / name, *settings]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return {kind: load_file(folder / name / f"{kind} 0.safetensors") for kind in ("sft", "dpo", "dpo shared")}

    def off(one: dict[str, Any], other: dict[str, Any]) -> float:
        return max(float((p - other[name]).abs().max()) for name, p in one.items())

    whole = train("first")
    for name, settings in {
        "once more": (),
        "micro_batch_size 1": (1, "micro_batch_size=1"),
        "two threads": (2,),
    }.items():
        other = train(name, *settings)
        trained[name] = {kind: off(whole[kind], other[kind]) for kind in whole}
        print(name, trained[name], flush=True)
    trained["share_prompts"] = {"dpo": off(whole["dpo"], whole["dpo shared"])}
    trained["what training moves"] = {
        kind: float(max(p.abs().max() for at, p in of.items() if "lora_B" in at)) for kind, of in whole.items()
    }
    return {"judge": path.name, "torch": torch.__version__, "draws": draws, "largest difference of a weight": trained}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("kind", choices=["moments", "renames", "exhaust", "threads", "repeat"])
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument(
        "--parts", default="disk,short,signals", help="of exhaust; what the table has of others stays"
    )
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--judge", type=Path, default=ROOT / "models" / "tiny-base", help="of threads and repeat")
    arguments.add_argument("--keep", action="store_true", help="keep the runs that differ, and say where")
    a = arguments.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    out = ROOT / "docs" / "results" / "campaign" / f"{a.kind}.json"
    command = f"python tests/campaign.py {a.kind}" + f" --kills {a.kills} --seed {a.seed}" * (
        a.kind in ("moments", "renames")
    )
    if a.kind == "repeat":
        os.environ["SRLIB_PROGRESS"] = ""  # no bars
        with tempfile.TemporaryDirectory() as folder:
            result, bad = repeat(a.judge, Path(folder)), 0
    elif a.kind == "threads":
        from srlib import Judge

        os.environ["SRLIB_PROGRESS"] = ""  # no bars
        judge = Judge.load(a.judge)
        judge.template = "brief"  # the tiny base model has read no other
        result = {"judge": a.judge.name} | threads(judge, 40, 17)
        bad = len(result["errors"]) + result["judgments"] - result["equal to the serial ones"]
    else:
        folder = Path(tempfile.mkdtemp(prefix="srlib-campaign-"))
        campaign = Campaign(folder / "project", a.kind, a.seed)
        if a.kind == "exhaust":
            mount = ["mount", "-t", "tmpfs", "-o", f"size={SPACE}m", "none", folder / "project" / "runs"]
            subprocess.run(mount, check=True)  # root may
        if out.exists():
            known = json.loads(out.read_text())
            campaign.rows, campaign.faults = known["runs"], known.get("faults", [])
        try:
            campaign.first()
            result = campaign.exhaust(a.parts.split(",")) if a.kind == "exhaust" else campaign.kill(a.kills)
        finally:
            if a.kind == "exhaust" and not a.keep:
                subprocess.run(["umount", folder / "project" / "runs"], check=True)
        result |= {"leftovers": sum(len(row["leftovers"]) for row in campaign.rows), "runs": campaign.rows}
        bad = (
            result["leftovers"]
            + sum(not row["same"] for row in campaign.rows)
            + len(result.get("faults", []))
            - result.get("as it should", 0)
        )
        shutil.rmtree(folder) if not a.keep else print(f"kept: {folder}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": command} | result, indent=1) + "\n")
    print(f"{bad} problems: {out.relative_to(ROOT)}")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
