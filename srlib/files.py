"""Files of a run: rows as JSONL, JSON, hashes, locks, progress.

A file is replaced as a whole or grows by whole rows; a killed process leaves at most one incomplete last line. Contents
are untrusted: errors show values escaped."""

import contextlib
import gzip
import hashlib
import io
import json
import mmap
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import from_json
from tqdm import tqdm

from srlib.schema import Row, SrlibError

MAX_LINE = 64 * 2**20  # bytes; a longer line is not a row
KEPT = "What was written is kept: free space or choose another run directory; the same command then resumes"
HELD = (BlockingIOError, PermissionError)  # raised if another process holds the lock
_held: dict[Path, io.FileIO] = {}  # locks of this process


class RowError(SrlibError, ValueError):
    """A row that cannot be read. The message names file, line, field and value, and says what to do."""


class StoreError(SrlibError):
    """A file or directory that cannot be read or written; what was written before is kept."""

    exit_status = 1


def shorten(value: Any, width: int = 60) -> str:
    """A value as a message shows it: escaped (no control characters), at most `width` characters."""
    text = repr(value[: 2 * width] if isinstance(value, str) else value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def read_rows(path: Path | str, row_type: type[Row], drop_torn_tail: bool = False) -> list[Row]:
    """All rows of a .jsonl or .jsonl.gz file, in order; RowError on the first one that is malformed or repeats an id."""
    rows, line_of = [], {}
    for number, line in read_lines(path, drop_torn_tail):
        where = f"{path}, line {number}"
        rows.append(validate(where, parse_json(where, line), row_type))
        name = None if getattr(rows[-1], "failure", None) == "bad_row" else getattr(rows[-1], "id", None)
        if name is not None and line_of.setdefault(name, number) != number:
            raise RowError(f"{where}: id {shorten(name)} is already in line {line_of[name]}; rename or delete one")
    return rows


def read_lines(path: Path | str, drop_torn_tail: bool = False) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes) of every line of a plain or gzipped file that is not blank, one at a time."""
    try:
        with gzip.open(path) if str(path).lower().endswith(".gz") else open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
                if len(line) > MAX_LINE:
                    raise RowError(f"{path}, line {number}: longer than {MAX_LINE} bytes; write one JSON object a line")
                if drop_torn_tail and not line.endswith(b"\n"):
                    return
                if text := line.removeprefix(b"\xef\xbb\xbf").strip():
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        raise RowError(f"{path}: cannot be read ({error}); check its path and format") from None


def parse_json(where: str, line: bytes) -> Any:
    """The value of one line; RowError, which begins with `where`, if it is not UTF-8, not JSON, or holds NaN."""
    try:
        return from_json(line, allow_inf_nan=False)
    except ValueError as error:
        text = line.decode(errors="replace")
        nan = re.search(r'"([^"]*)"\s*:\s*(NaN|-?Infinity)\b', text)  # written by Python, but not JSON
        problem = f"field {shorten(nan[1])[1:-1]} is {nan[2]}" if nan else f"malformed JSON ({error}): {shorten(text)}"
        raise RowError(f"{where}: {problem}; write one complete JSON value in UTF-8, with null for NaN") from None


def validate(where: str, values: Any, row_type: type[Row], names: Mapping[str, str] | None = None) -> Row:
    """A row from parsed values, or RowError; `names` maps fields to their names in the file: `{"score": "orig_score"}`."""
    try:
        return row_type.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
    field = shorten(".".join((names or {}).get(str(part), str(part)) for part in first["loc"]))[1:-1]
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        problem = f"field {field} is missing; add it"
    elif first["type"] == "extra_forbidden":
        into_meta = ", or move it into meta" * ("meta" in row_type.model_fields and len(first["loc"]) == 1)
        problem = f"unknown field '{field}'; remove it{into_meta}"
    elif field:
        problem = f"field {field}: {problem}; it is {shorten(first['input'])}; correct it"
    raise RowError(f"{where}: {problem}" + (f" ({len(others)} more errors in this row)" if others else ""))


def write_rows(path: Path | str, rows: Iterable[Row]) -> None:
    """Replace a file by these rows, one JSON object a line, at once or not at all."""
    write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))


def append_rows(path: Path | str, rows: Iterable[Row]) -> None:
    """Add rows at the end, on disk when this returns. An incomplete last line of a killed process is cut off first."""
    data = "".join(row.model_dump_json() + "\n" for row in rows).encode()
    with writing(Path(path)), open(path, "ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.truncate(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).rfind(b"\n") + 1)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path | str, text: str) -> None:
    """Replace a file by this text, at once or not at all. A link stays, and its target is replaced; a pipe or device takes it."""
    path, data = Path(path), text.encode("utf-8", "backslashreplace")  # a lone surrogate must not lose the result
    if is_stream(path):
        with writing(path), open(path, "ab") as stream:
            stream.write(data)
        return
    path = path.resolve() if path.is_symlink() else path
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        with open(Path(folder) / path.name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe, a device or a stream of this process, maybe redirected: written to, never replaced."""
    named = str(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))
    return path.exists() and not path.is_dir() and (named or not path.is_file())


def output(path: Path | str, kinds: Sequence[set[str]], inputs: Iterable = (), record: Path | None = None) -> Path:
    """A path that a command may write its result to, links followed. Raises SrlibError, before any work, on an input of the
    same command or a path inside one, a directory, a path without a folder, and a file that is not a result of this
    command, as it, or `record` beside it, does not `hold` rows of these `kinds`. Pipes and devices take any result."""
    given, path = path, Path(path).expanduser()
    if is_stream(path):
        return path
    path, there = path.resolve(), os.path.exists(path)
    sources = [Path(source).resolve() for source in inputs if os.path.exists(source)]
    within = any(path.is_relative_to(s) or (there and path.samefile(s)) for s in sources)
    for problem, holds_true in {
        "is a directory": path.is_dir(),
        "would not be compressed": path.suffix == ".gz",
        "is in a folder that does not exist": not path.parent.is_dir(),
        "is an input of this command, or lies in one": within,
        "was not made by this command": there and path.stat().st_size and not holds(record or path, kinds),
    }.items():
        if holds_true:
            raise SrlibError(f"{given}: {problem}; name a new file with -o")
    make_dir(path.parent)
    return path


def holds(path: Path, kinds: Sequence[set[str]]) -> bool:
    """Whether a file holds JSON objects, in an array, one a line or alone, each with exactly the fields of one of the kinds."""
    rows: list[Any] = []
    for read in (lambda: [parse_json("", line) for _, line in read_lines(path)], lambda: [read_json(path)]):
        with contextlib.suppress(RowError):
            rows = rows or read()
    rows = rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows
    return bool(rows) and all(isinstance(row, dict) and row.keys() in kinds for row in rows)


def write_json(path: Path | str, value: Any) -> None:
    """Replace a file by `value` as indented JSON, at once or not at all; NaN is refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The value of a JSON file; RowError if it cannot be read."""
    return parse_json(str(path), b"\n".join(line for _, line in read_lines(path)))


def read_yaml(path: Path) -> yaml.Node | None:
    """The root node of a YAML file in UTF-8. ValueError on an alias: a few nested ones would make billions of values."""
    text = path.read_text("utf-8-sig")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("it holds an alias (*name); write its value out")
    return yaml.compose(text, yaml.SafeLoader)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the parent of `path`, and turn a full disk or a missing permission into a StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:  # shutil.Error lists every file: report the first
        reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror or error
        raise StoreError(f"{path}: cannot be written ({reason}). {KEPT}") from error


def relative(path: Path, start: Path | str = ".") -> str:
    """A path as seen from `start`; absolute if no relative one exists, as between two Windows drives."""
    with contextlib.suppress(ValueError):
        return os.path.relpath(path, start)
    return str(path.absolute())


def sync(folder: Path) -> None:
    """Flush a folder to disk, so that a folder that is then renamed is never half written after a power cut."""
    for path in [*folder.rglob("*"), folder]:
        with contextlib.suppress(PermissionError):  # Windows opens no folders, and syncs what is open for writing
            descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Delete what killed processes were about to write in a folder: the temporary folders of `write_text`."""
    for left in (path for path in folder.glob(".*.????????/") if {*os.listdir(path)} <= {path.name[1:-9]}):
        shutil.rmtree(left, ignore_errors=True)


def make_dir(path: Path) -> None:
    """Make a directory and its parents; StoreError now, not after an hour, if it cannot be written."""
    with writing(path):
        path.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # leaves nothing, even if this process is killed


def sha256(path: Path | str, but: str = "") -> str:
    """Hash of a file, or of the names and contents of all files in a directory `but` one; StoreError if it cannot be read."""
    path = Path(path)
    try:
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and p != path / but]
            each = {p.relative_to(path).as_posix(): sha256(p) for p in inside}
            return hashlib.sha256(json.dumps(each).encode()).hexdigest()
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from None


def acquire(path: Path, timeout: float = 0.0) -> bool:
    """Lock a file for this process (twice is fine); False if another process still holds it after `timeout` seconds."""
    if (path := path.absolute()) in _held:
        return True
    with writing(path):
        file = open(path, "ab", buffering=0)  # noqa: SIM115  (open as long as the lock is held)
    for _ in range(1 + round(timeout / 0.1)):
        with writing(path), contextlib.suppress(*HELD):
            try_lock(file)  # the system frees it when this process ends
            _held[path] = file
            with contextlib.suppress(OSError):  # for `holder` only: a full disk prevents no lock
                path.write_text(str(os.getpid()))
            return True
        time.sleep(0.1)
    file.close()
    return False


def try_lock(file: io.FileIO) -> None:
    """Lock an open file until it is closed; one of HELD if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows, where a locked byte cannot be read: one far behind the process id
        import msvcrt

        file.seek(2**30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def release(path: Path) -> None:
    """Free a lock of this process; nothing happens if it holds none."""
    if file := _held.pop(path.absolute(), None):
        file.close()


def holder(path: Path) -> str:
    """Process id of the last holder of a lock file, for messages."""
    return (path.read_text() if path.is_file() else "") or "unknown"


def lock(run_dir: Path | str) -> contextlib.ExitStack:
    """Reserve a run directory for a block: `with lock("runs/tiny"): ...`; SrlibError if it is reserved already."""
    path, stack = Path(run_dir) / ".lock", contextlib.ExitStack()
    if path.absolute() in _held or not acquire(path):
        raise SrlibError(f"{run_dir}: process {holder(path)} is running there; wait for it, or set another --run-dir")
    stack.callback(release, path)
    return stack


def meet(path: Path, number: int, together: int, then: Callable[[], None] = lambda: None) -> None:
    """Wait until all processes of a stage have come here; the first (number 0) calls `then` before any goes on. Each makes a
    marker beside `path` and waits until it is deleted; markers of earlier launches are ignored, then deleted."""
    if together == 1:
        then()
        return
    launch = os.environ["TORCHELASTIC_RUN_ID"]
    marks = [path.with_name(f".{path.name}.{i}-of-{together}.{launch}") for i in range(together)]
    with writing(path):
        marks[number].touch()
    while marks[number].exists() if number else not all(mark.exists() for mark in marks):
        time.sleep(0.1)
    if number == 0:
        then()
        for mark in path.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(path.name)}\.\d+-of-\d+\..+", mark.name):
                mark.unlink()


class progress(tqdm):
    """A tqdm bar, in a notebook one output; if SRLIB_PROGRESS names a file, {"desc", "done", "total"} goes there instead."""

    def __init__(self, iterable: Iterable[Any] | None = None, total: int | None = None, desc: str = "") -> None:
        heartbeat, kernel = "SRLIB_PROGRESS" in os.environ, sys.modules.get("ipykernel.kernelapp")
        self.line = kernel and not heartbeat and sys.modules["IPython"].display.display({}, raw=True, display_id=True)
        out, live = io.StringIO() if heartbeat or kernel else sys.stderr, heartbeat or kernel or sys.stderr.isatty()
        super().__init__(iterable, desc, total, file=out, mininterval=0.5 if live else 30, miniters=1, disable=False)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        name = os.environ.get("SRLIB_PROGRESS")
        if name is None:
            self.line.update({"text/plain": msg or str(self)}, raw=True) if self.line else super().display(msg, pos)
        elif name and (os.path.isfile(name) or not os.path.exists(name)):  # root could replace /dev/null by a file
            with contextlib.suppress(StoreError):  # a full disk must not stop the work
                write_json(name, {"desc": self.desc.removesuffix(": "), "done": self.n, "total": self.total})
