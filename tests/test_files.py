"""Files: nothing torn, nothing lost, every refusal says where; a bar for people and a heartbeat for the pipeline."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlib import files
from srlib.files import LockedError, RowError, StoreError
from srlib.schema import Comparison, Example, Judgment, Rubric

RUBRIC = {"criterion": "Is it polite?", "levels": {"1": "no", "2": "yes"}}
ROW = {"id": "e1", "instruction": "Greet.", "response": "Hello.", "rubric": RUBRIC, "score": 1.0}


def judgment(i=0, text="fine [RESULT] 1"):
    return Judgment(example_id="e", index=i, text=text, score=1.0)


text = st.text(min_size=1).filter(str.strip)
scores = st.lists(st.integers(-40, 40).map(lambda i: i / 4), min_size=2, max_size=5, unique=True)
shared = dict(id=text, instruction=text, rationale=st.none() | text, meta=st.dictionaries(text, st.integers() | text))
shared["rubric"] = st.builds(Rubric, criterion=text, levels=scores.map(lambda s: dict.fromkeys(s, "x")))
examples = st.builds(Example, response=text, **shared)
comparisons = st.builds(
    Comparison, response_a=text, response_b=text, preference=st.sampled_from(["A", "tie", None]), **shared
)
judgments = st.builds(Judgment, example_id=text, text=st.text(), score=st.floats(-1e6, 1e6), logprob=st.floats(-99, 0))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(examples) | st.lists(comparisons) | st.lists(judgments))
def test_rows_come_back_as_they_were(rows):
    rows = list({row.id: row for row in rows}.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        files.write_rows(path, rows[:2])
        files.append_rows(path, rows[2:])
        assert path.read_bytes().count(b"\n") == len(rows)  # no line separator of a text splits a row
        assert not rows or files.read_rows(path, type(rows[0])) == rows
        assert [p.name for p in Path(folder).iterdir()] == ["rows.jsonl"]


def test_bom_crlf_blank_lines_and_gzip_are_read(tmp_path):
    row = json.dumps(ROW).encode()
    data = b"\xef\xbb\xbf" + row + b"\r\n\r\n" + row.replace(b"e1", b"e2")
    (tmp_path / "rows.jsonl").write_bytes(data)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data))
    for path in tmp_path.iterdir():
        assert [row.id for row in files.read_rows(path, Example)] == ["e1", "e2"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b'{"id": "e1", "instr', ["malformed JSON (EOF", "one complete JSON"]),
        (b"[" * 100_000, ["malformed JSON"]),
        (b'{"id": "e\xff"}', ["malformed JSON (invalid unicode code point at line 1 column 1", "UTF-8"]),
        (b"[1, 2]", ["valid dictionary"]),
        (ROW, ["id 'e1' is already in line 1"]),
        ({"id": "e2"}, ["field instruction is missing; add it (2 more errors in this row)"]),
        (ROW | {"grade": 3}, ["unknown field 'grade'", "meta"]),
        (ROW | {"response": "  "}, ["field response: is empty; it is '  '"]),
        (ROW | {"score": 3.0}, ["score 3 is not on the rubric's scale (1, 2)"]),
        (ROW | {"score": "\x1b[31m\u202ered"}, [r"field score", r"it is '\x1b[31m\u202ered'"]),
        (ROW | {"score": float("nan")}, ["field score is NaN", "null"]),
        (ROW | {"rubric": {"criterion": "c"}}, ["field rubric.levels is missing"]),
        (ROW | {"response": "x" * 2**20}, ["field response", "at most 100000"]),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + (row if isinstance(row, bytes) else json.dumps(row).encode()))
    with pytest.raises(RowError) as error:
        files.read_rows(path, Example)
    assert all(word in str(error.value) for word in (*words, f"{path}, line 2: "))
    assert str(error.value).isprintable()
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


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_torn_tail_is_dropped_and_healed(tmp_path, size):
    path = tmp_path / "j.jsonl"
    files.append_rows(path, [judgment(0), judgment(1, text="x" * size)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (len(whole) - 1, first + 5, first, 3, 0):
        path.write_bytes(whole[:cut])
        kept = int(cut >= first)
        assert len(files.read_rows(path, Judgment, drop_torn_tail=True)) == kept
        if cut not in (0, first, len(whole) - 1):
            with pytest.raises(RowError, match="malformed JSON"):
                files.read_rows(path, Judgment)
        files.append_rows(path, [judgment(7)])
        assert [row.index for row in files.read_rows(path, Judgment)] == [*range(kept), 7]


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

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(StoreError, match=r"x\.json.*No space left.* is kept.*resumes"):
                files.write_json(path, 2)
    assert files.read_json(path) == {"a": [1, "é"]}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    path.write_text("{")
    with pytest.raises(RowError, match=r"x\.json: malformed JSON"):
        files.read_json(path)


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda p: files.append_rows(p / "j.jsonl", [judgment()]), files.make_dir, files.acquire):
        with pytest.raises(StoreError, match="cannot be written"):
            write(tmp_path / "file" / "runs")
    if os.path.exists("/dev/full"):
        (tmp_path / "j.jsonl").symlink_to("/dev/full")
        with pytest.raises(StoreError, match="No space left"):
            files.append_rows(tmp_path / "j.jsonl", [judgment()])
    files.make_dir(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_a_hash_sees_names_and_contents(tmp_path):
    for folder, name, content in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        files.write_text(tmp_path / folder / "sub" / name, content)
    a, b, c, d = (files.sha256(tmp_path / folder) for folder in "abcd")
    assert a == b
    assert len({a, c, d, files.sha256(tmp_path / "a/sub/x")}) == 4
    assert files.sha256(tmp_path / "a/sub/x") == files.sha256(tmp_path / "b/sub/x")
    with pytest.raises(StoreError, match="none: cannot be read"):
        files.sha256(tmp_path / "none")


def test_a_lock_is_for_one_process(tmp_path):
    code = "import sys; from srlib import files\nwith files.lock(sys.argv[1]): print('in', flush=True); input()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "in\n"
    with pytest.raises(LockedError, match=rf"process {first.pid} is running there"), files.lock(tmp_path):
        pass
    assert not files.acquire(tmp_path / ".lock", timeout=0.2)
    first.send_signal(signal.SIGKILL)
    assert files.acquire(tmp_path / ".lock", timeout=20)
    assert files.acquire(tmp_path / ".lock")  # a notebook may run its second cell twice
    assert files.holder(tmp_path / ".lock") == str(os.getpid())
    files.release(tmp_path / ".lock")
    with files.lock(tmp_path), pytest.raises(LockedError):
        files.lock(tmp_path)
    with files.lock(tmp_path):
        pass


# ---------------------------------------------------------------- progress


def test_a_heartbeat_instead_of_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SRLIB_PROGRESS", str(tmp_path / "beat.json"))
    beats = [files.read_json(tmp_path / "beat.json") for _ in files.progress("abc", desc="letters")]
    assert beats == [{"desc": "letters", "done": 0, "total": 3}] * 3  # one each half second, and the last one:
    assert files.read_json(tmp_path / "beat.json") == {"desc": "letters", "done": 3, "total": 3}
    with files.progress(total=10) as bar:
        bar.mininterval = 0
        bar.update(4)
        assert files.read_json(tmp_path / "beat.json") == {"desc": "", "done": 4, "total": 10}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["", "file/beat.json", "null"])
def test_a_heartbeat_stops_nothing_and_replaces_plain_files_only(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "null")  # as root could replace /dev/null, for everybody
    monkeypatch.setenv("SRLIB_PROGRESS", name and str(tmp_path / name))
    assert list(files.progress([1, 2])) == [1, 2]
    assert (tmp_path / "null").is_fifo()
    assert capsys.readouterr().err == ""


def test_a_plain_bar_without_the_variable(monkeypatch, capsys):
    monkeypatch.delenv("SRLIB_PROGRESS", raising=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # training sets it for the bars of TRL
    assert list(files.progress(iter([1, 2]), desc="plain")) == [1, 2]
    assert "plain" in capsys.readouterr().err
