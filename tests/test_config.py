import pytest
import yaml

from gemma_tune import config
from gemma_tune.config import RunConfig, load, parse
from gemma_tune.errors import ConfigError


def faults_of(values) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(values)
    return {fault.where: str(fault) for fault in caught.value.faults}


def test_the_defaults_are_valid_and_yaml_holds_only_differences():
    assert parse({}) == RunConfig()
    assert RunConfig().to_yaml() == "{}\n"
    changed = parse({"train": {"learning_rate": 1e-3}})
    assert yaml.safe_load(changed.to_yaml()) == {"train": {"learning_rate": 0.001}}


def test_complete_yaml_reads_back_to_the_same_configuration():
    one = parse(
        {
            "model": {"id": "google/gemma-3-1b-it"},
            "data": {"columns": {"prompt": "q"}},
            "advanced": {"trainer": {"adam_beta2": 0.95}},
        }
    )
    assert parse(yaml.safe_load(one.to_yaml(complete=True))) == one
    assert parse(yaml.safe_load(one.to_yaml())) == one


@pytest.mark.parametrize("value", [0, 50, "abc", None, -1e-4, float("nan")])
def test_a_learning_rate_out_of_range_names_setting_value_and_rule(value):
    message = faults_of({"train": {"learning_rate": value}})["train.learning_rate"]
    assert "above 0 and at most 0.1" in message
    assert "The default is 0.0002" in message


def test_a_maximum_length_of_4_is_refused_with_the_range():
    message = faults_of({"train": {"max_length": 4}})["train.max_length"]
    assert "found: 4" in message and "at least 16" in message


def test_every_fault_is_reported_at_once():
    found = faults_of({"train": {"learning_rate": "abc", "max_length": 4}, "method": {"r": 0}})
    assert set(found) == {"train.learning_rate", "train.max_length", "method.r"}


@pytest.mark.parametrize(
    "name", ["../../x", "x" * 300, "🦊", "", " x", "-rf", "a/b", "a\nb", "x; touch PWNED$(id)"]
)
def test_a_run_name_that_could_leave_its_folder_is_refused(name):
    assert "letters, digits" in faults_of({"output": {"name": name}})["output.name"]


def test_an_unknown_setting_is_answered_with_the_nearest():
    assert (
        "Did you mean train.learning_rate?" in faults_of({"train": {"learning_rat": 1}})["train.learning_rat"]
    )
    assert "Did you mean train?" in faults_of({"trian": {}})["trian"]


def test_advanced_arguments_are_held_to_a_list_without_paths_code_or_reporting():
    message = faults_of({"advanced": {"trainer": {"output_dir": "/etc", "adam_beta1": 0.9}}})
    assert list(message) == ["advanced.trainer.output_dir"]
    for name in (
        "output_dir",
        "logging_dir",
        "report_to",
        "push_to_hub",
        "deepspeed",
        "resume_from_checkpoint",
        "hub_token",
    ):
        assert name not in config.ADVANCED_TRAINER | config.ADVANCED_LORA


def test_dotted_overrides_are_read_as_yaml_with_exponents_as_numbers(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {seed: 1}\n")
    loaded = load(path, ["train.learning_rate=1e-4", "method.type=full", "data.columns.prompt=question"])
    assert loaded.train.learning_rate == 1e-4
    assert (loaded.train.seed, loaded.method.type) == (1, "full")
    assert loaded.data.columns == {"prompt": "question"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [("train: [", "not valid YAML"), ("- 1", "must be a mapping"), ("train: 3", "valid dictionary")],
)
def test_a_broken_file_is_a_config_error(tmp_path, text, rule):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rule):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load(tmp_path / "nowhere.yaml")


def test_an_override_without_a_value_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"section\.name=value"):
        load(path, ["learning_rate"])


def test_equal_configurations_have_equal_digests_and_others_do_not():
    assert parse({}).digest() == RunConfig().digest()
    assert parse({"train": {"seed": 7}}).digest() != RunConfig().digest()


def test_every_setting_has_label_help_and_a_default_within_its_range():
    for dotted, info in config.settings():
        assert info.json_schema_extra["label"], dotted
        assert info.description.endswith("."), dotted
        limits = config.bounds(info)
        if not limits:
            continue
        assert limits.get("ge", info.default) <= info.default <= limits.get("le", info.default), dotted


@pytest.mark.training
def test_names_are_those_of_transformers_peft_and_trl():
    from dataclasses import fields

    import trl
    from peft import LoraConfig
    from trl.experimental.orpo import ORPOConfig

    def names(kind: type) -> set[str]:
        return {field.name for field in fields(kind)}

    kinds = {name: getattr(trl, f"{name.upper()}Config", None) for name in config.ADVANCED_OBJECTIVE}
    kinds |= {"orpo": ORPOConfig, "reward": trl.RewardConfig}
    assert names(trl.SFTConfig) >= config.ADVANCED_TRAINER
    for objective, allowed in config.ADVANCED_OBJECTIVE.items():
        assert names(kinds[objective]) >= allowed, objective
    lora = names(LoraConfig)
    assert lora >= config.ADVANCED_LORA
    sft = names(trl.SFTConfig)
    ours = {dotted.split(".")[1] for dotted, _ in config.settings() if dotted.startswith("train.")}
    assert ours - sft == {
        "survive_out_of_memory",
        "fused_linear_cross_entropy",
        "selective_checkpointing",
    }  # they have no such thing
    assert {
        "eval_steps",
        "per_device_eval_batch_size",
        "save_steps",
        "save_total_limit",
        "load_best_model_at_end",
    } <= sft
    assert {
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_dora",
        "use_rslora",
        "init_lora_weights",
    } <= lora


def test_a_setting_applies_only_beside_those_that_it_belongs_to():
    assert config.applies("train.seed", {})
    assert not config.applies("method.r", {"method.type": "full"})
    assert not config.applies("objective.label_smoothing", {"objective.type": "dpo"})
    robust = {"objective.type": "dpo", "objective.loss_type": "robust"}
    assert config.applies("objective.label_smoothing", robust)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"method": {"type": "qlora", "init_lora_weights": "pissa"}}, "method.init_lora_weights"),
        ({"method": {"use_dora": True, "init_lora_weights": "pissa"}}, "method.use_dora"),
        ({"objective": {"type": "grpo", "reward": "regex"}}, "objective.reward_pattern"),
        (
            {"objective": {"type": "grpo", "reward": "regex", "reward_pattern": "("}},
            "objective.reward_pattern",
        ),
        ({"objective": {"type": "grpo", "num_generations": 3}}, "objective.num_generations"),
        ({"eval": {"eval_steps": 0, "early_stopping_patience": 2}}, "eval.early_stopping_patience"),
        (
            {"objective": {"type": "kto"}, "train": {"per_device_train_batch_size": 1}},
            "train.per_device_train_batch_size",
        ),
        ({"devices": {"num_machines": 2}}, "devices.main_process_ip"),
        ({"devices": {"machine_rank": 1}}, "devices.machine_rank"),
        ({"devices": {"gpu_ids": "a"}}, "devices.gpu_ids"),
        ({"devices": {"gpu_ids": "0,1"}}, "devices.gpu_ids"),
    ],
)
def test_what_cannot_go_together_is_named(values, where):
    assert where in faults_of(values)
