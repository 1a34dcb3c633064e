"""Stages over papermill: order, resume, progress.

Each stage is one notebook in a kernel of its own, so a stage that dies takes nothing with it. What is current is not
run again (`stages.why`), what was killed resumes, and nothing is kept in memory between stages: SIGKILL is safe at any
moment.

    reports = run(params.load("params/tiny.yaml"), Path("runs/tiny"))
    [(r.stage, r.status) for r in reports] -> [("data", "cached"), ("sft", "done"), ...]

Executed notebooks are in <run>/notebooks, also the one whose cell failed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from srlib import config as parameters
from srlib import files as store
from srlib.hardware import machine
from srlib.kernels import Kernels
from srlib.run import stage as runs
from srlib.run import stages
from srlib.run.stages import Stage

BESIDE = 10  # niceness of a stage that only the evaluation waits for: the chain of iterations gets the cores it can use
PLAIN_EVERY = 30.0  # seconds between two progress lines of one stage, where there is no terminal


@dataclass(frozen=True)
class StageReport:
    stage: str
    status: str  # cached, done, failed, or left (an input failed, or nothing was started any more)
    reason: str = ""  # why it ran
    seconds: float = 0.0
    error: str = ""


def run(
    params: Mapping[str, Any],
    run_dir: Path | str,
    workers: int | None = None,
    force: bool = False,
    root: Path | None = None,
    console: Console | None = None,
) -> list[StageReport]:
    """Bring every stage of a run up to date and return one report each, in order of `stages.of`.

    `workers` stages run side by side where their inputs allow it (default: `default_workers()`). `force` runs all of
    them again. After a failure nothing new is started and what is running ends. Raises StoreError when the directory
    cannot be written or another run is in it, RunError on arms that cannot be. KeyboardInterrupt stops the kernels.
    """
    root = root or parameters.project_root()
    run_dir = Path(run_dir).absolute()
    todo = stages.of(params)
    workers = workers or default_workers()
    for stage in todo:
        stages.parts(stage, params, run_dir, root)  # a notebook that cannot be read is refused now, not after an hour
    store.make_dir(run_dir)
    with store.lock(run_dir):
        _record(params, run_dir)
        runs.link_last(run_dir, root)
        if force:
            _forget(todo, run_dir)
        walk = _Walk(todo, params, run_dir, root, workers, console or Console(highlight=False))
        reports = walk.finish()
        if all(report.status in ("cached", "done") for report in reports):
            runs.take_home(run_dir, params)
    return reports


def default_workers() -> int:
    """Stages side by side: 2 on a machine with at least two cores and no GPU, 1 otherwise; torch is not asked."""
    return 1 if machine.gpu() or cores() < 2 else 2


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget(todo: list[Stage], run_dir: Path) -> None:
    """Let every stage be new, if nobody works in any of them."""
    with contextlib.ExitStack() as alone:
        for stage in todo:
            alone.enter_context(runs.alone_in(run_dir, stage))
        for stage in todo:
            with store.writing(run_dir / stage.output):
                (run_dir / stage.output / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(stages.partial_of(run_dir / stage.output), ignore_errors=True)


def _record(params: Mapping[str, Any], run_dir: Path) -> None:
    """params.yaml of the run: what a notebook that is opened later reads, and what `srlib run` can repeat."""
    import yaml

    values = {name: value for name, value in params.items() if name != "run_dir"}
    with store.writing(run_dir / "params.yaml"):
        temporary = run_dir / ".params.yaml.tmp"
        temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(temporary, run_dir / "params.yaml")


class _Walk:
    """One walk through the stages: what has ended, what is running, and what is shown of it."""

    def __init__(
        self, todo: list[Stage], params: Mapping[str, Any], run_dir: Path, root: Path, workers: int, console: Console
    ) -> None:
        self.todo, self.params, self.run_dir, self.root, self.workers = todo, params, run_dir, root, workers
        self.screen = _Screen(console, run_dir, len(todo))
        self.reports: dict[str, StageReport] = {}
        self.running: dict[Future[StageReport], Stage] = {}
        self.kernels = Kernels(params.get("backend"))
        self.pages = ThreadPoolExecutor(1)  # the report links them: rendered here, its stage finds them there

    def finish(self) -> list[StageReport]:
        pool = ThreadPoolExecutor(self.workers)
        try:
            with self.screen:
                while self._start_what_can(pool) or self.running:
                    ended, _ = wait(self.running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in ended:
                        self._end(self.running.pop(future), future.result())
                    self.screen.show(self.running.values())
        finally:
            # also on Ctrl-C: the kernels are in sessions of their own, so the terminal's signal does not reach them
            self.kernels.kill()
            pool.shutdown(cancel_futures=True)
            self.pages.shutdown()
        left = [StageReport(stage.name, "left") for stage in self.todo]
        return [self.reports.get(report.stage, report) for report in left]

    def _start_what_can(self, pool: ThreadPoolExecutor) -> bool:
        """Settle what is current and start what is not; True when a stage was settled, which may free others."""
        settled = False
        started = {stage.name for stage in self.running.values()} | self.reports.keys()
        waiting = {stage.output for stage in self.todo if self._status(stage) not in ("cached", "done")}
        for stage in self.todo:
            failed = any(report.status == "failed" for report in self.reports.values())
            if failed or len(self.running) >= self.workers:
                break
            if stage.name in started or waiting & set(stage.inputs):
                continue
            reason = stages.why(stage, self.params, self.run_dir, self.root)
            if reason is None:
                self._end(stage, StageReport(stage.name, "cached"))
                settled = True
            else:
                self.screen.line(stage.name, f"runs: {reason}")
                self.running[pool.submit(self._execute, stage, reason)] = stage
        return settled

    def _status(self, stage: Stage) -> str | None:
        report = self.reports.get(stage.name)
        return report.status if report else None

    def _end(self, stage: Stage, report: StageReport) -> None:
        self.reports[stage.name] = report
        how = f"done in {report.seconds:.1f} s" if report.status == "done" else report.error or report.status
        self.screen.line(stage.name, how, failed=report.status == "failed")
        self.screen.ended(stage)
        if report.status == "done":
            self.pages.submit(self._page, self.run_dir / "notebooks" / f"{stage.name}.ipynb")

    def _page(self, notebook: Path) -> None:
        from srlib.report import page  # matplotlib, beside what is running

        try:
            page.rendered(notebook)
        except Exception as error:  # of nbconvert or the file system: the stage itself is done
            text = _printable(f"its page could not be rendered: {type(error).__name__}: {error}")
            self.screen.line(notebook.stem, text, failed=True)

    def _execute(self, stage: Stage, reason: str) -> StageReport:
        started = time.monotonic()
        report = StageReport(stage.name, "done", reason)
        try:
            *before, evaluation = self.todo
            beside = (
                self.workers > 1 and stage != evaluation and not any(stage.output in other.inputs for other in before)
            )
            how = dict(threads=cores() // self.workers, nice=BESIDE if beside else 0)
            error = _notebook(stage, self.params, self.run_dir, self.root, self.kernels, **how)
        except Exception as unexpected:  # of papermill or the file system: the other stages shall end in peace
            error = f"{stage.name} (notebook {stage.notebook}) failed: {type(unexpected).__name__}: {unexpected}"
        seconds = time.monotonic() - started
        return replace(report, seconds=seconds, error=_printable(error), status="failed" if error else "done")


def _notebook(
    stage: Stage,
    params: Mapping[str, Any],
    run_dir: Path,
    root: Path,
    kernels: Kernels,
    threads: int,
    nice: int,
) -> str:
    """Execute a stage's notebook; "" when its directory is complete and current, else what went wrong, and where."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of [>= 0] in a help, which it cannot read; we can
    notebooks = root / "notebooks"
    output = run_dir / "notebooks" / f"{stage.name}.ipynb"
    heartbeat, kernel_log = _heartbeat(run_dir, stage), run_dir / ".logs" / f"{stage.name}.txt"
    for folder in (output.parent, heartbeat.parent, kernel_log.parent):
        store.make_dir(folder)
    heartbeat.unlink(missing_ok=True)
    run_name = os.path.relpath(run_dir, root) if run_dir.is_relative_to(root) else str(run_dir)
    known = {**params, **stage.fixed, "run_dir": run_name}
    wanted = {name: known[name] for name in parameters.of_notebook(stage.notebook, notebooks)}
    given = os.environ.get("OMP_NUM_THREADS", max(1, threads))
    environment = machine.environment(given) | {"SRLIB_PROGRESS": str(heartbeat)}
    made_before = stages.manifest(run_dir / stage.output)
    where = f"{stage.name} (notebook {stage.notebook}) failed"
    look = f"The notebook as far as it came: {output}"
    try:
        papermill.execute_notebook(
            *(
                str(path).replace("{", "{{").replace("}", "}}")
                for path in (notebooks / f"{stage.notebook}.ipynb", output)
            ),
            parameters=wanted,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=180,
            iopub_timeout=120,  # the default of 4 s is short on a busy machine
            resources={"metadata": {"path": str(root)}},  # papermill's own cwd= is a chdir of all threads
            kernel_manager_class=kernels.manager(environment, kernel_log, nice),
        )
    except papermill.PapermillExecutionError as error:
        return f"{where} in cell {error.exec_count}: {error.ename}: {error.evalue}\n{look}"
    except OSError as error:  # papermill, writing the notebook
        return f"{where}: {output}: {error.strerror or error}. What is written is kept: free space, the same command then resumes"
    except DeadKernelError:
        died = "its kernel died, mostly for lack of memory; try --workers 1"
        return f"{where}: {died}\n{look}\nIts last words: {kernel_log}"
    except RuntimeError as error:  # jupyter_client: it did not start
        return f"{where}: {error}\nIts last words: {kernel_log}"
    finally:
        heartbeat.unlink(missing_ok=True)
        _forget_paths(output, stage)
    # Not only when it is current: code that was edited meanwhile makes it stale for the next run, not a failure of this.
    if stages.manifest(run_dir / stage.output) in (None, made_before):
        reason = stages.why(stage, params, run_dir, root)
        if reason is not None:
            return f"{where}: it ended without {stage.output} ({reason}); does it call stage.finish()?\n{look}"
    return ""


def _forget_paths(output: Path, stage: Stage) -> None:
    """papermill notes where this machine keeps the files; a notebook that is shown around need not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, store.StoreError):
        notebook = json.loads(output.read_bytes())
        notes = notebook["metadata"]["papermill"]
        notes["input_path"], notes["output_path"] = f"notebooks/{stage.notebook}.ipynb", output.name
        store.write_text(output, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _heartbeat(run_dir: Path, stage: Stage) -> Path:
    return run_dir / ".progress" / f"{stage.name}.json"


def _printable(text: str) -> str:
    """An error may quote generated text: no escape sequence of it reaches the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


class _Screen:
    """One bar for the pipeline and one for each running stage; plain lines where nobody watches a terminal."""

    def __init__(self, console: Console, run_dir: Path, total: int) -> None:
        self.console, self.run_dir, self.total = console, run_dir, total
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.tasks: dict[str, Any] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> _Screen:
        self.bars.start()
        self.whole = self.bars.add_task("stages", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def line(self, name: str, text: str, failed: bool = False) -> None:
        self.said[name] = time.monotonic()
        self.console.print(f"{name:<18}{text}", markup=False, style="red" if failed else None, soft_wrap=True)

    def ended(self, stage: Stage) -> None:
        self.bars.advance(self.whole)
        if stage.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(stage.name))

    def show(self, running: Any) -> None:
        for stage in running:
            for beat in self._beats(stage):
                text = _printable(f"{stage.name}: {beat['desc']}")
                if self.console.is_terminal:
                    task = self.tasks.setdefault(stage.name, None)
                    if task is None:
                        task = self.tasks[stage.name] = self.bars.add_task(text)
                    self.bars.update(task, description=text, completed=beat["done"], total=beat["total"])
                elif time.monotonic() - self.said.get(stage.name, 0.0) >= PLAIN_EVERY:
                    self.line(stage.name, f"{beat['desc']} {beat['done']}/{beat['total'] or '?'}")

    def _beats(self, stage: Stage) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            beat = json.loads(_heartbeat(self.run_dir, stage).read_bytes())
            yield {"desc": str(beat["desc"]), "done": int(beat["done"]), "total": beat["total"]}
