"""Training: one readable loop, its optimizer, checkpoints, progress and signals."""
