"""One task per file, found by listing this folder; the file name is the `task` in the settings."""
