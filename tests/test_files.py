"""Files: nothing torn, nothing lost, every refusal says where; a bar for people and a heartbeat for the pipeline."""

import errno
import fcntl
import gzip
import json
import math
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlib import files
from srlib.files import RowError, StoreError
from srlib.schema import Example, Judgment, Rubric, SrlibError

ROW = {"id": "e1", "instruction": "Greet.", "response": "Hello.", "score": 1.0}
ROW["rubric"] = {"criterion": "Is it polite?", "levels": {"1": "no", "2": "yes"}}
JUDGMENTS = [Judgment(example_id="e", index=i, text="x" * 100 * 9**i, score=1.0) for i in range(4)]

text = st.text(min_size=1).filter(str.strip)
scores = st.lists(st.integers(-40, 40).map(lambda i: i / 4), min_size=2, max_size=5, unique=True)
rubrics = st.builds(Rubric, criterion=text, levels=scores.map(lambda s: dict.fromkeys(s, "x")))
examples = st.builds(Example, id=text, instruction=text, response=text, rubric=rubrics, group=st.none() | text)
judgments = st.builds(Judgment, example_id=text, text=st.text(), score=st.floats(-1e6, 1e6), logprob=st.floats(-99, 0))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(examples) | st.lists(judgments))
def test_rows_come_back_as_they_were(rows):
    rows = list({row.id: row for row in rows}.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        files.write_rows(path, rows[:2])
        files.append_rows(path, rows[2:])
        assert path.read_bytes().count(b"\n") == len(rows)  # no line separator of a text splits a row
        assert not rows or files.read_rows(path, type(rows[0])) == rows
        assert os.listdir(folder) == ["rows.jsonl"]


BAD = [
    (b'{"id": "e1", "instr', "malformed JSON (EOF while parsing a string"), (b"[" * 100_000, "malformed JSON"),
    (b'{"id": "e\xff"}', "malformed JSON (invalid unicode"), (b"[1, 2]", "valid dictionary"),
    (ROW, "id 'e1' is already in line 1"), (ROW | {"response": "  "}, "field response: is empty; it is '  '"),
    ({"id": "e2"}, "field instruction is missing; add it (2 more errors in this row)"),
    (ROW | {"grade": 3}, "unknown field 'grade'; remove it, or move it into meta"),
    (ROW | {"score": 3.0}, "score 3 is not on the rubric's scale (1, 2)"), (ROW | {"score": math.nan}, "field score is NaN"),
    (ROW | {"score": "\x1b[31m\u202ered"}, r"field score: Input should be a valid number"),
    (ROW | {"rubric": {"criterion": "c"}}, "field rubric.levels is missing"), (ROW | {"id": "x" * 2**20}, "at most 100000"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + (row if isinstance(row, bytes) else json.dumps(row).encode()))
    with pytest.raises(RowError) as error:
        files.read_rows(path, Example)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert message in str(error.value)
    assert str(error.value).isprintable()  # escaped
    assert len(str(error.value)) < 500


CUT = gzip.compress(b"".join(b'"%d"\n' % i for i in range(9999)))[:-30]


@pytest.mark.parametrize(
    "make", [lambda p: None, Path.mkdir, lambda p: p.write_bytes(CUT), lambda p: p.write_text("no")]
)
def test_an_unreadable_file_is_named(tmp_path, make):
    path = tmp_path / "rows.jsonl.gz"
    make(path)
    for read in (lambda: list(files.read_lines(path)), lambda: files.read_json(path)):
        with pytest.raises(RowError, match=r"rows\.jsonl\.gz: cannot be read"):
            read()


def test_a_torn_tail_is_dropped_and_healed(tmp_path):
    path = tmp_path / "j.jsonl"
    files.write_rows(path, JUDGMENTS[:3])
    first = path.stat().st_size
    files.append_rows(path, JUDGMENTS[3:])
    whole = path.read_bytes()
    for cut in (len(whole) - 1, first + 5, first, first - 1, 1):
        path.write_bytes(whole[:cut])
        kept = JUDGMENTS[: whole[:cut].count(b"\n")]
        assert files.read_rows(path, Judgment, drop_torn_tail=True) == kept
        files.append_rows(path, JUDGMENTS[3:])
        assert files.read_rows(path, Judgment) == kept + JUDGMENTS[3:]
    path.write_bytes(whole[: first + 5])
    with pytest.raises(RowError, match="malformed JSON"):
        files.read_rows(path, Judgment)


def test_a_killed_writer_leaves_whole_rows(tmp_path):
    path = tmp_path / "j.jsonl"
    code = (
        "import sys; from srlib import files; from srlib.schema import Judgment\n"
        "for i in range(100000): files.append_rows(sys.argv[1], "
        "[Judgment(example_id='e', index=i, text='x' * 5000, score=1.0)])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists() or path.stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    rows = files.read_rows(path, Judgment, drop_torn_tail=True)
    assert [row.index for row in rows] == list(range(len(rows)))
    assert len(rows) >= 9


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x.json"
    files.write_json(path, {"a": [1, "é"]})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
            with pytest.raises(StoreError, match=r"x\.json.*No space left.* is kept.*resumes"):
                files.write_json(path, 2)
    assert files.read_json(path) == {"a": [1, "é"]}
    assert os.listdir(path.parent) == ["x.json"]
    for write in (lambda p: files.append_rows(p / "j.jsonl", JUDGMENTS), files.make_dir, files.acquire):
        with pytest.raises(StoreError, match="cannot be written"):
            write(path / "below a file")
    with monkeypatch.context() as patch:  # of a tree that is copied, the first file says it for all
        patch.setattr(shutil, "copystat", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with (
            pytest.raises(
                StoreError, match=r"copy: cannot be written \([^()]*No space left[^()]*\)\. What was written"
            ),
            files.writing(tmp_path / "copy"),
        ):
            shutil.copytree(path.parent, tmp_path / "copy", copy_function=shutil.copy2)
    files.make_dir(tmp_path / "new" / "run")
    assert os.listdir(tmp_path / "new" / "run") == []


KINDS = [{"id", "score"}, {"id", "failure"}]


@pytest.mark.parametrize("lies", ["as it is", "linked", "linked twice", "inside"])
def test_an_input_is_no_output(tmp_path, lies):
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"id": 1, "score": 2}\n')  # even if this command made it
    source = data
    if lies == "linked":
        out.symlink_to(data)
    elif lies == "linked twice":
        os.link(data, out)
    else:
        source, out = (data, data) if lies == "as it is" else (tmp_path, tmp_path / "new.jsonl")
    with pytest.raises(SrlibError, match=rf"{out.name}: is an input of this command.*name a new file with -o") as error:
        files.output(out, KINDS, ["org/hub-id", source])
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        ('{"id": 1, "score": 2}\n{"id": 2, "failure": "x"}\n', True), ('[{"id": 1, "score": 2}]', True), ("", True),
        ('{\n  "id": 1,\n  "score": 2\n}', True), ('{"id": 1, "score": 2, "label": 3}\n', False), ("hello", False),
        ('{"id": 1, "score": 2}\n{"id": 1, "score": 2, "label": 3}\n', False), ("[]", False), ("id,score\n1,2\n", False),
        ('{"id": 1, "score": 2}\ntorn', False), ("\x00\xff", False),
    ],
)  # fmt: skip
def test_only_a_file_that_this_command_made_is_replaced(tmp_path, content, ours):
    path, link = tmp_path / "labels", tmp_path / "link"
    path.write_text(content)
    link.symlink_to(path)
    for name in (path, link):
        if ours:
            assert files.output(name, KINDS) == path
        else:
            with pytest.raises(SrlibError, match=f"{name.name}: was not made by this command; name a new file"):
                files.output(name, KINDS)
    assert path.read_text() == content
    for name, problem in ((tmp_path, "is a directory"), (tmp_path / "no" / "x", "is in a folder that does not exist")):
        with pytest.raises(SrlibError, match=f"{problem}; name a new file with -o"):
            files.output(name, KINDS)


def test_a_link_stays_and_a_device_is_written_to(tmp_path):
    link, pipe, device, got = (tmp_path / name for name in ("link", "pipe", "device", "got"))
    link.symlink_to("target")
    files.write_text(files.output(link, KINDS), "é")
    assert (link.is_symlink(), (tmp_path / "target").read_text()) == (True, "é")
    files.write_json(link, 1)
    assert (link.is_symlink(), files.read_json(tmp_path / "target")) == (True, 1)
    os.mkfifo(pipe)
    with open(got, "wb") as file, subprocess.Popen(["cat", pipe], stdout=file) as reader:
        files.write_text(files.output(pipe, KINDS), "é")
        assert (reader.wait(10), pipe.is_fifo()) == (0, True)
    assert got.read_text() == "é"
    got.write_text("kept\n")
    code = "from pathlib import Path; from srlib import files; out = files.output('/dev/stdout', [])\n"
    code += "print('before', flush=True); files.write_text(out, 'result\\n'); print('after')"
    with open(got, "ab") as file:  # as >> does
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert got.read_text() == "kept\nbefore\nresult\nafter\n"
    try:
        os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # another name of /dev/null
        files.write_text(files.output(device, KINDS), "lost")
    except (PermissionError, StoreError):
        pytest.skip("no device can be made or opened here")
    assert device.is_char_device()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device", "got", "link", "pipe", "target"]


def test_a_hash_sees_names_and_contents(tmp_path):
    for path, content in {"a/s/x": "1", "b/s/x": "1", "c/s/y": "1", "d/s/x": "2"}.items():
        files.write_text(tmp_path / path, content)
    a, b, c, d = (files.sha256(tmp_path / folder) for folder in "abcd")
    assert a == b
    assert len({a, c, d, files.sha256(tmp_path / "a/s/x")}) == 4
    with pytest.raises(StoreError, match="none: cannot be read"):
        files.sha256(tmp_path / "none")


def test_a_lock_without_fcntl_is_one_byte_behind_the_process_id(tmp_path, monkeypatch):
    locked = []

    def locking(descriptor, mode, length):  # as on Windows: an error if somebody holds it
        inode = os.fstat(descriptor).st_ino
        locked.append((inode, os.lseek(descriptor, 0, os.SEEK_CUR), mode, length))
        if locked.count(locked[-1]) > 1:
            raise PermissionError("held")

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    assert files.acquire(tmp_path / "a")
    assert locked[0][1:] == (2**30, 2, 1)
    assert files.holder(tmp_path / "a") == str(os.getpid())
    files._held.pop(tmp_path / "a").close()  # another process asks
    assert not files.acquire(tmp_path / "a", timeout=0.1)


def test_a_lock_is_for_one_process(tmp_path):
    code = "import sys; from srlib import files\nwith files.lock(sys.argv[1]): print('in', flush=True); input()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(SrlibError, match=rf"process {other.pid} is running there"):
        files.lock(tmp_path)
    start = time.monotonic()
    assert not files.acquire(tmp_path / ".lock", timeout=0.3)
    assert time.monotonic() - start > 0.3
    other.kill()
    assert files.acquire(tmp_path / ".lock", timeout=20)
    assert files.acquire(tmp_path / ".lock")  # a notebook may run its second cell twice
    assert files.holder(tmp_path / ".lock") == str(os.getpid())
    files.release(tmp_path / ".lock")
    for _ in range(2):
        with files.lock(tmp_path), pytest.raises(SrlibError):
            files.lock(tmp_path)


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(
        StoreError, match=r"lock: cannot be written \(No locks available\).*choose another run directory"
    ):
        files.lock(tmp_path)


def test_a_heartbeat_instead_of_a_bar(tmp_path, monkeypatch, capsys):
    beat = tmp_path / "beat.json"
    monkeypatch.setenv("SRLIB_PROGRESS", str(beat))
    beats = [files.read_json(beat) for _ in files.progress("abc", desc="letters")]
    assert beats == [{"desc": "letters", "done": 0, "total": 3}] * 3  # one each half second, and at the end:
    assert files.read_json(beat) == {"desc": "letters", "done": 3, "total": 3}
    os.mkfifo(tmp_path / "null")  # as root could replace /dev/null, for everybody
    for name in ("", tmp_path / "null", beat / "below a file"):
        monkeypatch.setenv("SRLIB_PROGRESS", str(name))
        assert list(files.progress([1, 2])) == [1, 2]
    assert (tmp_path / "null").is_fifo()
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("SRLIB_PROGRESS")
    monkeypatch.setenv("TQDM_DISABLE", "1")  # training sets it for the bars of TRL
    assert list(files.progress(iter([1, 2]), desc="a bar")) == [1, 2]
    assert "a bar" in capsys.readouterr().err


def test_a_bar_is_one_line_of_a_notebook():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    code = "import time\nfrom srlib import files\nfor _ in files.progress(range(3), desc='rows'): time.sleep(0.6)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    (line,) = notebook.cells[0].outputs
    assert re.fullmatch(r"rows: 100%.* 3/3 .*", line.data["text/plain"])


def test_a_path_on_another_drive_is_named_in_full(tmp_path, monkeypatch):
    assert files.relative(tmp_path / "a" / "b", tmp_path) == os.path.join("a", "b")
    monkeypatch.setattr(
        os.path, "relpath", mock.Mock(side_effect=ValueError("path is on mount 'D:', start on mount 'C:'"))
    )
    assert files.relative(tmp_path, "elsewhere") == str(tmp_path)


def test_a_manifest_is_no_part_of_what_a_folder_holds(tmp_path):
    files.write_text(tmp_path / "rows.jsonl", "{}\n")
    before = files.sha256(tmp_path, but="manifest.json")
    files.write_text(tmp_path / "manifest.json", "{}")
    assert files.sha256(tmp_path, but="manifest.json") == before != files.sha256(tmp_path)
    files.write_text(tmp_path / "inside" / "manifest.json", "{}")
    assert files.sha256(tmp_path, but="manifest.json") != before


def test_what_a_killed_writer_began_is_deleted_and_nothing_else(tmp_path):
    """A kill between the temporary file and its name leaves a folder; the next process of the run deletes it."""
    code = "import os, sys; os.replace = lambda *_: os._exit(9); from srlib import files; files.write_text(sys.argv[1], 'x')"
    subprocess.run([sys.executable, "-c", code, tmp_path / "manifest.json"], timeout=60)
    for name in (".progress", ".backup.20260101"):
        (tmp_path / name).mkdir()
    (tmp_path / ".backup.20260101" / "answers.jsonl").touch()
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert len(list(tmp_path.iterdir())) == 4, "the kill left nothing to delete"
    files.sweep(tmp_path)
    files.sync(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".backup.20260101", ".progress", "rows.jsonl"]
