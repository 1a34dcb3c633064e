"""LoRA layers whose update is added to the weight, against PEFT's own."""

import pytest

from srlib import adapters, lowrank, models

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def policy_of(base_dir, **lora):
    """A model with an adapter that does something."""
    import torch

    policy = adapters.add_lora(models.load(base_dir, training=True)[0], rank=4, **lora)
    torch.manual_seed(1)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, std=0.02)
    return policy


def step(policy):
    """(logits, gradients by name) of a few tokens."""
    import torch

    ids = torch.arange(10, 90).view(2, 40)
    policy.zero_grad()
    out = policy(input_ids=ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_the_same_as_peft_forwards_and_backwards(base_dir):
    import torch

    policy = policy_of(base_dir)
    logits, gradients = step(policy)
    assert lowrank.install(policy) == 7 * policy.config.num_hidden_layers
    ours, own = step(policy)
    assert not torch.equal(ours, logits), "it computes in another way"
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-5)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert float(gradient.abs().max()) > 0, name
        assert (own[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_an_adapter_that_is_switched_off_is_off(base_dir):
    import torch

    policy = policy_of(base_dir)
    lowrank.install(policy)
    ids = torch.arange(10, 50)[None]
    with torch.no_grad(), policy.disable_adapter():
        without = policy(input_ids=ids).logits
    plain, _ = models.load(base_dir)
    with torch.no_grad():
        torch.testing.assert_close(without, plain(input_ids=ids).logits, atol=0, rtol=0)


@pytest.mark.parametrize("why", ["dropout", "large", "quantized", "autocast"])
def test_other_layers_stay_pefts(base_dir, why, monkeypatch):
    import torch

    if why == "large":
        monkeypatch.setattr(lowrank, "LARGEST", 16)
    if why == "quantized":
        policy = adapters.add_lora(models.load(base_dir, training=True, quantization="4bit")[0], quantization="4bit")
    else:
        policy = policy_of(base_dir, dropout=0.5 if why == "dropout" else 0.0)
    found = lowrank.install(policy)
    if why != "autocast":
        assert found == 0
        return
    ids = torch.arange(10, 50)[None]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = policy(input_ids=ids).logits
        peft = policy_of(base_dir)(input_ids=ids).logits
    torch.testing.assert_close(ours, peft, atol=0, rtol=0)
