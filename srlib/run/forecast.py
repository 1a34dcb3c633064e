"""What a run on some rows can show, known before anything is trained: notes to print, and reasons to refuse."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srlib import config, curate, files, prompts
from srlib.data import splits
from srlib.evaluate import arms
from srlib.run import stages
from srlib.schema import Comparison, Example, Item, format_score

Texts = list[str]
FEW_TEST_ITEMS = 30  # fewer make intervals that hardly tell one arm from another
LEAST_ROWS = 10  # as of n_train


class Forecast(NamedTuple):
    notes: Texts
    refusals: Texts

    def check(self) -> None:
        """Raise RunError with all reasons to refuse, if there are any."""
        if self.refusals:
            raise stages.RunError("this run cannot end well:\n- " + "\n- ".join(self.refusals))


def of_run(cfg: config.Parameters, run: Path) -> Forecast:
    """The forecast of a run from its rows on disk."""
    kinds = {name: Comparison if "pairwise" in name else Example for name in splits.NAMES}
    rows = {name: files.read_rows(run / "data" / f"{name}.jsonl", kind) for name, kind in kinds.items()}
    return of_rows(rows, cfg)


def of_rows(rows: Mapping[str, Sequence[Any]], cfg: config.Parameters) -> Forecast:
    """What is known from the splits (splits.NAMES), the parameters and the tokenizer of the base model, which is loaded."""
    from srlib import models

    here = config.project_root() / cfg.model  # paths in parameters start there
    tokenizer = models.load_tokenizer(here if here.exists() else cfg.model)
    train, test, forecast = rows["train"], rows["test"], Forecast([], [])
    notes, refusals = forecast
    if len(train) < LEAST_ROWS:
        refusals.append(f"train has {len(train)} rows, and {LEAST_ROWS} are the least; give more graded answers")
    if train and len({e.score for e in train}) == 1:
        score = f"all {len(train)} training scores are {format_score(train[0].score)}"
        refusals.append(f"{score}, so there is nothing to learn; add answers with other scores")
    if cfg.endpoint and cfg.endpoint_model and "{judge}" not in cfg.endpoint_model and cfg.iterations > 1:
        text = f"endpoint_model {cfg.endpoint_model} is one judge, and each iteration samples the newest: write {{judge}} for"
        refusals.append(f"{text} its name (sft, sre_1, ...) and serve them under such names, or set -p iterations=1")
    if "grpo" in cfg.arms and cfg.max_new_tokens >= cfg.max_length:
        refusals.append(f"grpo has no room for a prompt: set max_length above max_new_tokens ({cfg.max_new_tokens})")
    _measure(test, notes, refusals)
    _lengths([*train, *rows["train_pairwise"]], cfg, tokenizer, notes, refusals)
    if cfg.sft_mode != "pointwise" and not rows["train_pairwise"]:
        advice = "name data_pairwise, set -p n_train_pairwise=N (0 keeps none), or -p sft_mode=pointwise"
        refusals.append(f"sft_mode {cfg.sft_mode} learns from comparisons, and there are none to train on; {advice}")
    if cfg.sft_mode != "pointwise" and len(preferred := {c.preference for c in rows["train_pairwise"]}) == 1:
        text = f"all preferences of training comparisons are {preferred.pop()}, so there is nothing to learn"
        refusals.append(f"{text}: exchange A and B in a random half of the rows, or add others")
    if cfg.sft_mode == "merge" and (cfg.lora_rank < 2 or cfg.lora_rank % 2):
        refusals.append(f"sft_mode merge makes one adapter of two halves; lora_rank is {cfg.lora_rank}, make it even")
    _pairs(train, cfg, notes, refusals)
    learned = [*train, *rows["train_pairwise"] * (cfg.sft_mode != "pointwise")]
    if without := sum(not e.rationale for e in learned):
        writer = f"the writer {cfg.writer}" if cfg.writer else f"the base model {cfg.model}"
        text = f"{without} of {len(learned)} training rows have no rationale: {writer} writes {cfg.n_samples} judgments of each"
        notes.append(f"{text} (notebook 09). Rows without a right one teach no sft, but the loop reads their scores")
    last, judges = f"sre_{cfg.iterations}", {arms.arm(name).judge for name in cfg.arms}
    if cfg.keep == "last" and last not in judges and any(s.output == f"judges/{last}" for s in stages.of(cfg)):
        notes.append(f"the run keeps {last}, but no arm evaluates it: add {last} to arms")
    if "sft_careful_only" in cfg.arms and not any(e.meta.get("annotator") == "careful" for e in train):
        notes.append("the arm sft_careful_only is left out: no training row says that its annotator is careful")
    return forecast


def _measure(test: Sequence[Example], notes: Texts, refusals: Texts) -> None:
    if not test:
        refusals.append("there are no test rows to measure a judge on; add rows with `split_hint: test`")
        return
    points = 98 / len(test) ** 0.5  # 1.96 standard errors of a share of one half
    if len(test) < FEW_TEST_ITEMS:
        notes.append(f"test has {len(test)} rows: an accuracy near 50% will have an interval of ±{points:.0f} points")
    if (instructions := len({e.cluster for e in test})) < min(FEW_TEST_ITEMS, len(test)):
        notes.append(f"test has {instructions} instructions, and intervals resample instructions: they will be wide")
    if (scales := len({e.rubric.scale for e in test})) > 1:
        notes.append(f"test has {scales} scales, which mae and correlations mix: use accuracies, or split it")
    if len({e.score for e in test}) == 1:
        notes.append(f"all test scores are {format_score(test[0].score)}, so correlations with them are undefined")


def _lengths(items: Sequence[Item], cfg: config.Parameters, tokenizer: Any, notes: Texts, refusals: Texts) -> None:
    """Tokens of prompt and gold judgment, against max_length."""
    answers = [prompts.completion(item.rationale, item.gold) for item in items]
    texts = [prompts.prompt_text(tokenizer, e, cfg.template) + text for e, text in zip(items, answers, strict=True)]
    whole = tokenizer(texts)["input_ids"] if items else []
    ids = tokenizer(answers, add_special_tokens=False)["input_ids"] if items else []
    longer = [len(tokens) + 1 for tokens in whole if len(tokens) >= cfg.max_length]  # the end-of-sequence token
    if cut := sum(len(tokens) >= cfg.max_new_tokens for tokens in ids):
        text = f"{cut} of {len(items)} gold judgments have more than max_new_tokens ({cfg.max_new_tokens}), and a judge that"
        notes.append(f"{text} learns to write so much is cut off: set -p max_new_tokens={max(map(len, ids)) + 1}")
    if not longer:
        return
    text = f"{len(longer)} of {len(items)} training rows are longer than max_length ({cfg.max_length} tokens)"
    if len(items) - len(longer) < LEAST_ROWS:
        advice = f"set -p max_length={max(longer)}" if max(longer) <= 4 * cfg.max_length else "shorten the texts"
        refusals.append(f"{text}, the longest by {max(longer) - cfg.max_length}; {advice}")
    else:
        notes.append(f"{text}, the longest by {max(longer) - cfg.max_length}, and are left out")


def _pairs(train: Sequence[Example], cfg: config.Parameters, notes: Texts, refusals: Texts) -> None:
    """Whether a judgment can be so far off that it is rejected."""
    needed = any(name.startswith("pairs/") for stage in stages.of(cfg) for name in stage.inputs)
    if needed and cfg.strategy == "meta_equal" and cfg.sft_mode == "pointwise":
        notes.append("meta_equal needs a judge that compares, and sft_mode pointwise teaches none: set -p sft_mode=mix")
    if not needed or cfg.strategy not in ("correct_answer", "majority_vote"):
        return
    farthest = [max(curate.distance(s, e.score) for s in (e.rubric.scale[0], e.rubric.scale[-1])) for e in train]
    possible = sum(distance >= cfg.margin for distance in farthest)
    if possible < len(train):
        text = f"{len(train) - possible} of {len(train)} training rows cannot give a pair: no score of their scale is "
        text += f"{format_score(cfg.margin)} (margin) off the gold score"
        step = min(b - a for e in train for a, b in zip(e.rubric.scale, e.rubric.scale[1:], strict=False))
        text += f"; set -p margin={format_score(step)} for pairs of any two scores" if step < cfg.margin else ""
        (notes if possible else refusals).append(text)
