"""Rows of a file (JSON lines, JSON, CSV, Parquet, each also .gz), a folder, a saved dataset or a set on the hub, as plain dicts.

Memory holds one row or one small batch, so a file may be larger than memory; only an object around the rows is read whole."""

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from srlib import files
from srlib.files import RowError

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".parquet.gz")
CHUNK = 2**16  # characters of a file that are read at once
Rows = Iterator[tuple]  # number, value (a line of JSON as bytes), and the columns if it is a row of a table


class SourceRow(NamedTuple):
    """One row. `values` is None if it cannot be read; `problem` then says why, beginning with `where`."""

    number: int  # as in `where` if the source is one file, else over all files
    where: str  # "line 3" as editors count, "row 3" as spreadsheets do, "b.parquet, row 3"
    values: dict[str, Any] | None
    problem: str | None
    split: str  # of the file, if a folder or hub set has several; else ""
    header: tuple[str, ...] = ()  # all columns of a table, whose empty cells `values` leaves out


def rows(source: str | Path, revision: str = "") -> Iterator[SourceRow]:
    """Every row of a source. Raises RowError if the source cannot be read, or cannot be read past some row."""
    total, parts = 0, _files(source, revision)
    top = os.path.commonpath([file.parent for _, file in parts]) if parts else ""
    for split, file in parts:
        for number, value, *header in _read(file):
            total += 1
            where = f"{'line' if isinstance(value, bytes) else 'row'} {number}"
            where = f"{file.relative_to(top).as_posix()}, {where}" if len(parts) > 1 else where
            row = SourceRow(number if len(parts) == 1 else total, where, None, None, split, *header)
            try:
                value = files.parse_json(where, value) if isinstance(value, bytes) else value
                if not isinstance(value, dict):
                    raise RowError(f"{where}: a row is a JSON object {{...}}")
                if None in value:
                    raise RowError(f"{where}: more cells than columns; put quotes around cells that hold the separator")
                yield row._replace(values=value)
            except RowError as error:
                yield row._replace(problem=str(error))


def dialects(source: str | Path, revision: str = "") -> list[str]:
    """The separator and encoding detected for each CSV file: `["a.csv: separator ';', encoding utf-8"]`."""
    tables = [(file.name, *_dialect(file)) for _, file in _files(source, revision) if _kind(file) == "csv"]
    return [f"{name}: separator {mark!r}, encoding {encoding.removesuffix('-sig')}" for name, encoding, mark in tables]


def _files(source: str | Path, revision: str) -> list[tuple[str, Path]]:
    """(split, file) of a source; the split is "" unless there are several. Of a folder it is as save_to_disk wrote it, by the
    `configs` of its README, or else the name of the file; of a hub set without any, as `datasets` guesses it."""
    folder = fetch(str(source), revision) if is_hub_id(source) else Path(source).expanduser()
    if not folder.is_dir() or (folder / "state.json").is_file():
        return [("", folder)]
    if (folder / "dataset_dict.json").is_file():
        names = files.read_json(folder / "dataset_dict.json")["splits"]
        return [(name if len(names) > 1 else "", folder / name) for name in names]
    readme = folder / "README.md"
    if not is_hub_id(source) and not (readme.is_file() and "configs:" in readme.read_text("utf-8", "replace")):
        names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.name.lower().endswith(FORMATS)]
        if names := [name for name in names if not re.search(r"(^|/)(\.|dataset_info)", name.as_posix())]:
            return [(name.as_posix() if len(names) > 1 else "", folder / name) for name in names]
    from datasets import load_dataset_builder

    try:
        splits = load_dataset_builder(str(folder)).config.data_files or {}
    except Exception as error:  # datasets has no common class for its errors
        problem = " ".join(str(error).split("\n")[:2])  # the second line names the configurations
        advice = f"`hf download {source} --repo-type dataset --local-dir DIR`, then " if is_hub_id(source) else ""
        raise RowError(f"{source}: no rows found in it ({problem}); {advice}name one of its files instead") from None
    return [(str(split) if len(splits) > 1 else "", Path(file)) for split, names in splits.items() for file in names]


def is_hub_id(source: str | Path) -> bool:
    """Whether a source is called `owner/name` and is no file here."""
    named = re.fullmatch(r"(?a)[\w-][\w.-]*/[\w-][\w.-]*", str(source))
    return bool(named) and not str(source).lower().endswith(FORMATS) and not Path(source).exists()


def fetch(name: str, revision: str = "") -> Path:
    """The folder of a hub set, whose last part is the commit; from the cache if the hub cannot be reached. Raises
    RowError, with the command that downloads it, if it is not there either."""
    from huggingface_hub import snapshot_download

    problem, options = "", {"repo_type": "dataset", "revision": revision or None}
    for cached in (False, True):  # a commit in the cache needs no network
        try:
            return Path(snapshot_download(name, local_files_only=cached, **options))
        except Exception as error:  # the client raises its own errors, httpx's and the system's
            problem = problem or str(error).partition("\n")[0]
    command = f"hf download {name} --repo-type dataset" + (f" --revision {revision}" if revision else "")
    advice = f"With a network, run\n    {command}\nthen this again, or copy the hub's cache here"
    raise RowError(f"{name}: no file here, and no set of the hub that is cached or reachable ({problem}). {advice}")


def _read(path: Path) -> Rows:
    kind = _kind(path)
    if path.suffix and kind and not path.name.lower().endswith(FORMATS):
        raise RowError(f"{path}: rows are read from {', '.join(FORMATS)}; convert it to one of them")
    try:
        yield from {"json": _json, "csv": _csv, "parquet": _arrow, "": _arrow}.get(kind, files.read_lines)(path)
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise RowError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); name another") from None


def _kind(path: Path) -> str:
    """The format that a file's name tells, "" for a folder."""
    return "" if path.is_dir() else path.name.lower().removesuffix(".gz").rpartition(".")[2]


def _open(path: Path, encoding: str = "") -> Any:
    """A binary file; with `encoding` a text file, whose undecodable bytes become surrogates, refused with their row."""
    file = (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb")
    return io.TextIOWrapper(file, encoding, "surrogateescape", newline="") if encoding else file


def _dialect(path: Path) -> tuple[str, str]:
    """(encoding, separator) of a CSV file. Without a byte-order mark it is UTF-8 if more characters beyond ASCII are valid
    than not (a damaged file, whose rows are refused one by one), or else Windows-1252."""
    with _open(path) as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with _open(path, encoding) as file:
        head, valid, invalid = file.read(CHUNK), 0, 0
        for text in chain([head], iter(lambda: file.read(CHUNK), "")):
            valid += len(re.findall("[^\0-\x7f\udc80-\udcff]", text))
            invalid += len(re.findall("[\udc80-\udcff]", text))
    alike = {}  # separator -> cells of the header, if most records have as many
    for mark in ",;\t|":
        records = islice(csv.reader(io.StringIO(head, newline=""), delimiter=mark), 50)
        widths = [len(cells) for cells in records if cells]
        alike[mark] = (widths[0] - 1) * widths.count(widths[0]) / len(widths) if widths else 0
    declared = re.match(r"sep=(.)\r?\n", head)  # Excel's own note
    return "windows-1252" if invalid > valid else encoding, declared[1] if declared else max(alike, key=alike.get)


def _csv(path: Path) -> Rows:
    """Records under a header; a cell may hold line breaks in quotes. An empty cell is an absent field."""
    csv.field_size_limit(files.MAX_LINE)
    encoding, separator = _dialect(path)
    with _open(path, encoding) as file:
        number, header = 0, ()
        try:
            lines = iter(lambda: file.readline(files.MAX_LINE + 1), "")  # a longer one has a cell that is refused
            for cells in csv.reader(lines, delimiter=separator, strict=True):
                number += cells != ["sep=", ""]
                filled = [i for i, cell in enumerate(cells) if cell.strip()]
                if header and filled:
                    surplus = {None: cells} if filled[-1] >= len(header) else {}
                    yield number, {header[i]: cells[i] for i in filled if i < len(header)} | surplus, header
                elif filled and number:
                    header = tuple(" ".join(cell.split()) or f"column {i}" for i, cell in enumerate(cells, start=1))
                    header = header[: filled[-1] + 1]
                    if len(set(header)) < len(header) or not "".join(header).isprintable():
                        problem = "the header must be text and name every column once; correct it"
                        raise RowError(f"{path}, row {number}: {problem}")
        except csv.Error as error:
            raise RowError(f"{path}, row {number + 1}: malformed CSV ({error}); correct the file") from None
        if not header:
            raise RowError(f"{path}: holds no rows; the first row of a CSV file names its columns")


def _json(path: Path) -> Rows:
    """An array of rows, one at a time; or one row a line; or an object, which holds one array of rows or is the only row."""
    with _open(path, "utf-8-sig") as file:
        if (text := file.read(CHUNK).lstrip()).startswith("["):
            yield from _array(path, text[1:], file)
            return
    if not text.startswith("{"):
        raise RowError(f"{path}: holds no rows; a .json file is an array of rows [{{...}}, ...]")
    lines = [line for _, line in islice(files.read_lines(path), 2)]
    if len(lines) > 1 and any(line[:1] + line[-1:] == b"{}" for line in lines):
        yield from files.read_lines(path)
        return
    value = files.read_json(path)
    arrays = {name: v for name, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    if len(arrays) > 1:
        names = ", ".join(map(files.shorten, arrays))
        raise RowError(f"{path}: an object with several arrays, {names}; save the one that holds the rows as a file")
    yield from enumerate([*arrays.values(), [value]][0], start=1)


def _array(path: Path, text: str, file: TextIO) -> Rows:
    number = 1
    while not (text := text.lstrip(" \t\r\n,")).startswith("]"):
        problem = "the file ends inside the array"
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError) as error:
            end, problem = len(text), str(error) if text else problem
        if end < len(text):
            yield number, value
            number, text = number + 1, text[end:]
        elif len(text) < files.MAX_LINE and (more := file.read(max(CHUNK, len(text)))):
            text += more
        else:
            raise RowError(f"{path}, row {number}: malformed JSON ({problem}): {files.shorten(text)}; correct it")
    if rest := (text[1:] + file.read(CHUNK)).strip():
        raise RowError(f"{path}: continues after the array: {files.shorten(rest)}; correct the file")


def _arrow(path: Path) -> Rows:
    """Batches of 256 rows. A null cell is an absent field."""
    from pyarrow import parquet

    number = 0
    try:
        with contextlib.nullcontext() if path.is_dir() else _open(path) as file:
            if file is None:
                from datasets import load_from_disk

                batches = load_from_disk(str(path)).with_format("arrow").iter(256)
            else:
                batches = parquet.ParquetFile(file, pre_buffer=False).iter_batches(256)
            for batch in batches:
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    values = {name: value for name, value in row.items() if value is not None}
                    yield number, {n: float(v) if isinstance(v, Decimal) else v for n, v in values.items()}, tuple(row)
    except OSError:
        raise
    except Exception as error:  # no Parquet, a cut file, bytes that are no text; datasets has no common class
        problem = str(error).partition("\n")[0]
        raise RowError(f"{path}: cannot be read after row {number} ({problem}); write it again") from None
