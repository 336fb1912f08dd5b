"""The command line: one file per verb. Each imports what it needs, so that --help is quick."""

from __future__ import annotations

from evitseg.cli.app import app
from evitseg.cli.average import average
from evitseg.cli.bench import bench
from evitseg.cli.check import check
from evitseg.cli.convert import convert, convert_coco
from evitseg.cli.evaluate import evaluate
from evitseg.cli.export import export
from evitseg.cli.info import info
from evitseg.cli.polygons import polygons
from evitseg.cli.predict import predict
from evitseg.cli.train import train

__all__ = ["app"]

app.command()(predict)
app.command()(export)
app.command()(check)
app.command()(convert)
app.command(name="convert-coco")(convert_coco)
app.command(name="eval")(evaluate)
app.command()(train)
app.command()(bench)
app.command()(average)
app.command()(polygons)
app.command()(info)
