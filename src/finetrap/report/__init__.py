"""Results for people: in a terminal, a notebook, report.md and report.html. Computes no statistic."""
