"""A validation that the user can break off."""

from __future__ import annotations


class ValidationStopped(Exception):
    """Raised by a callback within a validation when the user wants to stop."""


class StoppableValidation:
    """Put before a Transformers Trainer: a validation broken off has an empty result, and none is its best."""

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        try:
            return super().evaluate(*args, **kwargs)
        except ValidationStopped:
            self.control.should_evaluate = False
            self.model.train()
            return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: object) -> bool:
        return bool(metrics) and super()._determine_best_metric(metrics, trial)
