"""Rows on disk: nothing torn, nothing lost, and every refusal says where."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from srlib import files as store
from srlib.files import LockedError, RowError, StoreError
from srlib.schema import Example, Judgment

RUBRIC = {"criterion": "Is it polite?", "levels": {"1": "no", "2": "yes"}}


def example(i=0, **changes):
    return {"id": f"e{i}", "instruction": "Greet.", "response": "Hello.", "rubric": RUBRIC, "score": 1.0} | changes


def judgment(i=0, text="fine [RESULT] 1"):
    return Judgment(example_id="e", index=i, text=text, score=1.0)


def lines(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_come_back_as_they_were(tmp_path, name):
    rows = [Example(**example(i, response="a\u2028b\nc\x85 — \U0001f600")) for i in range(3)]
    store.write_rows(tmp_path / name, rows)
    assert store.read_rows(tmp_path / name, Example) == rows
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "rb") as file:
        assert file.read().count(b"\n") == 3


def test_bom_crlf_and_blank_lines_are_no_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(example(0)).encode() + b"\r\n\r\n" + json.dumps(example(1)).encode())
    assert [row.id for row in store.read_rows(path, Example)] == ["e0", "e1"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b'{"id": "e1", "instr', ["malformed JSON"]),
        (b"[" * 100_000, ["malformed JSON"]),
        (b"[1, 2]", ["line 2"]),
        ({k: v for k, v in example(1).items() if k != "response"}, ["field response is missing", "add it"]),
        (example(1, response="  "), ["field response", "is empty", "'  '"]),
        (example(1, score=3.0), ["score 3 is not on the rubric's scale (1, 2)"]),
        (example(1, score="much"), ["field score", "'much'"]),
        (json.dumps(example(1, score=float("nan"))).encode(), ["field score is nan", "null"]),
        (json.dumps(example(1, meta={"a": [1.0, float("inf")]})).encode(), ["field meta.a.1 is inf"]),
        (example(0), ["id 'e0' is already in line 1"]),
        (example(1, rubric={"criterion": "c", "levels": {}}), ["field rubric", "at least two levels"]),
        (example(1, rubric={"criterion": "c"}), ["field rubric.levels is missing"]),
        (example(1, response="x" * 2**20), ["field response", "at most 100000"]),
        (example(1, grade=3), ["unknown field 'grade'", "meta"]),
        (b'{"id": "e\xff"}', ["byte 0xff at position 9", "UTF-8"]),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
    path = lines(tmp_path, example(0), row)
    with pytest.raises(RowError) as error:
        store.read_rows(path, Example)
    message = str(error.value)
    assert all(word in message for word in (*words, str(path), "line 2"))
    assert len(message) < 500


def test_what_a_message_shows_is_escaped(tmp_path):
    with pytest.raises(RowError) as error:
        store.read_rows(lines(tmp_path, example(0, score="\x1b[31m\u202ered")), Example)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"no gzip")])
def test_what_is_no_file_is_named(tmp_path, make):
    path = tmp_path / "rows.jsonl.gz"
    make(path)
    with pytest.raises(RowError, match=r"rows\.jsonl\.gz: cannot be read"):
        store.read_rows(path, Example)


def test_a_cut_off_gzip_is_an_error(tmp_path):
    store.write_rows(tmp_path / "a.jsonl.gz", [Example(**example(i)) for i in range(50)])
    (tmp_path / "b.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-30])
    with pytest.raises(RowError, match="cannot be read"):
        store.read_rows(tmp_path / "b.jsonl.gz", Example)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_torn_tail_is_dropped_and_healed(tmp_path, size):
    path = tmp_path / "j.jsonl"
    store.append_rows(path, [judgment(0), judgment(1, text="x" * size)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (len(whole) - 1, first + 5, first, 3):
        path.write_bytes(whole[:cut])
        kept = 1 if cut >= first else 0
        assert len(store.read_rows(path, Judgment, drop_torn_tail=True)) == kept
        store.append_rows(path, [judgment(7)])
        assert [row.index for row in store.read_rows(path, Judgment)] == [*range(kept), 7]


def test_without_the_option_a_torn_tail_is_an_error(tmp_path):
    path = tmp_path / "j.jsonl"
    store.write_rows(path, [judgment(0)])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RowError, match="malformed JSON"):
        store.read_rows(path, Judgment)


def test_duplicate_judgments_are_found(tmp_path):
    store.append_rows(tmp_path / "j.jsonl", [judgment(0), judgment(0)])
    with pytest.raises(RowError, match="id 'e#0' is already in line 1"):
        store.read_rows(tmp_path / "j.jsonl", Judgment)


def test_a_killed_writer_leaves_whole_rows(tmp_path):
    path = tmp_path / "j.jsonl"
    code = (
        "import sys; from srlib import store; from srlib.schema import Judgment\n"
        "for i in range(100000): store.append_rows(sys.argv[1], "
        "[Judgment(example_id='e', index=i, text='x' * 5000, score=1.0)])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists() or path.stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = store.read_rows(path, Judgment, drop_torn_tail=True)
    assert [row.index for row in rows] == list(range(len(rows)))
    assert len(rows) >= 9


def test_json_is_replaced_at_once_or_not(tmp_path):
    path = tmp_path / "a" / "x.json"
    store.write_json(path, {"a": [1, "é"]})
    assert store.read_json(path) == {"a": [1, "é"]}
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(path, {"a": float("nan")})
    assert store.read_json(path) == {"a": [1, "é"]}
    path.write_text("{")
    with pytest.raises(RowError, match=r"x\.json: cannot be read as JSON"):
        store.read_json(path)


def test_hash_sees_names_and_contents(tmp_path):
    for folder, name, text in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / name).write_text(text)
    a, b, c, d = (store.sha256(tmp_path / folder) for folder in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    assert store.sha256(tmp_path / "a" / "sub" / "x") == store.sha256(tmp_path / "b" / "sub" / "x")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_says_that_nothing_is_lost(tmp_path):
    (tmp_path / "j.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError) as error:
        store.append_rows(tmp_path / "j.jsonl", [judgment()])
    assert all(word in str(error.value) for word in ("j.jsonl", "No space left", "is kept", "resumes"))


def test_a_failed_replacement_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    store.write_json(path, 1)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.write_json(path, 2)
    assert store.read_json(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_path_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda p: store.append_rows(p / "j.jsonl", [judgment()]), store.make_dir):
        with pytest.raises(StoreError, match="cannot be written"):
            write(tmp_path / "file" / "runs")


def test_a_directory_without_the_right_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write everywhere
    with pytest.raises(StoreError, match="Permission denied"):
        store.make_dir(tmp_path)


def test_the_lock_is_for_one_process(tmp_path):
    code = "import sys; from srlib import store\nwith store.lock(sys.argv[1]): print('in', flush=True); input()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "in\n"
    with pytest.raises(LockedError, match=rf"process {first.pid} is running there"), store.lock(tmp_path):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with store.lock(tmp_path), pytest.raises(LockedError), store.lock(tmp_path):
        pass
    with store.lock(tmp_path):
        pass
