"""Annotations of other tools: one file per format, and the masks drawn from them."""
