"""The comparison page with tables and images, and its tables as Markdown."""

from stepalign.reports.comparison.gallery import ComparedPrompt
from stepalign.reports.comparison.markdown import comparison_markdown
from stepalign.reports.comparison.write import write_comparison_report

__all__ = ["ComparedPrompt", "comparison_markdown", "write_comparison_report"]
