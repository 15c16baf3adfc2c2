"""The real training worker on a device that seems to hold ROWS rows: `python oom_worker.py ROWS STEP RUN_DIR …`.

From step STEP on, a larger micro-batch fails as torch does when a GPU's memory is used up.
"""

import sys

import torch
from transformers import Trainer

from gemma_tune.workers import train

ROWS, STEP = int(sys.argv[1]), int(sys.argv[2])
compute = Trainer.training_step


def training_step(self, *args, **kwargs):
    if self.args.per_device_train_batch_size > ROWS and self.state.global_step + 1 >= STEP:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return compute(self, *args, **kwargs)


if __name__ == "__main__":
    Trainer.training_step = training_step
    sys.exit(train.main(sys.argv[3:]))
