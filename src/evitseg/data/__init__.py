"""Data as other tools store it."""
