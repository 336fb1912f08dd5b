"""evitseg info."""

from __future__ import annotations

from typing import Any

import click

from evitseg.cli.command import verb
from evitseg.cli.models_command import costs, large_number, show_models
from evitseg.cli.options import engine_names, pinned_model
from evitseg.cli.output import Output


@verb(
    "info",
    ("evitseg info", "The version, and which engines are installed."),
    ("evitseg info model.onnx", "What a model file contains: classes, size, accuracy, where it came from."),
)
@click.argument(
    "model",
    required=False,
    metavar="[MODEL]",
    help="A model's name, a checkpoint, an exported model, or hf://owner/name.",
)
def info_command(output: Output, model: str | None) -> None:
    """Describe a model; without one, show the version and the installed engines."""
    if model is None:
        output.content = about = _about_package()
        output.result(f"evitseg {about['version']}")
        output.result(f"installed engines: {', '.join(name for name, there in about['engines'].items() if there)}")
        if missing := [name for name, there in about["engines"].items() if not there]:
            output.result(f"not installed: {', '.join(missing)}")
        output.result("variants (with 19 classes):")
        show_models(output, about["variants"])
        output.result("`evitseg models` lists the models.")
        return
    output.content = _about_model(pinned_model(model, output) or model)
    for key, value in output.content.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for row in rows:
            output.result(f"{key.replace('_', ' ')}: {_readable(row)}")


def _readable(value: Any) -> str:
    """A value of a manifest, for a person."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_readable, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return large_number(value)
    return "none" if value is None else str(value)


def _about_package() -> dict[str, Any]:
    from importlib.util import find_spec

    from evitseg import __version__
    from evitseg.architecture import BACKBONES, cost, model_config
    from evitseg.system.core_library import LIBRARY

    modules = {"litert": "ai_edge_litert"}
    installed = {name: find_spec(modules.get(name, name)) is not None for name in engine_names()}
    return {
        "version": __version__,
        "engines": installed | {"native": LIBRARY.is_file()},
        "variants": {name: costs(cost(model_config(name, 19))) for name in BACKBONES},
    }


def _about_model(model: str) -> dict[str, Any]:
    from dataclasses import asdict

    from evitseg.architecture import PUBLISHED_SEGMENTATION, cost, short_name
    from evitseg.loading import model_file, network_of
    from evitseg.runtime.checkpoint import NoManifestError
    from evitseg.runtime.engines import read_manifest
    from evitseg.system.hub import is_hub_name

    short = short_name(model)
    if short in PUBLISHED_SEGMENTATION:  # described without downloading its weights
        config = PUBLISHED_SEGMENTATION[short]
        return {"name": short, "variant": config.variant, "classes": config.num_classes} | costs(cost(config))
    path = model_file(model)
    try:
        manifest = network_of(model)[1] if path is None else read_manifest(path)
    except NoManifestError:  # PyTorch recognises the network
        manifest = network_of(model)[1]
    return {
        "name": manifest.name,
        "file": str(path or model),
        **({"source": model} if is_hub_name(model) else {}),
        "variant": manifest.model.variant,
        "classes": list(manifest.labels.names),
        **costs(manifest.cost),
        "weights": manifest.weights,
        "preprocess": asdict(manifest.preprocess),
        "training": asdict(manifest.training),
        "accuracy": [asdict(accuracy) for accuracy in manifest.accuracy],
        "verification": asdict(manifest.verification) if manifest.verification else None,
        "self_check": f"{manifest.self_check.image} at {'x'.join(map(str, manifest.self_check.size))}"
        if manifest.self_check
        else None,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "written_by": f"evitseg {manifest.evitseg_version}",
    }
