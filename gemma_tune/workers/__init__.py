"""The processes that hold torch: training and chat. Nothing else in the package imports it."""

import os

# How long OpenMP's threads spin before they sleep; read when torch is imported. Pocket Gemma's LoRA step on two cores,
# tokens per second alone and beside one busy process: GNU's default 6,600 and 940, this 6,000 and 2,200, no spinning
# 3,000 and 2,950.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

# Large tensors lie in huge pages where the system allows that on request. A fresh page costs time: measured on full
# fine-tuning of Gemma 3 270M on a virtual machine, 14 % of the first step's CPU and 9 % of the second's; the peak is the
# same. For LoRA with tcmalloc the app says no (`runs.launch`).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
