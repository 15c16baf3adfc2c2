"""The exception tree. Each error holds faults; each fault says where, what was met, the rule, the way out.

An error of this tree is the user's to mend and is shown without a traceback; anything else is a bug of ours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

VALUE_CHARACTERS = 80


@dataclass(frozen=True)
class Fault:
    where: str  # a setting ("train.learning_rate"), a file, a row ("line 17"), a run id
    value: str  # what was met there, shortened; empty where nothing can be shown
    rule: str  # what must hold, a sentence
    way_out: str  # what to do now, a sentence

    def __str__(self) -> str:
        met = f" (found: {self.value})" if self.value else ""
        return f"{self.where}: {self.rule}{met} {self.way_out}".strip()

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def shown(value: object) -> str:
    """A value as it may stand in a message: one line, at most 80 characters."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.encode("utf-8", "replace").decode().split())  # without halves of character pairs
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"


class GemmaTuneError(Exception):
    """Base of all errors that a user can mend."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults

    @classmethod
    def at(cls, where: str, value: object, rule: str, way_out: str = ""):
        """The error with a single fault; `value` is shortened for display."""
        return cls(Fault(where, shown(value) if value is not None else "", rule, way_out))


class ConfigError(GemmaTuneError):
    """A setting is out of its range, unknown, or does not fit another one."""


class DataError(GemmaTuneError):
    """A data source cannot be read, or holds no row to train on."""


class ModelError(GemmaTuneError):
    """A model cannot be found, reached or used here."""


class AccessError(ModelError):
    """A token is missing or wrong, or the licence of a gated repository is not accepted."""


class RunError(GemmaTuneError):
    """A run cannot be created, found, started, resumed or stopped."""


class ServerError(GemmaTuneError):
    """The app or a worker of it cannot be started here."""
