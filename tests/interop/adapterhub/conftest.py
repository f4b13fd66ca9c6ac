"""The script beside this file needs an environment of its own."""

collect_ignore = ["make_fixtures.py"]
