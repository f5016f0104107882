"""Figures per query and their intervals, pure: for training, evaluation and serving alike."""
