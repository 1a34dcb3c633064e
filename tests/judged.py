"""Generated rows in the columns of the Feedback and the Preference Collection, and files of them in every format."""

import csv
import gzip
import json
from pathlib import Path

import pytest

FORMATS = ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "parquet"]
WORDS = "the host says that every guest brings bread wine fruit or cheese and leaves before noon on sunday".split()


def text(seed: int, length: int = 20) -> str:
    """Words that differ from seed to seed, with what formats stumble over: a comma, quotes, a line break, an accent."""
    drawn = [WORDS[(seed * 7 + i * i * (seed % 5 + 1)) % len(WORDS)] for i in range(length)]
    return f'No. {seed}, "{" ".join(drawn)}"\nvoilà'


def feedback(n: int) -> list[dict]:
    """Five responses to each instruction, scored "1" to "5"; ten instructions to each rubric."""
    return [
        {
            "orig_instruction": text(i // 5),
            "orig_response": text(1000 + i),
            "orig_reference_answer": text(2000 + i // 5),
            "orig_criteria": f"Is it complete ({i // 50})?",
            **{f"orig_score{s}_description": f"{s} of five things, {i // 50}" for s in range(1, 6)},
            "orig_feedback": f"{text(3000 + i, 8)} So it is {i % 5 + 1} of five.",
            "orig_score": str(i % 5 + 1),
        }
        for i in range(n)
    ]


def preference(n: int) -> list[dict]:
    return [
        {
            "orig_criteria": "Is it complete?",
            "orig_instruction": text(i),
            "orig_response_A": text(4000 + i),
            "orig_response_B": text(5000 + i),
            "orig_reference_answer": text(2000 + i),
            "orig_score_A": str(i % 5 + 1),
            "orig_score_B": str((i + 2) % 5 + 1),
            "orig_feedback": text(6000 + i, 8),
            "orig_preference": "A" if i % 5 > (i + 2) % 5 else "B",
        }
        for i in range(n)
    ]


def write(path: Path, rows: list[dict]) -> Path:
    """Rows as the file's name says. In a CSV file an object is JSON in its cell, and None an empty cell."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [row.get(name) for row in rows] for name in names}
        parquet.write_table(pyarrow.table(columns), path, row_group_size=7)
        return path
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()} for row in rows)
        data = path.read_bytes()
    else:
        data = (json.dumps(rows, ensure_ascii=False) if kind == "json" else "\n".join(map(json.dumps, rows))).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
