"""Read text files written by people and other tools."""

from __future__ import annotations

import codecs
import stat
from pathlib import Path

from evitseg.errors import DatasetError

MAX_LIST_BYTES = 256 * 2**20
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(path: Path, errors: str = "strict", most: int = MAX_LIST_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        errors: how to treat bytes that are not UTF-8, as for `bytes.decode`.
        most: largest size in bytes.

    Raises: DatasetError for a file that cannot be read, is not UTF-8, or is too large.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DatasetError(f"{path}: not a regular file.")
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if len(content) > most:
        raise DatasetError(f"{path}: larger than {most:,} bytes, which no file of this kind should be.")
    if content.startswith(_UTF16) or b"\0" in content[:4096]:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text (it looks like UTF-16); save it as UTF-8.")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8.") from error
