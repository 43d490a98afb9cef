"""Jinja templates and the style sheet of the page (a package, so that they are installed with the code)."""
