"""The forecast as HTML: a memory bar in segments, figures, and the ways to make a run fit. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from gemma_tune.fit import Choice
from gemma_tune.forecast import Forecast
from gemma_tune.ui.method_views import plain
from gemma_tune.ui.views import notice, place, size

PARTS = {  # key of a forecast -> how it is called
    "weights": "Weights",
    "adapters": "Adapter",
    "gradients": "Gradients",
    "optimizer": "Optimizer",
    "activations": "Activations",
    "logits": "Scores of the vocabulary",
    "reference": "Reference model",
    "overhead": "Libraries",
}

MEASURING = {
    "starting": "Starting",
    "tokenizing": "Reading the rows",
    "loading": "Loading the model",
    "training": "Two steps on the longest rows",
}


def panel(forecast: Forecast, where: str, *, measured: bool = False) -> str:
    """The whole card. `where`: the device in words; `measured`: whether memory and time are of real steps."""
    tone, verdict = ("good", "Fits") if forecast.fits else ("bad", "Does not fit")
    how = "Estimated from the model's shape and your rows; loading and reports take time on top."
    if measured:
        how = "Measured on two real steps with your longest rows."
    return (
        '<section class="gt-card gt-forecast" aria-live="polite">'
        f'<div class="gt-cardhead"><h3>Will it fit?</h3><span class="gt-pill gt-{tone}">{verdict}</span></div>'
        f"{_head(forecast, where)}{_bar(forecast)}{_legend(forecast)}{_figures(forecast)}"
        f'<p class="gt-note">{how}</p></section>'
    )


def unknown(words: str) -> str:
    """In place of a forecast."""
    return (
        '<section class="gt-card gt-forecast"><div class="gt-cardhead"><h3>Will it fit?</h3></div>'
        f'<p class="gt-note">{escape(words)}</p></section>'
    )


def _head(forecast: Forecast, where: str) -> str:
    return (
        f'<p class="gt-need"><strong>{size(forecast.peak_bytes)}</strong> of {size(forecast.available_bytes)} free '
        f"{escape(where)}</p>"
    )


def _bar(forecast: Forecast) -> str:
    """Segments in proportion to what is free, or to the peak where that is more; a line marks what is free."""
    whole = max(forecast.peak_bytes, forecast.available_bytes, 1)
    segments = "".join(
        f'<i class="gt-part gt-p-{escape(key)}" style="width:{100 * amount / whole:.2f}%" '
        f'title="{escape(PARTS.get(key, key))}: {size(amount)}"></i>'
        for key, amount in forecast.parts.items()
        if amount
    )
    limit = ""
    if forecast.peak_bytes > forecast.available_bytes:
        limit = f'<b class="gt-free" style="left:{100 * forecast.available_bytes / whole:.2f}%"></b>'
    words = f"{size(forecast.peak_bytes)} needed, {size(forecast.available_bytes)} free"
    return f'<div class="gt-memory" role="img" aria-label="{words}">{segments}{limit}</div>'


def _legend(forecast: Forecast) -> str:
    items = "".join(
        f'<li><i class="gt-part gt-p-{escape(key)}"></i><span>{escape(PARTS.get(key, key))}</span>'
        f"<b>{size(amount)}</b></li>"
        for key, amount in forecast.parts.items()
        if amount
    )
    return f'<ul class="gt-parts">{items}</ul>'


def _figures(forecast: Forecast) -> str:
    steps = "unknown" if forecast.steps is None else f"{forecast.steps:,}"
    pairs = [("Time", span(forecast)), ("Steps", steps), ("Disk", size(forecast.disk_bytes))]
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="gt-facts gt-three">{cells}</dl>'


def span(forecast: Forecast) -> str:
    """The time of training, from fast to slow where it is estimated."""
    if forecast.seconds is None or forecast.seconds_range is None:
        return about(forecast.seconds)
    low, high = forecast.seconds_range
    unit, word = _unit(high)
    first, last = _coarse(low / unit), _coarse(high / unit)
    return f"{first} to {last} {word}" if first != last else f"{last} {word}"


def about(seconds: float | None) -> str:
    """A duration as coarse as a forecast is: '40 s', '12 min', '3 h', '2 days'."""
    if seconds is None:
        return "unknown"
    seconds = max(seconds, 1)
    unit, word = _unit(seconds)
    return f"{_coarse(seconds / unit)} {word}"


def _unit(seconds: float) -> tuple[int, str]:
    units = ((86_400, "days"), (3_600, "h"), (60, "min"))
    return next(((unit, word) for unit, word in units if seconds >= 1.5 * unit), (1, "s"))


def _coarse(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


# ---- make it fit ---------------------------------------------------------------------------------------------------
def choices(found: Sequence[Choice], *, fits: bool) -> str:
    """The ways to need less memory, the least harmful first, each with a button; a closed fold where it fits anyway."""
    if not found:
        return (
            ""
            if fits
            else notice(
                "warm",
                "Nothing here makes it fit",
                "Choose a smaller model, shorter rows, or a machine with more memory.",
            )
        )
    rows = "".join(map(_choice, found))
    body = f'<ul class="gt-ways">{rows}</ul>'
    if fits:
        return (
            f'<details class="gt-quiet-fold"><summary>Other ways with less memory</summary>{body}</details>'
        )
    return f'<div class="gt-card gt-make"><div class="gt-cardhead"><h3>Make it fit</h3></div>{body}</div>'


def _choice(one: Choice) -> str:
    what = ", ".join(f"{place(name)} {plain(value)}" for name, value in one.changes.items())
    changes = escape(json.dumps(one.changes), quote=True)
    return (
        f'<li><div><b>{escape(what)}</b><span class="gt-note">{escape(one.why)} {escape(one.costs)}</span></div>'
        f'<span class="gt-ways-size">{size(one.forecast.peak_bytes)}</span>'
        f'<button type="button" class="gt-button gt-small" data-changes="{changes}">Apply</button></li>'
    )


def measuring(phase: str) -> str:
    """While the two steps run."""
    words = MEASURING.get(phase, phase[:1].upper() + phase[1:])
    return (
        f'<div class="gt-card" role="status"><p class="gt-note gt-checking">{escape(words)}…</p>'
        '<div class="gt-track gt-busy"><div style="width:100%"></div></div></div>'
    )
