"""Files and servers of strangers: nothing of theirs is run, no small file becomes a large one, no key goes astray."""

import gzip
import json
import pickle
import shutil
import subprocess
import sys
import time

import pytest
from servers import Scripted

from srlib import config
from srlib.data import columns
from srlib.schema import Example, Rubric, SrlibError


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.torch
@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"])
@pytest.mark.parametrize("instead", [False, True], ids=["beside", "instead"])
def test_a_pickle_in_a_model_folder_is_never_read(tmp_path, base_dir, name, instead):
    from srlib import models

    folder, mark = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(base_dir, folder)
    (folder / name).write_bytes(pickle.dumps(Evil(mark)))
    if instead:
        (folder / "model.safetensors").unlink()
        with pytest.raises(models.ModelError, match=r"it holds no \*\.safetensors"):
            models.load(folder)
    else:
        models.load(folder)
    assert not mark.exists()
    assert pickle.loads((folder / name).read_bytes()).close() is None
    assert mark.exists(), "the pickle would have worked"


@pytest.mark.torch
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_is_never_run(tmp_path, base_dir, file):
    from srlib import models

    folder, mark = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(base_dir, folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass M: pass\n")
    auto = {"AutoConfig": "evil.M", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.M", "evil.M"]}
    settings = json.loads((folder / file).read_text()) | {"auto_map": auto, "trust_remote_code": True}
    (folder / file).write_text(json.dumps(settings))
    models.load(folder)
    assert not mark.exists()


LAUGHS = "a: &a [lol, lol, lol]\n" + "".join(
    f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)
)
NESTED = "criterion: " + "[" * 700


@pytest.mark.parametrize("text", [LAUGHS + "arms: *i\n", NESTED, "arms: !!python/object/apply:os.system [exit]\n"])
@pytest.mark.parametrize("read", [config.load, columns.read_rubric], ids=["recipe", "rubric"])
def test_yaml_neither_grows_nor_runs(tmp_path, read, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(SrlibError, match=r"x\.yaml"):
        read(path)
    assert time.process_time() - start < 5


def bomb(path, size):
    """A gzip file of one line of so many bytes."""
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(size // 2**20):
            file.write(b" " * 2**20)


MEASURE = """
import resource, sys
from srlib import data
try:
    list(data.read_rows(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, str(error)[:200], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz"])
def test_a_compressed_bomb_takes_bounded_memory(tmp_path, name):
    bomb(tmp_path / name, 2**29)
    assert (tmp_path / name).stat().st_size < 2**21
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / name], capture_output=True, text=True, timeout=100)
    kind, *_, megabytes = run.stdout.split()
    assert kind.endswith("Error"), run
    assert kind != "MemoryError", run
    assert int(megabytes) < 450, "the file was held as a whole"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_does_not_carry_the_key_to_another_host(status, monkeypatch):
    from srlib import sample

    monkeypatch.setenv("SRLIB_API_KEY", "sk-canary-0123456789")
    other = Scripted()
    first = Scripted(
        lambda body, number: (
            status,
            "",
            {"Location": other.url.replace("127.0.0.1", "localhost") + "/chat/completions"},
        )
    )
    item = Example(id="one", instruction="a", response="b", rubric=Rubric(criterion="c", levels=["d", "e", "f"]))
    server, problem = sample.Server(first.url, "judge", max_retries=0, timeout=5), ""
    try:
        sample.server_judgments(server, [item], n=1, temperature=1.0)
    except SrlibError as error:
        problem = str(error)
    finally:
        first.close()
        other.close()
    assert "canary" not in problem
    assert any("canary" in str(headers) for headers in first.headers)
    assert not any("canary" in str(headers) for headers in other.headers)
