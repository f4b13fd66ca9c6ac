"""What a run will take before it begins, and which method and settings to begin with."""
