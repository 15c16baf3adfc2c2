"""What the model will see of a data set, before the first second of training: counts, lengths, cuts, faults.

`check` is what the page's review and `gemma-tune check` show. A run whose report holds a fault is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gemma_tune import catalog, hub
from gemma_tune.config import RunConfig
from gemma_tune.data.rendering import TURN_TOKENS, ChatTokenizer
from gemma_tune.data.rows import Prepared, Rejected, Row
from gemma_tune.data.split import gather
from gemma_tune.errors import Fault, ModelError

UNLEARNABLE_SHARE = (
    0.05  # above it the start is refused: most often the maximum length or the schema is wrong
)
CHUNK_ROWS = 2_000


@dataclass(frozen=True)
class Measured:
    """Token counts of the training rows, in their order."""

    max_length: int
    lengths: list[int] = field(default_factory=list)  # uncut
    learned: list[int] = field(default_factory=list)  # tokens with loss within max_length
    before: list[int] = field(default_factory=list)  # tokens before the first with loss

    @property
    def total_tokens(self) -> int:
        return sum(min(length, self.max_length) for length in self.lengths)


@dataclass(frozen=True)
class Report:
    prepared: Prepared
    rows_read: int
    rows_accepted: int
    rows_rejected: int
    train_rows: int
    validation_rows: int
    rejected: list[Rejected]
    lengths: list[int] = field(default_factory=list)  # tokens per training row, uncut
    cut_rows: list[Rejected] = field(default_factory=list)
    unlearnable_rows: list[Rejected] = field(default_factory=list)  # nothing learned is left; TRL drops them
    total_tokens: int = 0  # of the training rows after the cut
    supervised_tokens: int = 0
    steps_per_epoch: int = 0
    total_steps: int = 0
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)


def check(config: RunConfig, token: str | None = None) -> Report:
    """Prepares and tokenises every training row. DataError where the source cannot be read at all.

    A model that cannot be used is a fault in the report, beside those of the data.
    """
    prepared = gather(config, token)
    faults, warnings = list(prepared.faults), list(prepared.warnings)
    measured = None
    try:
        wanted = config.model.id, config.model.revision, token
        hub.inspect_model(*wanted)
        tokenizer = ChatTokenizer.from_folder(hub.tokenizer_folder(*wanted))
        measured = measure(prepared.train, tokenizer, config)
    except ModelError as error:
        faults += error.faults
    accepted = len(prepared.train) + len(prepared.validation)
    counts = {
        "rows_read": accepted + len(prepared.rejected),
        "rows_accepted": accepted,
        "rows_rejected": len(prepared.rejected),
        "train_rows": len(prepared.train),
        "validation_rows": len(prepared.validation),
    }
    warnings += _set_warnings(prepared, config)
    if not measured:
        return Report(prepared, rejected=prepared.rejected, **counts, faults=faults, warnings=warnings)
    cut, unlearnable = _cut_rows(prepared.train, measured), _unlearnable_rows(prepared.train, measured)
    faults += _length_faults(prepared.train, unlearnable, measured)
    warnings += _length_warnings(prepared.train, cut, unlearnable, measured, config)
    per_epoch = steps_per_epoch(len(prepared.train) - len(unlearnable), measured.total_tokens, config)
    return Report(
        prepared,
        **counts,
        rejected=prepared.rejected,
        lengths=measured.lengths,
        cut_rows=cut,
        unlearnable_rows=unlearnable,
        total_tokens=measured.total_tokens,
        supervised_tokens=sum(measured.learned),
        steps_per_epoch=per_epoch,
        total_steps=total_steps(per_epoch, config),
        faults=faults,
        warnings=warnings,
    )


def measure(rows: list[Row], tokenizer: ChatTokenizer, config: RunConfig) -> Measured:
    """In chunks, so that the tokens of a large set are never held at once."""
    max_length, answers_only = config.train.max_length, config.train.assistant_only_loss
    measured = Measured(max_length)
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = [row.messages for row in rows[start : start + CHUNK_ROWS]]
        for length, learned, before in tokenizer.measure(chunk, max_length, answers_only):
            measured.lengths.append(length)
            measured.learned.append(learned)
            measured.before.append(before)
    return measured


def steps_per_epoch(rows: int, tokens: int, config: RunConfig) -> int:
    """Optimizer steps of one pass on one device, counted as Transformers' Trainer counts them."""
    train, sft = config.train, config.advanced.sft
    if sft.get("packing"):
        rows = min(rows, math.ceil(tokens / train.max_length))
    batches = rows / train.per_device_train_batch_size
    batches = math.floor(batches) if sft.get("dataloader_drop_last") else math.ceil(batches)
    return math.ceil(batches / train.gradient_accumulation_steps)


def total_steps(per_epoch: int, config: RunConfig) -> int:
    if config.train.max_steps > 0:
        return config.train.max_steps
    return math.ceil(config.train.num_train_epochs * per_epoch)


def _cut_rows(rows: list[Row], measured: Measured) -> list[Rejected]:
    limit = measured.max_length
    return [
        Rejected(
            row.number, "", f"{length} tokens", f"Longer than {limit} tokens, so its end is cut.",
            f"Shorten it, or set train.max_length to {length}.",
        )
        for row, length in zip(rows, measured.lengths, strict=True)
        if length > limit
    ]  # fmt: skip


def _unlearnable_rows(rows: list[Row], measured: Measured) -> list[Rejected]:
    return [
        Rejected(
            row.number, "", f"{length} tokens", f"Its first {measured.max_length} tokens hold no part of an answer.",
            "Shorten the question, or raise train.max_length.",
        )
        for row, length, learned in zip(rows, measured.lengths, measured.learned, strict=True)
        if not learned
    ]  # fmt: skip


def _length_faults(rows: list[Row], unlearnable: list[Rejected], measured: Measured) -> list[Fault]:
    if not rows or len(unlearnable) <= UNLEARNABLE_SHARE * len(rows):
        return []
    if len(unlearnable) == len(rows):
        rule = "No row keeps a token to learn from at this maximum length."
    else:
        rule = f"{len(unlearnable)} of {len(rows)} rows keep no token to learn from at this maximum length."
    needed = sorted(measured.before)[len(rows) - 1 - math.floor(UNLEARNABLE_SHARE * len(rows))]
    way_out = (
        f"Set it above {needed:,}, so that nearly every row keeps some answer, or shorten the questions."
    )
    return [Fault("train.max_length", str(measured.max_length), rule, way_out)]


def _length_warnings(
    rows: list[Row], cut: list[Rejected], unlearnable: list[Rejected], measured: Measured, config: RunConfig
) -> list[Fault]:
    warnings = []
    if cut:
        rule = f"{len(cut)} of {len(rows)} rows are cut at the end."
        warnings.append(
            Fault("train.max_length", str(measured.max_length), rule, f"The longest row has {max(measured.lengths):,} tokens.")
        )  # fmt: skip
    if 0 < len(unlearnable) <= UNLEARNABLE_SHARE * len(rows):
        rule = f"{len(unlearnable)} of {len(rows)} rows keep no token to learn from, and are left out."
        warnings.append(
            Fault("train.max_length", str(measured.max_length), rule, "Raise it to train on them.")
        )
    card = catalog.MODELS.get(config.model.id)
    longest = min(max(measured.lengths, default=0), measured.max_length)
    if card and longest > card.context_tokens:
        rule = (
            f"The longest row has {longest:,} tokens, but {card.label} reads at most {card.context_tokens:,}."
        )
        warnings.append(
            Fault("train.max_length", str(measured.max_length), rule, f"Set it to {card.context_tokens}.")
        )
    if config.advanced.sft.get("packing"):
        warnings.append(
            Fault("advanced.sft.packing", "true", "With packing the number of steps is an estimate.", "")
        )
    return warnings


def _set_warnings(prepared: Prepared, config: RunConfig) -> list[Fault]:
    """What does not stop a run but may surprise."""
    source, warnings = prepared.table.source, []
    if prepared.rejected:
        total = len(prepared.rejected) + len(prepared.train) + len(prepared.validation)
        rule = f"{len(prepared.rejected)} of {total} rows are not used."
        warnings.append(Fault(source, "", rule, "Each is listed with its reason."))
    trained = {row.identity() for row in prepared.train}
    if copies := len(prepared.train) - len(trained):
        rule = f"{copies} of {len(prepared.train)} training rows are exact copies of another one."
        warnings.append(
            Fault(source, "", rule, "The model sees them more often; take them out if that is not meant.")
        )
    if seen := sum(row.identity() in trained for row in prepared.validation):
        rule = f"{seen} of {len(prepared.validation)} validation rows are among the training rows too."
        warnings.append(
            Fault(source, "", rule, "Validation will look better than it is; take them out of one side.")
        )
    if marked := next((row for row in prepared.train if _holds_control_tokens(row)), None):
        rule = (
            "Some text holds Gemma's control tokens, which the model reads as the end or beginning of a turn."
        )
        warnings.append(
            Fault(f"{source} row {marked.number}", "", rule, "Take them out: turns are marked for you.")
        )
    if prepared.train and not prepared.validation:
        share = config.data.validation_fraction
        rule = "There are no validation rows, so nothing shows whether the model learns or memorises."
        way_out = (
            "Add rows: there are too few different ones to hold any back." if share else "Set it to 0.1."
        )
        warnings.append(Fault("data.validation_fraction", str(share), rule, way_out))
    return warnings


def _holds_control_tokens(row: Row) -> bool:
    return any(token in message["content"] for message in row.messages for token in TURN_TOKENS)
