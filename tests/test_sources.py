"""Files, folders and hub sets -> rows, one at a time: every format, what is broken in it, and the hub without a network."""

import gzip
import importlib.metadata
import inspect
import json
from pathlib import Path

import judged
import pytest

from srlib import files as store
from srlib.data import load as data
from srlib.data import sources

ROWS = [{"id": "1", "text": "a, b"}, {"id": "2", "text": "voilà"}, {"id": "3", "text": 'two\nlines "quoted"'}]


def read(path, revision=""):
    return [(row.where, row.values or row.problem) for row in sources.rows(path, revision)]


@pytest.mark.parametrize("kind", judged.FORMATS)
def test_every_format_holds_the_same_rows(tmp_path, kind):
    place = "line" if kind.startswith("jsonl") else "row"
    found = read(judged.write(tmp_path / f"rows.{kind}", ROWS))
    assert found == [(f"{place} {i}", row) for i, row in enumerate(ROWS, start=1)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_empty_cell_is_an_absent_field(tmp_path, kind):
    rows = [ROWS[0], ROWS[1] | {"text": None}]
    assert read(judged.write(tmp_path / f"rows.{kind}", rows))[1][1] == {"id": "2"}


def test_nested_columns_of_parquet_come_without_what_other_rows_have(tmp_path):
    rows = [{"levels": {"1": "a", "2": "b"}, "meta": {"x": None}}, {"levels": {"0": "c", "9": "d"}, "meta": {"x": 1}}]
    found = [values for _, values in read(judged.write(tmp_path / "rows.parquet", rows))]
    assert found == [{"levels": rows[0]["levels"], "meta": {}}, rows[1]]


def test_a_json_file_of_lines_is_read_as_lines(tmp_path):
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, ROWS)) + "\n{bad\n")
    found = read(tmp_path / "rows.json")
    assert [values for _, values in found[:3]] == ROWS
    assert found[3][1].startswith("line 4: malformed JSON")


@pytest.mark.parametrize("chunk", [1, 7, 50, 10**6])
def test_a_json_array_is_read_piece_by_piece(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(sources, "CHUNK", chunk)
    rows = [*ROWS, {"id": "4", "deep": [1, {"a": ["]", "}", '\\"']}], "number": 1234567.5}]
    (tmp_path / "rows.json").write_text("[\n  " + " ,\n  ".join(json.dumps(r, indent=1) for r in rows) + "\n]\n")
    assert [values for _, values in read(tmp_path / "rows.json")] == rows


def test_one_bad_element_of_an_array_leaves_the_others(tmp_path):
    (tmp_path / "rows.json").write_bytes(b'[{"id": "1"}, {"score": [NaN]}, 7, {"id": "\xe9"}, {"id": "5"}]')
    found = read(tmp_path / "rows.json")
    assert [place for place, _ in found] == [f"row {i}" for i in range(1, 6)]
    assert found[1][1] == "row 2: field score.0 is nan; write a number, or null where there is none"
    assert found[2][1] == "row 3: a row is a JSON object {...}"
    assert "row 4: byte 0xe9 at position" in found[3][1]
    assert found[4][1] == {"id": "5"}


BROKEN = {
    "rows.json": [
        (b'[{"id": "1"}, {"id": 2', "row 2: malformed JSON"),
        (b'[{"id": "1"}, {"id" 2}]', "row 2: malformed JSON"),
        (b'[{"id": "1"}] {"id": "2"}', "goes on behind the array"),
        (b'"rows"', "holds no rows"),
        (b"", "holds no rows"),
        (b"[" * 100_000, "row 1: malformed JSON"),
    ],
    "rows.csv": [
        (b"", "line 1: is no header"),
        (b"id,id\n1,2\n", "column 'id' is there twice"),
        (b'id,text\n1,"a\n2,b\n', "row 1 (line 3): malformed CSV"),
        (b'id,text\n1,a\n2,"a"b\n', "row 2 (line 3): malformed CSV"),
    ],
    "rows.parquet": [(b"PAR1 this is none", "cannot be read as Parquet"), (b"", "cannot be read as Parquet")],
    "rows.csv.gz": [(b"not gzip", "cannot be read")],
    "rows.json.gz": [(gzip.compress(b"[" + b'{"id": "1"},' * 9, mtime=0)[:-9], "cannot be read")],
    "rows.xlsx": [(b"PK", "rows are read from .jsonl, .jsonl.gz, .json")],
}


@pytest.mark.parametrize(("name", "content", "message"), [(n, c, m) for n, own in BROKEN.items() for c, m in own])
def test_a_broken_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(store.RowError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_cut_parquet_file_is_named(tmp_path):
    path = judged.write(tmp_path / "rows.parquet", judged.feedback(30))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(store.RowError, match="cannot be read as Parquet behind row 0"):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.csv", "none.json", "none.parquet", "none.jsonl.gz", "none"):
        with pytest.raises(store.RowError, match=r"none.*: cannot be read"):
            read(tmp_path / name)


def test_a_bad_csv_record_leaves_the_others(tmp_path):
    (tmp_path / "rows.csv").write_bytes("\ufeffid,text\r\n1,a,b\r\n\r\n2,\xe9\r\n3,c\r\n".encode("latin-1", "ignore"))
    found = read(tmp_path / "rows.csv")
    assert found[0] == ("row 1", "row 1: 3 cells under 2 columns; put quotes around commas")
    assert found[1] == ("row 2", "row 2: field text is not UTF-8; save the file as UTF-8")
    assert found[2] == ("row 3", {"id": "3", "text": "c"})


def test_bytes_that_are_no_text_in_a_parquet_column_cost_their_row_only(tmp_path):
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.Array.from_buffers(
        pyarrow.string(),
        3,
        [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xe9b")],
    )
    parquet.write_table(pyarrow.table({"id": ["1", "2", "3"], "text": text}), tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet")
    assert [found[0], found[2]] == [("row 1", {"id": "1", "text": "a"}), ("row 3", {"id": "3", "text": "b"})]
    assert found[1][1].startswith("row 2: field text cannot be read")


def test_what_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.is_hub_id("prometheus-eval/Feedback-Collection")
    assert not any(map(sources.is_hub_id, ["a/b/c", "a/b.csv", "a/b.jsonl.gz", "/a/b", "../b", "a", "a/b c", ""]))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").mkdir()
    assert not sources.is_hub_id("a/b")


def cached(folder: Path, name: str, files: dict[str, list[dict]]) -> str:
    """A hub set as `hf download` leaves it in the cache; returns its commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = folder / f"datasets--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file, rows in files.items():
        judged.write(snapshot / file, rows)
    return commit


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_missing_hub_set_names_the_command_that_fetches_it(hub):
    with pytest.raises(store.RowError) as error:
        read("prometheus-eval/Feedback-Collection", "b21a9")
    command = "hf download prometheus-eval/Feedback-Collection --repo-type dataset --revision b21a9"
    assert f"\n    {command}\n" in str(error.value)
    with pytest.raises(store.RowError, match=r"(?m)^ +hf download a/b --repo-type dataset$"):
        read("a/b")


def test_that_command_exists():
    from huggingface_hub.cli.download import download

    assert importlib.metadata.entry_points(group="console_scripts", name="hf")
    assert {"repo_id", "repo_type", "revision"} <= inspect.signature(download).parameters.keys()


def test_a_cached_hub_set_is_read_without_a_network(hub):
    commit = cached(hub, "o/feedback", {"new_feedback.json": judged.feedback(200)})
    loaded = data.load("o/feedback", n_validation=5)
    assert loaded.counts["rows"] == 200
    assert all(loaded.splits[name] for name in ("train", "test"))  # one split of the hub's says nothing: by instruction
    assert loaded.commits == {"o/feedback": commit}
    assert loaded.splits["train"][0].meta["source"] == "o/feedback"
    assert len(read("o/feedback", commit)) == 200
    with pytest.raises(store.RowError, match="hf download o/feedback --repo-type dataset --revision other"):
        read("o/feedback", "other")


def test_the_splits_of_a_folder_are_hints(hub):
    rows = judged.feedback(40)
    rows[2]["orig_score"] = "none"
    cached(hub, "o/n", {"train.parquet": rows[:30], "test.parquet": rows[30:]})
    loaded = data.load("o/n", n_validation=5, bad_rows="drop")
    assert {name: len(own) for name, own in loaded.splits.items() if own} == {"train": 24, "validation": 5, "test": 10}
    [failure] = loaded.failures
    assert failure.reason.startswith("train.parquet, row 3: field orig_score: 'none' is not a number")
    with pytest.raises(data.DataError, match=r"^o/n, train\.parquet, row 3: field orig_score"):
        data.load("o/n", n_validation=5)


def test_a_folder_without_rows_is_named(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(store.RowError, match="set: no rows found in it"):
        read(tmp_path / "set")
