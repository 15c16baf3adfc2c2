import pytest

from gemma_tune import config
from gemma_tune.errors import ConfigError
from gemma_tune.workers import trainers


def parse(**sections):
    return config.parse(sections)


def test_shares_and_steps_follow_transformers(tmp_path):
    args = trainers.sft_config(
        parse(eval={"eval_steps": 0.25}, output={"save_steps": 50.0}, train={"warmup_steps": 2.0}),
        tmp_path,
        has_validation=True,
    )
    assert (args.eval_strategy, args.eval_steps, args.save_steps, args.warmup_steps) == ("steps", 0.25, 50, 2)


@pytest.mark.parametrize(("eval_steps", "has_validation"), [(0, True), (0.1, False)])
def test_nothing_is_validated_without_rows_or_wish(tmp_path, eval_steps, has_validation):
    args = trainers.sft_config(
        parse(eval={"eval_steps": eval_steps}), tmp_path, has_validation=has_validation
    )
    assert args.eval_strategy == "no"


def test_without_a_gpu_it_computes_in_float32_on_the_cpu(tmp_path):
    args = trainers.sft_config(parse(), tmp_path, has_validation=False)
    assert (args.use_cpu, args.bf16, args.report_to) == (True, False, [])


def test_advanced_arguments_pass_through(tmp_path):
    values = {"trainer": {"data_seed": 7, "adam_beta2": 0.95}, "lora": {"bias": "lora_only"}}
    settings = parse(advanced=values)
    args = trainers.sft_config(settings, tmp_path, has_validation=False)
    assert (args.data_seed, args.adam_beta2) == (7, 0.95)
    assert trainers.lora_config(settings).bias == "lora_only"


def test_every_wrong_advanced_argument_is_named(tmp_path):
    settings = parse(advanced={"trainer": {"adam_beta1": "much", "data_seed": "perhaps"}})
    with pytest.raises(ConfigError) as caught:
        trainers.sft_config(settings, tmp_path, has_validation=False)
    assert [fault.where for fault in caught.value.faults] == [
        "advanced.trainer.adam_beta1",
        "advanced.trainer.data_seed",
    ]


def test_an_advanced_argument_that_peft_refuses_is_named():
    settings = parse(advanced={"lora": {"bias": "none", "layers_pattern": "layers"}})
    with pytest.raises(ConfigError, match="advanced.lora.layers_pattern: "):
        trainers.lora_config(settings)


def test_lora_reaches_the_layers_that_are_asked_for():
    assert trainers.lora_config(parse()).target_modules == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    attention = parse(method={"target_modules": "attention"})
    assert trainers.lora_config(attention).target_modules == {"q_proj", "k_proj", "v_proj", "o_proj"}
