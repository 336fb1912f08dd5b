"""evitseg web: its command line, and its end."""

from __future__ import annotations

import json
import re
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.optional import needs

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--address", "192.168.1.2"), "--address needs --lan"),
        (("--lan", "--address", "phone"), "phone is not the IPv4 address of a machine"),
        (("--lan", "--address", "0.0.0.0"), "0.0.0.0 is not the IPv4 address of a machine"),
        (("--lan", "--address", "fe80::1"), "fe80::1 is not the IPv4 address of a machine"),
        (("--port", "70000"), "--port"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(arguments: tuple[str, ...], told: str, cli: Cli) -> None:
    run = cli("web", "--no-browser", *arguments)
    assert run.status == 2
    assert told in run.stderr


def test_a_model_that_does_not_exist_ends_with_status_1(cli: Cli) -> None:
    run = cli("web", "nothing.safetensors", "--no-browser")
    assert run.status == 1
    assert "nothing.safetensors" in run.stderr


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "evitseg", "web", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return output


def test_the_page_of_the_bundled_model_is_served_until_ctrl_c(tmp_path: Path) -> None:
    process = started("--no-browser", cwd=tmp_path)
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", process.stdout.readline())
    assert address is not None
    with urllib.request.urlopen(f"{address[0]}model.evit", timeout=60) as answer:
        assert answer.read(8) == b"EVITFILE"
    ended(process)
    assert list(tmp_path.iterdir()) == []


def test_the_local_network_gets_https_and_a_sentence_on_what_it_exposes(tmp_path: Path) -> None:
    needs("cryptography", "segno")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("a page")
    process = started("site", "--lan", "--address", "127.0.0.1", cwd=tmp_path)
    assert process.stdout is not None
    told = "".join(process.stdout.readline() for _ in range(3))
    address = told.split()[0]
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(address, timeout=60, context=trusting) as answer:
        assert answer.read() == b"a page"
    ended(process)
    assert address.startswith("https://127.0.0.1:")
    assert "Anybody on this network who has this address can open the page and download the model" in told
    assert re.search(r"fingerprint is ([0-9A-F]{2}:){31}[0-9A-F]{2}\.", told)


def test_the_address_is_drawn_as_a_code_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("segno")
    from evitseg.cli.output import Output
    from evitseg.cli.web_command import show_code

    drawn: list[str] = []
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(Output, "note", lambda self, line: drawn.append(line))
    show_code("https://192.168.1.20:8443/secret/", Output())
    (code,) = drawn
    lines = re.sub(r"\033\[[\d;]*m", "", code).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) in (33, 37)  # 29 or 33 modules and a border
    show_code("https://192.168.1.20:8443/secret/", Output(as_json=True))
    assert len(drawn) == 1


def test_json_has_the_address(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("a page")
    process = started("site", "--no-browser", "--json", cwd=tmp_path)
    assert process.stderr is not None
    address = process.stderr.readline().split()[0]
    assert json.loads(ended(process))["url"] == address
