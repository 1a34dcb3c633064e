"""Training on TRL: the loss is the one the paper means, the reference is the start, and a killed training resumes."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from srlib import files as store
from srlib import prompts, train
from srlib.data import world
from srlib.models import adapters
from srlib.models import load as models
from srlib.schema import Pair

pytestmark = pytest.mark.torch

SETTINGS = train.Settings(max_steps=6, batch_size=8, micro_batch_size=8, backend="transformers", lora_rank=4)


@pytest.fixture(autouse=True)
def _exact(one_thread, fp32):
    pass


def with_(**changes) -> train.Settings:
    return train.Settings(**{**vars(SETTINGS), **changes})


@pytest.fixture(scope="module")
def sft_rows(tiny, rows):
    return train.sft_rows(tiny[1], rows, "brief")


def pairs_of(rows, offset=2.0) -> list[Pair]:
    """Gold against the same rationale with a score that is `offset` away."""
    shared = dict(margin=offset, strategy="correct_answer", iteration=1)
    made = []
    for e in rows:
        wrong = e.score + offset if e.score + offset in e.rubric.scale else e.score - offset
        texts = dict(chosen=prompts.completion(e.rationale, e.score), rejected=prompts.completion(e.rationale, wrong))
        scores = dict(chosen_score=e.score, rejected_score=wrong, target=e.score)
        ids = dict(id=f"1:{e.id}", example_id=e.id, chosen_id=f"{e.id}#0", rejected_id=f"{e.id}#1")
        made.append(Pair(**ids, **texts, **scores, **shared))
    return made


@pytest.fixture(scope="module")
def dpo_rows(tiny, rows):
    return train.dpo_rows(tiny[1], rows, pairs_of(rows), "brief")


def nll(model, ids, n_prompt):
    """Negative log-likelihood of each token behind the prompt."""
    import torch

    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1).numpy()
    return [-logprobs[k - 1, ids[k]] for k in range(n_prompt, len(ids))]


def weights(path: Path):
    from safetensors.torch import load_file

    return load_file(next(path.glob("*.safetensors")))


def apart(a: Path, b: Path) -> float:
    """The largest difference between two judges' weights."""
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# ---------------------------------------------------------------- rows


def test_rows_are_what_sampling_will_see(tiny, rows, sft_rows, dpo_rows):
    """Prompt and completion are tokenized apart; the loss begins with the first token that the judge writes."""
    _, tokenizer = tiny
    for example, row, pair in zip(rows, sft_rows, dpo_rows, strict=True):
        prompt = prompts.prompt_ids(tokenizer, example)
        assert row["input_ids"][: len(prompt)] == prompt == pair["prompt_ids"]
        assert row["completion_mask"] == [0] * len(prompt) + [1] * (len(row["input_ids"]) - len(prompt))
        written = tokenizer.decode(row["input_ids"][len(prompt) :], skip_special_tokens=True)
        assert written == prompts.completion(example.rationale, example.score)
        assert prompts.parse(written, example.rubric).score == example.score
        assert row["input_ids"][-1] == pair["chosen_ids"][-1] == pair["rejected_ids"][-1] == tokenizer.eos_token_id
        assert row["input_ids"] == pair["prompt_ids"] + pair["chosen_ids"]
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1


def test_score_only_rows_and_chosen_sides(tiny, rows):
    _, tokenizer = tiny
    for example, row in zip(rows, train.sft_rows(tokenizer, rows, "brief", rationale=False), strict=True):
        behind = row["input_ids"][row["completion_mask"].index(1) :]
        assert tokenizer.decode(behind, skip_special_tokens=True) == f"[RESULT] {example.score:g}"
    pairs = pairs_of(rows)[::-3]  # in another order than the examples
    for pair, row in zip(pairs, train.rft_rows(tokenizer, rows, pairs, "brief"), strict=True):
        text = tokenizer.decode(row["input_ids"][row["completion_mask"].index(1) :], skip_special_tokens=True)
        assert text == pair.chosen


def test_comparisons_are_rows_like_examples(tiny, rows):
    _, tokenizer = tiny
    items = [*rows[:2], *world.training_comparisons("train", 0, 3)]
    for item, row in zip(items, train.sft_rows(tokenizer, items, "brief"), strict=True):
        cut = row["completion_mask"].index(1)
        assert row["input_ids"][:cut] == prompts.prompt_ids(tokenizer, item)
        written = tokenizer.decode(row["input_ids"][cut:], skip_special_tokens=True)
        assert written == prompts.completion(item.rationale, item.gold)
        assert prompts.parse(written, item).verdict == item.gold
    c = items[-1]
    texts = [prompts.completion(c.rationale, verdict) for verdict in ("A", "B")]
    pair = Pair(
        id="p", example_id=c.id, chosen=texts[0], rejected=texts[1], chosen_id="0", rejected_id="1", chosen_score="A",
        rejected_score="B", target="A", margin=None, strategy="correct_answer", iteration=1,
    )  # fmt: skip
    [row] = train.dpo_rows(tokenizer, items, [pair], "brief")
    assert row["prompt_ids"] == prompts.prompt_ids(tokenizer, c)
    assert tokenizer.decode(row["rejected_ids"], skip_special_tokens=True) == texts[1]
    [chosen] = train.rft_rows(tokenizer, items, [pair], "brief")
    assert chosen["input_ids"] == row["prompt_ids"] + row["chosen_ids"]
    with pytest.raises(ValueError, match="has no gold score or preference to learn"):
        train.sft_rows(tokenizer, [c.model_copy(update={"preference": None})], "brief")


@pytest.mark.parametrize(("n", "steps"), [(482, 31), (480, 30), (1, 1)])
def test_steps(n, steps):
    assert train.steps(n, train.Settings(batch_size=16)) == steps
    assert train.steps(n, train.Settings(batch_size=16, max_steps=7)) == 7


@pytest.mark.parametrize(
    ("batch", "micro", "cut"), [(16, 16, (16, 1)), (8, 16, (8, 1)), (16, 6, (4, 4)), (6, 4, (3, 2))]
)
def test_a_step_has_the_rows_that_were_asked_for(tmp_path, batch, micro, cut):
    found = train._arguments(with_(batch_size=batch, micro_batch_size=micro), tmp_path, total=1)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == cut


def test_of_several_gpus_one_is_used(tmp_path):
    from trl import SFTConfig

    config = SFTConfig(**train._arguments(with_(batch_size=8, micro_batch_size=8), tmp_path, total=1))
    config._n_gpu = 2
    assert config.train_batch_size == 16, "what transformers makes of two"
    assert train._on_one_gpu(config).train_batch_size == 8


# ---------------------------------------------------------------- supervised fine-tuning


@pytest.mark.parametrize("micro", [32, 8])
def test_the_loss_counts_completion_tokens_only(tiny, base_dir, sft_rows, tmp_path, micro):
    """The first step's loss is the mean over all tokens behind the prompts, however the batch is cut."""
    model, _ = tiny
    log = train.sft(base_dir, sft_rows, tmp_path / "j", with_(max_steps=1, batch_size=32, micro_batch_size=micro))
    cuts = [row["completion_mask"].index(1) for row in sft_rows]
    behind = np.mean([v for row, n in zip(sft_rows, cuts, strict=True) for v in nll(model, row["input_ids"], n)])
    everything = np.mean([v for row in sft_rows for v in nll(model, row["input_ids"], 1)])
    assert log[0]["loss"] == pytest.approx(behind, abs=1e-4)
    assert abs(everything - behind) > 0.02, "prompts are meant to be as hard as this, or the test says nothing"


def test_sft_learns_and_writes_a_plain_model(tiny, base_dir, rows, sft_rows, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "judges" / "sft.partial"
    info = {"template": "brief", "rationale": True, "max_new_tokens": 77}
    settings = with_(max_steps=8, batch_size=32, micro_batch_size=32, judge=info)
    log = train.sft(base_dir, sft_rows, out, settings)
    assert len(log) == 8
    assert log[-1]["loss"] < log[0]["loss"] - 0.05

    judge = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert prompts.prompt_ids(tokenizer, rows[0]) == prompts.prompt_ids(tiny[1], rows[0])
    cut, ids = sft_rows[0]["completion_mask"].index(1), sft_rows[0]["input_ids"]
    assert sum(nll(judge.eval(), ids, cut)) < sum(nll(tiny[0], ids, cut))
    assert {p.dtype for p in judge.parameters()} == {torch.float32}
    assert models.judge_info(out).items() > info.items()
    facts = store.read_json(out / "train.json")
    assert facts["steps"] == 8
    assert facts["rows"] == 32
    assert facts["tokens"] == 8 * sum(len(row["input_ids"]) for row in sft_rows)
    assert facts["log"] == log
    names = {path.name for path in out.iterdir()}
    assert not names & {"checkpoints", "adapter"}, names


def test_what_is_trained_already_is_not_trained_again(base_dir, sft_rows, dpo_rows, tmp_path, monkeypatch):
    store.write_json(tmp_path / "train.json", {"log": [{"loss": 0.5}]})
    (tmp_path / "checkpoints").mkdir()  # killed before it was cleared away
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert train.sft(base_dir, sft_rows, tmp_path, SETTINGS) == [{"loss": 0.5}]
    assert train.dpo(base_dir, dpo_rows, tmp_path, SETTINGS) == [{"loss": 0.5}]
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


def test_nothing_to_train_on_says_where_to_look(base_dir, tmp_path):
    with pytest.raises(ValueError, match="no rows; look at the drops"):
        train.dpo(base_dir, [], tmp_path / "j", SETTINGS)


# ---------------------------------------------------------------- direct preference optimization


@pytest.mark.parametrize("nll_weight", [0.0, 0.5])
def test_dpo_starts_at_ln_2(tiny, base_dir, dpo_rows, tmp_path, nll_weight):
    model, _ = tiny
    settings = with_(max_steps=1, batch_size=32, micro_batch_size=32)
    (first,) = train.dpo(base_dir, dpo_rows, tmp_path / "j", settings, nll_weight=nll_weight)
    assert abs(first["rewards/margins"]) < 1e-5
    chosen = [nll(model, r["prompt_ids"] + r["chosen_ids"], len(r["prompt_ids"])) for r in dpo_rows]
    per_token = np.mean([v for values in chosen for v in values])
    assert first["loss"] == pytest.approx(math.log(2) + nll_weight * per_token, abs=1e-4)
    assert first["logps/chosen"] == pytest.approx(-np.mean([sum(values) for values in chosen]), abs=1e-2)


def test_dpo_prefers_the_chosen_side(tiny, base_dir, dpo_rows, tmp_path):
    out = tmp_path / "sre_1"
    log = train.dpo(base_dir, dpo_rows, out, with_(max_steps=6, batch_size=32, micro_batch_size=32), beta=0.5)
    assert log[-1]["rewards/margins"] > 0.1
    assert log[-1]["loss"] < log[0]["loss"] - 0.05

    def margin(model):
        both = [
            [
                sum(nll(model, r["prompt_ids"] + r[side], len(r["prompt_ids"])))
                for side in ("rejected_ids", "chosen_ids")
            ]
            for r in dpo_rows
        ]
        return np.mean([a - b for a, b in both])

    trained, _ = models.load(out)
    assert margin(trained) > margin(tiny[0]) + 0.1, "what was written is what was trained"


def test_without_an_adapter_all_weights_train_and_the_reference_is_still_the_start(
    base_dir, sft_rows, dpo_rows, tmp_path
):
    settings = with_(lora_rank=0, learning_rate=1e-3)
    start, out = tmp_path / "sft", tmp_path / "dpo"
    log = train.sft(base_dir, sft_rows, start, settings)
    assert log[-1]["loss"] < log[0]["loss"] - 0.05
    before, after = weights(base_dir), weights(start)
    assert all(float((before[name].float() - after[name]).abs().max()) > 0 for name in after), "some weight stayed"
    log = train.dpo(start, dpo_rows, out, with_(lora_rank=0, learning_rate=1e-4))
    assert abs(log[0]["rewards/margins"]) < 1e-5
    assert log[-1]["rewards/margins"] > 0.1
    assert apart(start, out) > 0


def test_quantized_weights_cannot_be_trained_as_a_whole(tiny):
    with pytest.raises(models.ModelError, match="lora_rank 0 trains all weights"):
        adapters.add_lora(tiny[0], quantization="4bit", rank=0)


def test_a_reference_that_is_not_the_start_is_refused(base_dir, dpo_rows, tmp_path, monkeypatch):
    """TRL takes the reference when the trainer is made; here the policy moves between that and the first step."""
    import trl

    begin = trl.DPOTrainer.train

    def moved(self, *args, **kwargs):
        import torch

        generator = torch.Generator().manual_seed(0)
        for name, p in self.model.named_parameters():
            if "lora_B.default" in name:
                p.data.normal_(std=0.02, generator=generator)
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(trl.DPOTrainer, "train", moved)
    with pytest.raises(train.ReferenceMismatch, match=r"at the first step the reward margin is .*, not 0 within 1e-05"):
        train.dpo(base_dir, dpo_rows, tmp_path / "j", SETTINGS)
    assert not (tmp_path / "j" / "train.json").exists()


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 1e-2)])
def test_the_tolerance_follows_the_precision(bf16, tolerance):
    from types import SimpleNamespace as Namespace

    arguments = Namespace(bf16=bf16, fp16=False)
    watch = train._watch(Namespace(update=lambda n: None, done=0), train._tolerance(arguments))

    def log(margin, step=1):
        watch.on_log(None, Namespace(global_step=step), None, logs={"rewards/margins": margin})

    log(0.9 * tolerance)
    log(-0.9 * tolerance)
    log(5.0, step=2)
    for margin in (1.1 * tolerance, -1.1 * tolerance, math.nan):
        with pytest.raises(train.ReferenceMismatch):
            log(margin)


# ---------------------------------------------------------------- the reference


def sums(model, rows, side) -> list[float]:
    """Log-probability of each pair's side, by plain forwards."""
    return [-sum(nll(model, r["prompt_ids"] + r[side], len(r["prompt_ids"]))) for r in rows]


@pytest.mark.parametrize(
    ("quantization", "judge_format", "atol"),
    [("none", "merged", 2e-3), ("none", "adapter", 2e-3), ("4bit", "auto", 2e-2)],
)
def test_the_reference_is_the_judge_that_sampled(
    tiny, base_dir, sft_rows, dpo_rows, tmp_path, quantization, judge_format, atol
):
    """J0 from the base, J1 from J0, J2 from J1: each reference is the judge before, read from its directory."""
    few, settings = dpo_rows[:8], with_(max_steps=2, quantization=quantization, judge_format=judge_format)
    settings = train.Settings(**{**vars(settings), "learning_rate": 1e-2})
    train.sft(base_dir, sft_rows, tmp_path / "j0", settings)
    for before, after in (("j0", "j1"), ("j1", "j2")):
        log = train.dpo(tmp_path / before, few, tmp_path / after, settings)
        assert abs(log[0]["rewards/margins"]) < 1e-5
        judge, _ = models.load(tmp_path / before, quantization=quantization)
        kept = store.read_json(tmp_path / after / "reference.json")
        for column, side in (("ref_chosen_logps", "chosen_ids"), ("ref_rejected_logps", "rejected_ids")):
            wanted = sums(judge, few, side)
            assert kept[column] == pytest.approx(wanted, abs=atol)
            assert np.abs(np.subtract(wanted, sums(tiny[0], few, side))).mean() > 0.5, "the base is another"
    assert (models.base_of(tmp_path / "j2") == str(base_dir)) is (judge_format != "merged")


def test_the_reference_is_kept_for_these_weights_and_these_pairs(adapter_judge, dpo_rows, tmp_path, monkeypatch):
    from srlib import reference

    passes, compute = [], reference._computed
    monkeypatch.setattr(reference, "_computed", lambda *a: passes.append(1) or compute(*a))
    few, out, settings = dpo_rows[:4], tmp_path / "j", with_(max_steps=1, batch_size=4, micro_batch_size=4)

    def learn(start, rows):
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        (out / "train.json").unlink(missing_ok=True)
        train.dpo(start, rows, out, settings)
        return len(passes), store.read_json(out / "reference.json")["ref_chosen_logps"]

    _, first = learn(adapter_judge, few)
    assert learn(adapter_judge, few) == (1, first), "a training that was killed finds it"
    row = few[0] | {"chosen_ids": few[0]["chosen_ids"][1:]}
    n, changed = learn(adapter_judge, [row, *few[1:]])
    assert n == 2
    assert changed[0] != first[0]
    assert changed[1:] == pytest.approx(first[1:], abs=1e-3)
    other = Path(shutil.copytree(adapter_judge, tmp_path / "other"))
    state = weights(other)
    name = next(n for n in state if "lora_B" in n)
    from safetensors.torch import save_file

    save_file({**state, name: state[name] + 0.05}, other / "adapter_model.safetensors", metadata={"format": "pt"})
    n, changed = learn(other, few)
    assert n == 3
    assert np.abs(np.subtract(changed, first)).min() > 1e-3
    (out / "reference.json").write_text('{"key":')  # torn
    assert learn(other, few)[0] == 4


def test_the_kept_reference_trains_the_judge_that_trls_own_does(adapter_judge, dpo_rows, tmp_path, monkeypatch):
    import trl

    settings = with_(max_steps=3, batch_size=8, micro_batch_size=4)
    ours = train.dpo(adapter_judge, dpo_rows[:16], tmp_path / "ours", settings, nll_weight=0.5)
    config = trl.DPOConfig
    monkeypatch.setattr(trl, "DPOConfig", lambda **kw: config(**{**kw, "precompute_ref_log_probs": False}))
    theirs = train.dpo(adapter_judge, dpo_rows[:16], tmp_path / "theirs", settings, nll_weight=0.5)
    assert not (tmp_path / "theirs" / "reference.json").exists()
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["rewards/margins"] == pytest.approx(b["rewards/margins"], abs=1e-5)
    assert apart(tmp_path / "ours", tmp_path / "theirs") < 1e-4


def test_a_4bit_adapter_trains_in_full_precision(base_dir, sft_rows, tmp_path):
    """TRL rounds it to bf16; what a small learning rate does would be lost."""
    train.sft(base_dir, sft_rows, tmp_path / "j", with_(max_steps=3, quantization="4bit", learning_rate=1e-6))
    import torch

    state = weights(tmp_path / "j")
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert any((t.bfloat16().float() != t).any() for t in state.values())
    assert all(t.abs().max() > 0 for name, t in state.items() if "lora_B" in name)


def test_fp16_is_not_trained_on_a_cpu(base_dir, sft_rows, tmp_path):
    with pytest.raises(models.ModelError, match="dtype float16 trains on a GPU only"):
        train.sft(base_dir, sft_rows, tmp_path / "j", with_(dtype="float16"))


def test_gradient_checkpointing_changes_nothing_but_memory(base_dir, sft_rows, tmp_path):
    for name, on in (("with", True), ("without", False)):
        settings = with_(max_steps=2, batch_size=4, micro_batch_size=4, gradient_checkpointing=on)
        train.sft(base_dir, sft_rows[:8], tmp_path / name, settings)
    assert apart(tmp_path / "with", tmp_path / "without") < 1e-6
    assert apart(tmp_path / "with", base_dir) > 1e-4


# ---------------------------------------------------------------- a training that was killed


class Killed(BaseException):
    """Stands for a signal: nothing of ours catches it."""


@pytest.fixture
def checkpoints_often(monkeypatch):
    arguments = train._arguments
    monkeypatch.setattr(train, "_arguments", lambda *a: arguments(*a) | {"save_steps": 2})


def killed_after(monkeypatch, step):
    watch = train._watch

    def watch_and_kill(bar, tolerance):
        watching = watch(bar, tolerance)
        end = watching.on_step_end

        def on_step_end(args, state, control, **more):
            end(args, state, control, **more)
            if state.global_step == step:
                raise Killed

        watching.on_step_end = on_step_end
        return watching

    monkeypatch.setattr(train, "_watch", watch_and_kill)


@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_a_killed_training_resumes_to_the_same_judge(
    base_dir, adapter_judge, sft_rows, dpo_rows, tmp_path, monkeypatch, checkpoints_often, loss
):
    """Killed in the second epoch, one step behind a checkpoint; 32 rows are 4 steps. SFT makes an adapter, DPO goes on
    with one."""
    rows, start = (sft_rows, base_dir) if loss == "sft" else (dpo_rows, adapter_judge)
    learn = getattr(train, loss)
    settings = with_(max_steps=8)
    wanted = learn(start, rows, tmp_path / "whole", settings)

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        killed_after(patch, 7)
        with pytest.raises(Killed):
            learn(start, rows, out, settings)
    assert [path.name for path in (out / "checkpoints").glob("checkpoint-*")] == ["checkpoint-6"]
    assert not (out / "train.json").exists()

    # The next checkpoint was being written when the process died.
    torn = shutil.copytree(out / "checkpoints" / "checkpoint-6", out / "checkpoints" / "checkpoint-8")
    (torn / "trainer_state.json").unlink()
    (torn / "optimizer.pt").write_bytes(b"PK")

    steps = []
    watch = train._watch
    with monkeypatch.context() as patch:

        def counted(bar, tolerance):
            watching = watch(bar, tolerance)
            end = watching.on_step_end
            watching.on_step_end = lambda a, state, c, **m: (steps.append(state.global_step), end(a, state, c, **m))[1]
            return watching

        patch.setattr(train, "_watch", counted)
        resumed = learn(start, rows, out, settings)
    assert steps == [7, 8]
    assert store.read_json(tmp_path / "whole" / "train.json")["seconds"] > 0
    assert store.read_json(out / "train.json")["seconds"] is None, "what was killed did not tell what it took"
    assert [entry["loss"] for entry in resumed] == pytest.approx([entry["loss"] for entry in wanted], abs=1e-6)
    assert apart(out, tmp_path / "whole") < 1e-6
    assert apart(out, start) > 1e-4
    assert not (out / "checkpoints").exists()


def test_killed_between_the_judge_and_its_record(base_dir, sft_rows, tmp_path, monkeypatch, checkpoints_often):
    """What is written before train.json does not count; the last checkpoint has no step left to train."""
    out, settings = tmp_path / "j", with_(max_steps=2)
    write = store.write_json

    def killed(path, value):
        if path.name == "train.json":
            raise Killed
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", killed)
        with pytest.raises(Killed):
            train.sft(base_dir, sft_rows, out, settings)
    first = weights(out)
    assert (out / "checkpoints" / "checkpoint-2").exists()
    assert len(train.sft(base_dir, sft_rows, out, settings)) == 2
    assert all((first[name] == w).all() for name, w in weights(out).items())
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors", ".jinja"}
