"""The command line: one file per verb. Heavy packages are imported when a verb runs, so that --help is quick."""

from __future__ import annotations

from evitseg.cli.app import app, main

__all__ = ["app", "main"]
