"""What the form shows, as HTML: pure functions of facts, reports and faults. All foreign text is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from gemma_tune.catalog import MODELS
from gemma_tune.config import RunConfig, field_of
from gemma_tune.errors import Fault
from gemma_tune.objectives import OBJECTIVES
from gemma_tune.ui.method_views import TUNERS, plain


def count(number: float | None) -> str:
    """3200000 → '3.2 M', 270e6 → '270 M', 27e9 → '27 B'."""
    if number is None:
        return "unknown"
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:  # what three digits round up to it
            return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}"


def size(number: float | None) -> str:
    """Bytes as '8.2 GB' (powers of 1000)."""
    if number is None:
        return "unknown"
    for unit, letters in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g} {letters}"
    return f"{number:.0f} B"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="gt-facts">{body}</dl>'


def notice(tone: str, title: str, text: str, items: Sequence[str] = ()) -> str:
    listed = f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""
    return (
        f'<div class="gt-notice gt-{tone}" role="status"><strong>{escape(title)}</strong>'
        f"{f'<p>{escape(text)}</p>' if text else ''}{listed}</div>"
    )


def fault_list(faults: Sequence[Fault], title: str = "Not yet") -> str:
    """Every fault at once: label of the setting, what was met, the rule, the way out."""
    if not faults:
        return ""
    items = []
    for fault in faults:
        met = f" Found: <code>{escape(fault.value)}</code>." if fault.value else ""
        items.append(
            f"<b>{escape(place(fault.where))}</b>: {escape(fault.rule)}{met} {linked(fault.way_out)}"
        )
    return notice("bad", title, "", items)


def place(where: str) -> str:
    """'train.learning_rate' → 'Learning rate'; anything else stays as it is."""
    try:
        return field_of(where).json_schema_extra["label"]
    except (KeyError, ValueError):
        return source_label(where)


def figure(label: str, value: str, note: str, tone: str = "") -> str:
    return (
        f'<div class="gt-card gt-figure"><span class="gt-label">{escape(label)}</span><strong>{escape(value)}</strong>'
        f'<span class="gt-note gt-{tone or "plain"}">{escape(note)}</span></div>'
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table that scrolls within its card."""
    if not rows:
        return notice("", "Nothing here", "")
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="gt-card gt-scroll gt-rows"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def review(config: RunConfig, report) -> str:
    """The whole run on one card."""
    card = MODELS.get(config.model.id)
    goal, tuner = OBJECTIVES[config.objective.type], TUNERS[config.method.type]
    rank = "" if config.method.type == "full" else f", rank {config.method.r}"
    effective = (
        config.train.per_device_train_batch_size
        * config.train.gradient_accumulation_steps
        * config.devices.processes
    )
    parts = [
        ("Model", card.label if card else config.model.id, f"{count(card.parameters)} parameters" if card else "your own"),
        ("Data", source_label(config.data.source), f"{report.train_rows:,} rows to learn, {report.validation_rows:,} to check"),
        ("Method", f"{tuner[:1].upper()}{tuner[1:]}{rank}", f"{goal.label}, learning rate {plain(config.train.learning_rate)}, seed {config.train.seed}"),
        ("Length", f"{report.total_steps:,} steps", f"{config.train.num_train_epochs:g} epochs of {report.steps_per_epoch:,} steps, {effective} rows each"),
    ]  # fmt: skip
    return '<div class="gt-review">' + "".join(figure(*part) for part in parts) + "</div>"


def source_label(source: str) -> str:
    """A source as a person would name it: the file's own name without the fingerprint we put before it."""
    for prefix in ("example:", "hub:", "tfds:"):
        if source.startswith(prefix):
            return source[len(prefix) :]
    return re.sub(r"^[0-9a-f]{12}-", "", source.rsplit("/", 1)[-1])


def linked(text: str) -> str:
    """Escaped text in which addresses of the Hub and Google's terms can be clicked."""
    link = r'<a href="\1" target="_blank" rel="noopener noreferrer">\1</a>'
    return re.sub(r"(https://(?:huggingface\.co|ai\.google\.dev)[\w./@-]*\w)", link, escape(text))
