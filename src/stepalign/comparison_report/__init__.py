"""What a comparison shows: the page with its tables and pictures, and the tables alone as Markdown."""

from stepalign.comparison_report.gallery import ComparedPrompt
from stepalign.comparison_report.markdown import comparison_markdown
from stepalign.comparison_report.write import write_comparison_report

__all__ = ["ComparedPrompt", "comparison_markdown", "write_comparison_report"]
