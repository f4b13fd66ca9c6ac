"""Rows on their way to the model: read, check, split, batch. Every row is kept or accounted for."""
