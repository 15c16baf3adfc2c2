"""Data sets: every source and schema becomes rows of one normal form, checked before training.

sources → files, hub_sets (bytes to rows) → formats, converters, turns (rows to conversations) → split → doctor, rendering.
"""

from gemma_tune.data.doctor import Report, check
from gemma_tune.data.formats import convert, recognise
from gemma_tune.data.rendering import ChatTokenizer, Encoding
from gemma_tune.data.rows import Prepared, Rejected, Row, Schema, Table
from gemma_tune.data.sources import example_names, hub_choices, keep_upload, read
from gemma_tune.data.split import gather, prepare

__all__ = [
    "ChatTokenizer",
    "Encoding",
    "Prepared",
    "Rejected",
    "Report",
    "Row",
    "Schema",
    "Table",
    "check",
    "convert",
    "example_names",
    "gather",
    "hub_choices",
    "keep_upload",
    "prepare",
    "read",
    "recognise",
]
