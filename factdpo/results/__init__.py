"""Finished and unfinished runs as tables, comparisons and states."""
