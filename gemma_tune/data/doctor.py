"""What the model will see of a data set, before the first second of training: counts, lengths, cuts, faults, findings.

`check` is what the page's review and `gemma-tune check` show. A run whose report holds a fault is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from gemma_tune import catalog, hub, support
from gemma_tune.config import RunConfig
from gemma_tune.data.findings import Finding, findings_of
from gemma_tune.data.lengths import lengths_of
from gemma_tune.data.parallel import Watch, unwatched
from gemma_tune.data.prepare import Prepared, gather
from gemma_tune.data.rendering import ChatTokenizer
from gemma_tune.data.rows import Rejected
from gemma_tune.data.tokens import NO_SINGLE_BOS, NO_TURN_END, Tokens, tokens_of
from gemma_tune.errors import Fault, ModelError
from gemma_tune.schedule import packs, steps_per_epoch, total_steps

UNLEARNABLE_SHARE = (
    0.05  # above it the start is refused: most often the maximum length or the schema is wrong
)
ROWS_LISTED = 1_000


@dataclass(frozen=True)
class Report:
    """Lists of rows are cut at ROWS_LISTED; the counts are whole. `lengths` are of training rows, uncut."""

    prepared: Prepared
    rows_read: int
    rows_accepted: int
    rows_rejected: int
    train_rows: int  # of an epoch: a row of a source with weight 2 counts twice
    validation_rows: int
    rejected: list[Rejected]
    fixable: dict[str, int] = field(default_factory=dict)  # mechanical fixes -> rows that they would save
    tokens: Tokens | None = None
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))  # of a pair's longer side
    cut_rows: int = 0
    unlearnable_rows: int = 0  # nothing learned is left; they are left out
    limited: list[Rejected] = field(
        default_factory=list
    )  # the rows that are cut, left out or refused by the template
    total_tokens: int = 0  # of the training rows after the cut
    supervised_tokens: int = 0
    steps_per_epoch: int = 0
    total_steps: int = 0
    findings: list[Finding] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)


def check(config: RunConfig, token: str | None = None, watch: Watch = unwatched) -> Report:
    """Prepares and tokenises every row. DataError where the source cannot be read at all.

    A model that cannot be used is a fault in the report, beside those of the data. `watch` is told how far it is, and
    may stop the work.
    """
    prepared = gather(config, token, watch)
    faults, warnings = list(prepared.faults), list(prepared.warnings)
    tokens = None
    try:
        wanted = config.model.id, config.model.revision, token
        facts = hub.inspect_model(*wanted)
        found = support.fault_of(config, facts.model_type, images=prepared.store.has_images)
        faults += [found] if found and found not in faults else []
        folder = hub.tokenizer_folder(*wanted)
        unread = prepared.store.has_images and ChatTokenizer.from_folder(folder).no_images
        if unread and not found:
            faults.append(replace(unread, value=config.model.id))
        if not unread:
            tokens = tokens_of(prepared.store, folder, learns_answers_only(config), watch)
    except ModelError as error:
        faults += error.faults
    watch("looking", 0, None)
    known = _counts(prepared)
    warnings += _set_warnings(prepared, config)
    if tokens is None or not len(prepared.train):
        return Report(prepared, **known, tokens=tokens, faults=faults, warnings=warnings)
    measured = _Measured(prepared, tokens, config)
    per_epoch = steps_per_epoch(
        len(prepared.train) - len(measured.unlearnable), measured.total_tokens, config
    )
    return Report(
        prepared,
        **known,
        tokens=tokens,
        lengths=measured.lengths,
        cut_rows=int(measured.cut.sum()),
        unlearnable_rows=len(measured.unlearnable),
        limited=measured.limited(),
        total_tokens=measured.total_tokens,
        supervised_tokens=int(measured.learned.sum()),
        steps_per_epoch=per_epoch,
        total_steps=total_steps(per_epoch, config),
        faults=faults + measured.faults(),
        warnings=warnings + measured.warnings(),
    )


def _counts(prepared: Prepared) -> dict[str, object]:
    """The fields of a report that need no tokens."""
    store = prepared.store
    return {
        "rows_read": len(store) + store.rejected_count,
        "rows_accepted": len(store),
        "rows_rejected": store.rejected_count,
        "train_rows": len(prepared.train),
        "validation_rows": len(prepared.validation),
        "rejected": list(islice(store.rejected(), ROWS_LISTED)),
        "fixable": dict(Counter(" + ".join(one.fixes) for one in store.rejected() if one.fixes)),
        "findings": findings_of(prepared),
    }


class _Measured:
    """Token counts of the training rows, in their order, and what follows from them."""

    def __init__(self, prepared: Prepared, tokens: Tokens, config: RunConfig) -> None:
        self.store, self.tokens, self.config = prepared.store, tokens, config
        self.rows = prepared.train
        self.max_length = config.train.max_length
        found = lengths_of(tokens, config)
        self.lengths, self.prompts = found.longest[self.rows], found.prompt[self.rows]
        self.learned, self.usable = found.learned[self.rows], found.usable[self.rows]
        self.cut = found.cut[self.rows]
        self.image_ends = tokens.image_ends[self.rows]
        self.unlearnable = np.flatnonzero(~self.usable)
        self.total_tokens = int(found.used[self.rows[self.usable]].sum())
        self.refused = dict(tokens.refused()) if not self.lengths.all() else {}

    def limited(self) -> list[Rejected]:
        """The first rows that do not come whole to the model, each with the reason."""
        odd = np.flatnonzero(self.cut | ~self.usable)
        facts = self.store.facts[self.rows[odd[:ROWS_LISTED]]]
        return [
            self._reason(int(place), int(fact["number"]), self.store.files[fact["file"]])
            for place, fact in zip(odd[:ROWS_LISTED], facts, strict=True)
        ]

    def _reason(self, place: int, number: int, file: str) -> Rejected:
        length = f"{self.lengths[place]:,} tokens"
        if reason := self.refused.get(int(self.rows[place])):
            return Rejected(number, "", "", reason, "Take the row out, or choose another model.", file)
        if self.image_ends[place] > self.max_length:
            needed = max(self.image_ends[place], self.prompts[place] + 1)
            rule = f"Its images reach beyond {self.max_length} tokens, and an image is never cut, so it is left out."
            way_out = f"Set train.max_length to {needed} or more, or give it fewer images."
            return Rejected(number, "", length, rule, way_out, file)
        if not self.usable[place]:
            rule = f"Its first {self.max_length} tokens hold no part of an answer, so it is left out."
            if self.config.objective.type == "reward":
                rule = f"One of its answers ends beyond {self.max_length} tokens, so the pair is left out."
            return Rejected(
                number, "", length, rule, "Shorten the question, or raise train.max_length.", file
            )
        rule = f"Longer than {self.max_length} tokens, so its end is cut."
        way_out = f"Shorten it, or set train.max_length to {self.lengths[place]}."
        return Rejected(number, "", length, rule, way_out, file)

    def faults(self) -> list[Fault]:
        refused = [place for place in self.unlearnable if not self.lengths[place]]
        if len(refused) > UNLEARNABLE_SHARE * len(self.rows):
            reason = self.refused.get(int(self.rows[refused[0]]), "")
            rule = f"{len(refused):,} of {len(self.rows):,} rows are refused by the model's chat template."
            return [Fault("chat template", "", rule, reason)]
        if len(self.unlearnable) <= UNLEARNABLE_SHARE * len(self.rows):
            return []
        told = f"{len(self.unlearnable):,} of {len(self.rows):,} rows"
        rule = f"{told} keep no token to learn from at this maximum length."
        if self.config.objective.type == "reward":
            rule = f"{told} have an answer that ends beyond this maximum length."
        elif len(self.unlearnable) == len(self.rows):
            rule = "No row keeps a token to learn from at this maximum length."
        needs = np.maximum(self.prompts, self.image_ends - 1)
        before = np.sort(self.lengths if self.config.objective.type == "reward" else needs)
        needed = before[len(before) - 1 - math.floor(UNLEARNABLE_SHARE * len(before))]
        way_out = (
            f"Set it above {needed:,}, so that nearly every row keeps some answer, or shorten the questions."
        )
        return [Fault("train.max_length", str(self.max_length), rule, way_out)]

    def warnings(self) -> list[Fault]:
        found, where, value = [], "train.max_length", str(self.max_length)
        longest = int(self.lengths.max())
        if self.cut.any():
            rule = f"{self.cut.sum():,} of {len(self.rows):,} rows are cut at the end."
            found.append(Fault(where, value, rule, f"The longest row has {longest:,} tokens."))
        if 0 < len(self.unlearnable) <= UNLEARNABLE_SHARE * len(self.rows):
            rule = f"{len(self.unlearnable):,} of {len(self.rows):,} rows keep no token to learn from, and are left out."
            found.append(
                Fault(
                    where,
                    value,
                    rule,
                    "Each is listed with its reason; raise the length to train on long ones.",
                )
            )
        return found + self._context_warning(longest) + self._rule_warnings()

    def _context_warning(self, longest: int) -> list[Fault]:
        card = catalog.MODELS.get(self.config.model.id)
        longest = min(longest, self.max_length)
        if not card or longest <= card.context_tokens:
            return []
        rule = (
            f"The longest row has {longest:,} tokens, but {card.label} reads at most {card.context_tokens:,}."
        )
        return [Fault("train.max_length", str(self.max_length), rule, f"Set it to {card.context_tokens}.")]

    def _rule_warnings(self) -> list[Fault]:
        """Gemma's own rules, looked up in the very tokens."""
        odd, found = self.tokens.odd[self.rows], []
        for bit, rule, way_out in (
            (NO_SINGLE_BOS, "do not begin with exactly one <bos>", "Take <bos> out of the texts."),
            (NO_TURN_END, "do not learn the end of their answer", "Use a model with Gemma's own template."),
        ):
            rows = self.rows[(odd & bit) > 0]
            if len(rows):
                first = ", ".join(str(number) for number in self.store.facts["number"][rows[:5]])
                found.append(Fault("chat template", f"rows {first}", f"{len(rows):,} rows {rule}.", way_out))
        return found


def learns_answers_only(config: RunConfig) -> bool:
    """Preference training and rewards have no other way."""
    return config.train.assistant_only_loss or config.objective.type != "sft"


def _set_warnings(prepared: Prepared, config: RunConfig) -> list[Fault]:
    """What does not stop a run but may surprise."""
    source, store, warnings = prepared.source, prepared.store, []
    if store.rejected_count:
        total = store.rejected_count + len(store)
        rule = f"{store.rejected_count:,} of {total:,} rows are not used."
        warnings.append(Fault(source, "", rule, "Each is listed with its reason."))
    if len(prepared.train) and not len(prepared.validation):
        share = config.data.validation_fraction
        rule = "There are no validation rows, so nothing shows whether the model learns or memorises."
        way_out = (
            "Add rows: there are too few different ones to hold any back." if share else "Set it to 0.1."
        )
        warnings.append(Fault("data.validation_fraction", str(share), rule, way_out))
    if packs(config):
        warnings.append(
            Fault("train.packing", "true", "With packing the number of steps is an estimate.", "")
        )
    return warnings
