"""`python -m evitseg` is the command."""

from evitseg.cli import app

app()
