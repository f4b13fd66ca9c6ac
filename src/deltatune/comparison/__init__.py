"""Comparison: techniques and baselines on the user's own rows, rates tuned inside a budget, differences tested."""
