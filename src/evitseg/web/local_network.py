"""A page for the phone beside this machine: the address on the local network, and https, without which browsers give no
camera."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import tempfile
from pathlib import Path
from typing import NamedTuple

from evitseg.errors import ConfigError, MissingPackageError

_DAYS = 7
_COMMON_NAME = "evitseg web"


def own_address() -> str:
    """The address of this machine on its local network.

    Raises: ConfigError if it is on none, or if its address is a public one, which the whole internet may reach.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses the network that leads outside
            found = ipaddress.ip_address(probe.getsockname()[0])
        except OSError:
            found = ipaddress.ip_address("127.0.0.1")
    if found.is_loopback or found.is_unspecified:
        raise ConfigError("this machine is on no network; connect it, or choose an address with --address.")
    if not found.is_private:
        raise ConfigError(
            f"this machine's address, {found}, is a public one, so that the page would be on the internet; if that is "
            f"meant, say --address {found}."
        )
    return str(found)


class Certificate(NamedTuple):
    """A certificate with its key, ready for a server, and the fingerprint by which a person can recognise it."""

    context: ssl.SSLContext
    fingerprint: str


def make_certificate(address: str) -> Certificate:
    """Make a certificate for an IP address that nobody has signed, with a key that exists only in this process.

    Raises: MissingPackageError.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise MissingPackageError("a page over https (--lan)", "web") from error

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _COMMON_NAME)])
    now = datetime.datetime.now(datetime.timezone.utc)
    # Safari refuses certificates that lack one of these extensions, or are valid for years.
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    content = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python reads keys from files only. The file is readable by this user alone, and is gone at once.
    handle, path = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()
    digest = certificate.fingerprint(hashes.SHA256()).hex().upper()
    return Certificate(context, ":".join(digest[i : i + 2] for i in range(0, len(digest), 2)))
