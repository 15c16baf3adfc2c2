"""What the processes of several hosts agree on before they train: each host has a run folder of its own."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from accelerate import PartialState

from gemma_tune.runs.checkpoints import complete_checkpoints
from gemma_tune.runs.folder import RunFolder


def agreed_checkpoint(run: RunFolder) -> Path | None:
    """The last whole checkpoint that every host has, in this host's folder. None: all begin from the start.

    Waits for every process of the run.
    """
    here = dict(complete_checkpoints(run.path))
    state = PartialState(cpu=not torch.cuda.is_available())
    steps: list[list[int]] = [[] for _ in range(state.num_processes)]
    torch.distributed.all_gather_object(steps, sorted(here))
    common = set(steps[0]).intersection(*steps)
    return here[max(common)] if common else None


def save_on_every_host(model: transformers.PreTrainedModel) -> None:
    """Lets `save_on_each_node` hold for the weights too.

    Transformers 5.23 writes them in the first process of all hosts only: other hosts' checkpoints would have none.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
