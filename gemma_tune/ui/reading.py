"""The form as a configuration, and the token that goes with it."""

from __future__ import annotations

import os

from gemma_tune.config import RunConfig, parse
from gemma_tune.ui.form import SetUp


def read_form(tab: SetUp, raw: tuple) -> tuple[RunConfig, str | None]:
    """From the values of `tab.everything`. Raises ConfigError with every fault at once."""
    *values, token = raw
    return parse(tab.form.read(tuple(values))), token_of(token)


def token_of(typed: str | None) -> str | None:
    return (typed or "").strip() or os.environ.get("HF_TOKEN") or None
