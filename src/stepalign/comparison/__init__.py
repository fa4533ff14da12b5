"""Models against each other on the same prompts: what their evaluated folders say, as numbers and as a page."""

from stepalign.comparison.compare import Comparison, compare_folders, write_comparison

__all__ = ["Comparison", "compare_folders", "write_comparison"]
