"""Forecasts for the page: with the data that were checked and what was measured, and of a model at a glance."""

from __future__ import annotations

from dataclasses import replace

from gemma_tune import outlook
from gemma_tune.catalog import ModelCard
from gemma_tune.config import RunConfig, parse
from gemma_tune.fit import Choice
from gemma_tune.forecast import Forecast, forecast
from gemma_tune.geometry import Geometry
from gemma_tune.ui import checks, measuring, method_views
from gemma_tune.ui.model_views import Fit

GLANCE_TOKENS = 512


def forecast_of(config: RunConfig) -> Forecast | None:
    """None where the shape of the model is not known yet. What was measured stands in place of the estimate."""
    found = outlook.forecast_of(config, checks.of_data(config))
    measured = measuring.known(config)
    return _measured(found, measured) if found and measured else found


def ways(config: RunConfig) -> list[Choice]:
    return outlook.ways(config, checks.of_data(config))


def _measured(found: Forecast, measured: dict) -> Forecast:
    """The estimate with the peak and the pace of real steps; what the peak consists of is scaled to it."""
    scale = measured["peak_bytes"] / max(found.peak_bytes, 1)
    seconds = None if found.steps is None else found.steps * measured["seconds_per_step"]
    parts = {name: round(amount * scale) for name, amount in found.parts.items()}
    return replace(found, parts=parts, seconds=seconds, seconds_range=None)


def of_machine(model_id: str, revision: str = "main") -> list[Fit]:
    """How a model fits here with the usual settings, one answer a method, for rows of GLANCE_TOKENS."""
    geometry = outlook.geometry_of(model_id, revision)
    if geometry is None:
        return []
    card = outlook.card_of(model_id)
    return [_fit(method, geometry, card, model_id) for method in ("lora", "qlora", "full")]


def _fit(method: str, geometry: Geometry, card: ModelCard | None, model_id: str) -> Fit:
    values: dict[str, dict] = {"model": {"id": model_id}, "method": {"type": method}}
    for name, one in method_views.recommended("sft", method, card).items():
        section, _, setting = name.partition(".")
        values.setdefault(section, {})[setting] = one.value
    values["train"]["max_length"] = GLANCE_TOKENS
    config = parse(values)
    device = outlook.device_of(config)
    found = forecast(config, geometry, device)
    smaller = {
        "per_device_train_batch_size": 1,
        "activation_checkpointing": True,
        "selective_checkpointing": False,
    }
    least = config.model_copy(update={"train": config.train.model_copy(update=smaller)})
    can = not found.fits and forecast(least, geometry, device).fits
    return Fit(method, found.peak_bytes, found.available_bytes, found.fits, can)
