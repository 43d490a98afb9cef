"""The report: outcomes with intervals, sentences computed from them, figures, and one self-contained page."""
