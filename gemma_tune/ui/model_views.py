"""What the model step says of a model, as HTML: pure functions. All foreign text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gemma_tune.catalog import ModelCard
from gemma_tune.hub import ModelFacts
from gemma_tune.ui.method_views import TUNERS
from gemma_tune.ui.views import count, facts, linked, notice, size


@dataclass(frozen=True)
class Fit:
    """Whether a method fits this machine with the usual settings, or with others."""

    method_type: str
    needed_bytes: int
    available_bytes: int
    fits: bool
    can_be_made_to: bool = False


def facts_of_card(card: ModelCard, *, on_disk: bool, fits: Sequence[Fit] = ()) -> str:
    """The card below the choice, from the catalogue alone: nothing is asked of the network."""
    table = facts(
        [
            ("Parameters", f"{card.parameters:,}"),
            ("Layers", str(card.layers)),
            ("Longest text", f"{card.context_tokens:,} tokens"),
            ("Vocabulary", f"{card.vocabulary_tokens:,} tokens"),
            ("Download", "none, it is on this disk" if on_disk else size(card.bytes_on_disk)),
            ("System text", card.system_role),
        ]
    )
    gate = f"{card.licence}, accepted once at {card.page}" if card.gated else f"none. {card.licence}"
    lines = [("Licence gate", linked(gate)), *(("Good to know", escape(trap)) for trap in card.traps)]
    return _card(card.id if card.gated else card.label, table, fits, lines)


def facts_of_model(found: ModelFacts, *, fits: Sequence[Fit] = ()) -> str:
    """The same for a model that is in no catalogue, as it was read from its repository or folder."""
    table = facts(
        [
            ("Parameters", f"{found.parameters:,}" if found.parameters else "unknown"),
            ("Architecture", found.model_type),
            ("Longest text", f"{found.context_tokens:,} tokens" if found.context_tokens else "unknown"),
            ("Download", "none, it is on this disk" if found.on_disk else size(found.bytes_on_disk)),
        ]
    )
    gate = "yes, its licence is accepted on its page" if found.gated else "none"
    lines = [("Licence", escape(found.licence))]
    return _card(found.id, table, fits, lines if found.gated is None else [*lines, ("Licence gate", gate)])


def facts_of_run(name: str, base: str, parameters: int | None, *, fits: Sequence[Fit] = ()) -> str:
    table = facts([("Learned from", base), ("Parameters", count(parameters))])
    words = "The new run begins from this run's model, and leaves the run itself as it is."
    return _card(name, table, fits, [("Good to know", words)])


def _card(title: str, table: str, fits: Sequence[Fit], lines: Sequence[tuple[str, str]]) -> str:
    notes = "".join(f'<p class="gt-note"><b>{label}:</b> {words}</p>' for label, words in lines)
    return (
        f'<div class="gt-card gt-model"><div class="gt-cardhead"><h3>{escape(title)}</h3>{fit_pills(fits)}</div>'
        f'{table}<div class="gt-notes">{notes}</div></div>'
    )


def fit_pills(fits: Sequence[Fit]) -> str:
    """The machine's fit at a glance, one pill a method."""
    return "".join(map(_pill, fits))


def _pill(one: Fit) -> str:
    tone, words = "bad", f"needs {size(one.needed_bytes)} of {size(one.available_bytes)}"
    if one.fits:
        tone, words = "good", f"fits, {size(one.needed_bytes)}"
    elif one.can_be_made_to:
        tone, words = "warm", "fits with smaller settings"
    label = {"full": "Full"}.get(one.method_type, TUNERS[one.method_type])
    return f'<span class="gt-pill gt-{tone}">{label}: {words}</span>'


def asked_for(title: str, words: str) -> str:
    """In place of facts that are not known yet."""
    return notice("", title, words)
