"""What is handed to vLLM, which cannot be installed here: a stand-in takes it down. Nothing here measures vLLM itself."""

import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

from srlib import draws, judge, models, prompts, vllm
from srlib.schema import Example, Rubric

pytestmark = pytest.mark.torch

RUBRIC = Rubric(criterion="Is it polite?", levels=["rude", "neutral", "kind"])
ITEMS = [Example(id=f"e{i}", instruction="Greet.", response="Hi. " * (1 + i), rubric=RUBRIC) for i in range(3)]


@pytest.fixture
def taken(monkeypatch, base_dir):
    """Everything that the stand-in was given."""
    seen = SimpleNamespace(llm=None, lora=None, calls=[])

    class LLM:
        def __init__(self, **settings):
            seen.llm = settings
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=2048))

        def get_tokenizer(self):
            return models.load_tokenizer(base_dir)

        def generate(self, asked, params, **settings):
            seen.calls.append((asked, params, settings))
            top = {
                7: SimpleNamespace(logprob=-0.2, decoded_token=" 3"),
                8: SimpleNamespace(logprob=-1.75, decoded_token=" 2"),
            }
            before = {6: SimpleNamespace(logprob=-0.4, decoded_token="Fine. [RESULT]")}
            said = dict(token_ids=[6, 7], logprobs=[before, top], text="Fine. [RESULT] 3")
            one, cut = (SimpleNamespace(**said, finish_reason=reason) for reason in ("stop", "length"))
            return [SimpleNamespace(outputs=[cut if k == 0 else one]) for k, _ in enumerate(asked)]

    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = LLM, lambda **settings: settings
    request.LoRARequest = lambda *given: seen.__setattr__("lora", given) or "adapter"
    for name, module in (("vllm", package), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def test_every_draw_is_a_request_with_its_own_seed(taken, base_dir):
    loaded = judge.Judge.load("vllm", directory=base_dir)
    found = loaded.score_many(ITEMS, n=2, temperature=0.7, top_p=0.9, seed=5, max_new_tokens=30)
    assert (taken.llm["model"], taken.llm["enable_prefix_caching"], taken.llm["trust_remote_code"]) == (
        str(base_dir),
        True,
        False,
    )
    assert "enable_lora" not in taken.llm
    ((asked, params, settings),) = taken.calls
    tokenizer = models.load_tokenizer(base_dir)
    assert [a["prompt_token_ids"] for a in asked] == [prompts.prompt_ids(tokenizer, e) for e in ITEMS for _ in range(2)]
    assert [p["seed"] for p in params] == [draws.seed_of(5, e.id, i) for e in ITEMS for i in range(2)]
    assert {(p["n"], p["temperature"], p["top_p"], p["top_k"], p["max_tokens"]) for p in params} == {
        (1, 0.7, 0.9, -1, 30)
    }
    assert settings["lora_request"] is None
    assert [(j.example_id, j.index) for j in found] == [(e.id, i) for e in ITEMS for i in range(2)]
    assert (found[0].failure, found[0].score, found[0].tokens, found[0].distribution) == ("cut_off", None, 2, None)
    assert (found[1].score, found[1].tokens, found[1].logprob) == (3.0, 2, -0.3)
    assert found[1].distribution == pytest.approx({1: 0.0, 2: 0.175, 3: 0.825}, abs=1e-3)


def test_an_adapter_goes_along_with_every_request(taken, base_dir, tmp_path):
    path = shutil.copytree(base_dir, tmp_path / "judge")
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 24}))
    vllm.judgments(vllm.load(path), ITEMS[:1])
    assert (taken.llm["model"], taken.llm["enable_lora"], taken.llm["max_lora_rank"]) == ("org/base", True, 32)
    assert taken.llm["tokenizer"] == str(path)
    assert taken.lora == ("judge", 1, str(path))
    assert taken.calls[0][2]["lora_request"] == "adapter"


def test_a_lot_is_on_disk_before_the_next_and_too_long_is_not_asked(taken, base_dir, tmp_path):
    long = ITEMS[1].model_copy(update={"id": "long", "response": "again " * 3000})
    engine, path = vllm.load(base_dir), tmp_path / "j.jsonl"
    generate, lines = engine.llm.generate, []
    engine.llm.generate = lambda *a, **k: (
        lines.append(path.read_text().count("\n") if path.exists() else 0),
        generate(*a, **k),
    )[1]
    found = vllm.judgments(engine, [ITEMS[0], long, ITEMS[2]], out=path, batch_size=1)
    assert found[1].failure == "too_long"
    assert found[1].prompt_tokens > 2048
    assert lines == [0, 2], "a lot of too long prompts alone is no call"
    assert sum(len(asked) for asked, _, _ in taken.calls) == 2


def test_without_vllm_it_is_said_what_to_do(base_dir):
    if "vllm" in sys.modules:
        pytest.skip("vLLM is installed here")
    with pytest.raises(models.ModelError, match="vLLM is not installed here"):
        judge.Judge.load("vllm", directory=base_dir)
    with pytest.raises(models.ModelError, match="needs a judge"):
        judge.Judge.load("vllm")
