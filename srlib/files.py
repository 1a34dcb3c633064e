"""Artefacts on disk: rows as JSONL, small JSON files, hashes, the lock of a run directory.

Ground floor: knows rows only as pydantic models. A file is replaced as a whole (`write_rows`, `write_json`) or grows by
whole lines (`append_rows`); a process killed at any moment leaves at most one torn last line, which is dropped. What a
file holds is untrusted: every refusal names file, line, field, value and what to do, and shows the value escaped.

    append_rows("judgments.jsonl", [judgment])
    rows = read_rows("judgments.jsonl", Judgment, drop_torn_tail=True)
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from srlib.schema import SrlibError

Row = TypeVar("Row", bound=BaseModel)

MAX_LINE = 64 * 2**20  # bytes; a longer line is not a row


class RowError(SrlibError, ValueError):
    """A row that cannot be read. The message names file, line, field and value, and says what to do."""


class StoreError(SrlibError):
    """A file or directory that cannot be written; what was written before is kept."""


class LockedError(StoreError):
    """A run directory in which another process is at work."""


def shorten(value: Any, width: int = 60) -> str:
    """A value as it may stand in a message: escaped (no control characters), at most `width` characters."""
    text = repr(value[: 2 * width] if isinstance(value, str) else value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def read_rows(path: Path | str, row_type: type[Row], drop_torn_tail: bool = False) -> list[Row]:
    """All rows of a .jsonl or .jsonl.gz file, in order; blank lines are skipped.

    Raises RowError on what is no row: malformed JSON, a missing or unknown field, a bad value, NaN, bytes that are not
    UTF-8, an id that was there before. `drop_torn_tail` is for files of our own that `append_rows` writes: a last line
    without a newline was being written when its process died, and is left out.
    """
    path = Path(path)
    rows, first_line = [], {}
    for number, line in read_lines(path, drop_torn_tail):
        where = f"{path}, line {number}"
        row = validate(where, parse_json(where, line), row_type)
        name = getattr(row, "id", None)
        if name is not None and first_line.setdefault(name, number) != number:
            raise RowError(
                f"{where}: id {shorten(name)} is already in line {first_line[name]}; ids must be unique, "
                "rename or delete one of the two"
            )
        rows.append(row)
    return rows


def read_lines(path: Path | str, drop_torn_tail: bool = False) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes) of every line that is not blank, of a plain or a gzipped file, one at a time."""
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise RowError(f"{path}, line {number}: longer than {MAX_LINE} bytes; one row is one line of JSON")
                if drop_torn_tail and not line.endswith(b"\n"):
                    return
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line.strip()
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RowError(f"{path}: cannot be read ({why}); give the path of a .jsonl or .jsonl.gz file") from None


def parse_json(where: str, line: bytes) -> Any:
    """The value of one line; RowError, beginning with `where`, on what is not UTF-8, not JSON, or holds NaN."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            f"{where}: byte 0x{line[error.start]:02x} at position {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise _not_json(where, text, error) from None


def validate(where: str, values: Any, row_type: type[Row], names: Mapping[str, str] | None = None) -> Row:
    """A row from parsed values; RowError, beginning with `where`, that names the field and its value.

    `names` says what the file calls a field, where that is something else: `{"score": "orig_score"}`.
    """
    try:
        return row_type.model_validate(values)
    except ValidationError as error:
        raise RowError(_explained(where, error, names or {})) from None


def _not_json(where: str, line: str, error: ValueError) -> RowError:
    """NaN and Infinity are no JSON, yet Python writes them: name the field. Anything else is a malformed line."""
    try:
        bad = _non_finite(json.loads(line), "")
    except (ValueError, RecursionError):
        bad = None
    if bad:
        return RowError(f"{where}: field {bad[0]} is {bad[1]}; write a number, or null where there is none")
    return RowError(f"{where}: malformed JSON ({error}): {shorten(line)}; one row is one complete JSON object a line")


def _non_finite(value: Any, path: str) -> tuple[str, float] | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, value)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next(filter(None, (_non_finite(v, f"{path}.{k}".lstrip(".")) for k, v in items)), None)


def _explained(where: str, error: ValidationError, names: Mapping[str, str]) -> str:
    first, *others = error.errors(include_url=False)
    top, *path = (str(part) for part in first["loc"] or ("",))
    field = shorten(".".join([names.get(top, top), *path]))[1:-1]  # without the quotes
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "missing":
        return f"{where}: field {field} is missing{more}; add it"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown field '{field}'{more}; remove it, or move it into meta"
    problem = first["msg"].removeprefix("Value error, ")
    if not field:  # a check of the whole row: its message names field and value
        return f"{where}: {problem}{more}; correct the row"
    return f"{where}: field {field}: {problem}; it is {shorten(first['input'])}{more}; correct it"


def write_rows(path: Path | str, rows: Iterable[BaseModel]) -> None:
    """Replace the file by these rows, one JSON object a line, at once or not at all; .gz is compressed."""
    data = "".join(row.model_dump_json() + "\n" for row in rows).encode()
    path = Path(path)
    _replace(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def append_rows(path: Path | str, rows: Iterable[BaseModel]) -> None:
    """Add rows at the end, on disk when this returns. A torn last line of a killed process is cut off first."""
    data = "".join(row.model_dump_json() + "\n" for row in rows).encode()
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            _cut_torn_tail(file)
            file.write(data)
            file.flush()
            _sync(file.fileno())


def _cut_torn_tail(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    keep = end
    while keep > 0:
        start = max(0, keep - 65536)
        file.seek(start)
        newline = file.read(keep - start).rfind(b"\n")
        if newline >= 0:
            keep = start + newline + 1
            break
        keep = start
    if keep < end:
        file.truncate(keep)


def write_text(path: Path | str, text: str) -> None:
    """Replace the file by this text, at once or not at all."""
    _replace(Path(path), text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Replace the file by `value` as indented JSON, at once or not at all; NaN is refused (ValueError)."""
    _replace(Path(path), (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path | str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise RowError(f"{path}: cannot be read as JSON ({error})") from None


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                _sync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a pipe or a device has nothing to sync
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing right and their like into a StoreError that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}). Everything written so far is kept: free space or "
            "choose another run directory; the same command then resumes"
        ) from error


def make_dir(path: Path) -> None:
    """Make a directory and those above it, and find out now, not after an hour, whether it can be written."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def sha256(path: Path | str) -> str:
    """Hash of a file's bytes, or of a directory's sorted names and contents; StoreError where it cannot be read."""
    path = Path(path)
    digest = hashlib.sha256()
    try:
        if not path.is_dir():
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        for item in sorted(p for p in path.rglob("*") if p.is_file()):
            name = item.relative_to(path).as_posix().encode()
            digest.update(b"%d:%s%s" % (len(name), name, sha256(item).encode()))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


_held: dict[Path, Any] = {}  # locks of this process: a notebook may run its second cell twice


def acquire(path: Path, timeout: float = 0.0) -> bool:
    """Take the lock file `path` for this process; False when another process still has it after `timeout` seconds.

    The kernel frees it when the process ends, however it ends.
    """
    import fcntl
    import time

    path = path.absolute()
    if path in _held:
        return True
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115  (held for as long as the lock is)
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                return False
            time.sleep(0.1)
    with contextlib.suppress(OSError):  # the pid is a courtesy; a full disk does not stop a lock
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    _held[path] = file
    return True


def release(path: Path) -> None:
    if file := _held.pop(path.absolute(), None):
        file.close()


def holder(path: Path) -> str:
    """The pid that the last holder of a lock file wrote there, for messages."""
    try:
        return path.read_text().strip() or "unknown"
    except OSError:
        return "unknown"


@contextlib.contextmanager
def lock(run_dir: Path | str) -> Iterator[None]:
    """Hold the run directory for one process: `with lock("runs/tiny"): ...`; a second one gets LockedError."""
    path = Path(run_dir) / ".lock"
    if path.absolute() in _held or not acquire(path):
        raise LockedError(
            f"{run_dir}: process {holder(path)} is running there; wait for it, stop it, or choose another "
            "directory with --run-dir"
        )
    try:
        yield
    finally:
        release(path)


EVERY = 0.5  # seconds between two heartbeats


class Progress:
    """What `progress` returns: iterate over it, or enter it and call `update`."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, desc: str) -> None:
        self.iterable, self.desc, self.done = iterable, desc, 0
        self.total = total if total is not None or not hasattr(iterable, "__len__") else len(iterable)  # type: ignore[arg-type]
        self.file = os.environ.get("SRLIB_PROGRESS")
        self.written, self.bar = 0.0, None
        if self.file is not None:
            self._beat()
        else:
            from tqdm import tqdm  # the plain one: a widget leaves nothing in an executed notebook

            live = sys.stderr.isatty() or "ipykernel" in sys.modules
            self.bar = tqdm(total=self.total, desc=desc, mininterval=EVERY if live else 30, disable=False)

    def update(self, n: int = 1) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif time.monotonic() - self.written >= EVERY:
            self._beat()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        else:
            self._beat()

    def _beat(self) -> None:
        self.written = time.monotonic()
        if not self.file:
            return
        path = Path(self.file)
        if path.exists() and not path.is_file():  # root could put a file in the place of /dev/null
            return
        with contextlib.suppress(OSError):  # a full disk must not stop the work that is being shown
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_text(json.dumps({"desc": self.desc, "done": self.done, "total": self.total}))
            os.replace(temporary, path)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable if self.iterable is not None else range(self.total or 0):
                yield item
                self.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(iterable: Iterable[Any] | None = None, total: int | None = None, desc: str = "") -> Progress:
    """A progress display over `iterable`, or over `total` steps that are reported with `.update(n)`."""
    return Progress(iterable, total, desc)
