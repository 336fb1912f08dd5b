"""evitseg info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.options import AsJson, EngineName

if TYPE_CHECKING:
    from evitseg.architecture import Cost
    from evitseg.manifest import Manifest


@plain_errors
def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="An artefact, a checkpoint, or a model's name.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a model is; without one, what is installed and which models there are."""
    from rich.console import Console

    content = _about_model(model) if model else _about_package()
    if as_json:
        print(json.dumps(content, indent=2))
    else:
        _show(Console(highlight=False), content)


def _about_package() -> dict[str, Any]:
    from importlib.util import find_spec

    from evitseg._version import __version__
    from evitseg.architecture import BACKBONES, PUBLISHED_SEGMENTATION, cost, model_config
    from evitseg.bundled import DEFAULT_MODEL, bundled_models
    from evitseg.runtime.native import LIBRARY

    modules = {"litert": "ai_edge_litert"}
    installed = {name.value: find_spec(modules.get(name.value, name.value)) is not None for name in EngineName}
    return {
        "version": __version__,
        "engines": installed | {"native": LIBRARY.is_file()},
        "bundled models": {name: "the default" * (name == DEFAULT_MODEL) for name in bundled_models()},
        "published models": {name: _cost(cost(config)) for name, config in PUBLISHED_SEGMENTATION.items()},
        "variants": {name: _cost(cost(model_config(name, 19))) for name in BACKBONES},
    }


def _about_model(model: str) -> dict[str, Any]:
    from dataclasses import asdict

    from evitseg.architecture import PUBLISHED_SEGMENTATION, cost, short_name
    from evitseg.bundled import bundled_models
    from evitseg.loading import ARTEFACT_ENDINGS, network_of

    short = short_name(model)
    if short in PUBLISHED_SEGMENTATION:  # known without its weights: nothing is downloaded
        config = PUBLISHED_SEGMENTATION[short]
        return {"name": short, "variant": config.variant, "classes": config.num_classes} | _cost(cost(config))
    path = bundled_models().get(model, Path(model))
    manifest: Manifest
    if path.suffix in ARTEFACT_ENDINGS:
        from evitseg.runtime.openvino_engine import read_manifest

        manifest = read_manifest(path)
    else:
        manifest = network_of(model)[1]
    return {
        "name": manifest.name,
        "file": str(path),
        "variant": manifest.model.variant,
        "classes": list(manifest.labels.names),
        **_cost(manifest.cost),
        "weights": manifest.weights,
        "preprocess": asdict(manifest.preprocess),
        "training": asdict(manifest.training),
        "accuracy": [asdict(accuracy) for accuracy in manifest.accuracy],
        "verification": asdict(manifest.verification) if manifest.verification else None,
        "checkpoint sha256": manifest.checkpoint_sha256,
        "written by": f"evitseg {manifest.evitseg_version}",
    }


def _cost(of: Cost) -> dict[str, Any]:
    return {
        "parameters": of.parameters,
        "MACs at 512×512": round(of.macs(512, 512)),
        "MACs at 1024×2048": round(of.macs(1024, 2048)),
    }


def _show(console: Any, content: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    for key, value in content.items():
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            table = Table(title=Text(key), title_justify="left", box=None, padding=(0, 1), title_style="bold")
            table.add_column("")
            for column in next(iter(value.values())):
                table.add_column(column, justify="right")
            for name, row in value.items():
                table.add_row(Text(name), *(Text(_short(cell)) for cell in row.values()))
            console.print()
            console.print(table)
        elif isinstance(value, dict):
            console.print(Text(key, style="bold"))
            for name, entry in value.items():
                console.print(Text(f"  {name}: {_short(entry)}" if entry != "" else f"  {name}"))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value:
                _show(console, {key: row})
        else:
            console.print(Text.assemble((key, "bold"), f" {_short(value)}"))


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "not installed"
    if isinstance(value, int) and value >= 10**9:
        return f"{value / 1e9:.1f} G"
    if isinstance(value, int) and value >= 10**4:
        return f"{value / 1e6:.1f} M"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(entry)}" for key, entry in value.items())
    return "none" if value is None else str(value)
