import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from gemma_tune import config
from gemma_tune.workers import fast

FAMILIES = ["gemma2", "gemma3", "gemma3n", "gemma4"]


@pytest.fixture
def args(tmp_path):
    return SFTConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_norms_compute_what_the_eager_ones_do(request, family):
    model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(family))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0)
    ids = torch.randint(4, 200, (1, 20))
    expected = model(ids, labels=ids).loss
    theirs = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    assert fast.use_fast_norms(model) == sum("RMSNorm" in type(part).__name__ for part in model.modules())
    loss = model(ids, labels=ids).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for mine, other in zip(
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True), theirs, strict=True
    ):
        if other is not None:
            torch.testing.assert_close(mine, other, rtol=2e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("shape", [(1, 50, 640), (2, 30, 4, 256), (3, 64)])
def test_a_norm_on_a_cpu_rounds_as_pytorchs_own_does(shape, learned):
    torch.manual_seed(0)
    x, weight, gradient = torch.randn(shape) * 7, torch.randn(shape[-1]), torch.randn(shape)

    def computed(norm):
        given, factor = x.clone().requires_grad_(), weight.clone().requires_grad_(learned)
        found = norm(given, factor)
        found.backward(gradient)
        return [found.detach(), given.grad, *([factor.grad] if learned else [])]

    ours = computed(lambda given, factor: fast._RmsNorm.apply(given, factor, 1e-6))
    theirs = computed(lambda given, factor: functional.rms_norm(given, shape[-1:], factor, 1e-6))
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_norms_leave_the_type_of_what_comes_in(gemma3):
    model = AutoModelForCausalLM.from_pretrained(gemma3, dtype=torch.bfloat16)
    fast.use_fast_norms(model)
    assert model.model.norm(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_looks_ahead_or_holds_a_vision_tower_is_padded(gemma3, args):
    model = AutoModelForCausalLM.from_pretrained(gemma3)
    model.config.use_bidirectional_attention = True
    chosen = fast.levers(config.parse({}), args, model)
    assert (chosen.padding_free, chosen.attention) == (False, None)
    assert "looks ahead" in chosen.reasons[0]


def test_an_attention_that_keeps_documents_apart_by_itself_stays(gemma3, args):
    model = AutoModelForCausalLM.from_pretrained(gemma3, attn_implementation="flex_attention")
    chosen = fast.levers(config.parse({}), args, model)
    assert (chosen.padding_free, chosen.attention) == (True, None)


def test_compiled_rows_are_padded_and_norms_left_to_the_compiler(gemma3, args):
    args.torch_compile = True
    chosen = fast.levers(config.parse({}), args, AutoModelForCausalLM.from_pretrained(gemma3))
    assert (chosen.padding_free, chosen.fast_norm) == (False, False)


def test_the_balance_of_experts_keeps_trls_loss(gemma4_moe, args):
    args.router_aux_loss_coef = 0.01
    chosen = fast.levers(config.parse({}), args, AutoModelForCausalLM.from_pretrained(gemma4_moe))
    assert not chosen.fused_head
    assert "experts" in chosen.reasons[0]


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_a_cpu_computes_bfloat16_fast_only_in_hardware(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fast.computes_bfloat16_fast() == (avx512 or amx)
