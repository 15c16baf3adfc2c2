import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from gemma_tune.workers import documents

LENGTHS = (5, 1, 40, 23)  # the tiny models' window is 16 tokens
FAMILIES = ["gemma2", "gemma3", "gemma3n", "gemma4", "gemma4_moe"]


def rows():
    torch.manual_seed(3)
    return [torch.randint(4, 200, (length,)).tolist() for length in LENGTHS]


def losses(model, batch, implementation):
    """Of each token of the row, without a loss where a document begins."""
    ids = batch["input_ids"]
    named = {"document_lengths": tuple(batch["cu_seq_lens_q"].diff().tolist())} if implementation else {}
    with torch.no_grad(), documents.attending(model.config, implementation):
        scores = model(input_ids=ids, position_ids=batch.get("position_ids"), use_cache=False, **named).logits
    return F.cross_entropy(scores[0, :-1].float(), batch["labels"][0, 1:], reduction="none")


def collate(examples, packed=False):
    if packed:  # what TRL's best-fit packing makes of them: two rows, each of several documents
        pairs = [examples[:2], examples[2:]]
        examples = [{"input_ids": sum(pair, []), "seq_lengths": [len(one) for one in pair]} for pair in pairs]
    else:
        examples = [{"input_ids": one} for one in examples]
    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(examples)


@pytest.fixture(params=FAMILIES)
def model(request):
    folder = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_every_document_has_the_loss_that_it_has_alone(model):
    ours = documents.PER_DOCUMENT[model.config._attn_implementation]
    together = losses(model, collate(rows()), ours)
    alone = [losses(model, collate([row]), None) for row in rows()]
    for mine, theirs in zip(
        together[collate(rows())["labels"][0, 1:] != -100].split([4, 0, 39, 22]), alone, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["padding_free", "packing"])
def test_a_changed_document_leaves_the_losses_of_the_others_alone(model, packed):
    ours = documents.PER_DOCUMENT[model.config._attn_implementation]
    changed = rows()
    changed[2] = [(token * 7) % 190 + 4 for token in changed[2]]
    before, after = (losses(model, collate(each, packed), ours) for each in (rows(), changed))
    start, end = sum(LENGTHS[:2]), sum(LENGTHS[:3])
    assert (before - after)[start : end - 1].abs().min() > 0  # it was changed
    others = torch.cat(((before - after)[: start - 1], (before - after)[end:]))
    assert others.abs().max() < 1e-6


def test_without_our_attention_and_positions_documents_do_leak(gemma3):
    """The proof above can fail."""
    model = AutoModelForCausalLM.from_pretrained(gemma3).eval()
    changed = rows()
    changed[2] = changed[2][::-1]
    before, after = (
        losses(model, {key: value for key, value in collate(each).items() if key != "position_ids"}, None)
        for each in (rows(), changed)
    )
    assert (before - after)[sum(LENGTHS[:3]) :].abs().max() > 1e-3


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_and_its_gradient_are_those_of_a_full_mask(implementation, window):
    """4 query heads share 2 key heads; the long documents go far beyond the window."""
    torch.manual_seed(0)
    total = sum(LENGTHS)
    query, key, value = (torch.randn(1, heads, total, 8, requires_grad=True) for heads in (4, 2, 2))
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    distance = torch.arange(total)[:, None] - torch.arange(total)
    mask = (document[:, None] == document) & (distance >= 0) & (distance < (window or total))
    expected = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True, scale=0.3)
    output, _ = documents.attend(
        None, query, key, value, None, document_lengths=LENGTHS, scaling=0.3, sliding_window=window,
        implementation=implementation,
    )  # fmt: skip
    output = output.transpose(1, 2)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(expected)
    mine, theirs = (
        torch.autograd.grad((each * weights).sum(), (query, key, value)) for each in (output, expected)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_fused_attention_refuses_a_soft_cap_rather_than_forget_it():
    states = torch.randn(1, 1, 4, 8)
    with pytest.raises(ValueError, match="soft-cap"):
        documents.attend(
            None, states, states, states, None, document_lengths=(4,), softcap=50.0, implementation="sdpa"
        )


def test_the_model_has_its_own_attention_back_afterwards_whatever_happens(gemma3):
    config = AutoModelForCausalLM.from_pretrained(gemma3).config
    with pytest.raises(KeyError), documents.attending(config, "sdpa_per_document"):
        assert config._attn_implementation == "sdpa_per_document"
        raise KeyError
    assert config._attn_implementation == "sdpa"
