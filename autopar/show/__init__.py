"""Views of a plan: one neutral report, lowered to text or to HTML."""

from autopar.show.diff import Difference, diff
from autopar.show.html import to_fragment, to_html
from autopar.show.report import Report, report
from autopar.show.text import to_text

__all__ = ["Difference", "Report", "diff", "report", "to_fragment", "to_html", "to_text"]
