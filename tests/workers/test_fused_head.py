import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from gemma_tune.workers import fused_head

TOKENS, WORDS, SIZE = 50, 300, 24
SOFTCAPS = [None, 3.0]


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, SIZE).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, SIZE).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, WORDS, (TOKENS,))


def plain(hidden, weight, labels, softcap):
    """Full scores in float32 and autograd."""
    scores = hidden.float() @ weight.float().t()
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    return F.cross_entropy(scores, labels, reduction="sum"), (scores.argmax(-1) == labels).sum()


@pytest.fixture(params=[16, TOKENS], ids=["in chunks", "at once"])
def chunks(request, monkeypatch):
    monkeypatch.setitem(fused_head.SCORES_BYTES, "cpu", request.param * WORDS * 4)
    monkeypatch.setattr(fused_head, "BLOCK_BYTES", 2**12)


@pytest.mark.parametrize("softcap", SOFTCAPS)
def test_loss_and_both_gradients_are_those_of_plain_cross_entropy(chunks, softcap):
    hidden, weight, labels = inputs()
    labels[:20] = (hidden @ weight.t()).argmax(-1)[:20]
    loss, correct = fused_head.linear_cross_entropy(hidden, weight, labels, softcap)
    expected, hits = plain(hidden, weight, labels, softcap)
    assert correct == hits >= 20
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    mine = torch.autograd.grad(loss / 7, (hidden, weight))
    theirs = torch.autograd.grad(expected / 7, (hidden, weight))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("softcap", SOFTCAPS)
def test_scores_far_from_zero_neither_overflow_nor_vanish(softcap):
    hidden, weight, labels = inputs()
    with torch.no_grad():
        hidden *= 100
    loss, _ = fused_head.linear_cross_entropy(hidden, weight, labels, softcap)
    torch.testing.assert_close(loss, plain(hidden, weight, labels, softcap)[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("softcap", SOFTCAPS)
def test_bfloat16_is_as_near_to_float32_as_its_digits_allow(chunks, softcap):
    hidden, weight, labels = inputs(torch.bfloat16)
    loss, _ = fused_head.linear_cross_entropy(hidden, weight, labels, softcap)
    expected, _ = plain(hidden, weight, labels, softcap)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=3e-3, atol=0)
    mine = torch.autograd.grad(loss, (hidden, weight))
    theirs = torch.autograd.grad(expected, (hidden, weight))
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other.float()).norm() < 0.02 * other.float().norm()


def test_autocast_decides_the_type_of_the_products_and_weights_keep_theirs():
    hidden, weight, labels = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = fused_head.linear_cross_entropy(hidden, weight, labels)
    expected, _ = plain(hidden, weight, labels, None)
    assert loss != expected
    torch.testing.assert_close(loss, expected, rtol=3e-3, atol=0)
    for gradient, theirs in zip(
        torch.autograd.grad(loss, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - theirs).norm() < 0.02 * theirs.norm()


def test_a_frozen_weight_gets_no_gradient_and_without_gradient_there_is_only_the_loss():
    hidden, weight, labels = inputs()
    weight.requires_grad_(False)
    loss, _ = fused_head.linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert weight.grad is None
    with torch.no_grad():
        bare, _ = fused_head.linear_cross_entropy(hidden, weight, labels)
    assert not bare.requires_grad
    assert bare == loss


def test_no_learned_token_at_all_is_a_loss_of_zero_that_can_be_followed_back():
    hidden, weight, _ = inputs()
    loss, correct = fused_head.linear_cross_entropy(hidden[:0], weight, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert (loss, correct, weight.grad.abs().sum()) == (0, 0, 0)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_the_whole_model_learns_the_same_with_embeddings_tied_and_soft_cap(request, family):
    """Gemma 2 caps its scores at 30; the embeddings get the gradient of both their uses."""
    folder = request.getfixturevalue(family)
    torch.manual_seed(0)
    ids = torch.randint(4, 200, (2, 12))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.5, -100)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = model(input_ids=ids, labels=labels).loss
    expected.backward()
    theirs = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    fused_head.add_fused_head(model)
    output = model(input_ids=ids, labels=labels, fused_linear_cross_entropy=True)
    loss = output.loss / output.learned_tokens
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, theirs, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        model(input_ids=ids, labels=labels).loss, expected
    )  # an ordinary call stays one


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_tied_table_has_one_gradient_of_both_its_uses(request, family):
    """Twice, so that one is added to an earlier one; and an ordinary loss, in which the head has no part in it."""
    torch.manual_seed(0)
    ids = torch.randint(4, 200, (2, 12))
    gradients = []
    for with_table in (False, True):
        model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(family))
        table = fused_head.TiedTable.of(model) if with_table else None
        fused_head.add_fused_head(model, table)
        for fused in (True, True, False):
            model(input_ids=ids, labels=ids, fused_linear_cross_entropy=fused).loss.backward()
            gradients.append(model.get_input_embeddings().weight.grad.clone())
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append(model.get_input_embeddings().weight.grad)
        assert not table or table.of_head is None
    for plain, joined in zip(gradients[:4], gradients[4:], strict=True):
        assert joined.layout == torch.strided
        torch.testing.assert_close(joined, plain, rtol=1e-4, atol=1e-5)


def test_a_tied_table_never_exists_twice(gemma3):
    """The gradient that the optimizer gets lies where the head made its own."""
    model = AutoModelForCausalLM.from_pretrained(gemma3)
    table = fused_head.TiedTable.of(model)
    fused_head.add_fused_head(model, table)
    ids = torch.randint(4, 200, (2, 12))
    places = []
    table.take = lambda gradient: (places.append(gradient.data_ptr()), setattr(table, "of_head", gradient))
    model(input_ids=ids, labels=ids, fused_linear_cross_entropy=True).loss.backward()
    assert places == [model.get_input_embeddings().weight.grad.data_ptr()]


def test_embeddings_that_are_given_leave_the_head_its_own_gradient(gemma3):
    model = AutoModelForCausalLM.from_pretrained(gemma3)
    fused_head.add_fused_head(model, fused_head.TiedTable.of(model))
    ids = torch.randint(4, 200, (2, 12))
    given = torch.randn(2, 12, model.config.hidden_size)
    model(inputs_embeds=given, labels=ids, fused_linear_cross_entropy=True).loss.backward()
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda model: model.requires_grad_(False), id="not trained"),
        pytest.param(lambda model: model.bfloat16(), id="would round after every row"),
        pytest.param(
            lambda model: model.set_output_embeddings(torch.nn.Linear(2, 2)), id="a head of its own"
        ),
    ],
)
def test_other_tables_are_left_to_autograd(gemma3, change):
    model = AutoModelForCausalLM.from_pretrained(gemma3)
    change(model)
    assert fused_head.TiedTable.of(model) is None
    assert not model.get_input_embeddings().sparse
