import random

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from gemma_tune import config
from gemma_tune.errors import ConfigError
from gemma_tune.workers import documents, sft

from . import tiny

FAMILIES = ["gemma2", "gemma3", "gemma3n", "gemma4", "gemma4_moe"]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 5


@pytest.fixture(scope="session")
def tokens():
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def rows() -> Dataset:
    """Of 6 to 31 tokens, longer than the tiny models' window; the last two fifths are learned."""
    random.seed(0)
    made = []
    for _ in range(2 * 3 * STEPS):
        ids = [2] + [random.randrange(4, 200) for _ in range(random.randint(5, 30))]
        learned = len(ids) * 3 // 5
        made.append({"input_ids": ids, "labels": [-100] * learned + ids[learned:]})
    return Dataset.from_list(made)


@pytest.fixture
def train(request, tokens, rows, tmp_path):
    """Trains a tiny Gemma plainly (ours=False) or with everything on; `settings` are SFTConfig's."""

    def work(folder, *, ours, lora=False, overrides=(), head=None, resume=None, **settings):
        args = SFTConfig(
            str(tmp_path),
            **{
                "per_device_train_batch_size": 3, "max_steps": STEPS, "learning_rate": 1e-3, "bf16": False,
                "max_length": None, "report_to": "none", "use_cpu": True, "dataloader_pin_memory": False,
                "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "activation_checkpointing": False,
            } | settings,
        )  # fmt: skip
        adapter = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=head, task_type="CAUSAL_LM")
        model = AutoModelForCausalLM.from_pretrained(folder)
        peft_config, validation = adapter if lora else None, rows.select(range(6))
        if ours:
            chosen = config.parse(config.apply_overrides({}, list(overrides)))
            trainer = sft.sft_trainer(chosen, args, model, tokens, rows, validation, peft_config, [])
        else:
            trainer = SFTTrainer(model, args, None, rows, validation, tokens, peft_config=peft_config)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return work


def logged(trainer, name="loss"):
    return torch.tensor([line[name] for line in trainer.state.log_history if name in line])


def assert_same_curve(ours, plain, relative=1e-5):
    torch.testing.assert_close(logged(ours), logged(plain), rtol=relative, atol=0)
    assert len(logged(ours)) == STEPS


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_on_leaves_the_loss_curve_alone(request, train, family, lora):
    """With checkpointing and accumulation on one side of the matrix, without on the other."""
    folder = request.getfixturevalue(family)
    settings = {
        "adam_epsilon": 1e-4
    }  # so that rounding in a gradient near 0 does not become a whole step of Adam's
    if lora:
        settings |= {"activation_checkpointing": True, "gradient_accumulation_steps": 2}
    ours, plain = (train(folder, ours=mine, lora=lora, **settings) for mine in (True, False))
    levers = ours.levers
    assert levers.padding_free
    assert levers.fused_head
    assert levers.fast_norm
    assert levers.attention in documents.PER_DOCUMENT.values()
    assert not levers.reasons
    assert_same_curve(ours, plain)
    for name in ("num_tokens", "mean_token_accuracy"):
        torch.testing.assert_close(logged(ours, name), logged(plain, name))


def test_experts_leave_trls_curve_no_faster_than_a_rounding_of_its_own_start_does(
    train, gemma4_moe, tmp_path
):
    """Which experts answer is a choice, and Adam makes whole steps of what rounding leaves of a gradient near 0.

    So a full fine-tuning of experts is chaotic: one rounding step in the embeddings drives plain TRL's own curve as far.
    """
    nudged = AutoModelForCausalLM.from_pretrained(gemma4_moe)
    with torch.no_grad():
        table = nudged.get_input_embeddings().weight
        table.copy_(table.nextafter(torch.full_like(table, torch.inf)))
    nudged.save_pretrained(tmp_path / "nudged")
    plain = logged(train(gemma4_moe, ours=False))
    ours = (logged(train(gemma4_moe, ours=True)) / plain - 1).abs()
    others = (logged(train(tmp_path / "nudged", ours=False)) / plain - 1).abs()
    assert ours[0] < 1e-6 and others[0] < 1e-6
    assert ours.max() < 20 * others.max()


@pytest.mark.parametrize(
    "off", ["train.padding_free=false", "train.fused_linear_cross_entropy=false"]
)  # fmt: skip
def test_each_way_can_be_switched_off_and_the_other_stays_right(train, gemma2, off):
    ours = train(gemma2, ours=True, overrides=[off])
    assert (ours.levers.padding_free, ours.levers.fused_head) == ("fused" in off, "padding" in off)
    assert_same_curve(ours, train(gemma2, ours=False))


def test_the_validation_loss_is_the_plain_one(train, gemma3):
    """6 rows in batches of 4: the last batch is not full."""
    settings = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    ours, plain = (train(gemma3, ours=mine, **settings) for mine in (True, False))
    torch.testing.assert_close(logged(ours, "eval_loss"), logged(plain, "eval_loss"), rtol=1e-5, atol=0)
    assert len(logged(ours, "eval_loss")) >= 2


def test_bfloat16_keeps_the_curve_within_a_thousandth(train, gemma3):
    ours, plain = (train(gemma3, ours=mine, bf16=True) for mine in (True, False))
    assert_same_curve(ours, plain, relative=1e-3)


def test_a_trained_copy_of_the_head_beside_adapters_learns_the_same(train, gemma3):
    ours, plain = (train(gemma3, ours=mine, lora=True, head=["lm_head"]) for mine in (True, False))
    assert ours.levers.fused_head
    assert_same_curve(ours, plain)
    weights = [trainer.model.get_output_embeddings().weight for trainer in (ours, plain)]
    assert weights[0].requires_grad
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_noise_on_the_embeddings_is_drawn_as_ever_for_rows_that_are_padded(train, gemma3):
    ours, plain = (train(gemma3, ours=mine, neftune_noise_alpha=5.0) for mine in (True, False))
    assert not ours.levers.padding_free
    assert "NEFTune" in ours.levers.reasons[0]
    assert_same_curve(ours, plain)


@pytest.mark.parametrize("settings", [{"label_smoothing_factor": 0.1}, {"loss_type": "dft"}])
def test_another_loss_is_left_to_trl_and_said(train, gemma3, settings):
    ours, plain = (train(gemma3, ours=mine, **settings) for mine in (True, False))
    assert not ours.levers.fused_head
    assert "computed by TRL" in ours.levers.reasons[0]
    assert_same_curve(ours, plain)


def test_packing_is_trls_own_with_the_same_curve(train, gemma4):
    settings = {"packing": True, "max_length": 64, "per_device_train_batch_size": 2, "adam_epsilon": 1e-4}
    ours, plain = (train(gemma4, ours=mine, **settings) for mine in (True, False))
    assert ours.levers.attention
    assert_same_curve(ours, plain)


def test_packing_that_leaks_is_refused(train, gemma3):
    with pytest.raises(ConfigError, match="packing_strategy"):
        train(gemma3, ours=True, packing=True, packing_strategy="wrapped", max_length=64)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_run_that_is_resumed_goes_on_to_the_last_bit(train, gemma3, lora, tmp_path):
    settings = {"lora": lora, "bf16": False, "save_strategy": "steps", "save_steps": 2}
    whole = train(gemma3, ours=True, **settings)
    resumed = train(gemma3, ours=True, resume=str(tmp_path / "checkpoint-2"), **settings)
    assert logged(resumed).tolist() == logged(whole).tolist()
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_model_is_left_with_its_own_attention(train, gemma3):
    assert train(gemma3, ours=True, max_steps=1).model.config._attn_implementation == "sdpa"
