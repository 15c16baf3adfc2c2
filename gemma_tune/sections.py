"""Every setting as a pydantic field: default, range, unit, help, place in the form, and when it applies.

Read them through `config`, which re-exports what others need. Names are those of Transformers, PEFT and TRL.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Further arguments that `advanced` may pass through: no paths, no code, no reporting targets.
ADVANCED_TRAINER = _names(
    "adam_beta1 adam_beta2 adam_epsilon optim_args lr_scheduler_kwargs dataloader_num_workers dataloader_drop_last "
    "data_seed tf32 torch_empty_cache_steps pad_to_multiple_of eval_accumulation_steps eval_delay "
    "train_sampling_strategy label_smoothing_factor full_determinism activation_offloading "
    "router_aux_loss_coef"
)  # of every trainer whose configuration has them
ADVANCED_OBJECTIVE = {
    "sft": frozenset(["loss_type", "packing_strategy"]),
    "dpo": _names(
        "f_divergence_type f_alpha_divergence_coef ld_alpha use_weighting discopop_tau sync_ref_model "
        "ref_model_mixup_alpha ref_model_sync_steps disable_dropout"
    ),
    "kto": _names("loss_type sync_ref_model ref_model_mixup_alpha ref_model_sync_steps disable_dropout"),
    "orpo": frozenset(["disable_dropout"]),
    "reward": frozenset(["center_rewards_coefficient", "disable_dropout"]),
    "grpo": _names(
        "top_p top_k min_p repetition_penalty num_iterations epsilon epsilon_high delta loss_type scale_rewards "
        "importance_sampling_level mask_truncated_completions reward_weights top_entropy_quantile entropy_coef "
        "steps_per_generation sync_ref_model ref_model_mixup_alpha ref_model_sync_steps disable_dropout"
    ),
}
ADVANCED_LORA = _names(
    "bias layers_to_transform layers_pattern rank_pattern alpha_pattern exclude_modules modules_to_save "
    "target_modules target_parameters"
)

Condition = dict[str, tuple[Any, ...]]  # dotted setting -> the values under which another one applies
ADAPTER: Condition = {"method.type": ("lora", "qlora")}
QUANTIZED: Condition = {"method.type": ("qlora",)}


def objective(*names: str) -> Condition:
    return {"objective.type": names}


def setting(default: Any, label: str, help: str, *, unit: str = "", front: bool = False, **rules: Any) -> Any:
    """One setting. `front`: stands in the form before the fold; `only`: the Condition under which it applies.

    Further rules are pydantic's: gt, ge, lt, le.
    """
    only = rules.pop("only", None) or {}
    extra = {"label": label, "unit": unit, "front": front, "only": only}
    return Field(default, description=help, json_schema_extra=extra, **rules)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), validate_default=True)


class ModelSection(Section):
    id: str = setting(
        "pocket",
        "Model",
        "A model of the catalogue, a Hub id, a local folder, or run:ID to go on from a finished run.",
        front=True,
    )
    revision: str = setting("main", "Revision", "Branch, tag or commit of the model on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Weights",
        "Number format of the loaded weights; auto is bfloat16 on a GPU, float32 without one.",
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"] = setting(
        "auto",
        "Attention",
        "How attention is computed; auto takes the fastest that the model's guards allow.",
    )


Schema = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "kto", "text"]
Fix = Literal["strip", "drop_empty_turns", "merge_turns"]


class MixSource(BaseModel):
    """One more source of a run, with how its rows are read."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    source: str = Field(min_length=1)
    subset: str = ""
    split: str = "train"
    format: Schema = "auto"
    columns: dict[str, str] = {}
    weight: float = Field(1.0, gt=0, le=100)


class DataSection(Section):
    source: str = setting(
        "example:pocket-json",
        "Data",
        "example:NAME, hub:OWNER/NAME, tfds:NAME, or the path of a file, a zip file or a folder.",
        front=True,
    )
    subset: str = setting("", "Subset", "Configuration of a Hub data set; empty for its default.")
    split: str = setting(
        "train", "Split", "Split of a Hub or TFDS data set; train[:1000] and train[10%:20%] take a part."
    )
    format: Schema = setting("auto", "Schema", "How a row is read; auto recognises it from the columns.")
    columns: dict[str, str] = setting(
        {}, "Columns", "Which column holds which field, such as prompt: question. Empty: by their names."
    )
    read_images: bool = setting(
        True, "Read images", "The column of images is learned with its rows; off leaves it out, and the text alone is learned."
    )  # fmt: skip
    fixes: list[Fix] = setting(
        [],
        "Fixes",
        "What is mended in rows: strip blanks around turns, drop_empty_turns, merge_turns of one role.",
    )
    weight: float = setting(
        1.0, "Weight", "How often each row is learned per epoch: 0.5 takes half of them, 2 each twice.",
        gt=0, le=100, unit="times",
    )  # fmt: skip
    mix: list[MixSource] = setting(
        [],
        "Mix",
        "Further sources of the same run, each with source, subset, split, format, columns, weight.",
    )
    validation_source: str = setting(
        "",
        "Validation data",
        "A source of its own for validation; empty splits some off (examples bring theirs).",
    )
    validation_fraction: float = setting(
        0.1, "Validation share", "Share of the rows held back to measure progress.", ge=0, le=0.5, front=True
    )
    validation_rows: int = setting(
        0, "Validation count", "So many rows held back in place of a share; 0: the share counts.",
        ge=0, le=10_000_000, unit="rows",
    )  # fmt: skip
    split_column: str = setting(
        "", "Split column", "A column that says train, or validation, dev, eval or test; empty: none."
    )
    split_seed: int = setting(
        42, "Split seed", "The same seed splits the same data alike.", ge=0, le=2**31 - 1
    )


class MethodSection(Section):
    type: Literal["lora", "qlora", "full"] = setting(
        "lora", "Method",
        "LoRA trains a small adapter; QLoRA does so on a quantized base; full trains every weight.", front=True,
    )  # fmt: skip
    r: int = setting(16, "LoRA rank", "Size of the adapter.", ge=1, le=512, front=True, only=ADAPTER)
    lora_alpha: int = setting(
        32, "LoRA alpha", "Strength of the adapter; twice the rank is usual.",
        ge=1, le=2048, front=True, only=ADAPTER,
    )  # fmt: skip
    lora_dropout: float = setting(
        0.0, "LoRA dropout", "Share of adapter inputs left out at random.", ge=0, le=0.9, only=ADAPTER
    )
    target_modules: Literal["all-linear", "attention"] = setting(
        "all-linear", "LoRA layers", "Which linear layers of the language model get an adapter.", only=ADAPTER
    )
    use_dora: bool = setting(
        False, "DoRA", "Learns size and direction of each weight apart: a little better at low ranks, slower.",
        only=ADAPTER,
    )  # fmt: skip
    use_rslora: bool = setting(
        False, "rsLoRA", "Scales by alpha / √rank, so that ranks above 32 go on helping.", only=ADAPTER
    )
    init_lora_weights: Literal["default", "gaussian", "pissa", "olora", "loftq"] = setting(
        "default", "LoRA start",
        "How the adapter begins: default changes nothing at first; pissa and olora begin from the weights' main "
        "directions, loftq (on unquantized weights, which it quantizes) from what quantization loses.", only=ADAPTER,
    )  # fmt: skip
    quantization: Literal["nf4", "int8"] = setting(
        "nf4", "Quantization", "Number format of the frozen base: nf4 takes half a byte per weight, int8 one.",
        only=QUANTIZED,
    )  # fmt: skip
    bnb_4bit_use_double_quant: bool = setting(
        True, "Double quantization", "Quantizes nf4's scales too: 0.4 bits per weight less.",
        only=QUANTIZED | {"method.quantization": ("nf4",)},
    )  # fmt: skip


class ObjectiveSection(Section):
    type: Literal["sft", "dpo", "kto", "orpo", "reward", "grpo"] = setting(
        "sft", "Objective",
        "What is learned from the rows: sft from answers or plain text, dpo, orpo and reward from pairs, kto from good "
        "and bad answers, grpo from rewards for the model's own answers.", front=True,
    )  # fmt: skip
    beta: float = setting(
        0.1, "Beta", "How strongly the tuned model is held to the base; for ORPO the weight of the preference.",
        ge=0, le=100, front=True, only=objective("dpo", "kto", "orpo", "grpo"),
    )  # fmt: skip
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = setting(
        "sigmoid", "DPO loss", "sigmoid is DPO itself; ipo overfits less, hinge is SLiC's, robust expects wrong labels.",
        only=objective("dpo"),
    )  # fmt: skip
    label_smoothing: float = setting(
        0.1, "Wrong labels", "Share of pairs expected to be the wrong way round.", gt=0, lt=0.5,
        only=objective("dpo") | {"objective.loss_type": ("robust",)},
    )  # fmt: skip
    sft_weight: float = setting(
        0.0, "SFT term", "Weight of the chosen answer's own loss beside DPO's; 1 keeps the model fluent; 0: none.",
        ge=0, le=100, only=objective("dpo"),
    )  # fmt: skip
    desirable_weight: float = setting(
        1.0,
        "Weight of good answers",
        "Raise it where good answers are few.",
        gt=0,
        le=100,
        only=objective("kto"),
    )
    undesirable_weight: float = setting(
        1.0,
        "Weight of bad answers",
        "Raise it where bad answers are few.",
        gt=0,
        le=100,
        only=objective("kto"),
    )
    reward: Literal["exact_match", "regex", "json", "tool_call"] = setting(
        "exact_match", "Reward",
        "What earns 1: the row's own answer, a match of the pattern, valid JSON, or the row's own tool call.",
        front=True, only=objective("grpo"),
    )  # fmt: skip
    reward_pattern: str = setting(
        "", "Pattern", "Python regular expression that the whole answer must match.",
        only=objective("grpo") | {"objective.reward": ("regex",)},
    )  # fmt: skip
    num_generations: int = setting(
        8, "Answers per prompt", "Tried and compared with each other.", ge=2, le=128, unit="answers", front=True,
        only=objective("grpo"),
    )  # fmt: skip
    max_completion_length: int = setting(
        256, "Answer length", "Longest answer tried.", ge=1, le=32_768, unit="tokens", only=objective("grpo")
    )
    temperature: float = setting(
        1.0, "Temperature", "How varied the tried answers are.", gt=0, le=2, only=objective("grpo")
    )


class TrainSection(Section):
    num_train_epochs: float = setting(
        3.0, "Epochs", "How often the model sees every row.", gt=0, le=1000, unit="passes", front=True
    )
    max_steps: int = setting(
        -1,
        "Maximum steps",
        "Stops after so many steps whatever the epochs; -1: no limit.",
        ge=-1,
        le=10_000_000,
    )
    per_device_train_batch_size: int = setting(
        8, "Batch size", "Rows per step on one device.", ge=1, le=1024, unit="rows", front=True
    )
    gradient_accumulation_steps: int = setting(
        1,
        "Gradient accumulation",
        "Batches added up before the weights change.",
        ge=1,
        le=1024,
        unit="batches",
    )
    learning_rate: float = setting(
        2e-4, "Learning rate", "Size of each change. Full fine-tuning wants about a tenth of LoRA's.",
        gt=0, le=0.1, front=True,
    )  # fmt: skip
    max_length: int = setting(
        1024,
        "Maximum length",
        "Longer rows are cut at the end.",
        ge=16,
        le=131_072,
        unit="tokens",
        front=True,
    )
    seed: int = setting(42, "Seed", "The same seed gives the same run.", ge=0, le=2**31 - 1, front=True)
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant", "constant_with_warmup"
    ] = setting("linear", "Schedule", "How the learning rate falls over the run.")  # fmt: skip
    warmup_steps: float = setting(
        0.03, "Warm-up", "Steps of rising learning rate; below 1 it is a share of the run.", ge=0, le=100_000
    )
    weight_decay: float = setting(0.0, "Weight decay", "Pull of the weights towards zero.", ge=0, le=1)
    max_grad_norm: float = setting(
        1.0, "Gradient clipping", "Longest gradient allowed; 0: no limit.", ge=0, le=1000
    )
    optim: Literal[
        "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit",
        "adafactor", "sgd",
    ] = setting(
        "adamw_torch_fused", "Optimizer",
        "8-bit ones take a quarter of Adam's memory, paged ones move to the host where the GPU is full; Adafactor needs "
        "least.",
    )  # fmt: skip
    activation_checkpointing: bool = setting(
        True, "Gradient checkpointing", "Less memory for about a third more time."
    )
    selective_checkpointing: bool = setting(
        False, "Keep costly results",
        "Gradient checkpointing keeps the results that take longest to compute: faster, for somewhat more memory.",
        only={"train.activation_checkpointing": (True,)},
    )  # fmt: skip
    bf16: Literal["auto", "on", "off"] = setting(
        "auto", "bfloat16 arithmetic", "Mixed precision; auto is on where the device computes bfloat16 fast."
    )
    assistant_only_loss: bool = setting(
        True, "Learn answers only", "Only the assistant's words are learned, not the questions.",
        only=objective("sft"),
    )  # fmt: skip
    padding_free: bool = setting(
        True, "No padding", "Rows of a batch stand one after the other instead of being padded; each sees only itself.",
        only=objective("sft"),
    )  # fmt: skip
    packing: bool = setting(
        False, "Packing", "Fills each row of a batch with several short documents: fewer, larger steps.",
        only=objective("sft"),
    )  # fmt: skip
    fused_linear_cross_entropy: bool = setting(
        True, "Fused loss", "Scores learned tokens only, in chunks, and never keeps the scores of the vocabulary.",
        only=objective("sft"),
    )  # fmt: skip
    use_liger_kernel: Literal["auto", "on", "off"] = setting(
        "auto", "Liger kernels", "Faster norms and activations on a GPU, where the package is installed."
    )
    torch_compile: bool = setting(
        False, "Compile", "Compiles the model: pays after some minutes on a GPU, seldom on a CPU."
    )
    neftune_noise_alpha: float = setting(
        0.0, "NEFTune noise", "Noise on the embeddings against overfitting; 5 is usual, 0 is off.", ge=0, le=100,
        only=objective("sft"),
    )  # fmt: skip
    logging_steps: int = setting(
        1, "Log every", "Steps between two points of the curve.", ge=1, le=10_000, unit="steps"
    )
    survive_out_of_memory: bool = setting(
        True, "Survive out of memory",
        "Starts again from the last checkpoint with half the batch and twice the accumulation.",
    )  # fmt: skip


class EvalSection(Section):
    eval_steps: float = setting(
        0.1,
        "Evaluate every",
        "Steps between two validations; below 1 it is a share of the run; 0: never.",
        ge=0,
        le=1e6,
    )
    per_device_eval_batch_size: int = setting(
        8, "Validation batch size", "Rows per validation batch.", ge=1, le=1024, unit="rows"
    )
    early_stopping_patience: int = setting(
        0, "Early stopping", "Ends the run after so many validations without a better loss; 0: never.",
        ge=0, le=1000, unit="validations",
    )  # fmt: skip
    load_best_model_at_end: bool = setting(
        False, "Keep the best", "The checkpoint with the lowest validation loss becomes the result."
    )
    exact_match_rows: int = setting(
        64, "Report size", "Validation rows that base and tuned both answer at the end; 0: no report.",
        ge=0, le=10_000, unit="rows",
    )  # fmt: skip
    max_new_tokens: int = setting(
        128, "Report answer length", "Longest answer in that report.", ge=1, le=8192, unit="tokens"
    )


class OutputSection(Section):
    name: str = setting("my-gemma", "Run name", "Letters, digits, space, dot, dash, underscore.", front=True)
    save_steps: float = setting(
        0.25, "Save every", "Steps between two checkpoints; below 1 it is a share of the run.", gt=0, le=1e6
    )
    save_total_limit: int = setting(2, "Checkpoints kept", "Older ones are removed.", ge=1, le=100)


class DevicesSection(Section):
    num_processes: int = setting(
        1, "Processes", "Worker processes on this host, one for each GPU.", ge=1, le=64, unit="processes"
    )
    gpu_ids: str = setting("", "GPUs", "Which GPUs are used, such as 0,1; empty: the first ones.")
    distributed_type: Literal["ddp", "fsdp", "deepspeed"] = setting(
        "ddp", "Sharing", "ddp holds the whole model on each GPU; fsdp and deepspeed (ZeRO) share it out."
    )
    zero_stage: int = setting(
        2, "ZeRO stage", "1 shares the optimizer, 2 the gradients too, 3 the weights too.", ge=1, le=3,
        only={"devices.distributed_type": ("deepspeed",)},
    )  # fmt: skip
    num_machines: int = setting(1, "Hosts", "Machines that train together.", ge=1, le=64, unit="hosts")
    machine_rank: int = setting(0, "Rank of this host", "0 on the first host, 1 on the next.", ge=0, le=63)
    main_process_ip: str = setting("", "Address of host 0", "As the other hosts reach it.")
    main_process_port: int = setting(
        29_500, "Port of host 0", "Free, and open between the hosts.", ge=1, le=65_535
    )

    @property
    def processes(self) -> int:
        """Training processes on all hosts together."""
        return self.num_processes * self.num_machines

    @property
    def is_zero_3(self) -> bool:
        """Whether DeepSpeed shares out the weights themselves."""
        return self.distributed_type == "deepspeed" and self.zero_stage == 3


class AdvancedSection(Section):
    trainer: dict[str, Any] = setting(
        {}, "Trainer", "Further arguments of TRL's configuration of the objective (SFTConfig, DPOConfig, …)."
    )
    lora: dict[str, Any] = setting({}, "LoraConfig", "Further arguments of PEFT's LoraConfig.", only=ADAPTER)


class RunConfig(Section):
    """Everything that decides what a run computes."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    method: MethodSection = MethodSection()
    objective: ObjectiveSection = ObjectiveSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    output: OutputSection = OutputSection()
    devices: DevicesSection = DevicesSection()
    advanced: AdvancedSection = AdvancedSection()

    def to_yaml(self, *, complete: bool = False) -> str:
        """YAML with only what differs from the defaults, or complete."""
        values = self.model_dump() if complete else self.model_dump(exclude_defaults=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else "{}\n"

    def digest(self) -> str:
        """16 hex digits that are equal exactly where two configurations are."""
        text = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
