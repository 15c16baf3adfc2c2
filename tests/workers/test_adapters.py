import pytest
import torch
from peft import PeftModel

from gemma_tune import config
from gemma_tune.workers import adapters, modeling

IDS = torch.tensor([[2, 9, 17, 30, 41, 52]])


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def parse(**method):
    return config.parse({"method": method})


def test_only_a_new_adapter_has_a_configuration(gemma3):
    model = modeling.load_model(gemma3, torch.float32)
    assert adapters.adapter_config(parse(type="full"), model) is None
    assert adapters.adapter_config(parse(type="qlora", r=3), model).r == 3
    wanted = adapters.adapter_config(parse(), model)
    assert not adapters.takes_from_base(wanted) and not adapters.takes_from_base(None)
    begun, _ = adapters.begun(model, wanted)
    assert adapters.adapter_config(parse(), begun) is None  # it is trained further


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapter_that_took_from_the_base_is_saved_as_one_that_did_not(gemma3, tmp_path, start, use_rslora):
    settings = parse(init_lora_weights=start, use_rslora=use_rslora, r=4, lora_alpha=6)
    base = modeling.load_model(gemma3, torch.float32)
    untouched = logits_of(base)
    wanted = adapters.adapter_config(settings, base)
    assert adapters.takes_from_base(wanted)
    model, origin = adapters.begun(base, wanted)
    assert torch.allclose(logits_of(model), untouched, atol=1e-4)
    with model.disable_adapter():
        assert not torch.allclose(logits_of(model), untouched, atol=1e-2)

    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trained = logits_of(model)
    assert not torch.allclose(trained, untouched, atol=1e-2)
    model.save_pretrained(tmp_path)
    adapters.make_plain(tmp_path, origin)

    again = PeftModel.from_pretrained(modeling.load_model(gemma3, torch.float32), tmp_path)
    assert torch.allclose(logits_of(again), trained, atol=1e-4)
    with again.disable_adapter():
        assert torch.equal(logits_of(again), untouched)
    assert (again.peft_config["default"].r, again.peft_config["default"].init_lora_weights) == (8, True)
