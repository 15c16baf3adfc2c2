"""What the command line prints of models and forecasts, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemma_tune.catalog import MODELS
from gemma_tune.config import RunConfig
from gemma_tune.data.doctor import Report
from gemma_tune.errors import ModelError
from gemma_tune.fit import Choice
from gemma_tune.forecast import Forecast


def models() -> Iterator[str]:
    """The catalogue as a table."""
    yield f"{'id':34} {'parameters':>14} {'context':>9} {'download':>9}  licence"
    for card in MODELS.values():
        gate = f"{card.licence}, accepted at {card.page}" if card.gated else card.licence
        download = "none" if card.id == "pocket" else gigabytes(card.bytes_on_disk)
        yield f"{card.id:34} {card.parameters:>14,} {card.context_tokens:>9,} {download:>9}  {gate}"


def forecast(config: RunConfig, found: Forecast | None, device: str, report: Report) -> Iterator[str]:
    """Memory by part, time and disk. ModelError where the shape of the model is not known."""
    if found is None:
        raise ModelError.at(
            "model.id", config.model.id, "Its config.json is not on this disk, so its shape is not known.",
            "Download it first, or choose a model of the catalogue: gemma-tune models.",
        )  # fmt: skip
    verdict = "✓ Fits" if found.fits else "✗ Does not fit"
    yield f"{verdict}: {gigabytes(found.peak_bytes)} needed, {gigabytes(found.available_bytes)} free on {device}"
    for name, amount in found.parts.items():
        if amount:
            yield f"  {name:12} {gigabytes(amount)}"
    if not len(report.lengths):
        yield "The tokens of the rows are not known here: every row is taken to be as long as allowed."
    if found.seconds_range:
        low, high = (seconds / 60 for seconds in found.seconds_range)
        yield f"{found.steps:,} steps in about {low:,.1f} to {high:,.1f} minutes"
    yield f"{gigabytes(found.disk_bytes)} on disk for checkpoints and the result"


def ways(found: Sequence[Choice]) -> Iterator[str]:
    """The changes that make a run fit, as they are written on the command line."""
    yield (
        "To make it fit:"
        if found
        else "No setting makes it fit here; choose a smaller model or a larger machine."
    )
    for way in found:
        changes = " ".join(f"{name}={value}" for name, value in way.changes.items())
        yield f"  {gigabytes(way.forecast.peak_bytes)}  {changes}"
        yield f"      {way.why} {way.costs}"


def gigabytes(amount: float) -> str:
    return f"{amount / 1e9:,.2f} GB"
