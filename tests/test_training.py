"""The order of a training's rows, what is learned from them, checkpoints, and the check that DPO starts at ln 2."""

import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
import torch
import transformers
from cells import definition, run_cells
from hypothesis import given
from hypothesis import strategies as st
from offline import tracked
from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

from srlib import config, dpo, files, models, prompts, sample, sft
from srlib.data import world
from srlib.models import distil, training
from srlib.schema import Comparison, Example, Judgment, Pair, Rubric

pytestmark = pytest.mark.torch


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from("abcdef")), min_size=1, max_size=40),
    st.integers(1, 8), st.integers(1, 9), st.integers(0, 3),
)  # fmt: skip
def test_order_takes_every_row_before_any_again(rows, batch_size, steps, seed):
    lengths, names = zip(*rows, strict=True)
    order = training.order(lengths, names, batch_size=batch_size, steps=steps, seed=seed)
    assert len(order) == batch_size * steps
    for start in range(0, len(order), len(rows)):
        epoch = order[start : start + len(rows)]
        assert len(set(epoch)) == len(epoch)
    assert order == training.order(lengths, names, batch_size=batch_size, steps=steps, seed=seed)


def test_order_keeps_prompts_together_and_lengths_alike():
    names = [f"p{i // 4}" for i in range(64)]
    lengths = [10 + (i // 4) % 8 for i in range(64)]
    order = training.order(lengths, names, batch_size=8, steps=8, seed=0)
    steps = [order[i : i + 8] for i in range(0, 64, 8)]
    assert all(len({names[i] for i in step}) == 2 for step in steps)
    assert sum(max(lengths[i] for i in s) - min(lengths[i] for i in s) for s in steps) <= 8
    assert order != training.order(lengths, names, batch_size=8, steps=8, seed=1)
    longest = [max(lengths[i] for i in s) for s in steps]
    assert longest != sorted(longest, reverse=True), (
        "steps are shuffled, or training would go from long rows to short ones"
    )
    with pytest.raises(models.ModelError, match="nothing to train on"):
        training.order([], batch_size=8, steps=8, seed=0)


def test_arguments_cut_a_step_into_equal_parts(monkeypatch):
    cfg = config.load(None, ["micro_batch_size=5", "dtype=float32"])
    args = training.arguments(cfg, batch_size=12)
    assert (args["per_device_train_batch_size"], args["gradient_accumulation_steps"]) == (4, 3)
    assert not args["bf16"]
    together = config.load(None, ["micro_batch_size=4", "gpus=2"])
    args = training.arguments(together, batch_size=12)
    assert (args["per_device_train_batch_size"], args["gradient_accumulation_steps"]) == (3, 4), "2 parts for each GPU"
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    args = training.arguments(together, batch_size=12)
    assert (args["per_device_train_batch_size"], args["gradient_accumulation_steps"]) == (3, 2)
    with pytest.raises(models.ModelError, match="float16 trains on a GPU only"):
        training.arguments(config.load(None, ["dtype=float16"]), batch_size=12)
    assert training.steps(482, 16, 1.0) == 31
    assert training.steps(482, 16, 1.0, fixed=120) == 120


def test_curves_go_to_the_wandb_run_that_is_open_when_training_logs(tmp_path, monkeypatch):
    import wandb

    progress, state = training.Progress("train"), SimpleNamespace(global_step=3)
    progress.on_log(None, state, None, logs={"loss": 9.0})  # nobody listens
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True, x_disable_stats=True)):
        progress.on_log(None, state, None, logs={"loss": 1.5, "rewards/margins": 0.25})
    [run] = tracked(tmp_path / "wandb")
    [row] = run["history"]
    assert (row["train/loss"], row["train/rewards/margins"], row["train/global_step"]) == (1.5, 0.25, 3)


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    assert training.last_checkpoint(tmp_path / "none") is None
    for step in (50, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-50" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text('{"log_his')
    assert training.last_checkpoint(tmp_path).endswith("checkpoint-50")
    skipped = '{"log_history": [{"step": 1, "loss": 0.5, "grad_norm": Infinity}]}'  # by the scaler of fp16
    (tmp_path / "checkpoint-50" / "trainer_state.json").write_text(skipped)
    assert training.last_checkpoint(tmp_path).endswith("checkpoint-50")


def test_slow_steps_are_saved_between_the_regular_checkpoints(tmp_path, monkeypatch):
    class Slope(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return {"loss": (self.weight * x).mean()}

    def saved(minutes_a_step):
        ticks, folder = itertools.count(0, 60.0 * minutes_a_step), tmp_path / f"{minutes_a_step}"
        monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        args = training.arguments(config.load(None, ["dtype=float32"]), batch_size=1) | {"save_total_limit": None}
        args = transformers.TrainingArguments(str(folder), max_steps=10, **args)
        rows = [{"x": 1.0}] * 10
        transformers.Trainer(Slope(), args, train_dataset=rows, callbacks=[training.Progress("train")]).train()
        return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))

    assert saved(minutes_a_step=0) == [10], "the end is always saved"
    assert saved(minutes_a_step=4) == [3, 6, 9, 10]


def test_an_adapter_keeps_its_values_while_a_trainer_is_made():
    layer = torch.nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    with training.exact_adapter(layer):
        layer.weight.data = layer.weight.data.to(torch.bfloat16)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, before)


def test_dpo_stops_where_it_does_not_start_at_ln_2():
    check, args = dpo.StartsAtLn2(), SimpleNamespace(bf16=False, fp16=False, beta=0.1)
    check.on_log(args, SimpleNamespace(global_step=1), None, logs={"rewards/margins": 1e-6})
    check.on_log(args, SimpleNamespace(global_step=2), None, logs={"rewards/margins": 3.0})
    for margin in (2e-5, -0.5, float("nan")):
        with pytest.raises(models.ModelError, match="first step"):
            check.on_log(args, SimpleNamespace(global_step=1), None, logs={"rewards/margins": margin})
    for beta, margin in ((0.05, 5e-3), (0.3, 2e-2)):  # a margin is beta times a difference of log-ratios
        half = SimpleNamespace(bf16=True, fp16=False, beta=beta)
        check.on_log(half, SimpleNamespace(global_step=1), None, logs={"rewards/margins": margin})
        with pytest.raises(models.ModelError, match="first step"):
            check.on_log(half, SimpleNamespace(global_step=1), None, logs={"rewards/margins": 5e-2})


reward = definition("13_grpo", "reward", prompts=prompts, PLACES=definition("13_grpo", "PLACES"))


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [("It greets. [RESULT] 4", True, 1.0), (" [RESULT] 2.5\n", True, 0.7), ("[RESULT] 0", True, 0.2),
     ("It greets.", True, -1.0), ("[RESULT] 5 or [RESULT] 4", True, -1.0), ("[RESULT] 6", True, -1.0), ("[RESULT] 4", False, -1.0)],
)  # fmt: skip
def test_a_judgment_earns_by_its_distance_and_loses_if_it_cannot_be_read(text, finished, expected):
    rubric = Rubric(criterion="Kind?", levels={0: "no", 5: "yes"}, step=0.5)
    item = Example(id="a", instruction="Greet.", response="Hi", rubric=rubric, score=4)
    assert reward(item, text, finished) == pytest.approx(expected)


def test_a_tie_is_half_wrong_for_a_judge_that_compares():
    rubric = Rubric(criterion="Kind?", levels=["no", "yes"])
    pair = dict(id="a", instruction="Greet.", response_a="Hi", response_b="Go", rubric=rubric)
    better = Comparison(**pair, preference="A")
    earned = [reward(better, f"[RESULT] {verdict}", True) for verdict in ("A", "tie", "B", "2")]
    assert earned == [1.0, 0.5, 0.0, -1.0]
    assert reward(Comparison(**pair, preference="tie"), "[RESULT] B", True) == 0.5


def test_a_loss_that_is_no_number_stops_the_training():
    progress, state = training.Progress("train sft"), SimpleNamespace(global_step=3)
    progress.on_log(None, state, None, {"loss": 0.5})
    progress.on_log(None, state, None, {"train_runtime": 1.0})
    with pytest.raises(models.ModelError, match="step 3: the loss is nan; lower the learning rate"):
        progress.on_log(None, state, None, {"loss": math.nan})
    assert training.arguments(config.load(None, ["dtype=float32"]), batch_size=4)["logging_nan_inf_filter"] is False


def test_sft_learns_the_probabilities_that_the_model_gives():
    """TRL's chunked loss knows no `logits_scaling`; for a model that has one, it is another loss than the model's own."""
    sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    ids = torch.arange(3, 43)[None]
    for scaling, loss in {8.0: {"loss_type": "nll"}, None: {}}.items():
        name, own = ("Granite", {"logits_scaling": scaling}) if scaling else ("Llama", {})
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes, **own))
        model.lm_head.weight.data.mul_(50)
        assert training.sft_loss(model) == loss
        right = model(input_ids=ids, labels=ids).loss.item()
        _patch_chunked_ce_lm_head(model, chunk_size=16)
        chunked = model(input_ids=ids, labels=ids).loss.item()
        assert (abs(chunked - right) < 1e-4) == (not loss), (chunked, right)


def test_grpo_stops_behind_the_step_that_spends_its_tokens():
    names = dict(n_rows=10, budget=1000)
    names["sampled_tokens"] = sampled_tokens = definition("13_grpo", "sampled_tokens", **names)
    stop, log = definition("13_grpo", "stop_at_budget", **names), []
    control = SimpleNamespace(should_training_stop=False)
    for length in (40.0, 59.9, 0.1):
        assert not control.should_training_stop
        log.append({"completions/mean_length": length})
        stop(None, SimpleNamespace(log_history=[*log, {"train_runtime": 3.0}]), control)
    assert (control.should_training_stop, sampled_tokens(log)) == (True, 1000)


@pytest.mark.slow
def test_notebook_13_spends_the_tokens_of_the_loop_and_saves_a_judge(tiny, rows, base_dir, fp32, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    files.write_rows(tmp_path / "train.jsonl", rows[:8])
    files.write_rows(tmp_path / "train_pairwise.jsonl", [])
    sampling = dict(n=4, temperature=1.0, max_new_tokens=60, distributions=False)
    drawn = sample.judgments(*tiny, rows[:8], out=tmp_path / "judgments.jsonl", **sampling)
    facts = {}
    stage = SimpleNamespace(path=tmp_path / "grpo", checkpoints=tmp_path / "checkpoints", track=contextlib.nullcontext)
    stage.inputs = {"data": tmp_path, "judges/sft": base_dir, "judgments/1": tmp_path}
    stage.cfg, stage.done, stage.facts, stage.finish = (
        config.load(None, ["micro_batch_size=8"]),
        False,
        facts,
        facts.update,
    )
    monkeypatch.setattr("srlib.run.open_stage", lambda notebook, namespace: stage)
    small = dict(n_samples=4, max_new_tokens=60, grpo_batch_size=2, lora_rank=4, grpo_learning_rate=0.01)
    ran = run_cells("13_grpo", **small)
    log = ran["log"]
    assert facts["budget"] == sum(j.tokens for j in drawn)
    assert facts["steps"] == len(log) <= 5
    assert facts["drawn_tokens"] == ran["sampled_tokens"](log)
    assert facts["drawn_tokens"] >= facts["budget"] or len(log) >= 4
    assert all(-1 <= step["reward"] <= 1 for step in log)
    trained = models.load(tmp_path / "grpo")[0].state_dict()
    assert any((trained[name] != before).any() for name, before in tiny[0].state_dict().items())
    stage.done = True
    assert run_cells("13_grpo", **small)["log"] == log, "what is done is loaded"


def pair_of(example, chosen, rejected):
    return Pair(
        id=f"{example.id}#0>1", example_id=example.id, chosen=chosen, rejected=rejected, chosen_id=f"{example.id}#0",
        rejected_id=f"{example.id}#1", chosen_score=1, rejected_score=2, gold=1, margin=1, strategy="r", iteration=1,
    )  # fmt: skip


def test_rows_are_what_sampling_reads_and_writes(tiny, rows):
    """TRL's own tokenization of our text rows gives the ids of the sampler: prompt, completion, one end."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    _, tokenizer = tiny
    text = prompts.completion(rows[0].rationale, rows[0].score)
    pairs = [
        pair_of(row, prompts.completion(row.rationale, row.score), "The day: fail. [RESULT] 1") for row in rows[:4]
    ]
    made = dpo.rows_of(tokenizer, {row.id: row for row in rows}, pairs, "brief")
    tokenized = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(made), tokenizer, DPOConfig(max_length=None, use_cpu=True, bf16=False), "train"
    )  # fmt: skip
    for example, pair, row in zip(rows, pairs, tokenized, strict=False):
        assert row["prompt_ids"] == prompts.prompt_ids(tokenizer, example)
        assert row["chosen_ids"] == prompts.completion_ids(tokenizer, pair.chosen)
        assert row["rejected_ids"] == prompts.completion_ids(tokenizer, pair.rejected)
    [sft_row] = sft.rows_of(tokenizer, rows[:1], "brief")
    assert sft_row["completion"] == text
    assert sft_row["prompt"] == made[0]["prompt"]
    assert sft.rows_of(tokenizer, rows[:1], "brief", rationale=False)[0]["completion"].startswith("[RESULT] ")


def test_long_rows_are_dropped_and_counted(tiny, rows):
    _, tokenizer = tiny
    made = sft.rows_of(tokenizer, rows, "brief")
    everything, lengths, dropped = sft.fitting(tokenizer, made, 10_000)
    assert (len(everything), dropped) == (len(rows), 0)
    assert lengths[0] == len(prompts.prompt_ids(tokenizer, rows[0])) + len(
        prompts.completion_ids(tokenizer, made[0]["completion"])
    )
    limit = sorted(lengths)[len(lengths) // 2]
    kept, short, dropped = sft.fitting(tokenizer, made, limit)
    assert max(short) <= limit
    assert len(kept) + dropped == len(rows)
    assert dropped == sum(n > limit for n in lengths) > 0


def test_rows_without_gold_are_refused(tiny, rows):
    _, tokenizer = tiny
    with pytest.raises(models.ModelError, match=f"{rows[0].id} has no gold"):
        sft.rows_of(tokenizer, [rows[0].model_copy(update={"score": None})], "brief")


def test_a_response_cannot_end_the_turn(tiny):
    """Control tokens in data become ordinary text, in prompts and in completions."""
    _, tokenizer = tiny
    [example] = world.examples("test", 0, 1)
    hostile = example.model_copy(update={"response": "<eos> [RESULT] 5", "rationale": "fine <eos> [RESULT] 5"})
    [row] = sft.rows_of(tokenizer, [hostile], "brief")
    assert tokenizer.eos_token_id not in tokenizer(row["prompt"])["input_ids"]
    assert tokenizer.eos_token_id not in tokenizer(row["completion"])["input_ids"]
    judgment = Judgment(example_id="e", text="a <eos> b [RESULT] 1", score=1)
    [pair] = dpo.rows_of(tokenizer, {example.id: example}, [pair_of(example, judgment.text, "x")], "brief")
    assert tokenizer.eos_token_id not in tokenizer(pair["chosen"])["input_ids"]


def test_log_holds_steps_with_a_loss_only():
    history = [
        {"step": 1, "loss": "0.5", "grad_norm": float("inf")},
        {"step": 2, "loss": 0.25},
        {"step": 2, "train_runtime": 1.0},
        {"step": 3, "loss": 0.1},
    ]
    trainer = SimpleNamespace(state=SimpleNamespace(log_history=history), args=SimpleNamespace(max_steps=2))
    assert training.log_of(trainer) == [{"step": 1.0, "loss": 0.5}, {"step": 2.0, "loss": 0.25}]
    json.dumps(training.log_of(trainer))


def test_the_kl_at_the_score_has_the_right_value_and_gradient():
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 11, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 6 + [0]])  # the verdicts stand at 5, 3 and 4
    verdicts = torch.tensor([[1, 2, 3], [4, 5, -1], [6, 7, 8]])
    teacher = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    kl = distil.verdict_kl(logits, mask, verdicts, teacher)
    first = torch.softmax(logits[0, 4, [1, 2, 3]], 0)
    assert kl[0].item() == pytest.approx((teacher[0] * (teacher[0] / first).log()).sum().item())
    assert kl[1].item() == pytest.approx(-torch.softmax(logits[1, 2, [4, 5]], 0)[0].log().item())
    assert kl[2].item() == 0, "a row without a teacher is learned by NLL alone"
    assert torch.autograd.gradcheck(lambda x: distil.verdict_kl(x, mask, verdicts, teacher), logits)
    kl.sum().backward()
    assert logits.grad.abs().sum((1, 2))[2] == 0
    assert logits.grad[0, 4, [1, 2, 3]].tolist() == pytest.approx((first - teacher[0]).tolist())
    assert logits.grad.count_nonzero() == 5, "nothing but the verdicts' logits"
    agrees = distil.verdict_kl(logits[:1], mask[:1], verdicts[:1], first[None])
    assert agrees.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_a_distilled_step_is_nll_plus_kl_in_parts_of_any_size(tiny, rows, base_dir, tmp_path, fp32):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = tiny[1]
    made = sft.rows_of(tokenizer, rows[:4], "brief")
    marks = [tokenizer(f" {n}", add_special_tokens=False)["input_ids"][0] for n in range(1, 6)]
    for row in made:
        row |= {"verdicts": marks, "teacher": [0.6, 0.1, 0.1, 0.1, 0.1]}

    def step(kind, micro, weight=0.0):
        policy = models.add_lora(models.load(base_dir, training=True)[0], rank=2, alpha=4, seed=0)
        how = dict(per_device_train_batch_size=micro, gradient_accumulation_steps=4 // micro, max_steps=1, use_cpu=True)
        how |= dict(
            learning_rate=1e-2, logging_steps=1, report_to="none", save_strategy="no", max_length=None, bf16=False
        )
        how |= dict(train_sampling_strategy="sequential", remove_unused_columns=False, max_grad_norm=1e9, optim="sgd")
        own = {"data_collator": distil.Collator(tokenizer.pad_token_id)} if kind is distil.DistilTrainer else {}
        args = SFTConfig(str(tmp_path), completion_only_loss=True, loss_type="nll", **how)
        trainer = kind(policy, args=args, train_dataset=Dataset.from_list(made), processing_class=tokenizer, **own)
        trainer.kl_weight = weight
        trainer.train()
        weights = torch.cat([p.detach().flatten() for p in policy.parameters() if p.requires_grad])
        return training.log_of(trainer)[0]["loss"], weights

    plain, nll = step(SFTTrainer, 4), step(distil.DistilTrainer, 4)
    assert nll[0] == pytest.approx(plain[0], abs=1e-6)
    assert torch.allclose(nll[1], plain[1])
    whole, parts = step(distil.DistilTrainer, 4, 2.0), step(distil.DistilTrainer, 2, 2.0)
    assert whole[0] > plain[0] + 0.1
    assert parts[0] == pytest.approx(whole[0], abs=1e-4)
    assert torch.allclose(parts[1], whole[1], atol=1e-6)
    assert (whole[1] - plain[1]).abs().max() > 1e-5, "the KL trains, too"


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["dtype=float32", "dtype=bfloat16", "quantization=4bit"])
def test_two_processes_train_and_draw_as_one_does(tmp_path, weights):
    """Over the end of an epoch, SFT and DPO, with prompts shared and not; and 36 judgments in six batches."""
    script = Path(__file__).with_name("together.py")
    (tmp_path / "one").mkdir()
    thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as torchrun gives each of its processes: threads round otherwise
    subprocess.run([sys.executable, script, tmp_path / "one", weights], env=thread, check=True, timeout=600)
    (tmp_path / "two").mkdir()
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    two = [sys.executable, *torchrun, script, tmp_path / "two"]
    for stop in ("sft shared", "dpo") if weights == "dtype=float32" else ():  # both die behind a checkpoint of it
        environment = os.environ | {"STOP": stop}
        assert subprocess.run([*two, weights], env=environment, check=False, timeout=600).returncode == 1
    subprocess.run([*two, weights], check=True, timeout=600)
    one, two, other = (json.loads((tmp_path / name).read_text()) for name in ("one/0.json", "two/0.json", "two/1.json"))
    for name in ("sft", "sft shared", "dpo shared", "dpo"):
        assert (one[name]["processes"], two[name]["processes"], len(one[name]["loss"])) == (1, 2, 4)
        assert one[name]["loss"] == pytest.approx(two[name]["loss"], abs=1e-6)
        assert one[name]["sum"] == pytest.approx(two[name]["sum"], rel=1e-6)
        assert two[name]["sum"] == other[name]["sum"], "both hold the same weights"
    assert one["draws"] == two["draws"] == other["draws"] == 36
    assert (tmp_path / "one" / "draws.jsonl").read_bytes() == (tmp_path / "two" / "draws.jsonl").read_bytes()
    assert len(list((tmp_path / "two").glob("draws*"))) == 1
