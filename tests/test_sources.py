"""Files, folders and hub sets -> rows, one at a time: every format, broken files, and the hub without a network."""

import gzip
import json
import re

import judged
import pytest

from srlib import data
from srlib.data import sources
from srlib.files import RowError

ROWS = [{"id": "1", "text": "a, b"}, {"id": "2", "text": "voilà"}, {"id": "3", "text": 'two\nlines "quoted"'}]


def read(path, revision=""):
    return [(row.where, row.values or row.problem) for row in sources.rows(path, revision)]


@pytest.mark.parametrize("kind", judged.FORMATS)
def test_every_format_holds_the_same_rows(tmp_path, kind):
    place = "line" if kind.startswith("jsonl") else "row"
    rows = [*ROWS, {"id": "4", "text": None}] if kind in ("csv", "parquet") else [*ROWS, {"id": "4"}]
    found = read(judged.write(tmp_path / f"rows.{kind}", rows))
    assert found == [(f"{place} {i}", row) for i, row in enumerate([*ROWS, {"id": "4"}], start=1)]


@pytest.mark.parametrize("chunk", [1, 7, 50, 10**6])
def test_a_json_array_is_read_piece_by_piece_and_a_file_of_lines_as_lines(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(sources, "CHUNK", chunk)
    rows = [*ROWS, {"id": "4", "deep": [1, {"a": ["]", "}", '\\"']}], "number": 1234567.5}]
    (tmp_path / "rows.json").write_text("[\n  " + " ,\n  ".join(json.dumps(r, indent=1) for r in rows) + "\n]\n")
    assert [values for _, values in read(tmp_path / "rows.json")] == rows
    (tmp_path / "lines.json").write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)) + "\n{bad\n")
    assert [place for place, _ in read(tmp_path / "lines.json")] == ["line 1", "line 3", "line 5", "line 6"]


def test_a_bad_row_of_an_array_or_a_csv_file_leaves_the_others(tmp_path):
    rest = b'"instruction": "i", "response": "r", "score": 1, "rubric": {"criterion": "c", "levels": ["a", "b"]}'
    bad = [b'"meta": {"x": [NaN]}', b'"meta": {"x": "\\ud800"}', b'"rationale": "\xe9"', b'"id": "5"']
    (tmp_path / "rows.json").write_bytes(b"[7, " + b", ".join(b"{%s, %s}" % (b, rest) for b in bad) + b"]")
    found = [getattr(row, "reason", row.id)[:17] for _, _, row, _ in data.read_rows(tmp_path / "rows.json")]
    assert found == ["row 1: a row is a", "row 2: field meta", "row 3: field meta", "row 4: field rati", "5"]
    (tmp_path / "rows.csv").write_bytes("\ufeffid,text\r\n1,a,b\r\n\r\n3,c\r\n".encode())
    surplus, good = read(tmp_path / "rows.csv")
    assert surplus == ("row 1", "row 1: more cells than columns; put quotes around commas")
    assert good == ("row 2", {"id": "3", "text": "c"})


BROKEN = [
    ("rows.json", b'[{"id": "1"}, {"id": 2', "row 2: malformed JSON"),
    ("rows.json", b'[{"id": "1"}, {"id" 2}]', "row 2: malformed JSON"),
    ("rows.json", b'[{"id": "1"}] {"id": "2"}', "goes on behind the array"),
    ("rows.json", b"", "holds no rows"),
    ("rows.json", b"[" * 100_000, "row 1: malformed JSON"),
    ("rows.csv", b"", "line 1: the header must"),
    ("rows.csv", "id,text\n1,a\n".encode("utf-16"), "line 1: the header must"),
    ("rows.csv", b'id,text\n1,"a\n2,b\n', "line 3: malformed CSV"),
    ("rows.parquet", b"PAR1 this is none", "cannot be read as Parquet"),
    ("rows.csv.gz", b"not gzip", "cannot be read"),
    ("rows.json.gz", gzip.compress(b"[" + b'{"id": "1"},' * 9, mtime=0)[:-9], "cannot be read"),
    ("rows.xlsx", b"PK", "rows are read from .jsonl, .jsonl.gz, .json"),
    ("none.parquet", None, "cannot be read ("),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RowError, match=re.escape(str(tmp_path / name))) as error:
        read(tmp_path / name)
    assert message in str(error.value)[:1000]


def test_a_hub_set_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = (
        tmp_path / "datasets--o--n" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    )  # as hf download leaves it
    hub.mkdir(parents=True)
    (hub.parents[1] / "refs").mkdir()
    (hub.parents[1] / "refs" / "main").write_text(hub.name)
    assert not any(map(sources.is_hub_id, ["a/b/c", "a/b.csv", "a/b.jsonl.gz", "/a/b", "../b", "a", "a/b c", ""]))
    rows = judged.feedback(40)
    judged.write(hub / "new_feedback.json", rows)
    loaded = data.load("o/n", n_validation=1)
    assert loaded.counts["rows"] == len(read("o/n", hub.name)) == 40
    assert loaded.splits["train"][0].meta == {"source": "o/n"}  # the only split of a set is no hint
    assert loaded.commits == {"o/n": hub.name}
    (hub / "new_feedback.json").unlink()
    rows[2]["orig_score"] = "none"
    judged.write(hub / "train.parquet", rows[:30])
    judged.write(hub / "test.parquet", rows[30:])
    loaded = data.load("o/n", n_validation=5, bad_rows="drop")
    assert [len(loaded.splits[name]) for name in ("train", "validation", "test")] == [24, 5, 10]
    with pytest.raises(data.DataError, match=r"^o/n, train\.parquet, row 3: field orig_score"):
        data.load("o/n", n_validation=5)
    with pytest.raises(RowError, match=r"\n    hf download o/n --repo-type dataset --revision b21a9\n"):
        read("o/n", "b21a9")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RowError, match="folder: no rows found in it"):
        read(tmp_path / "folder")
