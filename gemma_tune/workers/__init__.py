"""The processes that hold torch: training and chat. Nothing else in the package imports it."""

import os

# How long OpenMP's threads spin before they sleep; read when torch is imported. Pocket Gemma's LoRA step on two cores,
# tokens per second alone and beside one busy process: GNU's default 6,600 and 940, this 6,000 and 2,200, no spinning
# 3,000 and 2,950.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
