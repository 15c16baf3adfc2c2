import pytest
from transformers.training_args import OptimizerNames

from gemma_tune import config
from gemma_tune.config import field_of
from gemma_tune.errors import ConfigError
from gemma_tune.workers import arguments

OBJECTIVES = ["sft", "dpo", "kto", "orpo", "reward", "grpo"]


def parse(**sections):
    return config.parse(sections)


def arguments_of(settings, tmp_path, has_validation=False):
    return arguments.training_arguments(settings, tmp_path, has_validation=has_validation)


def lora(**sections):
    return arguments.lora_config(parse(**sections), ["q_proj"])


def test_shares_and_steps_follow_transformers(tmp_path):
    settings = parse(eval={"eval_steps": 0.25}, output={"save_steps": 50.0}, train={"warmup_steps": 2.0})
    args = arguments_of(settings, tmp_path, has_validation=True)
    assert (args.eval_strategy, args.eval_steps, args.save_steps, args.warmup_steps) == ("steps", 0.25, 50, 2)


@pytest.mark.parametrize(("eval_steps", "has_validation"), [(0, True), (0.1, False)])
def test_nothing_is_validated_without_rows_or_wish(tmp_path, eval_steps, has_validation):
    args = arguments_of(parse(eval={"eval_steps": eval_steps}), tmp_path, has_validation)
    assert args.eval_strategy == "no"


def test_without_a_gpu_it_computes_in_float32_on_the_cpu(tmp_path):
    args = arguments_of(parse(), tmp_path)
    assert (args.use_cpu, args.bf16, args.report_to, args.use_liger_kernel) == (True, False, [], False)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_takes_what_all_share(tmp_path, objective):
    settings = parse(
        objective={"type": objective, "num_generations": 2},
        train={"learning_rate": 3e-5, "seed": 7, "lr_scheduler_type": "cosine", "optim": "paged_adamw_8bit"},
    )
    args = arguments_of(settings, tmp_path)
    assert (args.learning_rate, args.seed, args.lr_scheduler_type, args.optim, args.logging_steps) == (
        3e-5, 7, "cosine", "paged_adamw_8bit", 1,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["optim", "lr_scheduler_type"])
def test_every_choice_is_one_of_transformers(tmp_path, name):
    for choice in field_of(f"train.{name}").annotation.__args__:
        assert getattr(arguments_of(parse(train={name: choice}), tmp_path), name) == choice
    assert OptimizerNames("adamw_8bit")


def test_dpo_takes_its_loss_with_and_without_the_chosen_answers_own(tmp_path):
    args = arguments_of(parse(objective={"type": "dpo", "loss_type": "ipo", "beta": 0.3}), tmp_path)
    assert (args.loss_type, args.loss_weights, args.beta, args.label_smoothing) == (["ipo"], None, 0.3, 0.0)
    goal = {"type": "dpo", "loss_type": "robust", "label_smoothing": 0.2, "sft_weight": 0.5}
    args = arguments_of(parse(objective=goal), tmp_path)
    assert (args.loss_type, args.loss_weights, args.label_smoothing) == (["robust", "sft"], [1.0, 0.5], 0.2)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_only_whole_models_compute_their_reference_before(tmp_path, objective):
    for method, before in (("lora", False), ("qlora", False), ("full", True)):
        args = arguments_of(parse(objective={"type": objective}, method={"type": method}), tmp_path)
        assert args.precompute_ref_log_probs is before


def test_grpo_validates_whole_groups_of_answers(tmp_path):
    settings = parse(
        objective={"type": "grpo", "num_generations": 4, "max_completion_length": 9, "temperature": 0.7},
        eval={"per_device_eval_batch_size": 6},
    )
    args = arguments_of(settings, tmp_path, has_validation=True)
    assert (args.num_generations, args.per_device_eval_batch_size) == (4, 8)
    assert (args.max_completion_length, args.temperature) == (9, 0.7)


# ---- the best checkpoint ---------------------------------------------------------------------------------------------
def test_the_best_checkpoint_is_kept_where_every_validation_saves_one(tmp_path):
    settings = parse(eval={"eval_steps": 0.1, "load_best_model_at_end": True}, output={"save_steps": 0.25})
    args = arguments_of(settings, tmp_path, has_validation=True)
    assert (args.load_best_model_at_end, args.eval_steps, args.save_steps) == (True, 0.1, 0.1)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_loss", False)


def test_early_stopping_alone_leaves_the_checkpoints_where_they_are(tmp_path):
    settings = parse(eval={"eval_steps": 0.1, "early_stopping_patience": 2}, output={"save_steps": 0.25})
    args = arguments_of(settings, tmp_path, has_validation=True)
    assert (args.load_best_model_at_end, args.save_steps) == (False, 0.25)
    assert args.metric_for_best_model == "eval_loss"


def test_rewards_are_best_where_they_are_highest(tmp_path):
    settings = parse(objective={"type": "grpo"}, eval={"load_best_model_at_end": True})
    args = arguments_of(settings, tmp_path, has_validation=True)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_reward", True)


def test_what_needs_validation_is_refused_without_it(tmp_path):
    settings = parse(eval={"early_stopping_patience": 2, "load_best_model_at_end": True})
    with pytest.raises(ConfigError) as caught:
        arguments_of(settings, tmp_path)
    assert [fault.where for fault in caught.value.faults] == [
        "eval.early_stopping_patience",
        "eval.load_best_model_at_end",
    ]


# ---- what cannot be --------------------------------------------------------------------------------------------------
def test_liger_kernels_are_refused_without_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match="train.use_liger_kernel"):
        arguments_of(parse(train={"use_liger_kernel": "on"}), tmp_path)


def test_loftq_is_refused_without_a_gpu():
    with pytest.raises(ConfigError, match="method.init_lora_weights"):
        lora(method={"init_lora_weights": "loftq"})


def test_dora_is_refused_where_the_adapter_is_made_plain():
    with pytest.raises(ConfigError, match="method.use_dora"):
        lora(method={"init_lora_weights": "pissa", "use_dora": True})


# ---- adapters --------------------------------------------------------------------------------------------------------
def test_an_adapter_is_as_the_settings_say():
    method = {"r": 4, "lora_alpha": 9, "lora_dropout": 0.1, "use_dora": True, "use_rslora": True}
    found = lora(method={**method, "init_lora_weights": "gaussian"})
    assert {name: getattr(found, name) for name in method} == method
    assert (found.init_lora_weights, found.target_modules, found.task_type) == (
        "gaussian",
        {"q_proj"},
        "CAUSAL_LM",
    )
    assert lora().init_lora_weights is True
    assert lora(objective={"type": "reward"}).task_type == "SEQ_CLS"


# ---- advanced --------------------------------------------------------------------------------------------------------
def test_advanced_arguments_pass_through(tmp_path):
    values = {"trainer": {"data_seed": 7, "adam_beta2": 0.95}, "lora": {"bias": "lora_only"}}
    args = arguments_of(parse(advanced=values), tmp_path)
    assert (args.data_seed, args.adam_beta2) == (7, 0.95)
    assert lora(advanced=values).bias == "lora_only"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_argument_that_may_pass_is_one_of_the_objectives_trainer(objective):
    from gemma_tune.sections import ADVANCED_OBJECTIVE

    known = arguments._kind(objective).__dataclass_fields__
    assert ADVANCED_OBJECTIVE[objective] <= set(known)


def test_an_argument_that_the_objectives_trainer_lacks_is_named(tmp_path):
    settings = parse(objective={"type": "reward"}, advanced={"trainer": {"router_aux_loss_coef": 0.1}})
    with pytest.raises(
        ConfigError, match="advanced.trainer.router_aux_loss_coef: RewardConfig has no such argument"
    ):
        arguments_of(settings, tmp_path)


def test_every_wrong_advanced_argument_is_named(tmp_path):
    settings = parse(advanced={"trainer": {"adam_beta1": "much", "data_seed": "perhaps"}})
    with pytest.raises(ConfigError) as caught:
        arguments_of(settings, tmp_path)
    assert [fault.where for fault in caught.value.faults] == [
        "advanced.trainer.adam_beta1",
        "advanced.trainer.data_seed",
    ]


def test_an_advanced_argument_that_peft_refuses_is_named():
    with pytest.raises(ConfigError, match="advanced.lora.layers_pattern: "):
        lora(advanced={"lora": {"bias": "none", "layers_pattern": "layers"}})
