"""Files, folders and hub sets -> rows, one at a time: every format, broken files, and the hub without a network."""

import csv
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
    place, first = "line" if kind.startswith("jsonl") else "row", 2 if kind.startswith("csv") else 1
    rows = [*ROWS, {"id": "4", "text": None}] if kind in ("csv", "parquet") else [*ROWS, {"id": "4"}]
    found = read(judged.write(tmp_path / f"rows.{kind}", rows))
    assert found == [(f"{place} {i}", row) for i, row in enumerate([*ROWS, {"id": "4"}], start=first)]


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
    assert surplus == ("row 2", "row 2: more cells than columns; put quotes around cells that hold the separator")
    assert good == ("row 4", {"id": "3", "text": "c"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "windows-1252"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_spreadsheet_is_read_however_it_was_saved(tmp_path, encoding, mark):
    """CRLF, quotes, line breaks in cells, empty rows and columns, an unnamed column, a large unused cell, Excel's note."""
    table = [
        ["", "Question ", "Answer,; here\nnow", "Blob", "", ""],
        ["0", "Où?", 'a, b; c\td|e\n\n"x"', "y" * 200_000, "", ""],
    ]
    table += [[""] * 6, ["", "", "", "", "", ""], ["1", "Là?", "", "  ", "", ""], [], [""] * 6]
    with open(tmp_path / "a.csv", "w", newline="", encoding=encoding) as out:
        csv.writer(out, delimiter=mark, lineterminator="\r\n").writerows(table)
    rows = [("row 2", {"column 1": "0", "Question": "Où?", "Answer,; here now": table[1][2], "Blob": "y" * 200_000})]
    rows += [("row 5", {"column 1": "1", "Question": "Là?"})]
    assert read(tmp_path / "a.csv") == rows
    assert {row.header for row in sources.rows(tmp_path / "a.csv")} == {
        ("column 1", "Question", "Answer,; here now", "Blob")
    }
    assert sources.dialects(tmp_path / "a.csv") == [
        f"a.csv: separator {mark!r}, encoding {encoding.removesuffix('-sig')}"
    ]
    if encoding in ("utf-8", "windows-1252"):
        content = f"sep={mark}\r\n".encode() + (tmp_path / "a.csv").read_bytes()
        (tmp_path / "b.csv.gz").write_bytes(gzip.compress(content))
        assert read(tmp_path / "b.csv.gz") == rows


def test_a_damaged_byte_in_utf_8_is_no_windows_1252(tmp_path):
    (tmp_path / "a.csv").write_bytes("id,instruction,response\n1,Où?,Là\n2,Où?,x".encode() + b"\xe9\n3,Quoi?,a\n")
    rubric = tmp_path / "r.yaml"
    rubric.write_text("criterion: c\nlevels: [a, b]")
    found = [getattr(row, "reason", row.id)[:19] for _, _, row, _ in data.read_rows(tmp_path / "a.csv", rubric=rubric)]
    assert found == ["1", "row 3: field respon", "3"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_a_json_object_that_holds_the_rows(tmp_path, indent, suffix):
    def written(value):
        text = json.dumps(value, indent=indent).encode()
        (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
        return read(tmp_path / f"a.{suffix}")

    assert written({"title": "t", "n": 3, "rows": ROWS, "tags": ["a"]}) == [
        (f"row {i + 1}", row) for i, row in enumerate(ROWS)
    ]
    assert written(ROWS) == [(f"row {i + 1}", row) for i, row in enumerate(ROWS)]
    assert written(ROWS[0]) == [("row 1", ROWS[0])]


def test_what_datasets_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = judged.feedback(40)
    whole = datasets.Dataset.from_list(rows)
    whole.shuffle(seed=0).save_to_disk(tmp_path / "one")
    assert sorted(row["orig_response"] for _, row in read(tmp_path / "one")) == sorted(
        row["orig_response"] for row in rows
    )
    datasets.DatasetDict(train=whole.select(range(30)), test=whole.select(range(30, 40))).save_to_disk(tmp_path / "two")
    loaded = data.load(tmp_path / "two", n_validation=5)
    assert [len(loaded.splits[name]) for name in ("train", "validation", "test")] == [25, 5, 10]
    assert next(sources.rows(tmp_path / "two")).where == "train, row 1"
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"cut")
    with pytest.raises(RowError, match="one: cannot be read after row 0"):
        read(tmp_path / "one")


def test_every_file_of_a_folder_is_read_and_its_name_is_a_hint(tmp_path):
    rows = judged.feedback(40)
    parts = {
        "answers_1.csv": rows[:10],
        "answers_2_test.csv": rows[10:20],
        "more/ood.jsonl": rows[20:30],
        "b.parquet": rows[30:],
    }
    (tmp_path / "more").mkdir()
    for name, some in parts.items():
        judged.write(tmp_path / name, some)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    judged.write(tmp_path / ".ipynb_checkpoints" / "answers_1-checkpoint.csv", rows)
    (tmp_path / "README.md").write_text("Graded in May.")
    files = [path for path, _ in sources._files(tmp_path, "")]
    assert files == ["answers_1.csv", "answers_2_test.csv", "b.parquet", "more/ood.jsonl"]
    assert [row.where for row in sources.rows(tmp_path)][-1] == "more/ood.jsonl, line 10"
    loaded = data.load(tmp_path, n_validation=1)
    assert loaded.counts["rows"] == 40
    assert len(loaded.splits["ood"]) == 10
    assert len(loaded.splits["test"]) >= 10


BROKEN = [
    ("rows.json", b'[{"id": "1"}, {"id": 2', "row 2: malformed JSON"),
    ("rows.json", b'[{"id": "1"}, {"id" 2}]', "row 2: malformed JSON"),
    ("rows.json", b'[{"id": "1"},\n', "row 2: malformed JSON (the file ends inside the array)"),
    ("rows.json", b'[{"id": "1"}', "row 1: malformed JSON (the file ends inside the array)"),
    ("rows.json", b'[{"id": "1"}] {"id": "2"}', "continues after the array"),
    ("rows.json", b"", "holds no rows"),
    ("rows.json", b"[" * 100_000, "row 1: malformed JSON"),
    ("rows.json", b'{"a": [{"id": "1"}], "b": [{"id": "2"}]}', "an object with several arrays, 'a', 'b'; save"),
    ("rows.json", b'{"a": [{"id": "1"}],\n "b": ', "malformed JSON"),
    ("rows.csv", b"", "holds no rows"),
    ("rows.csv", "id,text\n1,a\n".encode("utf-16-le"), "row 1: the header must"),
    ("rows.csv", b"id;text;id\n1;a;2\n", "row 1: the header must"),
    ("rows.csv", b'id,text\n1,"a\n2,b\n', "row 2: malformed CSV"),
    ("rows.csv", "id,text\n1,a\n".encode("utf-16")[:-1], "cannot be read"),
    ("rows.parquet", b"PAR1 this is none", "cannot be read after row 0"),
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
    with pytest.raises(RowError, match=r"\n  o/n, train\.parquet, row 3: field orig_score"):
        data.load("o/n", n_validation=5)
    with pytest.raises(RowError, match=r"\n    hf download o/n --repo-type dataset --revision b21a9\n"):
        read("o/n", "b21a9")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RowError, match="folder: no rows found in it"):
        read(tmp_path / "folder")


def test_a_set_of_several_configurations_names_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for name in ("easy", "hard"):
        judged.write(tmp_path / f"{name}.jsonl", ROWS)
    parts = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("easy", "hard"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    with pytest.raises(RowError, match=r"no rows found in it \(.*easy.*hard.*\); name one of its files"):
        read(tmp_path)
