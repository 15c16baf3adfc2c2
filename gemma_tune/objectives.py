"""What can be learned, and from which rows: TRL's trainers, each default with where it is from. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

TRL = "https://huggingface.co/docs/trl/v1.16.0"
LORA_TIMES_TEN = (
    "LoRA wants about ten times the rate of full fine-tuning (LoRA Without Regret, Thinking Machines 2025)"
)


@dataclass(frozen=True)
class Advice:
    """A default that differs from the form's own, and its source."""

    value: object
    source: str


@dataclass(frozen=True)
class Objective:
    """One trainer of TRL. `rows`: the kinds of the normal form that it learns from (`data.rows.Row`)."""

    name: str
    label: str
    explained: str
    rows: tuple[str, ...]
    trainer: str
    paper: str = ""
    adapter: dict[str, Advice] = field(default_factory=dict)  # for lora and qlora
    full: dict[str, Advice] = field(default_factory=dict)

    def advice(self, method_type: str) -> dict[str, Advice]:
        return self.full if method_type == "full" else self.adapter


def _rates(full: float, adapter: float, source: str, **beside: Advice) -> dict[str, dict[str, Advice]]:
    more = {name.replace("__", "."): advice for name, advice in beside.items()}
    return {
        "full": {"train.learning_rate": Advice(full, source), **more},
        "adapter": {"train.learning_rate": Advice(adapter, LORA_TIMES_TEN), **more},
    }


OBJECTIVES: dict[str, Objective] = {
    one.name: one
    for one in (
        Objective(
            "sft", "Answers", "Learns to answer as the rows do; from plain text it goes on with pre-training",
            ("messages", "pair", "label", "text"), "SFTTrainer",
            **_rates(2e-5, 2e-4, "TRL's SFTConfig"),
        ),
        Objective(
            "dpo", "Preferences (DPO)", "Learns from pairs which of two answers is better",
            ("pair",), "DPOTrainer", "https://arxiv.org/abs/2305.18290",
            **_rates(1e-6, 1e-5, "TRL's DPOConfig", objective__beta=Advice(0.1, "DPO paper; TRL's DPOConfig")),
        ),
        Objective(
            "kto", "Good and bad (KTO)", "Learns from single answers marked good or bad",
            ("label",), "KTOTrainer", "https://arxiv.org/abs/2402.01306",
            **_rates(1e-6, 1e-5, "TRL's KTOConfig", objective__beta=Advice(0.1, "KTO paper; TRL's KTOConfig")),
        ),
        Objective(
            "orpo", "Answers and preferences (ORPO)", "Learns the better answer and to prefer it, in one step",
            ("pair",), "ORPOTrainer", "https://arxiv.org/abs/2403.07691",
            **_rates(8e-6, 8e-5, "ORPO paper", objective__beta=Advice(0.1, "ORPO paper; TRL's ORPOConfig")),
        ),
        Objective(
            "reward", "Reward model", "Learns from pairs to score answers; the result gives numbers, not text",
            ("pair",), "RewardTrainer", "https://arxiv.org/abs/2203.02155",
            **_rates(1e-5, 1e-4, f"{TRL}/reward_trainer"),
        ),
        Objective(
            "grpo", "Rewards (GRPO)", "Tries several answers to each prompt and learns from those that pass a rule",
            ("messages",), "GRPOTrainer", "https://arxiv.org/abs/2402.03300",
            **_rates(1e-6, 1e-5, "TRL's GRPOConfig", objective__beta=Advice(0.0, "TRL's GRPOConfig")),
        ),
    )
}  # fmt: skip


def advice(objective: str, method_type: str, card: object | None = None) -> dict[str, object]:
    """Dotted settings that suit an objective and a method: the objective's own, then those of the model's card.

    A card's settings are of supervised training; its rate is not passed on to other objectives.
    """
    general = {name: one.value for name, one in OBJECTIVES[objective].advice(method_type).items()}
    tuner = "full" if method_type == "full" else "lora"
    recommended = getattr(card, "recommended", {})
    of_card = dict(recommended.get(tuner, {}))
    if objective != "sft":
        of_card.pop("train.learning_rate", None)
    return general | of_card | recommended.get(f"{objective}/{tuner}", {})
