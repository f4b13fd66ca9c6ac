"""One technique per file, found by listing this folder; the file name is the `type` in the settings."""
