"""The command `srlib`: options and messages; the work is done elsewhere.

Exit status 0: done. 1: a stage failed, the disk is full, or a file may not be read. 2: refused before anything ran. 3: no row
that was judged got a score. 130: stopped by Ctrl-C or SIGTERM. Our own errors are one red message, others keep their traceback."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srlib import config, files
from srlib.run import RunError, pipeline
from srlib.schema import SrlibError


class Commands(typer.core.TyperGroup):
    """All commands, behind one handler of errors."""

    def invoke(self, ctx: typer.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # an encoding without these characters loses no result
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a batch system stops a job
        try:
            return super().invoke(ctx)
        except SrlibError as error:
            message, status = str(error), error.exit_status
        except PermissionError as error:
            if error.filename is None:
                raise
            message, status = f"{error.filename}: {error.strerror}; name another, or change its permissions", 1
        except KeyboardInterrupt:
            ends = "begins anew, for --force does" if "--force" in sys.argv else "resumes"
            message, status = f"stopped; the same command {ends}", 130
        message = pipeline.printable(message)
        Console(stderr=True, highlight=False).print(message, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(status)


ABOUT = "Train a language model into a fine-grained judge by self-rationalization (arXiv 2410.05495)."
app = typer.Typer(cls=Commands, help=ABOUT, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
Yaml = Annotated[Path, typer.Argument(help="flat file of parameters, such as params/tiny.yaml")]
SET = typer.Option("-p", metavar="NAME=VALUE", help="set a parameter; with run, NAME=1,2 starts a run for each value")
Overrides = Annotated[list[str] | None, SET]
JudgeName = Annotated[str, typer.Argument(help="a judge's directory, or a server's URL (http://.../v1)")]
Model = Annotated[str, typer.Option(help="the judge's name on the server")]
Bench = Annotated[str, typer.Option(help="benchmark, such as reward_bench; a wrong name lists them all")]
Data = Annotated[Path | None, typer.Option(help="its rows in a file or folder (default: the hub)")]
Revision = Annotated[str, typer.Option(help="commit of the hub set, if none is pinned")]


@app.command()
def run(
    yaml: Yaml,
    p: Overrides = None,
    grid: Annotated[list[str] | None, typer.Option(metavar="NAME=A,B", help="a run for each value, as -p does")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="run directory (default: runs/<name of YAML>)")] = None,
    seeds: Annotated[str | None, typer.Option(help="such as 0,1,2: one run each, then the comparison")] = None,
    workers: Annotated[int, typer.Option(min=0, help="stages to run in parallel; 0: as the machine allows")] = 0,
    force: Annotated[bool, typer.Option("--force", help="run every stage again, from its beginning")] = False,
    cluster: Annotated[str, typer.Option(help="all runs at once on Ray: local, auto, or HOST:PORT")] = "",
    anyway: Annotated[bool, typer.Option("--anyway", help="start even if the forecast says it does not fit")] = False,
) -> None:
    """Run the whole method; stages that are up to date are skipped."""
    from srlib.report import page, tables
    from srlib.run import plan

    console, runs, whole, swept = _console(), {}, [], config.sweep([*(p or []), *(grid or [])], seeds)
    for suffix, overrides in swept:
        cfg, root = _parameters(yaml, overrides), config.project_root()
        named = f"runs/{yaml.stem}" if cfg.run_dir == config.FIELDS["run_dir"].default else cfg.run_dir
        directory = (run_dir or root / Path(named).expanduser()).expanduser().absolute()
        runs[directory.with_name(directory.name + suffix)] = cfg
        here = cluster in ("", "local")  # elsewhere other machines compute
        if here and not anyway and (reason := plan.refusal(cfg)) is not None:
            raise RunError(reason)
    several = len(swept) > 1 or seeds is not None
    alike = {*pipeline.stages.NOT_IDENTITY, *tables.NO_SETTING}
    distinct = {cfg.model_dump_json(exclude=alike) for cfg in runs.values()}
    if several and len(distinct) < len(swept):
        raise RunError("two of these runs differ in nothing that a comparison shows: write each value and seed once")
    files.make_dir(directory.parent)  # this may be the project's first run
    out = tables.comparison_dir(list(runs)) if several else None
    for directory, cfg in runs.items() if several and not cluster else ():  # before the first of them trains
        pipeline.check(cfg, directory.resolve())
    if cluster:
        from srlib.run.cluster import Cluster

        with Cluster(cluster, list(runs)) as place:
            jobs = dict(zip(runs, pipeline.run_all(runs, force=force, console=console, place=place), strict=True))
    for directory, cfg in runs.items():
        if several and not cluster:
            _say(f"== {directory.name}")
        ended = jobs[directory] if cluster else pipeline.run_all({directory: cfg}, workers, force, console)[0]
        if not any(job.status in ("failed", "left") for job in ended):
            page.write_report(directory)
            whole.append(directory)
        elif not cluster:  # there, the others went on
            break
    if len(whole) < len(runs):
        raise typer.Exit(1)
    console.print(tables.compare(list(runs), out) if several else tables.table(directory))
    for path in map(files.relative, runs):
        _say(f"Report: {path}/report.html   judge: {path}/judge")
    _say(f"Next, judge rows of your own: srlib judge {path}/judge rows.jsonl -o judged.jsonl")


@app.command()
def plan(yaml: Yaml, p: Overrides = None) -> None:
    """Forecast memory and tokens of a run, and which GPU it fits; nothing is loaded."""
    from srlib.run import plan

    _console().print(plan.show(plan.forecast(_parameters(yaml, p or []))))


@app.command()
def params(name: Annotated[str, typer.Argument(help="a notebook (05), or part of a name (lora)")] = "") -> None:
    """List the parameters; of a notebook, or by part of a name, with type, default, allowed values, help."""
    notebooks = sorted(path.stem for path in (config.project_root() / "notebooks").glob("[0-9]*.ipynb"))
    shown = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(name))
    if not name:
        rest = list(config.FIELDS)
        for stem in notebooks:
            own = config.declared_in(stem)
            shown.add_row(stem, ", ".join(field for field in rest if field in own))
            rest = [field for field in rest if field not in own]
        shown.add_row("others", ", ".join(rest))
        _console().print(shown, "`srlib params 05` or `srlib params lora`: type, default, allowed values and help")
        return
    for title in ("name", "type", "default", "allowed", "help"):
        shown.add_column(title, overflow="fold")
    chosen = [config.read_by(stem) for stem in notebooks if stem.startswith(name)]
    for field in chosen[0] if chosen else [field for field in config.FIELDS if name in field]:
        about, default = config.FIELDS[field], config.FIELDS[field].default
        kind = "list[str]" if isinstance(default, list) else type(default).__name__
        default = ", ".join(default) if isinstance(default, list) else repr(default)
        shown.add_row(*map(Text, (field, kind, default, config.allowed(field), about.description)))
    if not shown.row_count:
        raise config.ParamError(f"no notebook and no parameter is called {name!r}; `srlib params` lists all")
    _console().print(shown)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories, such as runs/tiny-*")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="directory for the table and the figure")] = None,
) -> None:
    """Compare settings and seeds: arms x metrics, a line for each setting, mean and interval over seeds, and a figure."""
    from srlib.report import tables

    _console().print(tables.compare(runs, out))


@app.command()
def judge(
    judge: JudgeName,
    rows: Annotated[Path, typer.Argument(help="what to judge: JSON lines, JSON, CSV, Parquet or a folder of them")],
    out: Annotated[Path, typer.Option("--out", "-o", help="where the judgments go, .jsonl, or a pipe")],
    limit: Annotated[int | None, typer.Option(min=1, help="judge only the first rows")] = None,
    model: Model = "",
    columns: Annotated[str, typer.Option(help="columns by hand, such as instruction:Question,score:Grade")] = "",
    rubric: Annotated[Path | None, typer.Option(help="rubric of rows without one, .yaml or .json")] = None,
    score_step: Annotated[float, typer.Option(min=0, help="step between scores of a range (0: the judge's)")] = 0,
) -> None:
    """Judge the rows of a file, and measure agreement where they have gold verdicts; the same command resumes. A server's key
    comes from SRLIB_API_KEY or OPENAI_API_KEY."""
    from srlib.judge import judge_file, summary

    reading = {"columns": config.split(columns), "rubric": rubric, "score_step": score_step}
    reading = {name: value for name, value in reading.items() if value}
    done = judge_file(judge, rows, out, limit=limit, model=model, **reading)
    _say(summary(done), stderr=files.is_stream(out))
    if not done["scored"]:
        raise typer.Exit(3)


@app.command(name="eval")
def eval_(
    judge: JudgeName,
    bench: Bench,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="results (default: BENCH.json)")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="two responses together, in both orders")] = False,
    revision: Revision = "",
    model: Model = "",
) -> None:
    """Judge a benchmark and score it by its own rule; the same command resumes."""
    from srlib import benchmarks

    out, options = out or Path(f"{bench}.json"), {"revision": revision, "compare": compare, "model": model}
    rows = benchmarks.evaluate(judge, benchmarks.named(bench), out, data=data or "", **options)
    console = _console(stderr=files.is_stream(out))
    console.print(benchmarks.table(rows))
    console.print(f"written: {out}, {benchmarks.kept(out, bench)}", markup=False, soft_wrap=True)


@app.command()
def score(
    judgments: Annotated[Path, typer.Argument(help="JSONL of id, order, verdict or score; or what eval has kept")],
    bench: Bench,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="results, .json")] = None,
    revision: Revision = "",
) -> None:
    """Score a benchmark's judgments that another program made, by the same rule."""
    from srlib import benchmarks

    rows = benchmarks.score(benchmarks.named(bench), judgments, data=data or "", revision=revision, out=out)
    _console(stderr=out is not None and files.is_stream(out)).print(benchmarks.table(rows))


@app.command()
def ppi(
    judged: Annotated[Path, typer.Argument(help="judgments, as srlib judge writes them: .jsonl or .jsonl.gz")],
    labels: Annotated[Path, typer.Argument(help="people's scores of some of these rows: id and score, .jsonl")],
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="confidence level of the intervals")] = 0.95,
) -> None:
    """Estimate people's mean score from a few of their scores and all of a judge's (prediction-powered inference)."""
    from srlib.stats import ppi

    _say(ppi.told(*ppi.of_files(judged, labels, level), level))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="directory of a run that has ended, such as runs/tiny")],
    to: Annotated[Path, typer.Option(help="where the judge goes, a new directory")],
    how: Annotated[str, typer.Option("--format", help="adapter or merged (default: as the run keeps it)")] = "",
) -> None:
    """Export a run's judge: weights, tokenizer and model card, if it still judges as it did in the run. To put it on the hub:
    `hf upload ORG/NAME DIR . --private` (merged, if the base of an adapter is a directory of yours)."""
    from srlib.report import export

    gate = export.export(run, to, how)
    near = f"log-probabilities within {gate.largest_difference:.2g} nats per token"
    _say(f"{to}: {gate.same_score} of {gate.items} greedy scores as before, {near}")


def _parameters(yaml: Path, overrides: list[str]) -> config.Parameters:
    """The parameters of a run; a path that is not in the project is looked for where the user is."""
    cfg, root = config.load(yaml, overrides), config.project_root()
    paths = {n: Path(path).expanduser() for n in pipeline.stages.MAY_BE_PATHS if (path := getattr(cfg, n))}
    mine = {n: str(path.absolute()) for n, path in paths.items() if path.exists() and not (root / path).exists()}
    return cfg.model_copy(update=mine)


def _console(stderr: bool = False) -> Console:
    """Without a terminal, as in a log, tables are 160 characters wide; `stderr` keeps standard output for a result."""
    console = Console(highlight=False, stderr=stderr)
    return console if console.is_terminal else Console(highlight=False, width=160, stderr=stderr)


def _say(text: str, stderr: bool = False) -> None:
    _console(stderr).print(text, markup=False, soft_wrap=True)
