"""What the data step shows of a doctor's report, as HTML: pure functions. All foreign text is escaped here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

import numpy as np

from gemma_tune.data.doctor import Report
from gemma_tune.data.findings import Finding
from gemma_tune.data.rendering import Piece
from gemma_tune.data.rows import Rejected
from gemma_tune.data.store import Part
from gemma_tune.hub_access import Check
from gemma_tune.ui.views import fault_list, figure, linked, notice, place, source_label

CONTROL = re.compile(r"(<[a-z_]+>|<\|?[a-z_]+\|?>)")
HISTOGRAM_BARS = 40
EXAMPLES_SHOWN = 12
SOURCES_NAMED = 4
LABELS = {
    None: "",
    True: '<span class="gt-pill gt-good">labelled good</span>',
    False: '<span class="gt-pill gt-bad">labelled bad</span>',
}
LEFT_ALONE = '<span class="gt-pill gt-warm">not learned by this objective</span>'
SURE_FROM = 0.85  # below it the page asks to look at the rows
_PREFERRED = " Of each pair the chosen answer is made likelier than the rejected one."
LEARNED_OF = {  # (schema, objective) -> what is learned of it, where that is not the whole
    ("preference", "sft"): " The chosen answers are learned; the rejected ones are left alone.",
    ("preference", "dpo"): _PREFERRED,
    ("preference", "orpo"): " The chosen answers are learned, and made likelier than the rejected ones.",
    ("preference", "reward"): " Of each pair the chosen answer is to get the higher score.",
    ("kto", "sft"): " The good answers are learned; the bad ones are left alone.",
    ("kto", "kto"): " Good answers are made likelier, bad ones less likely.",
}
FIXED_ROWS_SHOWN = 8
FIX_WORDS = {
    "strip": "blanks around turns taken off",
    "drop_empty_turns": "empty turns dropped",
    "merge_turns": "neighbouring turns of one role merged",
}
PHASES = {
    "opening": "Opening the data",
    "reading": "Reading every row",
    "tokenizing": "Counting tokens",
    "looking": "Looking for copies and odd texts",
}
ACCESS_MARKS = {
    "yes": ("good", "✓"),
    "no": ("bad", "✗"),
    "unknown": ("warm", "?"),
    "not needed": ("plain", "–"),
}


def progress(phase: str, done: int, total: int | None, rows: str = "") -> str:
    """A bar while data are checked. `rows`: what is known already."""
    share = min(1.0, done / total) if total else None
    words = f"{PHASES.get(phase, phase)}{f', {share:.0%}' if share is not None else ''}…"
    width = f"width:{100 * share:.1f}%" if share is not None else "width:100%"
    busy = "" if share is not None else " gt-busy"
    return (
        f'<div class="gt-card" role="status"><p class="gt-note gt-checking">{escape(words)} {escape(rows)}</p>'
        f'<div class="gt-track{busy}"><div style="{width}"></div></div></div>'
    )


def summary(report: Report, objective: str = "sft") -> str:
    """Counts as figure cards, how the rows were read and what is learned of them, then faults and warnings."""
    cards = "".join(figure(*card) for card in _figures(report))
    sources = "".join(_source_line(names, part, objective) for names, part in _alike(report))
    warnings = "".join(
        notice("warm", place(one.where), f"{one.rule} {one.way_out}") for one in report.warnings
    )
    return f'<div class="gt-cards">{cards}</div>{sources}{fault_list(report.faults)}{warnings}'


def _figures(report: Report) -> list[tuple[str, str, str, str]]:
    share = f"{100 * report.supervised_tokens / max(1, report.total_tokens):.0f} % of them are learned"
    odd = report.cut_rows + report.unlearnable_rows
    limits = (
        f"{report.unlearnable_rows:,} of them left out"
        if report.unlearnable_rows
        else "their end is not learned"
    )
    return [
        ("Rows read", f"{report.rows_read:,}", _kinds(report), ""),
        ("Accepted", f"{report.rows_accepted:,}", f"{report.train_rows:,} to learn, {report.validation_rows:,} to check", "good"),
        ("Left out", f"{report.rows_rejected:,}", "each with its reason below" if report.rows_rejected else "none", "bad" if report.rows_rejected else "good"),
        ("Tokens", f"{report.total_tokens:,}", share, ""),
        ("Too long", f"{max(report.cut_rows, report.unlearnable_rows):,}", limits if odd else "every row fits", "warm" if odd else "good"),
        ("Steps", f"{report.total_steps:,}", f"{report.steps_per_epoch:,} per epoch", ""),
    ]  # fmt: skip


def _kinds(report: Report) -> str:
    named = dict.fromkeys(schema_name(part.schema.format) for part in report.prepared.parts)
    return ", ".join(named)


def schema_name(format: str) -> str:
    return {
        "prompt_completion": "prompt–completion", "kto": "labelled answers", "preference": "preference pairs",
        "sharegpt": "ShareGPT", "alpaca": "Alpaca", "text": "plain text",
    }.get(format, format)  # fmt: skip


def _alike(report: Report) -> list[tuple[list[str], Part]]:
    """(names, one of them) of the sources that are read in the same way."""
    groups: dict[tuple, list[Part]] = {}
    for part in report.prepared.parts:
        if not part.held_back:
            groups.setdefault((part.schema.why, part.schema.format, part.weight), []).append(part)
    return [([source_label(part.opened.name) for part in parts], parts[0]) for parts in groups.values()]


def _source_line(names: list[str], part: Part, objective: str) -> str:
    schema = part.schema
    doubt = f' <span class="gt-pill gt-warm">{schema.confidence:.0%} sure: look at the rows</span>'
    weight = f" Weight {part.weight:g}." if part.weight != 1 else ""
    more = f" and {len(names) - SOURCES_NAMED:,} more" if len(names) > SOURCES_NAMED else ""
    return (
        f'<p class="gt-note"><b>{escape(", ".join(names[:SOURCES_NAMED]) + more)}</b> {"is" if len(names) == 1 else "are"} '
        f"read as {escape(schema_name(schema.format))}. {escape(schema.why)}{LEARNED_OF.get((schema.format, objective), '')}{weight}"
        f"{doubt if schema.confidence < SURE_FROM else ''}</p>"
    )


def access(checks: Sequence[Check]) -> str:
    """The three questions of a gated repository, each with the page to open."""
    if not checks:
        return ""
    lines = []
    if len({check.words for check in checks}) == 1:  # one reason why none could be asked
        checks = checks[:1]
    for check in checks:
        tone, mark = ACCESS_MARKS[check.state]
        page = f" {linked(check.page)}" if check.page else ""
        lines.append(
            f'<li class="gt-{tone}"><b aria-hidden="true">{mark}</b><span>{escape(check.words)}{page}</span></li>'
        )
    return f'<ul class="gt-access">{"".join(lines)}</ul>'


# ---- one row -------------------------------------------------------------------------------------------------------
def rendered(
    pieces: Sequence[Piece],
    number: int,
    file: str = "",
    *,
    ids: bool = False,
    title: str = "",
    label: bool | None = None,
    left_alone: bool = False,
    pictures: Sequence[str] = (),
) -> str:
    """One row as the model reads it: control tokens, learned tokens and the cut marked; with the ids where asked for.

    `left_alone`: the objective does not learn from this answer. `pictures`: of its images in order, as data URIs.
    """
    show, waiting = _with_ids if ids else _as_text, iter(pictures)
    body = "".join(
        _image(piece, next(waiting, ""), ids)
        if piece.kind == "image"
        else f'<span class="gt-{piece.kind}">{show(piece)}</span>'
        for piece in pieces
    )
    heading = f'<div class="gt-cardhead"><h3>{escape(title or row_label(number, file))}</h3>{LABELS[label]}{LEFT_ALONE * left_alone}{_counts(pieces)}</div>'
    return (
        f'<div class="gt-card">{heading}{LEGEND}'
        f'<div class="gt-see{" gt-ids" if ids else ""}" data-row="{number}">{body}</div></div>'
    )


def row_label(number: int, file: str = "") -> str:
    """'Row 7 of rows.csv'; the file only where there are several."""
    named = " › ".join(source_label(part) for part in file.split(" › ")) if file else ""
    return f"Row {number:,}{f' of {named}' if named else ''}"


LEGEND = (
    '<div class="gt-legend"><span><i class="gt-learned">learned</i> what the model is taught to say</span>'
    '<span><i class="gt-control">&lt;control&gt;</i> tokens that mark turns</span>'
    '<span><i class="gt-cut">cut</i> beyond the maximum length</span></div>'
)


def _counts(pieces: Sequence[Piece]) -> str:
    counts = {
        kind: sum(one.count for one in pieces if one.kind == kind)
        for kind in ("prompt", "learned", "cut", "image")
    }
    words = f"{sum(counts.values()):,} tokens, {counts['learned']:,} learned"
    cut = f", {counts['cut']:,} cut" if counts["cut"] else ""
    return f'<span class="gt-note">{words}{cut}</span>'


def _image(piece: Piece, picture: str, ids: bool) -> str:
    """The picture in its place, with what it costs."""
    drawn = f'<img src="{escape(picture)}" alt="the image of this row">' if picture else ""
    words = f"image · {piece.image_tokens:,} tokens{' · beyond the maximum length' if piece.cut else ''}"
    chip = f'<span class="gt-pill gt-nodot gt-{"warm" if piece.cut else "live"}">{words}</span>'
    tokens = f'<span class="gt-prompt">{_with_ids(piece)}</span>' if ids else ""
    return f'<span class="gt-image">{drawn}{chip}</span>{tokens}'


def _as_text(piece: Piece) -> str:
    parts = CONTROL.split(piece.text)
    return "".join(
        f'<span class="gt-control">{escape(part)}</span>' if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def _with_ids(piece: Piece) -> str:
    return "".join(
        f"<ruby>{_as_text(Piece(text.replace(chr(10), '⏎'), piece.kind))}<rt>{token}</rt></ruby>"
        + ("<br>" if text.endswith("\n") else "")
        for token, text in piece.tokens
    )


# ---- many rows -----------------------------------------------------------------------------------------------------
def findings(found: Sequence[Finding]) -> str:
    """What may surprise, most serious first."""
    if not found:
        return notice(
            "good",
            "Nothing odd",
            "No copies, no leaks into the validation rows, no leftover placeholders, no broken characters.",
        )
    return f'<div class="gt-findings">{"".join(map(_finding, found))}</div>'


def _finding(one: Finding) -> str:
    count = (
        f'<span class="gt-pill gt-{"warm" if one.tone == "warm" else "live"} gt-nodot">{one.count:,} {"row" if one.count == 1 else "rows"}</span>'
        if one.count
        else ""
    )
    rows = "".join(
        f"<li><b>{escape(row_label(example.number, example.file))}</b> {escape(example.text)}</li>"
        for example in one.examples[:EXAMPLES_SHOWN]
    )
    more = f"<li>and {one.count - EXAMPLES_SHOWN:,} more</li>" if one.count > EXAMPLES_SHOWN else ""
    listed = f"<details><summary>Which rows</summary><ul>{rows}{more}</ul></details>" if rows else ""
    return (
        f'<article class="gt-card gt-finding gt-{one.tone}"><div class="gt-cardhead"><h3>{escape(one.title)}</h3>{count}</div>'
        f"<p>{escape(one.words)}</p>{listed}</article>"
    )


def fixes(rejected: Sequence[Rejected]) -> str:
    """What the mechanical fixes would make of rows, before they are applied."""
    helped = [one for one in rejected if one.fixes]
    if not helped:
        return ""
    rows = "".join(
        f"<tr><td>{escape(row_label(one.number, one.file))}</td><td>{escape(', '.join(FIX_WORDS[fix] for fix in one.fixes))}</td>"
        f"<td><div>{escape(one.before)}</div></td><td><div>{escape(one.after)}</div></td></tr>"
        for one in helped[:FIXED_ROWS_SHOWN]
    )
    return (
        '<div class="gt-card gt-scroll gt-rows gt-fixes"><table><thead><tr><th>Row</th><th>Fix</th><th>As it stands</th>'
        f"<th>As it would be learned</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def lengths(values: Sequence[int], max_length: int) -> str:
    """Histogram of tokens per row with the maximum length drawn in."""
    counts = np.asarray(values)
    if not len(counts):
        return notice("", "No rows yet", "The lengths appear once rows are accepted.")
    longest = int(counts.max())
    shown = max(
        min(longest, 4 * int(np.quantile(counts, 0.98)) + 1), 1
    )  # a single giant does not flatten the rest
    width = max(1, -(-(shown + 1) // HISTOGRAM_BARS))
    bars = np.bincount(np.minimum(counts, shown) // width, minlength=shown // width + 1)
    peak = max(1, int(bars.max()))
    drawn = "".join(
        _bar(index, width, int(bar), peak, max_length, index == len(bars) - 1 and longest > shown)
        for index, bar in enumerate(bars)
    )
    at = 100 * max_length / (width * len(bars))
    limit = (
        f'<b class="gt-limit{" gt-left" if at > 60 else ""}" style="left:{at:.2f}%"><span>maximum {max_length:,}</span></b>'
        if at <= 100
        else ""
    )
    over = int((counts > max_length).sum())
    words = (
        f"{over:,} of {len(counts):,} rows are longer than {max_length:,}"
        if over
        else f"every row fits into {max_length:,}"
    )
    middle, most = (int(np.quantile(counts, share)) for share in (0.5, 0.95))
    note = f"median {middle:,}, 95 % up to {most:,}; {words}"
    return (
        f'<div class="gt-card"><div class="gt-cardhead"><h3>Tokens per row</h3><span class="gt-note">{note}</span></div>'
        f'<div class="gt-bars">{drawn}{limit}</div>'
        f'<div class="gt-barlabels"><span>0</span><span>longest {longest:,}</span></div></div>'
    )


def _bar(index: int, width: int, bar: int, peak: int, max_length: int, open_ended: bool) -> str:
    until = "or more" if open_ended else f"to {(index + 1) * width - 1:,}"
    over = "gt-over" if (index + 1) * width > max_length + 1 else ""
    height = max(100 * bar / peak, 1.5) if bar else 0
    return f'<i class="{over}" style="height:{height:.1f}%" title="{index * width:,} {until} tokens: {bar:,} rows"></i>'


def mix(sources: Sequence[dict]) -> str:
    """The further sources of a run, each with what can be done to it."""
    if not sources:
        return ""
    rows = "".join(
        f'<li><div><b>{escape(source_label(one["source"]))}</b><span class="gt-note">{escape(_mix_words(one))}</span></div>'
        f'<button type="button" class="gt-button gt-small" data-action="edit" data-index="{index}">Edit</button>'
        f'<button type="button" class="gt-button gt-small" data-action="remove" data-index="{index}">Remove</button></li>'
        for index, one in enumerate(sources)
    )
    return f'<div class="gt-card"><div class="gt-cardhead"><h3>Mixed with</h3></div><ul class="gt-mix">{rows}</ul></div>'


def _mix_words(one: dict) -> str:
    parts = [f"weight {float(one.get('weight') or 1):g}", schema_name(one.get("format") or "auto")]
    if one["source"].startswith(("hub:", "tfds:")):
        parts.append(" ".join(filter(None, (one.get("subset"), one.get("split")))))
    if one.get("columns"):
        parts.append(", ".join(f"{theirs} as {ours}" for ours, theirs in one["columns"].items()))
    return " · ".join(parts)
