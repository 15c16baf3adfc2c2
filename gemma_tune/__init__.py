"""Gemma Tune: pick a Gemma, bring data, watch it learn, compare base and tuned."""

__version__ = "0.1.0"
