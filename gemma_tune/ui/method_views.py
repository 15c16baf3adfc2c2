"""What the method step offers and why, from the data's kinds, the model's card and the objective: pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import Any

from gemma_tune.catalog import MODELS, ModelCard
from gemma_tune.config import field_of
from gemma_tune.data.fitting import WORDS
from gemma_tune.objectives import OBJECTIVES, Advice, Objective
from gemma_tune.objectives import advice as advised
from gemma_tune.support import refusal

METHODS = [
    ("LoRA\nTrains a small adapter beside the frozen model: little memory, hard to break", "lora"),
    ("QLoRA\nThe same on a model squeezed to 4 bits: the least memory, somewhat slower", "qlora"),
    ("Full\nTrains every weight: the most memory, for larger changes", "full"),
]
TUNERS = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning"}
SHORT = {"orpo": "Both in one (ORPO)"}  # the title of a card stands on one line
IMAGES = "images"  # among the kinds of rows: some of them hold images
PRE_TRAINING = "Continued pre-training\nThese data are plain text: it reads on, as the first training did"
CHOSEN = {
    "messages": "Answers\nLearns to answer as your rows do",
    "pair": "Answers\nLearns the better answer of each pair; the worse ones are left alone",
    "label": "Answers\nLearns the answers marked good; the bad ones are left alone",
}


def fits(one: Objective, kinds: Collection[str]) -> bool:
    """Whether an objective learns from rows of any of these kinds; from unknown data each does, from images only SFT."""
    if IMAGES in kinds:
        return one.name == "sft"
    return not kinds or bool(set(kinds) & set(one.rows))


def objective_choices(kinds: Collection[str] = (), model_type: str = "") -> list[tuple[str, str]]:
    """(label, name) of the objectives that these data and this kind of model allow; "" is a model not known yet."""
    return [
        (_label(one, kinds), one.name)
        for one in OBJECTIVES.values()
        if fits(one, kinds) and not refusal(model_type, one.name)
    ]


def _label(one: Objective, kinds: Collection[str]) -> str:
    of_text = set(kinds) - {IMAGES}
    if one.name == "sft" and len(of_text) == 1:
        (kind,) = of_text
        if kind == "text":
            return PRE_TRAINING
        if kind in CHOSEN:
            return CHOSEN[kind]
    return f"{SHORT.get(one.name, one.label)}\n{one.explained}"


def fitting(objective: str, kinds: Collection[str], model_type: str = "") -> str:
    """The objective itself where data and model allow it, else the first that they do."""
    allowed = [name for _, name in objective_choices(kinds, model_type)]
    return objective if objective in allowed or not allowed else allowed[0]


def left_out(kinds: Collection[str], model_type: str = "") -> str:
    """Which objectives these data or this kind of model do not allow, each with what it would need."""
    missing = [one for one in OBJECTIVES.values() if not fits(one, kinds)]
    allowed = [one for one in OBJECTIVES.values() if fits(one, kinds)]
    refused = [(one.label, reason) for one in allowed if (reason := refusal(model_type, one.name))]
    count = len(missing) + len(refused)
    if not count:
        return ""
    images = " without images" if IMAGES in kinds else ""
    items = [
        f"<li><b>{escape(one.label)}</b> needs {escape(_any_of(one.rows))}{images}</li>" for one in missing
    ]
    items += [f"<li><b>{escape(label)}</b>: {escape(reason)}</li>" for label, reason in refused]
    if refused:
        words = ("One other is" if count == 1 else f"{count} others are") + " not offered here"
    else:
        have = " and ".join(WORDS[kind] for kind in WORDS if kind in kinds) + images.replace("out", "")
        words = ("One other needs" if count == 1 else f"{count} others need") + f" other data than {have}"
    return f'<details class="gt-quiet-fold"><summary>{escape(words)}</summary><ul>{"".join(items)}</ul></details>'


def _any_of(kinds: Sequence[str]) -> str:
    return " or ".join(WORDS[kind] for kind in kinds)


# ---- recommended values --------------------------------------------------------------------------------------------
def recommended(objective: str, method_type: str, card: ModelCard | None) -> dict[str, Advice]:
    """Every setting that some model, objective or method wants otherwise, with what suits this one and why."""
    own = OBJECTIVES[objective].advice(method_type)
    found = {}
    for name, value in advised(objective, method_type, card).items():
        general = own.get(name)
        source = general.source if general and general.value == value else _of_card(card)
        found[name] = Advice(value, source)
    return {
        name: found.get(name) or Advice(field_of(name).default, "the usual value") for name in advisable()
    }


def advisable() -> list[str]:
    """The settings that any advice names, in a fixed order."""
    sets = [tuned for one in OBJECTIVES.values() for tuned in (one.adapter, one.full)]
    sets += [values for card in MODELS.values() for values in card.recommended.values()]
    return list(dict.fromkeys(name for values in sets for name in values))


def _of_card(card: ModelCard | None) -> str:
    return f"what suits {card.label}" if card else "the usual value"


def advice_lines(found: dict[str, Advice], values: dict[str, Any], applies) -> str:
    """The recommended numbers that differ from the form's defaults, each with its source; changed ones are marked."""
    lines = []
    for name, one in found.items():
        if not applies(name, values) or (one.value == field_of(name).default and "rate" not in name):
            continue
        label = field_of(name).json_schema_extra["label"]
        yours = values.get(name, one.value)
        changed = "" if yours == one.value else f' <i class="gt-changed">yours: {escape(plain(yours))}</i>'
        lines.append(
            f"<li><b>{escape(label)} {escape(plain(one.value))}</b>{changed} {escape(one.source)}</li>"
        )
    return f'<ul class="gt-advice" aria-label="Recommended">{"".join(lines)}</ul>'


def plain(value: Any) -> str:
    """A setting's value as a person writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
