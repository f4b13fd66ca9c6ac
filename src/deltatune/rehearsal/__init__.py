"""Rehearsal: what a training would meet, tried in a minute on a few of its rows. One check per file."""
