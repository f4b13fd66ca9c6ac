"""Answers of a model on rows, their score with its uncertainty, and the curves of a training."""
