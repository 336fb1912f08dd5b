from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from evitseg.architecture import model_config
from evitseg.errors import ConfigError
from evitseg.labels import load_labels, numbered
from evitseg.manifest import SCHEMA, Accuracy, Manifest, Training, Verification, parse_manifest
from evitseg.preprocess import Preprocess


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        name="b0-camvid",
        model=model_config("b0", 11),
        labels=load_labels("camvid"),
        preprocess=Preprocess(720),
        training=Training("images", "CC0"),
        accuracy=(Accuracy("camvid test", "whole", 70.0, {"sky": 90.0}, 233, {"engine": "OpenVINO"}),),
        verification=Verification(3, 1e-5, 1.0),
    )


def test_a_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    assert parse_manifest(manifest.to_json(), "a.onnx") == manifest


def test_keys_that_older_versions_do_not_know_are_written_only_where_they_say_something(manifest: Manifest) -> None:
    content = json.loads(manifest.to_json())
    assert "activation_ranges" not in content
    assert "early_activation" not in content["model"]["backbone"]
    ranged = replace(manifest, model=model_config("b0-relu", 11), activation_ranges={"logits": (-3.0, 4.5)})
    assert parse_manifest(ranged.to_json(), "a.onnx") == ranged


def changed(manifest: Manifest, **changes: Any) -> str:
    return json.dumps(json.loads(manifest.to_json()) | changes)


def test_a_manifest_of_schema_1_is_read_by_its_old_keys(manifest: Manifest) -> None:
    content = json.loads(manifest.to_json())
    accuracy = {"data": "d", "protocol": "p", "miou": 50.0, "iou": {"pictures": 50.0}, "settings": {"pictures": "3"}}
    verification = {"largest_difference": 1e-6, "equal_pixels": 1.0, "artefact_miou": 49.0}
    content |= {"schema": 1, "accuracy": [accuracy | {"pictures": 3}], "verification": verification | {"pictures": 2}}
    content |= {"kept": {"head": 0.5}, "artefact_sha256": "ab"}
    del content["float16_layers"], content["files_sha256"]
    read = parse_manifest(json.dumps(content), "a.onnx")
    assert read.verification is not None
    assert (read.accuracy[0].images, read.verification.images, read.verification.exported_miou) == (3, 2, 49.0)
    assert read.accuracy[0].iou == {"pictures": 50.0}
    assert read.accuracy[0].settings == {"pictures": "3"}
    assert (read.float16_layers, read.files_sha256, read.schema) == ({"head": 0.5}, "ab", SCHEMA)


def test_a_newer_schema_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match=f"schema {SCHEMA + 1}, .* 1 to {SCHEMA}; update evitseg"):
        parse_manifest(changed(manifest, schema=SCHEMA + 1), "a.onnx")


def test_unknown_keys_are_refused_at_every_depth(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="colour"):
        parse_manifest(changed(manifest, colour="red"), "a.onnx")
    deep = json.loads(manifest.to_json())
    deep["model"]["backbone"]["stages"][0]["witdh"] = 3
    with pytest.raises(ConfigError, match="witdh"):
        parse_manifest(json.dumps(deep), "a.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": 1}', f'{{"schema": {SCHEMA}}}', '{"schema": "x"}'])
def test_a_damaged_manifest_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.onnx: the manifest"):
        parse_manifest(text, "a.onnx")


def test_values_that_cannot_work_are_refused(manifest: Manifest) -> None:
    content = json.loads(manifest.to_json())
    content["preprocess"]["short_side"] = 3
    with pytest.raises(ConfigError, match="size 3 is out of range"):
        parse_manifest(json.dumps(content), "a.onnx")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "backbone", "stages", 0, "late_norm"), "false"),
        (("model", "backbone", "stages", 0, "depth"), -3),
        (("model", "backbone", "stages", 3, "depth"), 10**12),
        (("model", "backbone", "head_dim"), 0),
        (("model", "head", "num_classes"), "11"),
        (("preprocess", "short_side"), 720.9),
        (("preprocess", "std"), [float("nan")] * 3),
        (("name",), None),
        (("schema",), True),
    ],
)
def test_every_value_has_its_type_and_range(place: tuple[Any, ...], value: Any, manifest: Manifest) -> None:
    content = json.loads(manifest.to_json())
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(ConfigError):
        parse_manifest(json.dumps(content), "a.onnx")


def test_labels_and_network_must_agree() -> None:
    with pytest.raises(ConfigError, match="3 classes, the network 11"):
        Manifest("a", model_config("b0", 11), numbered(3), Preprocess(), Training("", ""))
