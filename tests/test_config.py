"""Parameters: declared once; whatever does not fit is refused before anything runs."""

import json

import pytest

from srlib import config
from srlib.config import ParamError


@pytest.fixture
def root(tmp_path):
    """A project with one notebook."""
    sources = {
        "parameters": 'beta: float = 0.1  # help\narms: list[str] = [\n    "base",\n]\n',
        "": "cfg.seed + cfg.foo + cfg.beta",
    }
    cells = [{"cell_type": "code", "metadata": {"tags": [tag]}, "source": [text]} for tag, text in sources.items()]
    (tmp_path / "srlib").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_data.ipynb").write_text(json.dumps({"cells": cells}))
    return tmp_path


def load_yaml(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load(path)


def test_defaults_then_the_file_then_the_command_line(tmp_path):
    cfg = load_yaml(tmp_path, "beta: 5e-6\narms: [base, sft]\nmargin: 1\nbalance: true\ndata_revision: 12e4567\n")
    assert (cfg.beta, cfg.arms, cfg.margin, cfg.balance) == (5e-6, ["base", "sft"], 1.0, True)
    assert cfg.data_revision == "12e4567"  # a commit, not a number
    assert cfg.temperature == config.FIELDS["temperature"].default
    cfg = config.load(tmp_path / "some.yaml", ["beta=0.3", "arms=base, rft", "balance=false", "data=1"])
    assert (cfg.beta, cfg.arms, cfg.balance, cfg.data, cfg.margin) == (0.3, ["base", "rft"], False, "1", 1.0)
    assert load_yaml(tmp_path, "") == config.load()


BAD = {
    "beta: 0.1\nbetta: 0.3\n": "line 2: there is no parameter 'betta'; did you mean beta?",
    "n_samples: 2.5": "line 1: n_samples is 2.5; it should be a valid integer", "seed: true": "quote it", "balance: 1": "a valid boolean",
    "n_samples: 1": "it should be greater than or equal to 2", "top_p: 1.1": "it should be less than or equal to 1",
    "beta: 0": "it should be greater than 0", "beta: .nan": "finite", "beta: .inf": "finite", "beta: high": "a valid number",
    "beta: 1" + "0" * 400: "a valid number", "beta:": "beta is None", "beta: {a: 1}": "beta is {'a': 1}",
    "backend: on": "quote it", "backend: vllm": "it should be 'auto', 'unsloth' or 'transformers'",
    "arms: sft": "a valid list", "arms: [[sft]]": "a valid string", "data: 2024-01-01": "a valid string",
    "beta: 0.1\nbeta: 0.2\n": "line 2: beta is set twice", "? [a]\n: 1": "there is no parameter",
    "beta: 0.1\n\ttemperature: 1\n": "line 2", "arms: " + "[" * 900: "cannot be read", "- beta\n": "holds no names",
    "beta": "holds no names", "beta: 'open": "cannot be read", "beta: 0.1\n---\nbeta: 0.2\n": "single document",
    "beta: !!python/object/apply:os.getcwd []": "not determine a constructor", "data: 2024-99-99": "cannot be read",
    b"beta: \xff\n": "in UTF-8",
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_a_bad_file_is_refused(tmp_path, text, message):
    with pytest.raises(ParamError) as error:
        load_yaml(tmp_path, text)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "some.yaml"))


@pytest.mark.parametrize(
    "text", ["betta=1", "beta", "beta=nan", "beta=-1", "n_samples=2.5", "balance=maybe", "n_samples="]
)
def test_a_bad_override_is_refused(text):
    with pytest.raises(ParamError, match=f"^-p .*{text.partition('=')[0]}"):
        config.load(None, [text])


@pytest.mark.parametrize("name", ["endpoint", "model", "writer", "preference_judge"])
def test_a_key_in_an_address_is_refused_before_it_stands_in_a_file(name):
    assert getattr(config.load(None, [f"{name}=http://gpu:8000/v1"]), name) == "http://gpu:8000/v1"
    with pytest.raises(ParamError, match=f"-p {name}: {name}: write http://host:port/v1") as caught:
        config.load(None, [f"{name}=http://me:secret@host/v1"])
    assert "secret" not in str(caught.value)


def test_a_notebook_declares_reads_and_checks(root, monkeypatch):
    assert config.declared_in("01_data", root) == ["beta", "arms"]
    assert config.read_by("01_data", root) == ["beta", "arms", "seed"]  # `foo` is no parameter
    namespace = {"beta": 1, "arms": ["sft"], "margin": 1, "x": 5, "In": ["", "# Parameters\nbeta = 0.3\nmargin = 1\n"]}
    assert config.in_namespace("01_data", namespace, root) == {"beta": 1.0, "arms": ["sft"], "margin": 1.0}
    wrong = {"beta is 'much'": {"beta": "much"}, "did you mean beta": {"In": ["# Parameters\nbetta = 1\n"], "betta": 1}}
    for message, values in wrong.items():
        with pytest.raises(ParamError, match=f"notebook 01_data: .*{message}"):
            config.in_namespace("01_data", namespace | values, root)
    with pytest.raises(ParamError, match="arms is not set; run the cell"):
        config.in_namespace("01_data", {"beta": 1.0}, root)
    monkeypatch.chdir(root / "notebooks")
    assert config.project_root() == root
    for text, message in (("{", "cannot be read as a notebook"), ('{"cells": []}', "0 code cells are tagged")):
        (root / "notebooks" / "01_data.ipynb").write_text(text)
        with pytest.raises(ParamError, match=message):
            config.read_by("01_data")


def test_allowed_values_in_words():
    names = ["care", "keep", "beta", "seed", "arms", "data"]
    assert [config.allowed(name) for name in names] == ["0 to 1", "last | best", "> 0", ">= 0", "names", ""]


def test_a_list_is_parted_at_commas_but_not_in_the_name_of_a_column():
    assert config.split("sft, sre_1,") == ["sft", "sre_1"]
    assert config.split("score:Rate it (1 = bad, 5 = good), id:No") == ["score:Rate it (1 = bad, 5 = good)", "id:No"]
    assert config.split("score:Grade,") == ["score:Grade"]
    assert config.split("score:Rate it (1: bad, 5: good)") == ["score:Rate it (1: bad, 5: good)"]
    assert config.load(None, ["columns=score:Good, or bad,id:No"]).columns == ["score:Good, or bad", "id:No"]
