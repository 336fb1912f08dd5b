"""Settings of the documentation site, which `python scripts/docs.py` builds."""

project = "evitseg"
author = "the evitseg authors"
copyright = author  # Sphinx reads this name
extensions = ["myst_parser", "sphinx_external_toc"]
external_toc_path = "_toc.yml"
exclude_patterns = ["images"]

myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = "evitseg"
html_copy_source = False
html_show_sphinx = False
