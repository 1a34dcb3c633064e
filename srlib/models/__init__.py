"""Models: load a base or a judge for training or judging, add the adapter that trains, write the judge to disk.

loading    a base, a judge or its tokenizer: load, check_model, judge_info; which dtype and end of turn
attention  what a model attends to, and what a comparison on short texts cannot show
adapters   LoRA: lora_targets, add_lora, save_judge; merge_adapters makes one adapter of two
training   what SFT, DPO and GRPO share around TRL's trainers; distil adds what notebook 11 needs"""

# ruff: noqa: F401
from srlib.models.adapters import add_lora, keeps_adapter, merge_adapters, save_judge
from srlib.models.adapters import linear_layers as lora_targets
from srlib.models.gguf import saving
from srlib.models.loading import ModelError, base_of, check_model, judge_info, load, load_tokenizer, torch_dtype
