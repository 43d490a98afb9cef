"""The report: outcomes with intervals, sentences computed from them, figures, and a self-contained page."""
