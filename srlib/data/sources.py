"""Rows of a file (.jsonl .json .csv, each also .gz, and .parquet), of a folder, or of a set on the hub, as plain dicts.

Memory holds one row or one small batch, so a file may be larger than memory.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from srlib import files
from srlib.files import RowError

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
CHUNK = 2**16  # characters of a .json file that are read at once


class SourceRow(NamedTuple):
    """One row. `values` is None if it cannot be read; `problem` then says why, beginning with `where`."""

    number: int  # as in `where` if the source is one file, else over all files
    where: str  # "line 3" as editors count, "row 3" without the header, "b.parquet, row 3"
    values: dict[str, Any] | None
    problem: str | None
    split: str  # of the file, if a folder or hub set has several; else ""


def rows(source: str | Path, revision: str = "") -> Iterator[SourceRow]:
    """Every row of a source. Raises RowError if the source cannot be read, or not beyond some row."""
    path, total = Path(source).expanduser(), 0
    single = not (is_hub_id(source) or path.is_dir())
    parts = [("", path)] if single else _splits(path if path.is_dir() else fetch(str(source), revision), str(source))
    for split, file in parts:
        for number, value in _file(file):
            total += 1
            where = f"{'line' if isinstance(value, bytes) else 'row'} {number}"
            where = f"{file.name}, {where}" if len(parts) > 1 else where
            row = SourceRow(number if single else total, where, None, None, split)
            try:
                value = files.parse_json(where, value) if isinstance(value, bytes) else value
                if not isinstance(value, dict):
                    raise RowError(f"{where}: a row is a JSON object {{...}}")
                if None in value:  # there csv.DictReader puts surplus cells
                    raise RowError(f"{where}: more cells than columns; put quotes around commas")
                yield row._replace(values=value)
            except RowError as error:
                yield row._replace(problem=str(error))


def is_hub_id(source: str | Path) -> bool:
    """Whether a source is called `owner/name` and is no file here."""
    named = re.fullmatch(r"(?a)[\w-][\w.-]*/[\w-][\w.-]*", str(source))
    return bool(named) and not str(source).lower().endswith(FORMATS) and not Path(source).exists()


def fetch(name: str, revision: str = "") -> Path:
    """The folder of a hub set, from the cache if it was downloaded before; its last part is the commit.

    Raises RowError, with the command that downloads it, if there is no network.
    """
    from huggingface_hub import snapshot_download

    problem, options = "", {"repo_type": "dataset", "revision": revision or None}
    for cached in (False, True):  # a commit in the cache needs no network
        try:
            return Path(snapshot_download(name, local_files_only=cached, **options))
        except Exception as error:  # the client raises its own errors, httpx's and the system's
            problem = problem or str(error).partition("\n")[0]
    command = f"hf download {name} --repo-type dataset" + (f" --revision {revision}" if revision else "")
    advice = f"On a machine with a network, run\n    {command}\nthen this again"
    raise RowError(f"{name}: no file here, and no set of the hub that is cached or reachable ({problem}). {advice}")


def _splits(folder: Path, name: str) -> list[tuple[str, Path]]:
    """(split, file) of a folder, by the `configs` of its README or else by file names, as on the hub."""
    from datasets import load_dataset_builder

    try:
        found = load_dataset_builder(str(folder)).config.data_files or {}
    except Exception as error:  # datasets has no common class for its errors
        problem = str(error).partition("\n")[0]
        raise RowError(f"{name}: no rows found in it ({problem}); name one of its files instead") from None
    return [(str(split) if len(found) > 1 else "", Path(file)) for split, names in found.items() for file in names]


def _file(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of every row; a line of JSON comes as bytes."""
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if path.suffix and not path.name.lower().endswith(FORMATS):
        raise RowError(f"{path}: rows are read from {', '.join(FORMATS)}; convert it to one of them")
    try:
        yield from {"json": _json, "csv": _csv, "parquet": _parquet}.get(kind, files.read_lines)(path)
    except (OSError, EOFError, zlib.error) as error:
        raise RowError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); name another") from None


def _text(path: Path) -> TextIO:
    """Bytes that are not UTF-8 become surrogates, so that columns.convert can refuse their row alone."""
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """An array, one element at a time. A .json file with one row a line is read as .jsonl."""
    with _text(path) as file:
        text, number = file.read(CHUNK).lstrip(), 1
        if text.startswith("{"):
            yield from files.read_lines(path)
            return
        if not text.startswith("["):
            raise RowError(f"{path}: holds no rows; a .json file is an array of rows [{{...}}, ...]")
        text, problem = text[1:], "the file ends in the array"
        while not (text := text.lstrip(" \t\r\n,")).startswith("]"):
            try:
                value, end = json.JSONDecoder().raw_decode(text)
            except (ValueError, RecursionError) as error:
                end, problem = len(text), str(error)
            if end < len(text):
                yield number, value
                number, text = number + 1, text[end:]
            elif len(text) < files.MAX_LINE and (more := file.read(max(CHUNK, len(text)))):
                text += more
            else:
                raise RowError(f"{path}, row {number}: malformed JSON ({problem}): {files.shorten(text)}; correct it")
        if rest := (text[1:] + file.read(CHUNK)).strip():
            raise RowError(f"{path}: goes on behind the array: {files.shorten(rest)}; correct the file")


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    """Records under a header; a cell may hold line breaks in quotes. An empty cell is an absent field."""
    csv.field_size_limit(files.MAX_LINE)
    with _text(path) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = reader.fieldnames or []
            if not header or len(set(header)) < len(header) or not "".join(header).isprintable():
                raise RowError(f"{path}, line 1: the header must be in UTF-8 and name every column once; correct it")
            yield from enumerate(({name: cell for name, cell in row.items() if cell} for row in reader), start=1)
        except csv.Error as error:
            where = f"{path}, line {reader.reader.line_num}"
            raise RowError(f"{where}: malformed CSV ({error}); correct the file") from None


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """Batches of 256 rows. A null cell is an absent field."""
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield number, {name: value for name, value in row.items() if value is not None}
    except (ArrowException, ValueError, KeyError) as error:  # no Parquet, a cut file, bytes that are no text
        problem = str(error).partition("\n")[0]
        raise RowError(f"{path}: cannot be read as Parquet behind row {number} ({problem}); write it again") from None
