"""Charts of a study as SVG: files for report.md, and parts of report.html that follow the page's colours."""

from finetrap.report.charts.canvas import NARROW, TONES, WIDE, Canvas
from finetrap.report.charts.inline import inline, palette_css
from finetrap.report.charts.outcomes import OUTCOME_TONES
from finetrap.report.charts.section import Chart, charts_of

__all__ = ["NARROW", "OUTCOME_TONES", "TONES", "WIDE", "Canvas", "Chart", "charts_of", "inline", "palette_css"]
