"""What a training worker was asked to do, as it passes between the worker's modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gemma_tune.config import RunConfig
from gemma_tune.hub import ModelFacts
from gemma_tune.runs.folder import RunFolder


@dataclass(frozen=True)
class Job:
    run: RunFolder
    config: RunConfig
    facts: ModelFacts
    resume_from: Path | None
    token: str | None = field(repr=False)  # of the Hub, from the environment
    write: Callable[..., None]  # an event; nothing on ranks other than the first
