"""Where rows lie, and how they are read: a file, a folder of files, or a set on the hub, one row at a time.

Beside store: knows nothing of our rows. Whatever the format, a row comes out as a plain dict with the place where it
stands, and a row that cannot be read as the reason why not; memory holds one of them, or one small batch, at a time.

    for row in rows("answers.csv"):                                        # .jsonl .json .csv (each also .gz) .parquet
        row.where, row.values                                              # "row 3", {"id": "17", "score": "4", ...}
    for row in rows("prometheus-eval/Feedback-Collection", revision="..."):    # downloaded once, then read from disk
        row.where, row.split                                               # "new_feedback_collection.json, row 3", "train"

Lines of a .jsonl file are counted as editors count them; rows of every other format from 1, without the header.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from srlib import files as store

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
CHUNK = 2**20  # characters of a .json file that are read at once
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


class SourceRow(NamedTuple):
    """One row. Exactly one of `values` and `problem` is there; `problem` begins with `where`."""

    number: int  # over all files of the source, from 1; the line where the source is one .jsonl file
    where: str  # "line 3", "row 3", "b.parquet, row 3"
    values: dict[str, Any] | None
    problem: str | None = None
    split: str = ""  # the name that a folder or the hub gives the file's split; "" where there is one split only


def rows(source: str | Path, revision: str = "") -> Iterator[SourceRow]:
    """Every row of a source. Raises store.RowError where the source itself cannot be read, or not beyond some row."""
    path = Path(source).expanduser()
    if not (is_hub_id(source) or path.is_dir()):
        for number, where, value in _file(path):
            yield _row(number, where, value)
        return
    files = _splits(path if path.is_dir() else fetch(str(source), revision), str(source))
    several, number = len({split for split, _ in files}) > 1, 0
    for split, file in files:
        for _, where, value in _file(file):
            number += 1
            yield _row(number, f"{file.name}, {where}" if len(files) > 1 else where, value, split if several else "")


def _row(number: int, where: str, value: Any, split: str = "") -> SourceRow:
    if isinstance(value, store.RowError):
        return SourceRow(number, where, None, f"{where}: {value}", split)
    if not isinstance(value, dict):
        return SourceRow(number, where, None, f"{where}: a row is a JSON object {{...}}", split)
    return SourceRow(number, where, value, None, split)


def is_hub_id(source: str | Path) -> bool:
    """`"owner/name"` that is neither a file here nor called like one."""
    text = str(source)
    known = text.lower().endswith(FORMATS)
    return bool(_HUB_ID.fullmatch(text)) and not known and not Path(text).exists()


# One file


def _file(path: Path) -> Iterator[tuple[int, str, Any]]:
    """(number, place, value) of every row; the value is a store.RowError where only this row is unreadable."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers = {".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffixes and f"{kind}{'.gz' if path.suffix == '.gz' else ''}".lower() not in FORMATS:
        raise store.RowError(f"{path}: rows are read from {', '.join(FORMATS)}; convert it to one of them")
    try:
        yield from readers.get(kind.lower(), _jsonl)(path)
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise store.RowError(f"{path}: cannot be read ({why}); give the path of a {kind or '.jsonl'} file") from None


def _open(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _jsonl(path: Path) -> Iterator[tuple[int, str, Any]]:
    for number, line in store.read_lines(path):
        yield number, f"line {number}", _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        return store.parse_json("", line)
    except store.RowError as error:
        return store.RowError(str(error).removeprefix(": "))


def _json(path: Path) -> Iterator[tuple[int, str, Any]]:
    """An array of rows, however large: one element at a time. A .json file of one row a line is read as such."""
    import io

    with _open(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape") as file:
        text = file.read(CHUNK).lstrip()
        if text.startswith("{"):
            yield from _jsonl(path)
            return
        if not text.startswith("["):
            raise store.RowError(f"{path}: holds no rows; a .json file is an array of rows [{{...}}, ...]")
        nan: list[str] = []
        decoder = json.JSONDecoder(parse_constant=nan.append)
        at, number, separator = 1, 0, re.compile(r"\s*,?\s*")
        while True:
            number += 1
            where, size = f"row {number}", CHUNK
            while True:  # until one element stands whole in `text`
                start = separator.match(text, at).end()
                if text.startswith("]", start):
                    if (rest := (text[start + 1 :] + file.read(CHUNK)).strip()) != "":
                        raise store.RowError(
                            f"{path}: goes on behind the array: {store.shorten(rest)}; correct the file"
                        )
                    return
                try:
                    value, end = decoder.raw_decode(text, start)
                    if end < len(text):  # what comes behind is there, so the element is complete
                        break
                    problem = "the file ends inside the array"
                except (ValueError, RecursionError) as error:
                    problem = str(error)
                more = file.read(size) if len(text) - start <= store.MAX_LINE else ""
                if not more:
                    raise store.RowError(
                        f"{path}, {where}: malformed JSON ({problem}): {store.shorten(text[start : start + 200])}; "
                        "nothing behind it can be read, correct the file"
                    )
                text, at, size = text[start:] + more, 0, size * 2
            element = text[start:end]
            if nan or not (element.isascii() or _is_utf8(element)):  # let the field of a NaN, or the byte, be named
                nan.clear()
                value = _parsed(element.encode("utf-8", "surrogateescape"))
            yield number, where, value
            at = end


def _is_utf8(text: str) -> bool:
    """Whether no byte had to be smuggled in by `surrogateescape`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Records under a header; a cell may hold line breaks in quotes. An empty cell is an absent field."""
    bad: list[int] = []
    with _open(path) as file:
        reader = csv.reader(_decoded(path, file, bad), strict=True)
        header = next(reader, [])
        if not header or bad:
            raise store.RowError(f"{path}, line 1: is no header; the first line names the columns, in UTF-8")
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            raise store.RowError(f"{path}, line 1: column {store.shorten(min(twice))} is there twice; rename one")
        number = 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise store.RowError(
                    f"{path}, row {number} (line {reader.line_num}): malformed CSV ({error}); nothing behind it can be "
                    "read, correct the file"
                ) from None
            if not cells:  # a blank line
                number -= 1
                continue
            value: Any = {name: cell for name, cell in zip(header, cells, strict=False) if cell != ""}
            if len(cells) > len(header):
                value = store.RowError(f"{len(cells)} cells under {len(header)} columns; put quotes around commas")
            elif bad:
                bad.clear()
                wrong = [name for name, cell in value.items() if not _is_utf8(cell)]
                value = store.RowError(f"field {store.shorten(wrong[0])[1:-1]} is not UTF-8; save the file as UTF-8")
            yield number, f"row {number}", value


def _decoded(path: Path, file: Any, bad: list[int]) -> Iterator[str]:
    number = 0
    while line := file.readline(store.MAX_LINE + 1):
        number += 1
        if len(line) > store.MAX_LINE:
            raise store.RowError(f"{path}, line {number}: longer than {store.MAX_LINE} bytes; is it a CSV file?")
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            yield line.decode()
        except UnicodeDecodeError:
            bad.append(number)
            yield line.decode("utf-8", "surrogateescape")


def _parquet(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Batches of 256 rows. A null cell is an absent field, in nested columns too."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=256):
                for value in _records(batch):
                    number += 1
                    yield number, f"row {number}", value
    except (pyarrow.ArrowException, OSError) as error:  # ArrowException also covers what is no Parquet file
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise store.RowError(
            f"{path}: cannot be read as Parquet behind row {number} ({str(error).splitlines()[0]}); write it again"
        ) from None


def _records(batch: Any) -> list[Any]:
    try:
        return [_without_nulls(row) for row in batch.to_pylist(maps_as_pydicts="strict")]
    except (UnicodeDecodeError, ValueError, KeyError, OverflowError) as error:
        if batch.num_rows > 1:
            return [record for i in range(batch.num_rows) for record in _records(batch.slice(i, 1))]
        return [store.RowError(f"field {_unreadable(batch)} cannot be read ({error})")]


def _unreadable(batch: Any) -> str:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist(maps_as_pydicts="strict")
        except (ValueError, KeyError, OverflowError):
            return store.shorten(name)[1:-1]
    return "?"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return value


# The hub, and folders in the hub's layout


def fetch(name: str, revision: str = "") -> Path:
    """The folder of a hub set, downloaded once and then taken from the hub's cache; its last part is the commit.

    Raises store.RowError, with the one command that fetches it, where it is not here and cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted: dict[str, Any] = {"repo_type": "dataset", "revision": revision or None}
    try:
        return Path(snapshot_download(name, **wanted))
    except HFValidationError as error:
        raise store.RowError(f"{name} is neither a file here nor the id of a hub set ({error})") from None
    except (HfHubHTTPError, OSError, ValueError) as error:  # OSError: no network, offline mode, a full disk
        why = next(iter(str(error).splitlines()), "")
    try:  # a commit that some earlier download left here needs no network
        return Path(snapshot_download(name, local_files_only=True, **wanted))
    except (HfHubHTTPError, OSError, ValueError):
        pass
    command = f"hf download {name} --repo-type dataset" + (f" --revision {revision}" if revision else "")
    raise store.RowError(
        f"{name}: not a file here, and this set of the hub is not in the cache and cannot be fetched ({why}). "
        f"Where there is a network, run\n    {command}\nthen this again"
    )


def _splits(folder: Path, name: str) -> list[tuple[str, Path]]:
    """(split, file) of a folder: as its README's `configs` say, else by the names of its files, as on the hub."""
    from datasets import load_dataset_builder

    try:
        found = load_dataset_builder(str(folder)).config.data_files or {}
    except Exception as error:  # datasets has no common class for what can be wrong with a folder
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise store.RowError(f"{name}: no rows found in it ({why}); name one of its files instead") from None
    return [(str(split), Path(file)) for split, files in found.items() for file in files]
