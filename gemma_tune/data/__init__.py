"""Data sets: every source and schema becomes rows of one normal form, checked before training.

sources → readers, hub_sets, tfds_sets (pieces of rows) → formats, converters, turns (the normal form) → store (on disk)
→ split → tokens → doctor, findings. Nothing is held whole; what was made once is found again by its fingerprint.
"""

from gemma_tune.data.doctor import Report, check, learns_answers_only
from gemma_tune.data.formats import recognise
from gemma_tune.data.lengths import Lengths, lengths_of
from gemma_tune.data.parallel import Cancelled, Watch, unwatched
from gemma_tune.data.prepare import Prepared, prepare
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.data.rows import Rejected, Row, Schema, Table
from gemma_tune.data.sources import choices_of, example_names, first_rows, keep_uploads, open_source, read
from gemma_tune.data.store import Store, holds_images
from gemma_tune.data.tokens import Tokens, tokens_of

__all__ = [
    "Cancelled",
    "ChatTokenizer",
    "Lengths",
    "Prepared",
    "Rejected",
    "Report",
    "Row",
    "Schema",
    "Store",
    "Table",
    "Tokens",
    "Watch",
    "check",
    "choices_of",
    "example_names",
    "first_rows",
    "holds_images",
    "keep_uploads",
    "learns_answers_only",
    "lengths_of",
    "open_source",
    "prepare",
    "read",
    "recognise",
    "tokens_of",
    "unwatched",
]
