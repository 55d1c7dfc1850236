"""Evaluation clips in training lists."""
