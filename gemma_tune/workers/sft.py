"""Supervised fine-tuning: TRL's trainer with less work for the same loss (`fast` says which ways are taken)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import torch
from accelerate import DistributedType
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from gemma_tune.config import RunConfig
from gemma_tune.errors import ConfigError
from gemma_tune.workers import documents, fast, fused_head
from gemma_tune.workers.validation import StoppableValidation

LEAKY_PACKING = "wrapped"  # cuts the rows anywhere and lets a document see the one before

log = logging.getLogger(__name__)


class Trainer(StoppableValidation, SFTTrainer):
    """SFTTrainer on documents without padding and with the fused head, as far as `levers` says.

    Logs TRL's `num_tokens` and `mean_token_accuracy`; not its `entropy`, which would take another pass over the scores.
    """

    def __init__(self, *, levers: fast.Levers, **given) -> None:
        super().__init__(**given)
        self.levers = levers
        base = _plain(self.model)
        if levers.fused_head:
            alone = self.accelerator.distributed_type is DistributedType.NO and not self.args.torch_compile
            fused_head.add_fused_head(base, fused_head.TiedTable.of(base) if alone else None)
        if levers.fast_norm:
            fast.use_fast_norms(base)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "image_files" not in self._signature_columns:  # the collator's, where the rows hold images
            self._signature_columns.append("image_files")

    def training_step(self, *args, **kwargs):
        with documents.attending(_plain(self.model).config, self.levers.attention):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        with documents.attending(_plain(self.model).config, self.levers.attention):
            return super().prediction_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.levers.attention:
            inputs["document_lengths"] = tuple(inputs["cu_seq_lens_q"].diff().tolist())
        if return_outputs or not self.levers.fused_head:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        output = model(**inputs, fused_linear_cross_entropy=True)
        counts = self._count(output, inputs)
        items = output.learned_tokens if num_items_in_batch is None else num_items_in_batch
        loss = output.loss / torch.as_tensor(items).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # DDP averages the gradients
        self._note(*counts)
        return loss

    def _count(self, output: fused_head.HeadOutput, inputs: dict) -> tuple[int, int, int]:
        """Learned tokens, those of them that were the likeliest word, and all that are no padding; of every process."""
        if "attention_mask" in inputs:
            read = inputs["attention_mask"].sum()
        else:
            read = torch.tensor(inputs["input_ids"].numel(), device=output.loss.device)
        counts = torch.stack((output.learned_tokens, output.correct_tokens, read))
        return tuple(self.accelerator.gather(counts[None]).sum(0).tolist())

    def _note(self, learned: int, correct: int, read: int) -> None:
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._total_train_tokens += read // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["mean_token_accuracy"].append(correct / learned if learned else 0.0)


def sft_trainer(
    config: RunConfig,
    args: SFTConfig,
    model: PreTrainedModel | PeftModel,
    tokenizer,
    train_rows: Dataset,
    validation_rows: Dataset | None,
    peft_config: PeftConfig | None,
    callbacks: list,
    collator: Callable[[list[dict]], dict] | None = None,
) -> Trainer:
    """The trainer, ready for `train()`, on rows of `input_ids` and `labels` as long as each other.

    `args` stays as it is. `collator`: of rows that hold more than ids. Raises ConfigError where packing would leak, and what TRL and PEFT raise.
    """
    if args.packing and args.packing_strategy == LEAKY_PACKING:
        raise ConfigError.at(
            "advanced.trainer.packing_strategy", LEAKY_PACKING,
            "It lets documents of one row see each other, and learn from what is not theirs.", "Choose bfd.",
        )  # fmt: skip
    chosen = fast.levers(config, args, _plain(model))
    for reason in chosen.reasons:
        log.warning("%s", reason)
    args = copy.copy(args)
    args.padding_free = chosen.padding_free
    if collator and peft_config is None and not isinstance(model, PeftModel):
        args.ddp_find_unused_parameters = (
            True  # a batch without an image leaves what brings images in without a gradient
        )
    if args.packing and not chosen.padding_free:
        args.packing = args.eval_packing = False
    return Trainer(
        levers=chosen,
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        peft_config=peft_config,
        callbacks=callbacks,
        data_collator=collator,
    )


def _plain(model: torch.nn.Module) -> PreTrainedModel:
    """The model within PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
