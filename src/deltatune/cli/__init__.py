"""The command line: one file per command, found by listing this folder. No command file imports torch at the top."""
