"""The page on serving: its client works, and its command lines are ones that evitseg has."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from tests.optional import needs

needs("starlette", "httpx2", "uvicorn", "prometheus_client", "python_multipart")

from PIL import Image

from evitseg.cli import app
from evitseg.cli.serve_command import serve_command
from evitseg.serve.app import create_app
from evitseg.serve.service import Service, ServiceLimits
from tests.serve.serving import client_of, live, photo, segmenter

PAGE = (Path(__file__).parents[2] / "docs/how-to/serve.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found, language
    return found[1]


def test_the_client_in_python_gets_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(photo())
    service = Service(segmenter(), ServiceLimits())
    with live(create_app(service), service) as running:
        exec(block("python").replace("8000", str(running.port)), {})
    with Image.open(tmp_path / "mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", (96, 64))


def test_every_curl_is_answered() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("curl ")]
    assert len(lines) == 4
    with client_of(Service(segmenter(), ServiceLimits())) as client:
        for line in lines:
            words = shlex.split(line)
            (url,) = (word for word in words if word.startswith("http://"))
            headers = dict(words[i + 1].split(": ") for i, word in enumerate(words) if word == "-H")
            if "-F" in words:
                answer = client.post(url, files={"file": photo()}, headers=headers)
            else:
                answer = client.post(url, content=photo(), headers=headers)
            assert answer.status_code == 200, line
            if "-o" in words:
                with Image.open(io.BytesIO(answer.content)) as image:
                    assert image.format == {".png": "PNG", ".webp": "WEBP"}[Path(words[words.index("-o") + 1]).suffix]


def command_lines() -> list[list[str]]:
    docker = block("dockerfile")
    entry, fixed = (json.loads(re.search(rf"^{name} (.*)$", docker, re.MULTILINE)[1]) for name in ("ENTRYPOINT", "CMD"))  # type: ignore[index]
    (container,) = yaml.safe_load(block("yaml"))["containers"]
    lines = [shlex.split(line, comments=True) for line in PAGE.splitlines() if line.startswith("evitseg serve")]
    unit = re.search(r"^ExecStart=(.*)$", block("ini"), re.MULTILINE)
    assert unit
    return [*lines, shlex.split(unit[1]), entry + fixed, entry + container["args"]]


@pytest.mark.parametrize("words", command_lines(), ids=shlex.join)
def test_every_command_line_of_the_page_parses(words: list[str]) -> None:
    assert Path(words[0]).name == "evitseg"
    assert words[1] == "serve"
    with serve_command.make_context("serve", words[2:], parent=click.Context(app)):
        pass


def test_the_probes_ask_addresses_that_exist() -> None:
    (container,) = yaml.safe_load(block("yaml"))["containers"]
    paths = {container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    paths |= {f"/{name}" for name in re.findall(r"127.0.0.1:8000/(\w+)'", block("dockerfile"))}
    assert paths == {"/healthz", "/readyz"}
    with client_of(Service(segmenter(), ServiceLimits())) as client:
        assert {client.get(path).status_code for path in paths} == {200}
