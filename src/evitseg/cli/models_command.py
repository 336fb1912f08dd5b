"""evitseg models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evitseg.cli.command import verb
from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.architecture import Cost


@verb(
    "models",
    ("evitseg models", "Names for --model, with their size and cost."),
    ("evitseg models --json", "The same, for a program."),
)
def models_command(output: Output) -> None:
    """List the models that evitseg knows by name.

    Bundled models ship with the package. Published ones are downloaded on first use, which needs the extra 'torch'.
    """
    from dataclasses import asdict

    from evitseg.architecture import cost, model_config
    from evitseg.labels import load_labels
    from evitseg.loading import list_models

    models = {}
    for model in list_models():
        classes = len(load_labels(model.dataset).classes)
        models[model.name] = asdict(model) | {"classes": classes} | costs(cost(model_config(model.variant, classes)))
    output.content = {"models": list(models.values())}
    show_models(output, models)
    output.result(f"default: {', '.join(name for name, about in models.items() if about['is_default'])}")


def costs(cost: Cost) -> dict[str, int]:
    """Parameters, and multiply-adds at two image sizes."""
    return {
        "parameters": cost.parameters,
        "macs_512x512": round(cost.macs(512, 512)),
        "macs_1024x2048": round(cost.macs(1024, 2048)),
    }


def large_number(value: int) -> str:
    """1.2 G, 3.4 M, or the number itself."""
    if value >= 10**9:
        return f"{value / 1e9:.1f} G"
    return f"{value / 1e6:.1f} M" if value >= 10**4 else str(value)


def show_models(output: Output, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one row per model or variant."""
    from rich.table import Table
    from rich.text import Text

    headings = {"origin": "origin", "classes": "classes", "parameters": "parameters"}
    headings |= {"macs_512x512": "MACs 512×512", "macs_1024x2048": "MACs 1024×2048"}
    shown = [key for key in headings if key in next(iter(models.values()))]
    table = Table(box=None, padding=(0, 1))
    table.add_column("name", no_wrap=True)
    for key in shown:
        table.add_column(headings[key], justify="left" if key == "origin" else "right", no_wrap=True)
    for name, about in models.items():
        cells = [about[key] if isinstance(about[key], str) else large_number(about[key]) for key in shown]
        table.add_row(Text(name), *cells)
    output.show(table)
