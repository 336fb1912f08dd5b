"""Datasets: folder layouts, lists of pairs, inspection, and the formats of annotation tools."""
