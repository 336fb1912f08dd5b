"""Images in, answers out: every kind of answer against the package's own result."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

import numpy as np
from httpx2 import Response
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

import evitseg
from evitseg.runtime.segmenter import Prediction
from evitseg.serve.answers import ANSWERS, ModelIdentity, Segmented
from evitseg.serve.parameters import AnswerOptions
from evitseg.serve.service import Service, ServiceLimits
from tests.serve.serving import client_of, photo, segmenter

PHOTO = photo()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(Service(segmenter(), ServiceLimits())) as client:
        yield client


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return segmenter()(PHOTO)


def ask(client: TestClient, accept: str, query: str = "", image: bytes = PHOTO) -> Response:
    headers = {"Accept": accept, "Content-Type": "image/jpeg"}
    answer = client.post(f"/v1/segment{query}", content=image, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].partition(";")[0] == accept
    return answer


def pixels(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def test_the_default_is_the_png_that_predict_writes(client: TestClient, prediction: Prediction, tmp_path: Path) -> None:
    answer = client.post("/v1/segment", content=PHOTO, headers={"Content-Type": "image/jpeg"})
    prediction.save(tmp_path / "mask.png")
    assert answer.content == (tmp_path / "mask.png").read_bytes()
    assert answer.headers["content-type"] == "image/png"
    fractions = json.loads(answer.headers["x-evitseg-fractions"])
    assert fractions == pytest.approx(prediction.fractions(), abs=1e-4)
    stages = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["queue", "decode", "network", "mask", "encode"]


def test_any_name_of_a_model_fits_into_the_header() -> None:
    service = Service(segmenter(), ServiceLimits())
    with client_of(service) as client:
        assert ask(client, "image/png").headers["x-evitseg-model"] == "b0-camvid"
        service.model = ModelIdentity("b0 道路\r\nX-Other: 1", "0")
        assert ask(client, "image/png").headers["x-evitseg-model"] == "b0%20%E9%81%93%E8%B7%AF%0D%0AX-Other:%201"


def test_long_names_of_classes_do_not_make_a_long_header(prediction: Prediction) -> None:
    classes = tuple(replace(each, name=f"{each.name} {'é' * 200}") for each in prediction.labels.classes)
    long = replace(prediction, labels=replace(prediction.labels, classes=classes))
    segmented = Segmented(long, ModelIdentity("b0", "0"), {}, [])
    text = ANSWERS["png"].encode(segmented, AnswerOptions()).headers["X-Evitseg-Fractions"]
    assert len(text) <= 3000
    assert list(json.loads(text)) == list(long.fractions())[:2]  # 6 characters for each of 200 letters


def test_a_form_with_one_file_gives_the_same_answer_as_the_file(client: TestClient) -> None:
    form = client.post("/v1/segment", files={"file": ("photo.jpg", PHOTO, "image/jpeg")})
    assert form.content == ask(client, "image/png").content


def test_json_has_classes_with_pixels_and_fractions(client: TestClient, prediction: Prediction) -> None:
    content = ask(client, "application/json").json()
    assert content["image"] == {"width": 96, "height": 64}
    assert content["model"]["name"] == "b0-camvid"
    assert len(content["model"]["sha256"]) == 64
    counts = {each["id"]: each["pixels"] for each in content["classes"]}
    assert counts == {i: n for i, n in enumerate(np.bincount(prediction.mask.ravel())) if n}
    assert sum(each["fraction"] for each in content["classes"]) == pytest.approx(1)
    assert [each["pixels"] for each in content["classes"]] == sorted(counts.values(), reverse=True)
    first = content["classes"][0]
    label = prediction.labels.classes[first["id"]]
    assert (first["name"], first["color"]) == (label.name, list(label.color))
    mask = pixels(base64.b64decode(content["mask"]["data"]))
    np.testing.assert_array_equal(mask, prediction.mask)
    assert content["warnings"] == []
    assert set(content["timing_ms"]) == {"queue", "decode", "network", "mask"}


def test_run_lengths_are_those_that_coco_reads(client: TestClient, prediction: Prediction) -> None:
    needs("pycocotools")
    from pycocotools import mask as coco

    mask = ask(client, "application/json", "?mask=rle").json()["mask"]
    assert mask["encoding"] == "coco_rle"
    assert mask["size"] == [64, 96]
    seen = np.full((64, 96), -1)
    for index, counts in mask["counts"].items():
        seen[coco.decode({"size": mask["size"], "counts": counts}) == 1] = int(index)
    np.testing.assert_array_equal(seen, prediction.mask)


def test_a_mask_that_nobody_wants_is_not_sent(client: TestClient) -> None:
    assert ask(client, "application/json", "?mask=none").json()["mask"] is None


def test_roboflows_shape_has_a_grey_png_and_a_class_map(client: TestClient, prediction: Prediction) -> None:
    content = ask(client, "application/json", "?compat=roboflow").json()
    assert set(content) == {"time", "image", "segmentation_mask", "class_map"}
    assert content["image"] == {"width": 96, "height": 64}
    assert content["class_map"]["3"] == "road"
    with Image.open(io.BytesIO(base64.b64decode(content["segmentation_mask"]))) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), prediction.mask)


@pytest.mark.parametrize(("accept", "name"), [("image/jpeg", "JPEG"), ("image/webp", "WEBP")])
def test_an_overlay_is_the_packages_overlay(accept: str, name: str, client: TestClient, prediction: Prediction) -> None:
    content = io.BytesIO()
    prediction.overlay(legend=False, opacity=0.25).save(content, name, quality=90)
    assert ask(client, accept, "?legend=false&opacity=0.25").content == content.getvalue()
    legend = pixels(ask(client, accept).content)
    assert legend.shape[0] > 64


def test_polygons_are_the_packages_polygons(client: TestClient, prediction: Prediction) -> None:
    needs("rasterio")
    least = max(int(polygon["properties"]["pixels"]) for polygon in prediction.polygons())  # the largest remain
    content = ask(client, "application/geo+json", f"?min_pixels={least}").json()
    assert content["type"] == "FeatureCollection"
    assert content["features"] == prediction.polygons(least)
    assert 0 < len(content["features"]) < len(prediction.polygons())


def test_logits_come_with_their_shape(client: TestClient, prediction: Prediction) -> None:
    answer = ask(client, "application/octet-stream")
    shape = tuple(map(int, answer.headers["x-evitseg-shape"].split(",")))
    assert answer.headers["x-evitseg-dtype"] == "float32"
    np.testing.assert_array_equal(np.frombuffer(answer.content, "<f4").reshape(shape), prediction.logits)


def test_only_the_classes_that_were_asked_for_are_in_the_mask(client: TestClient, prediction: Prediction) -> None:
    index = int(prediction.mask[0, 0])
    name = prediction.labels.names[index]
    mask = pixels(ask(client, "image/png", f"?classes={name}").content)
    np.testing.assert_array_equal(mask, np.where(prediction.mask == index, index, 255))
    classes = ask(client, "application/json", f"?classes={name}&mask=none").json()["classes"]
    assert [each["name"] for each in classes] == [name]


def test_another_working_size_gives_the_mask_of_that_size(client: TestClient) -> None:
    for query, size in (("?size=32", 32), ("?size=native", "native")):
        expected = evitseg.load(size=size)(PHOTO).mask  # type: ignore[arg-type]
        np.testing.assert_array_equal(pixels(ask(client, "image/png", query).content), expected)


def test_grey_levels_on_request(client: TestClient, prediction: Prediction) -> None:
    with Image.open(io.BytesIO(ask(client, "image/png", "?mask_format=gray").content)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), prediction.mask)


def test_a_large_jpeg_that_is_decoded_smaller_has_a_mask_and_an_overlay_of_its_own_size(client: TestClient) -> None:
    image = photo((400, 300))
    assert pixels(ask(client, "image/png", image=image).content).shape == (300, 400)
    assert pixels(ask(client, "image/jpeg", "?legend=false", image).content).shape == (300, 400, 3)


def test_a_remark_about_the_file_is_in_the_answer_and_not_on_the_terminal(client: TestClient) -> None:
    content = io.BytesIO()
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    warnings = ask(client, "application/json", image=content.getvalue()).json()["warnings"]
    assert len(warnings) == 1
    assert "2 frames" in warnings[0]


def test_the_model_says_what_it_is(client: TestClient) -> None:
    content = client.get("/v1/model").json()
    assert [each["name"] for each in content["classes"]] == list(segmenter().labels.names)
    assert content["answers"] == [kind.media_type for kind in ANSWERS.values()]
    assert content["manifest"]["training"]["licence"].startswith("Apache-2.0")
    assert content["limits"]["bytes"] == 32 * 2**20
    assert content["engine"]["streams"] == 2
