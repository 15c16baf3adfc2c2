"""The catalogue as a person picks from it: family, then size, then base or instruction-tuned. Nothing is downloaded."""

from __future__ import annotations

import time

from gemma_tune.catalog import BASE, INSTRUCTION_TUNED, MODELS, POCKET_ID, ModelCard
from gemma_tune.errors import GemmaTuneError
from gemma_tune.hub_adapters import RUN_PREFIX
from gemma_tune.outlook import card_of
from gemma_tune.runs import engine
from gemma_tune.runs.folder import list_runs
from gemma_tune.ui.views import count, size

OWN, RUN = "own", "run"  # values beside the families
VARIANTS = {
    INSTRUCTION_TUNED: "Instruction-tuned\nAnswers already; takes on your style and facts",
    BASE: "Base\nOnly goes on with a text; for plain text, or very many rows",
}


def family_choices() -> list[tuple[str, str]]:
    """(label, family), Pocket Gemma first, then in the catalogue's order; then a run's model and any other."""
    families = list(dict.fromkeys(card.family for card in MODELS.values()))
    choices = [(f"{family}\n{_sizes_words(family)}", family) for family in families]
    if finished_runs():
        choices.append(("A run of mine\nGoes on from what it learned", RUN))
    return [*choices, ("Another Gemma\nA Hub id or a folder", OWN)]


def _sizes_words(family: str) -> str:
    cards = _of(family)
    if cards[0].id == POCKET_ID:
        return "Built in: no download, no token"
    sizes = list(dict.fromkeys(card.size for card in cards))
    return sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def size_choices(family: str) -> list[tuple[str, str]]:
    first = {}
    for card in _of(family):
        first.setdefault(card.size, card)
    return [
        (f"{name}\n{count(card.parameters)} parameters\n{size(card.bytes_on_disk)}", name)
        for name, card in first.items()
    ]


def variant_choices(family: str, size_name: str) -> list[tuple[str, str]]:
    return [(VARIANTS[card.variant], card.variant) for card in _of(family) if card.size == size_name]


def pick(family: str, size_name: str | None = None, variant: str | None = None) -> ModelCard:
    """The card of a choice; what the family does not have is replaced by its first size, and by instruction-tuned."""
    cards = [card for card in _of(family) if card.size == size_name] or _of(family)
    cards = [card for card in cards if card.size == cards[0].size]  # instruction-tuned first
    return next((card for card in cards if card.variant == variant), cards[0])


def _of(family: str) -> list[ModelCard]:
    return [card for card in MODELS.values() if card.family == family]


# ---- runs to go on from -------------------------------------------------------------------------------------------
def finished_runs() -> list[tuple[str, str]]:
    """(label, run:ID) of runs whose model can be learned on, newest first."""
    found = []
    for folder in list_runs():
        state = engine.read_state(folder.id)
        if state.saved and state.is_over and _speaks(folder):
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.created_time or 0))
            card = card_of(state.model)
            found.append(
                (f"{state.name} · {card.label if card else state.model} · {when}", RUN_PREFIX + folder.id)
            )
    return found


def _speaks(folder) -> bool:
    """Whether a run's model answers: a reward model only scores."""
    try:
        return folder.config().objective.type != "reward"
    except GemmaTuneError:
        return False
