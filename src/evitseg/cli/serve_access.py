"""Who reaches a service: API keys and loopback addresses."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import click


def api_keys(path: Path | None) -> tuple[str, ...]:
    """The API keys in a file. Raises: BadParameter."""
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: cannot be read ({error})", param_hint="--api-key-file") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise click.BadParameter(f"{path}: has no key; write one per line", param_hint="--api-key-file")
    if any(len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise click.BadParameter(
            f"{path}: a key must have 16 or more printable ASCII characters; "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one",
            param_hint="--api-key-file",
        )
    return keys


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
