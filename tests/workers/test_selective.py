"""Selective activation checkpointing: the same gradients, and only the cheap results computed again."""

import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from gemma_tune.config import parse
from gemma_tune.errors import ConfigError
from gemma_tune.workers import selective, train

from .conftest import losses_of
from .test_sft import FAMILIES, TARGETS

RANK = 4


class Products(TorchDispatchMode):
    """Counts the matrix products of at least so many columns."""

    def __init__(self, narrowest: int) -> None:
        super().__init__()
        self.narrowest, self.count = narrowest, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.mm.default and args[1].shape[1] >= self.narrowest:
            self.count += 1
        return operator(*args, **(kwargs or {}))


def backward(folder, kind: str, lora: bool):
    """The gradients of one step, and how many products its backward pass took."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if lora:
        adapter = LoraConfig(r=RANK, target_modules=TARGETS, task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, adapter)
    if kind != "off":
        model.activation_checkpointing_enable(selective.arguments() if kind == "selective" else None)
    model.train()
    ids = torch.randint(4, 200, (1, 24))
    loss = model(ids, labels=ids, use_cache=False).loss
    with Products(RANK + 1) as products:
        loss.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return found, products.count


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_and_fewer_products_are_computed_again(request, family, lora):
    folder = request.getfixturevalue(family)
    kept, none = backward(folder, "off", lora)
    some, few = backward(folder, "selective", lora)
    assert some.keys() == kept.keys()
    for name, one in some.items():
        torch.testing.assert_close(one, kept[name], rtol=1e-5, atol=1e-7)
    _, all_of_them = backward(folder, "on", lora)
    assert none <= few < all_of_them


def test_the_wide_products_alone_are_computed_again(gemma3, tmp_path):
    """Of a full fine-tuning: gate and up, whose results are more than twice as wide as what goes in."""
    config = AutoConfig.from_pretrained(gemma3)
    config.intermediate_size = 3 * config.hidden_size
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    (_, none), (_, some) = (backward(tmp_path, kind, False) for kind in ("off", "selective"))
    assert some - none == 2 * config.num_hidden_layers


def test_the_arguments_can_be_saved_with_a_checkpoint():
    assert pickle.loads(pickle.dumps(selective.arguments())) == selective.arguments()


def test_zero_3_is_refused_before_anything_is_loaded():
    devices = {"distributed_type": "deepspeed", "zero_stage": 3, "num_processes": 2}
    with pytest.raises(ConfigError, match=r"devices\.zero_stage"):
        parse({"train": {"selective_checkpointing": True}, "devices": devices})
    parse(
        {
            "train": {"selective_checkpointing": True, "activation_checkpointing": False},
            "devices": devices,
        }
    )


@pytest.mark.training
def test_a_run_learns_the_same_with_it_is_stopped_and_goes_on(make_run, break_off):
    plain, ours = (
        make_run("output.save_steps=2"),
        make_run(
            "output.save_steps=2", "train.activation_checkpointing=true", "train.selective_checkpointing=true"
        ),
    )
    assert train.main([str(plain.path)]) == 0
    break_off(ours, 2)
    assert losses_of(ours) == pytest.approx(losses_of(plain), rel=1e-5)
