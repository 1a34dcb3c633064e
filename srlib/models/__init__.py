"""Models: load a base or a judge for training or judging, add the adapter that trains, write the judge to disk.

`loading` reads a base or a judge, `adapters` adds LoRA and writes a judge, `training` is what SFT, DPO and GRPO share around TRL's
trainers, `distil` what notebook 11 needs, `attention` what a model attends to, `gguf` converts that format."""

# ruff: noqa: F401
from srlib.models.adapters import add_lora, keeps_adapter, merge_adapters, save_judge
from srlib.models.adapters import linear_layers as lora_targets
from srlib.models.gguf import saving
from srlib.models.loading import ModelError, base_of, check_model, judge_info, load, load_tokenizer, resolve_backend
from srlib.models.loading import torch_dtype as torch_dtype
