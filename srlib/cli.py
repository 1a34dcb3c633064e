"""The command `srlib`: it only calls what the notebooks call.

Exit status 0: done. 1: a stage failed, or the disk is full. 2: refused before anything ran. 130: stopped by Ctrl-C.
Our own errors are one red message, never a traceback.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srlib import config as parameters
from srlib.config import ParamError
from srlib.files import LockedError, StoreError
from srlib.models.load import ModelError
from srlib.run import pipeline
from srlib.run.stages import RunError
from srlib.sample.draws import DrawsError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train a language model into a fine-grained judge by self-rationalization (arXiv 2410.05495).",
)


@app.command()
def run(
    yaml: Annotated[Path, typer.Argument(help="one flat file of parameters, such as params/tiny.yaml")],
    p: Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="set one parameter")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="where the run lives (default: runs/<name of YAML>)")] = None,
    seeds: Annotated[str | None, typer.Option(help="such as 0,1,2: one run each, then the comparison")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="stages side by side")] = None,
    force: Annotated[bool, typer.Option("--force", help="run every stage again")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="also where the forecast says it cannot fit")] = False,
) -> None:
    """Run the whole method; what is already there and current is not run again."""
    with _messages():
        root = parameters.project_root()
        plans = _plans(yaml, p or [], run_dir, seeds, root)
        console = _console()
        if not anyway:
            _refuse_what_cannot_fit(plans[0][0], root)
        for values, where in plans:
            if len(plans) > 1:
                console.print(f"== {where.name}", markup=False)
            reports = pipeline.run(values, where, workers, force, root, console)
            if any(report.status in ("failed", "left") for report in reports):
                raise typer.Exit(1)
            if len(plans) == 1:
                from srlib.report import tables as report

                console.print(report.table(where))
        if len(plans) > 1:
            _compare([where for _, where in plans], None, console)


def _refuse_what_cannot_fit(values: dict, root: Path) -> None:
    from srlib.run import plan

    if (reason := plan.refusal(values, root)) is not None:
        raise RunError(reason)


def _plans(yaml: Path, p: list[str], run_dir: Path | None, seeds: str | None, root: Path) -> list[tuple[dict, Path]]:
    """(parameters, run directory) of each run: all are checked before the first one starts."""
    values = parameters.load(yaml, p, root / "notebooks")
    default = parameters.declared(root / "notebooks").get("run_dir")
    where = root / "runs" / yaml.stem
    if default is not None and values["run_dir"] != default.default:
        where = root / Path(values["run_dir"]).expanduser()
    where = run_dir or where
    if seeds is None:
        return [(values, where)]
    wanted = list(dict.fromkeys(seed.strip() for seed in seeds.split(",") if seed.strip()))
    if not wanted:
        raise ParamError("--seeds is empty: write --seeds 0,1,2")
    return [
        (parameters.load(yaml, [*p, f"seed={seed}"], root / "notebooks"), where.with_name(f"{where.name}-{seed}"))
        for seed in wanted
    ]


@app.command()
def plan(
    yaml: Annotated[Path, typer.Argument(help="one flat file of parameters, such as params/paper.yaml")],
    p: Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="set one parameter")] = None,
    comment: Annotated[bool, typer.Option("--comment", help="print the lines that a recipe's head carries")] = False,
) -> None:
    """Forecast memory, tokens, time and disk of a run, and which GPU it fits; nothing is loaded."""
    with _messages():
        from srlib.run import plan as plans

        root = parameters.project_root()
        found = plans.forecast(parameters.load(yaml, p or [], root / "notebooks"), root)
        console = _console()
        if comment:
            console.print(plans.header(found), markup=False, end="", soft_wrap=True)
        else:
            console.print(plans.show(found, root / "docs" / "bench"))


@app.command()
def bench(
    shape: Annotated[str, typer.Option(help="tiny, 10m, 25m, 60m, llama-3.2-1b or llama-3.1-8b")] = "tiny",
    random_weights: Annotated[bool, typer.Option("--random-weights", help="of the shape, no download")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="the memory forecast against measured peaks")] = False,
    sharing: Annotated[
        bool, typer.Option("--sharing", help="DPO with each prompt read once, 1, 3, 5 pairs each")
    ] = False,
    stages: Annotated[
        Path | None, typer.Option("--stages", help="a run, stage by stage: at work, or on the way")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="processes of each variant, in turn; medians are kept")] = 3,
    rows: Annotated[int, typer.Option(min=0, help="rows, pairs and prompts at once; 0: the shape's default")] = 0,
    prompt_tokens: Annotated[int, typer.Option(min=0, help="0: the shape's default")] = 0,
    completion_tokens: Annotated[int, typer.Option(min=0, help="0: the shape's default")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="directory (default: docs/bench)")] = None,
) -> None:
    """Measure training and judging: ratios and absolutes, backends side by side; a JSON file and a table."""
    with _messages():
        from bench import bench as benches

        root = parameters.project_root()
        sizes = {"rows": rows, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        sizes = {name: value for name, value in sizes.items() if value}
        given = {"--shape": shape != "tiny", "--random-weights": random_weights, "--rounds": rounds != 3}
        given |= {"sizes": bool(sizes) and not memory}
        if (memory or stages is not None) and any(given.values()):
            names = ", ".join(name for name, is_given in given.items() if is_given)
            raise benches.BenchError(f"{'--memory' if memory else '--stages'} does not take {names}; leave that out")
        if memory:
            from bench import bench_memory

            text = bench_memory.memory(out or root / "docs" / "bench", root, **sizes)
        elif stages is not None:
            from bench import bench_stages

            text = bench_stages.stages(stages, out or root / "docs" / "bench")
        elif sharing:
            from bench import bench_sharing

            text = bench_sharing.sharing(shape, out or root / "docs" / "bench", root, random_weights, rounds, **sizes)
        else:
            text = benches.bench(shape, out or root / "docs" / "bench", root, random_weights, rounds, **sizes)
        _console().print(text, markup=False, soft_wrap=True)


@app.command()
def params() -> None:
    """List every parameter: type, default, what it may be, its notebooks, help."""
    with _messages():
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("name", "type", "default", "allowed", "notebooks", "help"):
            table.add_column(title, overflow="fold")
        for param in parameters.declared().values():
            numbers = " ".join(name[:2] for name in param.notebooks)
            default = ",".join(param.default) if isinstance(param.default, list) else str(param.default)
            row = (param.name, param.type, default, param.constraint, numbers, param.help)
            table.add_row(*(Text(cell) for cell in row))
        _console().print(table)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories, such as runs/tiny-*")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="where figure and numbers go")] = None,
) -> None:
    """Compare runs that differ in their seed: arms x metrics, mean and interval, and a figure."""
    with _messages():
        _compare(runs, out, _console())


def _compare(run_dirs: list[Path], out: Path | None, console: Console) -> None:
    from srlib.report import tables as report

    console.print(report.compare(run_dirs, out))


@app.command()
def judge(
    judge: Annotated[str, typer.Argument(help="a judge's directory, a server's URL (http://.../v1), or vllm")],
    rows: Annotated[Path, typer.Argument(help="what to judge: .jsonl or .jsonl.gz")],
    out: Annotated[Path, typer.Option("--out", "-o", help="where the judgments go, .jsonl")],
    limit: Annotated[int | None, typer.Option(min=1, help="judge only the first rows")] = None,
    model: Annotated[str, typer.Option(help="the judge's name on the server, or its directory for vllm")] = "",
) -> None:
    """Judge the rows of a file; the same command resumes. A server's key comes from SRLIB_API_KEY or OPENAI_API_KEY."""
    with _messages():
        from srlib.judge import judge_file

        told = judge_file(judge, rows, out, limit=limit, model=model)
        failed = ", ".join(f"{name} {n}" for name, n in sorted(told["failures"].items())) or "none"
        _console().print(
            f"{told['rows']} rows, {told['scored']} with a score; parse rate {told['parse_rate']:.1%} of the judged, "
            f"{told['judgments_per_second']:.1f} judgments/s; failures: {failed}",
            markup=False,
        )
        if told["told"]:
            _console().print(told["told"], markup=False)


@app.command(name="eval")
def eval_(
    judge: Annotated[str, typer.Argument(help="a judge's directory, a server's URL (http://.../v1), or vllm")],
    bench: Annotated[str, typer.Option(help="the benchmark, such as reward_bench; a wrong name lists them all")],
    data: Annotated[Path | None, typer.Option(help="its rows in a file or folder (default: the hub)")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="results (default: BENCH.json)")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="two responses together, in both orders")] = False,
    revision: Annotated[str, typer.Option(help="the commit of the hub set, where none is pinned")] = "",
    model: Annotated[str, typer.Option(help="the judge's name on the server, or its directory for vllm")] = "",
) -> None:
    """Judge a benchmark and score it by its own rule; the same command resumes."""
    with _messages():
        from srlib.benchmarks import run as benchmarks
        from srlib.benchmarks import suite

        found = suite.named(bench)
        out = out or Path(f"{bench}.json")
        rows = benchmarks.evaluate(judge, found, out, data=data or "", revision=revision, compare=compare, model=model)
        _console().print(benchmarks.table(rows))
        _console().print(f"written: {out}, {out.with_suffix('.judgments.jsonl')}", markup=False)


@app.command()
def score(
    judgments: Annotated[Path, typer.Argument(help="JSONL of id, order, verdict or score; or what eval has kept")],
    bench: Annotated[str, typer.Option(help="the benchmark, such as reward_bench; a wrong name lists them all")],
    data: Annotated[Path | None, typer.Option(help="its rows in a file or folder (default: the hub)")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="results, .json")] = None,
    revision: Annotated[str, typer.Option(help="the commit of the hub set, where none is pinned")] = "",
) -> None:
    """Score a benchmark's judgments that another program made, by the same rule."""
    with _messages():
        from srlib import files as store
        from srlib.benchmarks import run as benchmarks
        from srlib.benchmarks import suite

        rows = benchmarks.score(suite.named(bench), judgments, data=data or "", revision=revision)
        if out is not None:
            store.write_json(out, rows)
        _console().print(benchmarks.table(rows))


@app.command()
def ppi(
    judged: Annotated[Path, typer.Argument(help="judgments, as srlib judge writes them: .jsonl or .jsonl.gz")],
    labels: Annotated[Path, typer.Argument(help="people's scores of some of these rows: id and score, .jsonl")],
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="of the intervals")] = 0.95,
) -> None:
    """The mean score that people would give, from a few of their scores and all of a judge's; prediction-powered."""
    with _messages():
        from srlib.stats import ppi

        _console().print(ppi.told(*ppi.of_files(judged, labels, level), level), markup=False, soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="the directory of a run that has ended, such as runs/tiny")],
    to: Annotated[Path, typer.Option(help="where the judge goes, a new directory")],
    how: Annotated[str, typer.Option("--format", help="adapter, merged or gguf (default: as the run keeps it)")] = "",
    push: Annotated[str, typer.Option(metavar="ORG/NAME", help="also to the hub, private; HF_TOKEN is the key")] = "",
) -> None:
    """Take a run's judge out: weights, tokenizer and model card, if it still judges as it did in the run."""
    with _messages():
        from srlib.report import export

        try:
            gate = export.export(run, to, how, push)
        except export.GateError as error:
            _say(error, 1)
        _console().print(
            f"{to}: {gate.same_score} of {gate.items} greedy scores as before, log-probabilities within "
            f"{gate.largest_difference:.2g} nats a token",
            markup=False,
        )


def _console() -> Console:
    """In a log, a table has the width it needs, not that of a terminal which is not there."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


@contextlib.contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except (RunError, LockedError, ModelError) as error:
        _say(error, 2)
    except (StoreError, DrawsError) as error:
        _say(error, 1)
    except (ValueError, OSError) as error:  # ParamError and RowError are ValueErrors
        if not _is_ours(error):
            raise
        _say(error, 2)
    except KeyboardInterrupt:
        _say("stopped; the same command resumes", 130)


def _is_ours(error: BaseException) -> bool:
    """Raised by a line of srlib, which says what to do; what a library raised is a bug, and keeps its traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").startswith("srlib.")


def _say(message: object, status: int) -> None:
    Console(stderr=True, highlight=False).print(str(message), style="red", markup=False, soft_wrap=True)
    raise typer.Exit(status)
