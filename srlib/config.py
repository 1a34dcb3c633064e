"""All parameters of the method and the machine: a field of `Parameters` is the only declaration of type, default and help.

A notebook repeats the fields of its step in a cell tagged `parameters` and reads the others as `cfg.name`. A YAML file,
`-p name=value` or a notebook sets them; a mistake is refused before anything runs, with the nearest name:

>>> load(None, ["bta=0.3"])
Traceback (most recent call last):
srlib.config.ParamError: -p bta: there is no parameter 'bta'; did you mean beta? `srlib params` lists all"""

import ast
import difflib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from srlib.files import read_yaml, shorten
from srlib.schema import SrlibError

ARMS = [
    "base", "sft_score_only", "sft", "sft_careful_only", "sft_continued", "rft", "sft_self_consistency", "sft_best_of_n",
    "sre_1", "sre_2", "sre_2_self_consistency",
]  # fmt: skip

SERVER = re.compile(r"\s*(https?://(?:\[[\da-fA-F:.]+\]|[^][/@?#\s:]+)(?::\d{1,5})?)(/[^@?#\s]*?)?/*\s*")
URL = "write http://host:port/v1, no user, password or ?; a key belongs in SRLIB_API_KEY"


class ParamError(SrlibError, ValueError):
    """A parameter that cannot be used. The message names the file, the line if known, the parameter, the value and the fix."""


def _p(default: Any, help: str, **limits: float) -> Any:
    return Field(default, description=help, **limits)


class Parameters(BaseModel):
    """One run. `cfg.beta`, `cfg.model_dump()`; frozen, so that a stage cannot change what its key was computed from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    run_dir: str = _p("runs/last", "run directory that all notebooks share")
    seed: int = _p(0, "seed of data, adapters and samples", ge=0)

    # 01 data
    data: str = _p("", "graded answers: a file, a folder or a hub set (owner/name); empty: the built-in world")
    data_revision: str = _p("", "commit, tag or branch of a hub set; empty: its main branch")
    data_pairwise: str = _p("", "comparisons: a file, a folder or a hub set; empty: those in data")
    data_pairwise_revision: str = _p("", "commit, tag or branch of that set; empty: its main branch")
    columns: list[str] = _p([], "map of fields to columns, instruction:Question,score:Grade; others match by name")
    rubric: str = _p("", "YAML or JSON file: criterion, levels, step for rows without a rubric, or these by dimension")
    bad_rows: Literal["few", "refuse", "drop"] = _p("few", "unreadable rows: few (drop at most 1 in 20), refuse, drop")
    score_step: float = _p(0.25, "step between scores if a rubric names only a range", gt=0)
    care: float = _p(0.5, "built-in world: share of annotators who write evidence for each check", ge=0, le=1)
    n_train: int = _p(800, "training examples; of a file at most this many", ge=10)
    n_validation: int = _p(100, "validation examples", ge=5)
    n_test: int = _p(400, "test examples; of a file at most this many", ge=5)
    n_ood: int = _p(300, "held-out examples: unseen topics, templates, criteria", ge=5)
    n_train_pairwise: int = _p(0, "training comparisons of two responses; of a file at most this many", ge=0)
    n_pairwise: int = _p(200, "comparisons to evaluate on; of a file at most this many", ge=0)
    balance_classes: bool = _p(False, "keep as many training rows of each score as its source's rarest score has")

    # 02 sft
    arm: Literal[
        "sft", "sft_score_only", "sft_careful_only", "sft_continued", "rft", "sft_pointwise", "sft_pairwise"
    ] = _p("sft", "judge to train")
    model: str = _p("models/notes-base", "base model: a directory, a hub id or a .gguf file")
    template: Literal["brief", "prometheus"] = _p("brief", "wording of the prompt")
    sft_mode: Literal["pointwise", "mix", "merge"] = _p("pointwise", "J0 learns to score, or to compare as well")
    merge_method: Literal["linear", "dare_linear", "ties"] = _p("linear", "how sft_mode merge joins its two adapters")
    pairwise_weight: float = _p(0.5, "weight of the pairwise adapter in a merge", ge=0, le=1)
    merge_density: float = _p(0.5, "share of each adapter's update that dare_linear and ties keep", ge=0.01, le=1)
    sft_learning_rate: float = _p(0.002, "learning rate of SFT; 8B with LoRA: 1e-4", gt=0)
    continued_learning_rate: float = _p(0.0, "learning rate of sft_continued and rft; 0: that of SFT", ge=0)
    sft_steps: int = _p(360, "optimizer steps of SFT; 0: sft_epochs decides", ge=0)
    sft_epochs: float = _p(1.0, "epochs of SFT if sft_steps is 0", gt=0)
    sft_batch_size: int = _p(16, "rows in an optimizer step of SFT", ge=1)
    lora_rank: int = _p(16, "rank of the adapter; 0: train all weights", ge=0)
    lora_alpha: int = _p(32, "LoRA alpha: the update is scaled by alpha / rank", ge=1)
    lora_dropout: float = _p(0.0, "dropout in the adapter; TRL has none in DPO", ge=0, le=0.9)
    lora_targets: str = _p("all-linear", "layers with an adapter: all-linear, or names such as q_proj,v_proj")

    # 03 sample
    iteration: int = _p(1, "iteration of self-rationalization", ge=1)
    n_samples: int = _p(10, "judgments sampled for each prompt", ge=2)
    temperature: float = _p(1.0, "sampling temperature; arXiv 2410.05495: 1.0", gt=0)
    top_p: float = _p(1.0, "nucleus sampling: the smallest set of tokens with this probability", ge=0.01, le=1)
    max_new_tokens: int = _p(120, "longest judgment in tokens; 8B: 512", ge=1)
    sample_prompts: int = _p(0, "training prompts sampled in the first iteration; 0: all", ge=0)
    sample_prompts_later: int = _p(400, "the same in later iterations (paper: 5,000, then 500); 0: all", ge=0)
    focus_prompts: Literal["uniform", "slices"] = _p("uniform", "later prompts: any, or slices where the judge erred")

    # 04 curate
    strategy: str = _p("correct_answer", "correct_answer, majority_vote, graded, meta_judge, meta_equal or your own")
    margin: float = _p(2.0, "least distance between the rejected score and the right one", ge=0)
    pairs_per_prompt: int = _p(1, "most pairs per prompt; a judgment is used once", ge=1)
    max_pairs: int = _p(0, "most pairs in all; 0: no limit", ge=0)
    pair_mix: list[str] = _p([], "kinds of pairs, KIND:WEIGHT of cot, verdict, deduction; empty: cot alone")
    hints: Literal["none", "rescue", "all"] = _p("none", "hinted: none, rescue (prompts without contrast), all")
    balance: bool = _p(False, "keep as many pairs of every chosen score as the rarest has")
    drop_flipping: bool = _p(False, "drop pairs whose rejected score changes if redrawn after its rationale")
    redraws: int = _p(10, "redraws of a score with its rationale fixed; it flips if most end in another", ge=1)

    # 05 dpo
    beta: float = _p(0.1, "beta of the DPO loss: a larger one stays closer to the reference", gt=0)
    nll_weight: float = _p(0.5, "weight of the chosen side's NLL per token, beside the DPO loss; 0: none", ge=0)
    dpo_learning_rate: float = _p(0.00025, "learning rate of DPO; 8B: 5e-6 with LoRA, 5e-7 without", gt=0)
    dpo_epochs: float = _p(1.0, "passes over the pairs", gt=0)
    dpo_batch_size: int = _p(16, "pairs in an optimizer step of DPO", ge=1)
    share_prompts: bool = _p(True, "compute each prompt once for all its judgments in DPO and SFT")

    # 06 eval
    iterations: int = _p(2, "iterations of the loop: judge, select, train", ge=1, le=9)
    arms: list[str] = _p(ARMS, "arms to compare; stages that no arm needs are not run")
    eval_samples: int = _p(8, "samples of the self-consistency and best-of-N arms", ge=2)
    n_boot: int = _p(2000, "bootstrap resamples behind each interval", ge=100)
    keep: Literal["last", "best"] = _p("last", "judge that the run keeps: the last, or the best on validation")

    # 07 diagnose
    diagnose: bool = _p(False, "also run 07_diagnose at the end")
    audit_items: int = _p(40, "test items whose responses are altered for the audits; 0: no audits", ge=0)
    abstain_risk: float = _p(0.2, "share of wrong answers that an abstaining judge may give", ge=0.01, le=0.99)
    trivial_baselines: bool = _p(False, "also score by the question's mean and by word overlap with the reference")

    # 08 annotate
    arm_a: str = _p("sre_2", "first of two arms whose rationales are compared")
    arm_b: str = _p("sft", "second of two arms whose rationales are compared")
    split: Literal["validation", "test", "ood"] = _p("test", "split whose items are compared")
    n_items: int = _p(40, "items that each annotator sees; more can be added later", ge=1)
    annotator: str = _p("", "annotator's name (a-z, 0-9, _, -), for the file of answers; empty: results only")
    equal_score_only: bool = _p(False, "annotate only items to which both arms give the same score")
    preference_judge: str = _p("", "a judge that also compares: its directory or a server's URL; empty: none")
    preference_judge_model: str = _p("", "name of that judge on the server")

    # 09 rationales
    writer: str = _p("", "model that writes what the data lack: a directory, hub id or URL; empty: the base model")
    writer_model: str = _p("", "name of the writer on its server")

    # 11 distil
    labels: Literal["none", "gold"] = _p("none", "what Self-J's teacher is calibrated by: no labels, or gold scores")
    kl_weight: float = _p(1.0, "weight of the KL to the teacher at the score, beside the NLL", ge=0)

    # 13 grpo, 14 rubric, 15 attributes
    grpo_learning_rate: float = _p(0.001, "learning rate of GRPO; 8B with LoRA: 5e-6", gt=0)
    grpo_batch_size: int = _p(16, "prompts in an optimizer step of GRPO, with N judgments each", ge=1)
    n_drafts: int = _p(8, "drafts of a rubric, and as many revisions", ge=2)
    n_attributes: int = _p(8, "attributes of items that are assigned", ge=2)

    # machine
    backend: Literal["auto", "unsloth", "transformers"] = _p("auto", "training backend; auto: Unsloth if it works here")
    quantization: Literal["none", "4bit"] = _p("none", "weights of the frozen model; 8B on 24 GB: 4bit")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _p("auto", "auto: fp32 on a CPU, bf16 or fp16 on a GPU")
    judge_format: Literal["auto", "merged", "adapter"] = _p("auto", "auto: merged if weights are fp32, else an adapter")
    max_length: int = _p(512, "longest prompt + judgment in tokens; longer ones are dropped, never truncated", ge=16)
    micro_batch_size: int = _p(16, "rows (pairs) in one forward pass of training; 8B on 24 GB: 2", ge=1)
    gpus: int = _p(1, "GPUs of one machine that share training, draws and evaluation; without a GPU, processes", ge=1)
    gradient_checkpointing: bool = _p(False, "less memory for more time; 8B: true")
    sample_batch_size: int = _p(0, "prompts in a batch of sampling; 0: 512 rows, at most 128 prompts", ge=0)
    workers: int = _p(2, "processes that evaluate in parallel on a CPU", ge=1)
    endpoint: str = _p("", "URL of an OpenAI-compatible server with the current judge; empty: sample here")
    endpoint_model: str = _p("", "name of the judge on the server ({judge}: sft, sre_1, ...); empty: its directory")
    endpoint_concurrency: int = _p(8, "requests to the server at a time", ge=1)
    endpoint_left_out: float = _p(0.0, "share of prompts that may stay without samples if the server fails", ge=0, le=1)
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = _p("auto", "auto: online with WANDB_API_KEY")

    # alarms
    stop_on_alarm: bool = _p(False, "stop before the next iteration when an alarm has fired")
    alarm_score_drift: float = _p(0.25, "limit of the total variation between two judges' score histograms", ge=0, le=1)
    alarm_saturation: float = _p(0.1, "limit of the rise in the share of top scores", ge=0, le=1)
    alarm_parse_fall: float = _p(0.05, "limit of the fall in the share of readable judgments", ge=0, le=1)
    alarm_length_growth: float = _p(0.5, "limit of the growth of judgments, as a share of their tokens", ge=0)
    alarm_distinct_fall: float = _p(0.5, "limit of the relative fall of distinct-2 in a prompt's samples", ge=0, le=1)
    alarm_entropy_fall: float = _p(0.5, "limit of the relative fall of the entropy of a prompt's scores", ge=0, le=1)
    alarm_logp_fall: float = _p(0.2, "limit of the fall of a chosen token's log-probability, in nats", ge=0)
    alarm_meta_higher: float = _p(0.9, "limit of how often the meta-judge prefers the higher score", ge=0, le=1)


FIELDS = Parameters.model_fields


def load(path: Path | str | None = None, overrides: Sequence[str] = (), namespace: Any = None) -> Parameters:
    """Defaults, then a YAML file, `name=value` strings, papermill's values: `load("params/tiny.yaml", ["beta=1"])`; or ParamError."""
    values = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ParamError(f"-p {shorten(override)}: write -p NAME=VALUE")
        values[name] = _checked(f"-p {name}", name, text, is_text=True)
    for name in injected_in(namespace or {}):
        values[name] = _checked(f"-p {name}", name, namespace[name])
    return Parameters(**values)


def spelled(value: Any) -> str:
    """A value as `-p` takes it: `["base", "sft"] -> "base,sft"`, `2.0 -> "2"`."""
    return ",".join(value) if isinstance(value, list) else f"{value:.12g}" if isinstance(value, float) else str(value)


def sweep(overrides: Sequence[str], seeds: str | None = None) -> list[tuple[str, list[str]]]:
    """The runs of several values and seeds, as (end of the directory's name, overrides): `["margin=1,2"], "0" -> [("-margin=1-0",
    ["margin=1", "seed=0"]), ("-margin=2-0", ["margin=2", "seed=0"])]`. Lists and free texts keep their commas."""
    axes = []
    for override in [*overrides, *([] if seeds is None else [f"seed={seeds}"])]:
        name, _, text = override.partition("=")
        kind = FIELDS[name].annotation if name in FIELDS else str
        many = "," in text and (kind not in (str, list[str]) or name in ("model", "strategy"))
        head = "-" if name == "seed" else f"-{name}="
        values = [(head + value, f"{name}={value}") for value in dict.fromkeys(map(str.strip, text.split(",")))]
        axes.append(values if many or override == f"seed={seeds}" else [("", override)])
    runs = [zip(*pairs, strict=True) if pairs else ("", []) for pairs in itertools.product(*axes)]
    return [(re.sub(r"[^\w.=-]", "_", "".join(names)), list(values)) for names, values in runs]


def in_namespace(notebook: str, namespace: Mapping[str, Any], root: Path | None = None) -> dict[str, Any]:
    """Checked parameters of a running notebook: `in_namespace("05_dpo", globals())`. Those of its parameters cell and
    those that papermill injected; papermill only warns about a name that nobody declares."""
    names = list(dict.fromkeys([*declared_in(notebook, root), *injected_in(namespace)]))
    missing = next((name for name in names if name in FIELDS and name not in namespace), None)
    if missing:
        raise ParamError(f"notebook {notebook}: {missing} is not set; run the cell tagged `parameters` first")
    return {name: _checked(f"notebook {notebook}", name, namespace.get(name)) for name in names}


def injected_in(namespace: Mapping[str, Any]) -> list[str]:
    """Names in the cells that papermill injected into a running notebook; their first line is `# Parameters`."""
    return [name for cell in namespace.get("In", []) if cell.startswith("# Parameters\n") for name in _assigned(cell)]


def declared_in(notebook: str, root: Path | None = None) -> list[str]:
    """Names in the parameters cell of a notebook, in order: `declared_in("05_dpo") -> ["run_dir", "seed", ...]`."""
    return _assigned(_sources(notebook, root)[0])


def read_by(notebook: str, root: Path | None = None) -> list[str]:
    """All parameters that a notebook depends on: its parameters cell, and every `cfg.name` that its code reads."""
    parameters_cell, code = _sources(notebook, root)
    names, read = _assigned(parameters_cell), set(re.findall(r"\bcfg\.(\w+)", code))
    return names + [name for name in FIELDS if name in read and name not in names]


def allowed(name: str) -> str:
    """Values that a parameter may have, in words: `allowed("care") -> "0 to 1"`, `allowed("keep") -> "last | best"`."""
    field = FIELDS[name]
    if choices := getattr(field.annotation, "__args__", ()):
        return "names" if field.annotation == list[str] else " | ".join(choices)
    limits = {key: getattr(part, key) for part in field.metadata for key in ("gt", "ge", "le") if hasattr(part, key)}
    low = f"> {limits['gt']:g}" if "gt" in limits else f">= {limits['ge']:g}" if "ge" in limits else ""
    return f"{limits['ge']:g} to {limits['le']:g}" if "le" in limits else low


def together() -> tuple[int, int]:
    """(number of this process, how many there are): in `srlib run` torchrun starts `cfg.gpus` processes for a stage; else (0, 1)."""
    alone = "TORCHELASTIC_RUN_ID" not in os.environ
    return (0, 1) if alone else (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies in bf16 natively; others emulate it, slowly. Then fp32 weights train under autocast."""
    flags = cpuinfo.read_text() if (cpuinfo := Path("/proc/cpuinfo")).exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def project_root(start: Path | None = None) -> Path:
    """The directory of notebooks/01_data.ipynb and srlib/: `start` (or cwd), one above it, or that of this package."""
    start = Path(start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks" / "01_data.ipynb").is_file() and (folder / "srlib").is_dir():
            return folder
    url = "https://github.com/OWNER/self-rationalization"
    raise ParamError(f"{start}: no notebooks/01_data.ipynb beside srlib/ here or above; `git clone {url}`, run there")


def _assigned(source: str) -> list[str]:
    statements = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign | ast.Assign)]
    return [ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]) for node in statements]


def _sources(notebook: str, root: Path | None) -> tuple[str, str]:
    path = (root or project_root()) / "notebooks" / f"{notebook}.ipynb"
    try:
        cells = [cell for cell in json.loads(path.read_bytes())["cells"] if cell["cell_type"] == "code"]
        tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParamError(f"{path}: cannot be read as a notebook ({error})") from None
    if len(tagged) != 1:
        raise ParamError(f"{path}: {len(tagged)} code cells are tagged `parameters`; tag exactly one")
    return tagged[0], "\n".join("".join(cell["source"]) for cell in cells)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        root = read_yaml(path)
        if not isinstance(root, yaml.MappingNode | None):
            raise ValueError("it holds no names")
        pairs = root.value if root else []
        entries = [(key, yaml.constructor.SafeConstructor().construct_document(node)) for key, node in pairs]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ParamError(f"{path}: cannot be read ({error}); write one `name: value` a line, in UTF-8") from None
    values: dict[str, Any] = {}
    for key, value in entries:
        where, name = f"{path}, line {key.start_mark.line + 1}", str(key.value)
        if name in values:
            raise ParamError(f"{where}: {name} is set twice; keep one")
        is_text = isinstance(value, str) and name in FIELDS and FIELDS[name].annotation is float  # YAML: 1e-5 is text
        values[name] = _checked(where, name, value, is_text)
    return values


def split(text: str) -> list[str]:
    """The parts of a list: `"sft,sre_1"`, or `"score:Good, or bad,id:No"`, where only a comma before `NAME:` parts them."""
    return [part.strip() for part in re.split(r",(?=\s*[a-z_]+:|\s*$)" if ":" in text else ",", text) if part.strip()]


def _checked(where: str, name: str, value: Any, is_text: bool = False) -> Any:
    """The value in the parameter's type, or ParamError; `is_text` for text of the command line."""
    if name not in FIELDS:
        hint = "".join(f"did you mean {nearest}? " for nearest in difflib.get_close_matches(name, FIELDS, n=1))
        raise ParamError(f"{where}: there is no parameter {shorten(name)}; {hint}`srlib params` lists all")
    served = "://" in str(value) if name in ("model", "writer", "preference_judge") else name == "endpoint" and value
    if served and not SERVER.fullmatch(str(value)):  # before it stands in a file
        raise ParamError(f"{where}: {name}: {URL}")
    field = FIELDS[name]
    if is_text and field.annotation == list[str]:
        return split(value)
    rules = ConfigDict(strict=not is_text, allow_inf_nan=False)
    adapter = TypeAdapter(Annotated[field.annotation, field], config=rules)
    try:
        return adapter.validate_strings(value) if is_text else adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Input ")
        hint = " (YAML reads yes, no, on and off as true or false: quote it)" if isinstance(value, bool) else ""
        raise ParamError(f"{where}: {name} is {shorten(value)}; it {problem}{hint}") from None
