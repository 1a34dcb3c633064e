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
def snippet(tmp_path, base_dir, rows, monkeypatch, one_thread):
    """Import a snippet by its name, with the tiny base as the judge, and a rubric of the world that the base knows."""
    for name, code in SNIPPETS.items():
        (tmp_path / f"{name}.py").write_text(code.replace("runs/notes/judge", str(base_dir)))
    monkeypatch.syspath_prepend(tmp_path)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module("judge").rubric = rows[0].rubric
    return importlib.import_module


def unread(j):
    """The judgment as one that cannot be read."""
    return j.model_copy(update={"score": None, "distribution": None, "failure": "no_verdict", "rationale": ""})


@pytest.mark.slow
@pytest.mark.torch
def test_inspect_keeps_scores_and_leaves_the_unread_out(snippet, rows, tmp_path, monkeypatch):
    inspect_ai = pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import solver

    scorer, judge = snippet("scorer"), snippet("judge").judge
    whole, item = judge.sampler, rows[0]

    def sampler(items, **how):
        return [unread(j) if "Go" in item.response else j for item, j in zip(items, whole(items, **how), strict=True)]

    @solver
    def answered():  # without a model, whose tokens inspect would count with a file from the network
        async def solve(state, generate):
            state.output = ModelOutput.from_content("mine", state.metadata["answer"])
            return state

        return solve

    monkeypatch.setattr(judge, "sampler", sampler)
    samples = [Sample(input=item.instruction, metadata={"answer": answer}) for answer in (item.response, "Go away.")]
    task = inspect_ai.Task(dataset=samples, solver=answered(), scorer=scorer.judged())
    [log] = inspect_ai.eval(task, model="mockllm/model", log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    first, second = (sample.scores["judged"] for sample in log.samples)
    mine = judge.score(instruction=item.instruction, response=item.response, rubric=item.rubric)
    assert mine.score in item.rubric.scale
    assert (first.value, first.explanation) == (mine.score, mine.rationale)
    assert (second.value != second.value, second.explanation) == (True, "no_verdict")
    assert log.results.scores[0].metrics["mean"].value == mine.score


@pytest.mark.slow
@pytest.mark.torch
def test_mlflow_gets_values_and_errors(snippet, rows, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("mlflow.genai", reason="mlflow is installed without genai")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    polite, judge, item = snippet("mlflow_scorer").polite, snippet("judge").judge, rows[0]
    data = [{"inputs": {"question": item.instruction}, "outputs": item.response}]
    mine = judge.score(instruction=item.instruction, response=item.response, rubric=item.rubric)
    assert mlflow.genai.evaluate(data=data, scorers=[polite]).metrics["polite/mean"] == mine.score
    whole = judge.sampler
    monkeypatch.setattr(judge, "sampler", lambda *items, **how: [unread(j) for j in whole(*items, **how)])
    failed = polite(inputs=data[0]["inputs"], outputs="Go away.")
    assert (failed.error.error_code, failed.value) == ("NO_SCORE", None)


@pytest.mark.slow
@pytest.mark.torch
def test_a_reward_trains_with_grpo_and_judges_each_text_once(snippet, rows, base_dir, tmp_path, monkeypatch):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    module, judge, asked = snippet("reward"), snippet("judge").judge, []
    whole = judge.sampler
    monkeypatch.setattr(judge, "sampler", lambda items, **how: asked.append(len(items)) or whole(items, **how))
    asks, (good, other) = rows[0].instruction, (rows[0].response, rows[1].response)
    got = module.reward([asks] * 4, [good, " ", good, [{"role": "assistant", "content": other}]])
    assert asked == [2], "each text once"
    assert got[0] == got[2] == judge.score(instruction=asks, response=good, rubric=rows[0].rubric).expected_score
    assert got[0] is not None
    assert got[1] is None, "an empty completion has nothing to judge"
    assert module.reward([asks], [good]) == got[:1]
    assert asked == [2, 1, 0]
    with monkeypatch.context() as patch:
        patch.setattr(judge, "sampler", lambda items, **how: [unread(j) for j in whole(items, **how)])
        assert module.reward([asks], ["Go away."]) == [None], "unread is no reward"
    sizes = dict(per_device_train_batch_size=2, num_generations=2, max_completion_length=8, max_steps=1)
    prompts = Dataset.from_dict({"prompt": [row.instruction for row in rows[:2]]})
    for config, trainer in ((GRPOConfig, GRPOTrainer), (RLOOConfig, RLOOTrainer)):
        before = len(asked)
        args = config(str(tmp_path), report_to="none", use_cpu=True, bf16=False, logging_steps=1, **sizes)
        trainer = trainer(str(base_dir), reward_funcs=module.reward, args=args, train_dataset=prompts)
        trainer.train()
        assert [row["step"] for row in trainer.state.log_history if "rewards/reward/mean" in row] == [1]
        assert len(asked) > before


@pytest.mark.slow
@pytest.mark.torch
def test_a_column_a_test_and_a_server(snippet, base_dir, tmp_path):
    from servers import transformers_serve

    column, judge, rubric = snippet("column"), snippet("judge").judge, snippet("judge").rubric
    mine = judge.score(instruction="Greet Anna.", response="Go away.", rubric=rubric)
    assert (column.rows[1]["score"], column.rows[1]["rationale"]) == (mine.score, mine.rationale)
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "test_answers.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"1 (passed|failed|skipped)", ended.stdout), ended.stdout
    silent = "import judge\njudge.judge.max_new_tokens = 1\n"  # no verdict fits into it
    (tmp_path / "conftest.py").write_text(silent)
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"1 skipped", ended.stdout), ended.stdout
    assert "the judge abstains: " in ended.stdout
    with transformers_serve(tmp_path) as url:
        code = SNIPPETS["served"].replace("http://localhost:8000/v1", url).replace("my-judge", str(base_dir))
        (tmp_path / "served.py").write_text(code)
        served = snippet("served")
    mine = judge.score(instruction="Greet Anna.", response="Dear Anna, thanks a lot.", rubric=rubric)
    assert (served.j.text, served.j.score) == (mine.text, mine.score)
