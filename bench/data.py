"""How long 100,000 rows take to load, validate and split, and how much memory: srlib.data and srlib.overlap.

    python bench/data.py                                        # prints, a few minutes with the writing of files
    python bench/data.py --out docs/bench/data.json

Rows have the Feedback Collection's columns and lengths, made of drawn words: 1,000 rubrics, 20 instructions each, 5 scored
responses to every instruction. They are written as JSONL, as one JSON array and as Parquet, and each file is loaded in a
fresh process: with every row kept, and with the limits of a run. Seconds are the clock's, cpu_seconds the process's own (on
a machine that others use the clock says little); memory is the process's peak (VmHWM), imports and all. The overlap is
between the training split and as many rows of the others as a run measures on (LIMITS).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

LIMITS = {"train": 5000, "validation": 500, "test": 1000, "ood": 1000}
HEADINGS = (
    "###The instruction to evaluate:",
    "###Response to evaluate:",
    "###Reference Answer (Score 5):",
    "###Score Rubrics:",
)


def rows(n: int) -> Iterator[dict[str, str]]:
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(20_000)]
    weights = list(itertools.accumulate(1 / (i + 5) for i in range(len(words))))
    phrases = [rng.choices(words, cum_weights=weights, k=30) for _ in range(100)]

    def text(length: int) -> str:
        drawn = rng.choices(words, cum_weights=weights, k=length)
        if rng.random() < 0.05:  # what people call contamination
            drawn[5:5] = rng.choice(phrases)
        return " ".join(drawn).capitalize() + "."

    for i in range(n):
        if i % 100 == 0:
            criteria, levels = text(30), [text(30) for _ in range(5)]
        if i % 5 == 0:
            instruction, reference = text(130), text(180)
        response, feedback, score = text(180), text(100), str(i % 5 + 1)
        rubric = "\n".join([f"[{criteria}]", *(f"Score {s}: {t}" for s, t in enumerate(levels, start=1))])
        prompt = "\n\n".join(
            f"{h}\n{t}" for h, t in zip(HEADINGS, (instruction, response, reference, rubric), strict=True)
        )
        yield {
            "instruction": f"###Task Description:\nAn instruction and a response are given.\n\n{prompt}\n\n###Feedback: ",
            "output": f"{feedback} [RESULT] {score}",
            "orig_instruction": instruction,
            "orig_response": response,
            "orig_reference_answer": reference,
            "orig_criteria": criteria,
            **{f"orig_score{s}_description": t for s, t in enumerate(levels, start=1)},
            "orig_feedback": feedback,
            "orig_score": score,
        }


def write(path: Path, n: int) -> None:
    with open(path, "w") as file:
        for row in rows(n):
            file.write(json.dumps(row) + "\n")


def convert(source: Path, path: Path) -> None:
    """The same rows in another format."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        writer = None
        with open(source) as file:
            while lines := list(itertools.islice(file, 10_000)):
                table = pyarrow.Table.from_pylist([json.loads(line) for line in lines])
                writer = writer or parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
        writer.close()
    elif path.suffix == ".json":
        with open(source) as file, open(path, "w") as out:
            for i, line in enumerate(file):
                out.write(("[" if i == 0 else ",\n") + line.rstrip())
            out.write("]")


def measure(path: Path, limited: bool) -> dict[str, object]:
    started, cpu_started = time.perf_counter(), time.process_time()
    from srlib import data
    from srlib.data import overlap

    loaded = data.load(path, n_validation=LIMITS["validation"], limits=LIMITS if limited else None, seed=0)
    splits = loaded.splits
    seconds, cpu_seconds, peak = time.perf_counter() - started, time.process_time() - cpu_started, peak_mib()
    started, cpu_started = time.perf_counter(), time.process_time()
    measured = {name: own[: LIMITS[name]] for name, own in splits.items() if name in LIMITS and name != "train"}
    overlap.report(splits["train"], measured)
    return {
        "file": path.suffix,
        "file_mib": round(path.stat().st_size / 2**20),
        "rows": loaded.counts["rows"],
        "kept": {name: len(own) for name, own in splits.items() if own},
        "load_seconds": round(seconds, 1),
        "load_cpu_seconds": round(cpu_seconds, 1),
        "load_peak_mib": peak,
        "overlap_seconds": round(time.perf_counter() - started, 1),
        "overlap_cpu_seconds": round(time.process_time() - cpu_started, 1),
        "peak_mib": peak_mib(),
    }


def peak_mib() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


def own_process(*arguments: object) -> str:
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--formats", nargs="+", default=["jsonl", "parquet", "json"])
    arguments.add_argument("--out", type=Path, help="also write the JSON there, such as docs/bench/data.json")
    arguments.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--convert", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--limited", action="store_true", help=argparse.SUPPRESS)
    a = arguments.parse_args()
    if a.write:
        return write(a.write, a.rows)
    if a.convert:
        return convert(*a.convert)
    if a.measure:
        return print(json.dumps(measure(a.measure, a.limited)))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        own_process("--write", source, "--rows", a.rows)
        for kind in a.formats:
            path = source.with_suffix(f".{kind}")
            own_process("--convert", source, path)
            for limited in ([], ["--limited"]):
                results.append(json.loads(own_process("--measure", path, *limited)))
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    result = {
        "command": f"python bench/data.py --rows {a.rows}",
        "machine": f"{os.cpu_count()} cores ({cpu()}), {platform.system()} {platform.machine()}",
        "load average": [round(load, 1) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("pydantic", "numpy", "pyarrow")}},
        "bar": "100,000 rows load, validate and split in under 60 s and 2 GB",
        "limits": LIMITS,
        "results": results,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(text + "\n")


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
