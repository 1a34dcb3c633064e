"""The snippets of docs/guides/using.md against the real libraries, with the tiny base as the judge. What is not installed is
skipped by name. They take a torch each, so only `make test-all` runs them; that they are short and compile is always checked."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "using.md").read_text()
SNIPPETS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", GUIDE, re.DOTALL))
MODULES = ["judge", "scorer", "mlflow_scorer", "reward", "column", "test_answers", "served"]


def test_snippets_are_short_and_compile():
    assert list(SNIPPETS) == MODULES
    assert GUIDE.count("```python") == len(SNIPPETS)
    for name, code in SNIPPETS.items():
        assert len(code.splitlines()) <= 20, name
        compile(code, name, "exec")


@pytest.fixture
def snippet(tmp_path, base_dir, monkeypatch, one_thread):
    """Import a snippet by its name, from files in which only the judge's path is changed."""
    for name, code in SNIPPETS.items():
        (tmp_path / f"{name}.py").write_text(code.replace("runs/tiny/judge", str(base_dir)))
    monkeypatch.syspath_prepend(tmp_path)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def unread(j):
    """A judgment that cannot be read."""
    return j.model_copy(update={"score": None, "distribution": None, "failure": "no_verdict", "rationale": ""})


@pytest.mark.slow
@pytest.mark.torch
def test_inspect_keeps_scores_and_leaves_the_unread_out(snippet, tmp_path, monkeypatch):
    inspect_ai = pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput, get_model

    scorer, judge = snippet("scorer"), snippet("judge").judge
    answers = ["Dear Anna, thanks a lot.", "Go away."]
    whole = judge.sampler

    def sampler(items, **how):
        return [unread(j) if "Go" in item.response else j for item, j in zip(items, whole(items, **how), strict=True)]

    monkeypatch.setattr(judge, "sampler", sampler)
    model = get_model("mockllm/model", custom_outputs=[ModelOutput.from_content("mockllm/model", a) for a in answers])
    task = inspect_ai.Task(dataset=[Sample(input="Greet Anna."), Sample(input="Greet Anna.")], scorer=scorer.judged())
    [log] = inspect_ai.eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none", max_samples=1)
    assert log.status == "success", log.error
    scores = [sample.scores["judged"] for sample in log.samples]
    mine = judge.score(instruction="Greet Anna.", response=answers[0], rubric=scorer.rubric)
    assert (scores[0].value, scores[0].explanation) == (mine.score, mine.rationale)
    assert scores[1].value != scores[1].value, "unscored"
    assert log.results.scores[0].metrics["mean"].value == mine.score


@pytest.mark.slow
@pytest.mark.torch
def test_mlflow_gets_values_and_errors(snippet, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("mlflow.genai", reason="mlflow is installed without genai")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    polite, judge = snippet("mlflow_scorer").polite, snippet("judge").judge
    rows = [{"inputs": {"question": "Greet Anna."}, "outputs": "Dear Anna, thanks a lot."}]
    metrics = mlflow.genai.evaluate(data=rows, scorers=[polite]).metrics
    mine = judge.score(instruction="Greet Anna.", response=rows[0]["outputs"], rubric=snippet("judge").rubric)
    assert metrics["polite/mean"] == mine.score
    whole = judge.sampler
    monkeypatch.setattr(judge, "sampler", lambda *items, **how: [unread(j) for j in whole(*items, **how)])
    failed = polite(inputs=rows[0]["inputs"], outputs="Go away.")
    assert failed.error.error_code == "NO_SCORE"
    assert failed.value is None


@pytest.mark.slow
@pytest.mark.torch
def test_a_reward_trains_with_grpo_and_judges_each_text_once(snippet, base_dir, tmp_path, monkeypatch):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    module, judge, asked = snippet("reward"), snippet("judge").judge, []
    whole = judge.sampler
    monkeypatch.setattr(judge, "sampler", lambda items, **how: asked.append(len(items)) or whole(items, **how))
    chat = [{"role": "assistant", "content": "Go away."}]
    got = module.reward(["Greet Anna."] * 4, ["Dear Anna, thanks a lot.", " ", "Dear Anna, thanks a lot.", chat])
    assert (
        got[0]
        == got[2]
        == judge.score(
            instruction="Greet Anna.", response="Dear Anna, thanks a lot.", rubric=module.rubric
        ).expected_score
    )
    assert got[1] is None, "an empty completion has nothing to judge"
    assert got[3] is not None
    assert asked == [2, 1]
    module.reward(["Greet Anna."], ["Dear Anna, thanks a lot."])
    assert asked == [2, 1, 0]
    sizes = dict(per_device_train_batch_size=2, num_generations=2, max_completion_length=8, max_steps=1)
    args = GRPOConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, logging_steps=1, **sizes)
    rows = Dataset.from_dict({"prompt": ["Greet Anna.", "Thank Ben."]})
    trainer = GRPOTrainer(str(base_dir), reward_funcs=module.reward, args=args, train_dataset=rows)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/reward/mean" in row]
    assert 1 <= logged[0]["rewards/reward/mean"] <= 3


@pytest.mark.slow
@pytest.mark.torch
def test_a_column_a_test_and_a_server(snippet, base_dir, tmp_path):
    from servers import transformers_serve

    column = snippet("column")
    judge, rubric = snippet("judge").judge, snippet("judge").rubric
    mine = judge.score(instruction="Greet Anna.", response="Go away.", rubric=rubric)
    assert (column.rows[1]["score"], column.rows[1]["rationale"]) == (mine.score, mine.rationale)
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "test_answers.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"1 (passed|failed|skipped)", ended.stdout), ended.stdout
    with transformers_serve(tmp_path) as url:
        code = SNIPPETS["served"].replace("http://localhost:8000/v1", url).replace("my-judge", str(base_dir))
        (tmp_path / "served.py").write_text(code)
        served = snippet("served")
    assert (
        served.j.score
        == judge.score(instruction="Greet Anna.", response="Dear Anna, thanks a lot.", rubric=rubric).score
    )
