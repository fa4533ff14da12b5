"""What a comparison shows: the page with its tables and images, and the tables alone as Markdown."""

from stepalign.reports.comparison.gallery import ComparedPrompt
from stepalign.reports.comparison.markdown import comparison_markdown
from stepalign.reports.comparison.write import write_comparison_report

__all__ = ["ComparedPrompt", "comparison_markdown", "write_comparison_report"]
