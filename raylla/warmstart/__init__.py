"""Warm start: a pretrained model learns to place an ad, from answers that others published."""
