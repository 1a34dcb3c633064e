"""All stages of a run: order, resume, progress. Each stage is a process of its own (execute.py), so a kill is safe at any
moment. Executed notebooks are in <run>/notebooks, also the one whose cell failed."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from srlib import config, curate, files
from srlib.config import Parameters
from srlib.hardware import machine
from srlib.run import forecast, stages
from srlib.run.stage import take_home

EXECUTE = Path(__file__).with_name("execute.py")
PLAIN_EVERY = 30.0  # seconds between two progress lines of a stage without a terminal


class Task(NamedTuple):
    """All that a stage's process needs, on this machine or another."""

    notebook: str  # "05_dpo"
    out: str  # the executed notebook, relative to root
    values: dict[str, Any]
    root: Path
    environment: dict[str, str]
    log: Path
    threads: int  # of each process
    processes: int  # that execute it together
    draws: bool  # whether they only draw judgments, so that each may be on another machine

    def start(self) -> subprocess.Popen:
        """Start the process; what went wrong comes from its standard output, and it ends when its standard input closes."""
        command = [sys.executable, "-P", EXECUTE, f"notebooks/{self.notebook}.ipynb", self.out, json.dumps(self.values)]
        if self.processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost", "--no-python"]
            command = [sys.executable, *torchrun, f"--nproc-per-node={self.processes}", *command]
        # Threads that wait sleep (GOMP_SPINCOUNT), and GPUs have the numbers of nvidia-smi
        common = {"TOKENIZERS_PARALLELISM": "false", "GOMP_SPINCOUNT": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        environment = os.environ | common | {"OMP_NUM_THREADS": str(self.threads)} | self.environment
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "start_new_session": True}
        with files.writing(self.log), open(self.log, "w") as log:
            return subprocess.Popen(command, cwd=self.root, env=environment, stderr=log, **pipes)


class Job:
    """A stage of this run. `reason` says why it runs; `status` is left (nothing started any more, or an input failed),
    running, cached, done, skipped (the run cannot have it) or failed."""

    def __init__(self, stage: stages.Stage, run: Path, bars: Progress, named: bool = False) -> None:
        self.stage, self.output, self.bars, self.status, self.reason = stage, run / stage.output, bars, "left", None
        self.name = f"{run.name} {stage.name}" if named else stage.name
        self.notebook = run / "notebooks" / f"{stage.name}.ipynb"
        self.log, self.beat = run / ".logs" / f"{stage.name}.txt", run / ".progress" / f"{stage.name}.json"

    def runs(self, cfg: Parameters, run: Path, force: bool) -> str | None:
        """Why the stage has to run, None if it is current."""
        return "forced" if force else stages.reason(self.output, stages.parts(self.stage, cfg, run))

    def start(self, cfg: Parameters, run: Path, threads: int, force: bool, place: Any) -> None:
        """Start a process for the stage, unless it is current; on a cluster, if `place` is one."""
        self.reason = self.runs(cfg, run, force)
        self.say(f"runs: {self.reason}" if self.reason else "cached")
        self.status = "running" if self.reason else "cached"
        if not self.reason:
            return
        self.before, self.started = stages.manifest(self.output), time.monotonic()
        self.shown, self.bar = self.started, self.bars.add_task(self.name)
        self.beat.unlink(missing_ok=True)
        root = config.project_root()
        run_dir, out = (files.relative(path, root) for path in (run, self.notebook))  # no path of this machine
        values = cfg.model_dump(mode="json") | self.stage.fixed | {"run_dir": run_dir}
        values = {name: values[name] for name in dict.fromkeys(("run_dir", *config.declared_in(self.stage.notebook)))}
        environment = {"SRLIB_PROGRESS": str(self.beat)} | ({"SRLIB_FORCE": "1"} if force else {})
        shared, notebook = self.stage.shared(cfg), self.stage.notebook
        processes, draws = cfg.gpus if shared else 1, shared and notebook in ("03_sample", "06_eval")
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS", threads)) // processes)
        task = Task(notebook, out, values, root, environment, self.log, threads, processes, draws)
        self.process = place.start(task) if place else task.start()

    def watch(self) -> None:
        """Pass the heartbeat of the stage on to its bar, or to a line if there is no terminal; note its end."""
        with contextlib.suppress(files.RowError, KeyError, TypeError):
            beat = files.read_json(self.beat)
            text, done, total = printable(beat["desc"]), beat["done"], beat["total"]
            self.bars.update(self.bar, description=f"{self.name}: {text}", completed=done, total=total)
            if self.bars.disable and time.monotonic() - self.shown >= PLAIN_EVERY:
                self.shown = time.monotonic()
                self.say(f"{text} {done}/{total or '?'}")
        if self.process.poll() is None:
            return
        problem = printable(self.process.stdout.read())
        if not problem and ((code := self.process.returncode) or stages.manifest(self.output) in ({}, self.before)):
            problem = f"with status {code}" if code else f"to make {self.stage.output}; does it call stage.finish()?"
        self.status = "failed" if problem else "done"
        failure = f"{self.stage.name} (notebook {self.stage.notebook}) failed {problem}"
        failure += f"\nThe notebook as far as it came: {self.notebook}\nIts log: {self.log}"
        made = {"facts": {}} if problem else stages.manifest(self.output)
        tokens = sum(made["facts"].get(name) or 0 for name in ("tokens", "prompt_tokens", "drawn_tokens"))
        rate = f", {tokens / made['seconds']:,.0f} tokens/s" if tokens and made["seconds"] else ""
        self.say(failure if problem else f"done in {time.monotonic() - self.started:.1f} s{rate}")
        for note in made["facts"].get("notes", []):
            self.say(printable(note))
        self.bars.remove_task(self.bar)

    def say(self, text: str) -> None:
        style = "red" if self.status == "failed" else None
        self.bars.console.print(f"{self.name:<17} {text}", markup=False, style=style, soft_wrap=True)


def run_all(
    runs: Mapping[Path, Parameters], workers: int = 0, force: bool = False, console: Any = None, place: Any = None
) -> list[list[Job]]:
    """Bring runs up to date side by side: of each directory its jobs. In a run, `workers` stages are executed side by side (0:
    two on a CPU of several cores, else one), or as many as there is room for in `place`, a `cluster.Cluster`. `force` runs all
    again. After a failure nothing new starts in its run, and what is running ends. runs/last is the run whose first stage was
    done last. Raises StoreError if a directory cannot be written, SrlibError if another process runs in it, and RunError or
    ParamError before anything starts. KeyboardInterrupt stops the kernels."""
    console = console or Console(highlight=False)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bars, done = Progress(*columns, console=console, transient=True, disable=not console.is_terminal), {}
    options = (workers, force, bars, place, len(runs) > 1)
    going = {path: _steps(cfg, path.resolve(), *options) for path, cfg in runs.items()}
    try:
        with bars:
            while len(done) < len(going):
                for path in [path for path in going if path not in done]:
                    try:
                        next(going[path])
                    except StopIteration as end:
                        done[path] = end.value
                time.sleep(1.0 if place and len(runs) > 9 else 0.1)
    finally:
        for steps in going.values():
            steps.close()
    return [done[path] for path in runs]


def _steps(cfg: Parameters, run: Path, workers: int, force: bool, bars: Any, place: Any, named: bool) -> Iterator[None]:
    """A run, bit by bit, and its jobs at the end; the first bit checks what can be checked. `named` prints the run's name."""
    last = config.project_root() / "runs" / "last"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or (1 if machine.found().gpu or cores < 2 else 2)
    reasons, gone = check(cfg, run, place), stages.skipped(cfg, run)
    jobs = [Job(stage, run, bars, named) for stage in stages.of(cfg)]
    workers, threads = (len(jobs), 1) if place else (workers, max(1, cores // workers))
    stale = [output for output, reason in reasons.items() if reason and output not in gone]
    for folder in ("notebooks", ".logs", ".progress"):
        files.make_dir(run / folder)
    yield
    with files.lock(run):
        for folder in (run, *(path for path in run.iterdir() if path.is_dir())):
            files.sweep(folder)
        if stale and "data" not in stale and not force and (run / "data" / "train.jsonl").exists():
            foreseen = forecast.of_run(cfg, run)  # 01 has printed it, but other parameters may have changed since
            foreseen.check()
            for note in foreseen.notes:
                jobs[0].say(printable(note))
        files.write_text(run / "params.yaml", recorded(cfg))
        whole = bars.add_task(run.name if named else "stages", total=len(jobs))
        running, linked = [], False
        try:
            while True:
                running = [job for job in jobs if job.status == "running"]
                made = {job.stage.output for job in jobs if job.status in ("cached", "done", "skipped")}
                failed = any(job.status == "failed" for job in jobs)
                ready = [job for job in jobs if job.status == "left" and made.issuperset(job.stage.inputs)]
                bars.update(whole, completed=len(made))
                if made and not linked:
                    linked = True
                    with contextlib.suppress(OSError):  # some file systems have no links, or it is no link
                        if last.is_symlink():
                            last.unlink()
                        last.symlink_to(files.relative(run, last.parent.resolve()))
                if ready and not failed and len(running) < workers:
                    if problem := stages.skipped(cfg, run).get(ready[0].stage.output):
                        ready[0].status = "skipped"
                        ready[0].say(f"skipped: {problem}")
                        continue
                    ready[0].start(cfg, run, threads, force, place)
                elif running:
                    yield
                    for job in running:
                        job.watch()
                else:
                    break
        finally:
            for job in running:
                job.process.kill()  # its kernel ends with it
                job.process.stdin.close()  # and so do the processes that train together
        if len(made) == len(jobs):
            take_home(run, cfg)
    return jobs


def check(cfg: Parameters, run: Path, place: Any = None) -> dict[str, str | None]:
    """Why each stage has to run, by its directory, None if it is current; refuses what can be known before anything runs (RunError)."""
    stages.check_strategy(cfg.strategy)
    curate.kinds(cfg.pair_mix, 0)
    check_gpus(cfg, place)
    if cfg.keep == "best" and not any(arm == "sft" or arm.removeprefix("sre_").isdigit() for arm in cfg.arms):
        raise stages.RunError("keep is best, and arms hold neither sft nor sre_N to choose from: add one, or keep last")
    stages.check_own(run / "judge", (run / ".judge.tmp").exists())
    path, begun = run / "params.yaml", any((run / name).is_dir() for name in (".progress", ".locks"))
    if not begun and path.exists() and path.read_text("utf-8", "replace") != recorded(cfg):
        raise stages.RunError(f"{path}: exists, and no run has made it; set another run_dir, or move it away")
    return {stage.output: stages.reason(run / stage.output, stages.parts(stage, cfg, run)) for stage in stages.of(cfg)}


def recorded(cfg: Parameters) -> str:
    """The text of a run's params.yaml."""
    return yaml.safe_dump(cfg.model_dump(mode="json", exclude={"run_dir"}), sort_keys=False, allow_unicode=True)


def check_gpus(cfg: Parameters, place: Any = None) -> None:
    """Refuse `gpus` that this machine lacks, or that cannot train together (RunError)."""
    most = place.most["GPU"] if place else len(machine.gpus())
    if most and cfg.gpus > most:
        where = "on one node" if place else "visible here"
        raise stages.RunError(f"gpus is {cfg.gpus}, and {most} are {where}; lower it")
    if cfg.gpus > 1 and cfg.backend == "unsloth":
        raise stages.RunError("backend unsloth trains on one GPU: set gpus to 1, or backend to auto")
    for name in ("sft_batch_size", "dpo_batch_size"):
        if (rows := getattr(cfg, name)) % cfg.gpus:
            raise stages.RunError(f"{name} is {rows}, which {cfg.gpus} GPUs cannot share; make it a multiple of gpus")


def printable(text: str) -> str:
    """An error may quote generated text: none of its escape sequences reaches the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
