"""The processes that hold torch: training and chat. Nothing else in the package imports it."""

import os

# OpenMP threads that wait shall sleep, not spin; read when torch is imported. With a second busy process on two cores,
# spinning made a training step of 0.3 s take 6 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
