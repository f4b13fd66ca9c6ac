"""Networks of ours, where `transformers` has none. Each file registers its own with the Auto classes."""
