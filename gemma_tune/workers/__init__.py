"""The processes that hold torch: training and chat. Nothing else in the package imports it."""
