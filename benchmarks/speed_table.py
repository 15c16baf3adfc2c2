"""From the results of the speed benchmark to its section of docs/benchmarks.md. Pure: results in, Markdown out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

ALLOCATORS = {
    "glibc": "glibc's malloc on all sides",
    "tcmalloc": "tcmalloc on all sides",
    "as-installed": "as a user gets it: our worker takes tcmalloc where it is installed, the others don't",
}
PEERS = ("trl", "trl-float32", "llamafactory")
NAMES = {
    "trl": "plain TRL `SFTTrainer`, defaults",
    "trl-float32": "plain TRL with `bf16=False`",
    "llamafactory": "LLaMA-Factory 0.9.5, defaults",
    "ours": "**ours, defaults**",
    "ours-selective": "**ours, costly results kept** (`train.selective_checkpointing`)",
    "ours-fastest": "**ours, fastest** (no gradient checkpointing)",
    "ours-smallest": "**ours, least memory** (bfloat16 weights)",
}
METHODS = {"lora": "LoRA, r=16 on all linear layers", "full": "Full fine-tuning"}
LOSS_TOLERANCE = 1e-3  # relative, between plain TRL and ours
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


class Requirement(NamedTuple):
    """At least so many times the peer's tokens per CPU second, at no more than a share of its memory."""

    method: str
    peer: str
    times: float
    memory_share: float | None


class Median(NamedTuple):
    """One side's medians over its turns; None where the side does not measure it."""

    tokens: float | None
    peak_mb: float | None
    first_step: float
    losses: list[float]
    turns: int


REQUIRED = [  # plain TRL is held against us in its faster form as well: some CPUs only emulate bfloat16
    *(Requirement("lora", trl, 5.0, None) for trl in PEERS[:2]),
    *(Requirement("lora", trl, 4.0, 0.4) for trl in PEERS[:2]),
    Requirement("lora", "llamafactory", 3.5, 0.25),
    *(Requirement("full", trl, 4.5, None) for trl in PEERS[:2]),
    Requirement("full", "llamafactory", 3.3, 0.5),
]
START_SHARE = 0.5  # of LLaMA-Factory's CPU seconds to the end of the first step


def section(machine: str, results: list[dict], titles: dict[str, str]) -> str:
    """Markdown of everything that was measured; `titles` names the shapes."""
    lines = [
        "## Training speed", "",
        f"`python -m benchmarks.speed`; {machine}. One core for each side, sides in turns, medians. Chats of 20 to 800 "
        "tokens, 40 % of them learned, micro-batches of 4, the same rows in the same order; tokens without padding. "
        "CPU seconds to the first step include imports, loading and the first step itself.",
    ]  # fmt: skip
    for shape, title in titles.items():
        for malloc, words in ALLOCATORS.items():
            measured = medians(results, shape, malloc)
            if measured:
                lines += ["", f"### {title}, {words}", *_tables(measured), *_verdicts(measured)]
    return "\n".join(lines) + "\n"


def medians(results: list[dict], shape: str, malloc: str) -> dict[tuple[str, str], Median]:
    """By method and side. A peer as it comes is the peer with glibc's malloc."""
    found: dict[tuple[str, str], list[dict]] = {}
    for one in results:
        peer_as_is = malloc == "as-installed" and one["side"] in PEERS and one["malloc"] == "glibc"
        if one["shape"] == shape and (one["malloc"] == malloc or peer_as_is):
            found.setdefault((one["method"], one["side"]), []).append(one)
    return {key: _median(turns) for key, turns in found.items()}


def _median(turns: list[dict]) -> Median:
    def middle(name: str) -> float | None:
        return statistics.median(one[name] for one in turns) if name in turns[0] else None

    return Median(
        middle("tokens_per_cpu_second"), middle("peak_mb"), middle("first_step_cpu_seconds"),
        turns[0].get("losses", []), len(turns),
    )  # fmt: skip


def _tables(measured: dict[tuple[str, str], Median]) -> Iterator[str]:
    for method, words in METHODS.items():
        rows = [(side, measured[method, side]) for side in NAMES if (method, side) in measured]
        if not rows:
            continue
        yield from (
            "",
            f"| {words} | tokens / CPU-s | × TRL | peak MB | × TRL | CPU-s to the first step | losses |",
        )
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        trl = measured.get((method, "trl")) or measured.get((method, "trl-float32"))
        for side, one in rows:
            times, share = (f"{a / b:.2f}" for a, b in _against(one, trl)) if trl else ("", "")
            losses = ", ".join(f"{loss:.4f}" for loss in one.losses[:3])
            yield (
                f"| {NAMES[side]} | {one.tokens:.1f} | {times} | {one.peak_mb:,.0f} | {share} | {one.first_step:.1f} "
                f"| {losses} |"
            )
        yield from ("", f"Turns of each side: {min(one.turns for _, one in rows)}.")


def _against(one: Median, other: Median) -> tuple[tuple[float, float], tuple[float, float]]:
    return (one.tokens, other.tokens), (one.peak_mb, other.peak_mb)


def _verdicts(measured: dict[tuple[str, str], Median]) -> Iterator[str]:
    """What was required, what came out, whether it is met."""
    found = [*_ratios(measured), *_start(measured), *_curves(measured)]
    if found:
        yield from ("", "| required | measured | |", "| --- | --- | --- |")
        yield from (f"| {rule} | {value} | {'met' if met else '**missed**'} |" for rule, value, met in found)


def _ratios(measured: dict[tuple[str, str], Median]) -> Iterator[tuple[str, str, bool]]:
    for rule in REQUIRED:
        peer = measured.get((rule.method, rule.peer))
        ours = [
            one
            for (method, side), one in measured.items()
            if method == rule.method and side.startswith("ours")
        ]
        if not peer or not ours:
            continue
        times, share = max((_ratio(one, peer) for one in ours), key=lambda ratio: _closeness(rule, *ratio))
        peers = {"trl": "plain TRL", "trl-float32": "plain TRL in float32"}.get(rule.peer, "LLaMA-Factory")
        limit = f" at no more than {rule.memory_share} × its memory" if rule.memory_share else ""
        yield (
            f"{METHODS[rule.method].partition(',')[0]}: {rule.times} × {peers}{limit}",
            f"{times:.2f} × at {share:.2f} × its memory",
            times >= rule.times and share <= (rule.memory_share or share),
        )


def _ratio(one: Median, peer: Median) -> tuple[float, float]:
    return one.tokens / peer.tokens, one.peak_mb / peer.peak_mb


def _closeness(rule: Requirement, times: float, share: float) -> tuple[float, float]:
    """How near a side comes to a rule by the worse of its two figures, then by its speed."""
    memory = rule.memory_share / share if rule.memory_share else times / rule.times
    return min(times / rule.times, memory, 1.0), times


def _start(measured: dict[tuple[str, str], Median]) -> Iterator[tuple[str, str, bool]]:
    ours, peer = measured.get(("lora", "whole-run")), measured.get(("lora", "llamafactory"))
    if ours and peer:
        share = ours.first_step / peer.first_step
        yield (
            f"Start to the first step: {START_SHARE} × LLaMA-Factory's CPU seconds, supervisor included",
            f"{ours.first_step:.1f} against {peer.first_step:.1f} s: {share:.2f} ×",
            share <= START_SHARE,
        )


def _curves(measured: dict[tuple[str, str], Median]) -> Iterator[tuple[str, str, bool]]:
    """The worst difference of a loss from plain TRL's."""
    for method, words in METHODS.items():
        trl = measured.get((method, "trl"))
        ours = [one for (own, side), one in measured.items() if own == method and side.startswith("ours")]
        if trl and ours:
            worst = max(abs(a - b) / b for one in ours for a, b in zip(one.losses, trl.losses, strict=False))
            yield (
                f"{words.partition(',')[0]}: losses within {LOSS_TOLERANCE:g} of plain TRL's",
                f"{worst:.1e}",
                worst <= LOSS_TOLERANCE,
            )


def line(one: dict) -> str:
    """One turn on the terminal."""
    told = {
        name: one[name]
        for name in ("tokens_per_cpu_second", "peak_mb", "first_step_cpu_seconds")
        if name in one
    }
    losses = " ".join(f"{loss:.4f}" for loss in one.get("losses", []))
    figures = "  ".join(f"{name} {value:,.1f}" for name, value in told.items())
    return (
        f"{one['shape']} {one['method']} {one['malloc']} {one['side']} #{one['repeat']}: {figures}  {losses}"
    )


def with_section(page: str, section: str) -> str:
    """The page with the section between its marks, or at its end where there are none yet."""
    before, mark, rest = page.partition(BEGIN)
    after = rest.partition(END)[2] if mark else ""
    return f"{before.rstrip()}\n\n{BEGIN}\n{section}{END}\n{after.lstrip()}"
