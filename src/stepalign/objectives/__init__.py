"""Losses over comparisons, one file per family."""
