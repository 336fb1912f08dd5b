"""Changes to files that a fuzzer makes: to any bytes, and to the parts of JSON, TIFF, PNG, ZIP, safetensors and ONNX.

A case is a tree: file contents by path relative to the folder they are written to.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

Tree = dict[str, bytes]

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 257, 32767, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64, 10**9, 10**400, -(2**31), -(2**63), 0.5, -0.0, 1e-320, 1e19, 1e300, float("nan"),
    float("inf"), float("-inf"), 1.5,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, True, False, "", "0", "-1", "nan", "1e999", "²", "9" * 5000, "a" * 5000, "\0", "a\nb", "\ud800", "../../x",
    "/dev/zero", "/etc/passwd", "http://[bad", "file:///x", ".", "..", "~", "x" * 300, "é", "\u202e", [], {}, [[]],
    [None], [-1], [[1, 2], [3]], {"": 0}, {"a": {"a": {}}}, "!!python/object:os.system",
)  # fmt: skip
TEXTS: tuple[bytes, ...] = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b",", b"#", b"%", b"-1", b"0", b"99999999999", b"nan",
    b"inf", b"1e999", b"\xc2\xb2", b"\x80", b"..", b"../..", b"/dev/zero", b"~", b"{", b"[", b"[" * 3000, b"{a: " * 500,
    b"&a [*a]", b"&a", b"*a", b"!!python/none", b"!!timestamp 2000-99-99", b"0x", b"1_0", b"0o9", b"2000-99-99", b"<<:",
    b"12:99:99", b"9" * 5000, b"!!binary x", b"!!int x", b"!!float y", b"? [", b"|", b">", b"---", b"...", b"\t",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"<a>", b"\"", b"'",
)  # fmt: skip


def extreme(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(NUMBERS)
    if kind < 0.97:
        return rng.choice(OTHERS)
    nested: Any = 0
    for _ in range(rng.choice((30, 3000))):
        nested = [nested] if kind < 0.985 else {"a": nested}
    return nested


def mutate_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One change to bytes of any format; near their beginning more often, where headers are."""
    if not data:
        return rng.choice(TEXTS)
    content = bytearray(data)
    at = rng.randrange(min(len(data), 600)) if rng.random() < 0.6 else rng.randrange(len(data))
    kind = rng.randrange(10)
    if kind == 0:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    elif kind in (2, 3):
        width, order = rng.choice((2, 4, 4, 8)), rng.choice("<>")
        number = rng.choice([n for n in NUMBERS if isinstance(n, int)]) % 2 ** (8 * width)
        packed = struct.pack(order + {2: "H", 4: "I", 8: "Q"}[width], number)
        content[at : at + width] = packed[: len(content) - at]
    elif kind == 4:
        del content[at:]
    elif kind == 5:
        del content[at : at + rng.choice((1, 2, 4, 16, 200))]
    elif kind == 6:
        piece = content[at : at + rng.choice((1, 4, 16, 200))]
        content[at:at] = piece * rng.choice((1, 1, 2, 50))
    elif kind == 7:
        other = rng.choice(others) if others else data
        place = rng.randrange(max(1, len(other)))
        length = rng.choice((4, 16, 64, 500))
        content[at : at + length] = other[place : place + length]
    elif kind == 8:
        content[at : at + rng.choice((1, 4, 16))] = rng.randbytes(rng.choice((1, 4, 16)))
    else:
        return mutate_text(data, rng)
    return bytes(content)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """One change to text: a number, a word or a line."""
    kind = rng.randrange(5)
    numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?", data[:200_000]))
    if kind == 0 and numbers:
        found = rng.choice(numbers)
        number = str(rng.choice([n for n in NUMBERS if n != 10**400])).encode()
        return data[: found.start()] + number + data[found.end() :]
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if kind == 1:
        del lines[at]
    elif kind == 2:
        lines.insert(at, rng.choice(lines) if rng.random() < 0.5 else rng.choice(TEXTS))
    elif kind == 3:
        lines[at] = lines[rng.randrange(len(lines))]
    else:
        place = rng.randrange(len(data) + 1)
        return data[:place] + rng.choice(TEXTS) + data[place + rng.choice((0, 0, 1, 5)) :]
    return b"\n".join(lines)


def mutate_json_value(value: Any, rng: random.Random) -> Any:
    """A copy with one place changed, anywhere in it."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any, depth: int) -> None:
        if depth > 40 or len(places) > 5000:
            return
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key], depth + 1)

    holder = [json.loads(json.dumps(value))]
    walk(holder, 0)
    node, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0 and node is not holder:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif kind == 2:
        other, its_key = rng.choice(places)
        node[key] = json.loads(json.dumps(other[its_key]))
    elif kind == 3 and isinstance(node, dict):
        node[rng.choice((str(key) + "x", "", "__class__", "a" * 300))] = node.pop(key)
    elif kind == 4:
        node[key] = [node[key]]
    elif kind == 5 and isinstance(node[key], str) and node[key]:
        text = mutate_text(node[key].encode(errors="surrogatepass"), rng)
        node[key] = text.decode(errors="replace")
    else:
        node[key] = extreme(rng)
    return holder[0]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(mutate_json_value(json.loads(data), rng)).encode()
    except (ValueError, RecursionError, TypeError):
        return mutate_text(data, rng)


def mutate_yaml(data: bytes, rng: random.Random) -> bytes:
    """A change to what the text means, or to the text."""
    import yaml

    if rng.random() < 0.5:
        return mutate_text(data, rng)
    try:
        return yaml.safe_dump(mutate_json_value(yaml.safe_load(data), rng)).encode(errors="replace")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return mutate_text(data, rng)


def mutate_tiff(data: bytes, rng: random.Random) -> bytes:
    """A change to one entry of a directory."""
    if len(data) < 16 or data[:2] not in (b"II", b"MM"):
        return mutate_bytes(data, rng)
    order = "<" if data[:2] == b"II" else ">"
    try:
        is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
        place = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)[0]
        size, letter = (20, "HHQQ") if is_big else (12, "HHII")
        for _ in range(rng.choice((0, 0, 1, 2))):  # a later directory now and then
            count = struct.unpack_from(order + ("Q" if is_big else "H"), data, place)[0]
            end = place + (8 if is_big else 2) + count * size
            following = struct.unpack_from(order + ("Q" if is_big else "I"), data, end)[0]
            place = following or place
        count = struct.unpack_from(order + ("Q" if is_big else "H"), data, place)[0]
        at = place + (8 if is_big else 2) + rng.randrange(max(1, count)) * size
        entry = list(struct.unpack_from(order + letter, data, at))
        which = rng.choice((0, 1, 2, 2, 3, 3, 3, 3))
        limits = (65536, 20, 2**32, 2**32)
        wild = (
            rng.choice((254, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 324, 330, 338, 339, 347, 530)),
            rng.randrange(20),
            rng.choice((0, 1, 2, 3, 4, 100, 65536, 2**31, 2**32 - 1)),
            rng.choice([*(n for n in NUMBERS if isinstance(n, int)), *range(12), rng.randrange(2 * len(data))]),
        )
        entry[which] = wild[which] % limits[which]
        if which == 3 and entry[1] == 3 and order == ">" and not is_big:
            entry[3] = (entry[3] & 0xFFFF) << 16
        content = bytearray(data)
        struct.pack_into(order + letter, content, at, *entry)
        return bytes(content)
    except struct.error:
        return mutate_bytes(data, rng)


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """A change to a chunk, with the right checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunks.append((name, data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return mutate_bytes(data, rng)
    place = rng.randrange(len(chunks))
    kind = rng.randrange(6)
    name, content = chunks[place]
    if kind == 0:
        del chunks[place]
    elif kind == 1:
        chunks.insert(rng.randrange(len(chunks)), chunks[place])
    elif kind == 2:
        chunks[place] = (rng.choice((b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"sBIT", b"IDAT")), content)
    else:
        chunks[place] = (name, mutate_bytes(content, rng))
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return data[:8] + body


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """A change to one member (.pt, .npz): its content, its name, or it is gone."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, zlib.error, EOFError):
        return mutate_bytes(data, rng)
    if not members:
        return mutate_bytes(data, rng)
    # The pickle or the description more often than one of many tensors.
    small = [i for i, (name, _) in enumerate(members) if name.endswith(("data.pkl", "about.npy", "version"))]
    place = rng.choice(small) if small and rng.random() < 0.5 else rng.randrange(len(members))
    name, content = members[place]
    kind = rng.randrange(6)
    if kind == 0:
        del members[place]
    elif kind == 1:
        members[place] = (name + rng.choice(("x", "/../../x", "/")), content)
    elif kind == 2 and len(members) > 1:
        members[place] = (name, rng.choice(members)[1])
    else:
        members[place] = (name, mutate_bytes(content, rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for name, content in members:
            new.writestr(name, content)
    return out.getvalue()


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A change to the JSON in the header, the manifest in it now and then."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        about = header.get("__metadata__", {})
        if about and rng.random() < 0.6:
            key = rng.choice(list(about))
            about[key] = mutate_json(about[key].encode(), rng).decode(errors="replace")
        else:
            header = mutate_json_value(header, rng)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]
    except (ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        return mutate_bytes(data, rng)


def mutate_onnx(data: bytes, rng: random.Random) -> bytes:
    """A change to a field of the protocol buffer: its metadata, shapes, nodes, or anything."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return mutate_bytes(data, rng)
    if rng.random() < 0.4 and model.metadata_props:
        entry = rng.choice(model.metadata_props)
        entry.value = mutate_json(entry.value.encode(), rng).decode(errors="replace")
        return bytes(model.SerializeToString())
    if rng.random() < 0.2 and model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        places = ("*/_ORT_MEM_ADDR_/*", "/etc/passwd", "../x", "model.onnx", "/dev/zero", "")
        for key, value in (
            ("location", rng.choice(places)),
            ("offset", str(rng.choice((0, -1, 2**63, 140737488355328)))),
        ):
            tensor.external_data.add(key=key, value=value)
        return bytes(model.SerializeToString())
    message: Any = model
    for _ in range(rng.randrange(1, 7)):  # down to some message
        inner = [value for field, value in message.ListFields() if field.message_type is not None]
        if not inner:
            break
        value = rng.choice(inner)
        if hasattr(value, "ListFields"):
            message = value
        elif len(value):
            if rng.random() < 0.1:
                del value[rng.randrange(len(value))]
                return bytes(model.SerializeToString())
            message = rng.choice(value)
    fields = [f for f in message.DESCRIPTOR.fields if f.message_type is None]
    if fields:
        field = rng.choice(fields)
        value = rng.choice((*NUMBERS[:30], "", "x", "Conv", b"\0"))
        try:
            if getattr(message, field.name, None) is not None and hasattr(getattr(message, field.name), "append"):
                if rng.random() < 0.5 or not len(getattr(message, field.name)):
                    getattr(message, field.name).append(value)
                else:
                    getattr(message, field.name)[0] = value
            else:
                setattr(message, field.name, value)
        except (TypeError, ValueError, AttributeError, OverflowError):
            message.ClearField(field.name)
    return bytes(model.SerializeToString())


_BY_ENDING: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutate_json, ".jsonl": mutate_text, ".zarray": mutate_json, ".zattrs": mutate_json, ".yaml": mutate_yaml,
    ".zgroup": mutate_json, ".txt": mutate_text, ".csv": mutate_text, ".xml": mutate_text, ".svg": mutate_text,
    ".tif": mutate_tiff, ".tiff": mutate_tiff, ".svs": mutate_tiff, ".png": mutate_png, ".pt": mutate_zip,
    ".npz": mutate_zip, ".safetensors": mutate_safetensors, ".onnx": mutate_onnx, ".tfw": mutate_text,
}  # fmt: skip
_NAMES = ("a" * 200, "x\ny", "\udcff", "-x", " ", "é", "..png", ".hidden", "a b", "%s", "a,b", "#a")


def mutate_file(name: str, data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One change, more often one that the format's reader gets to see than noise."""
    path = PurePosixPath(name)
    mutation = _BY_ENDING.get(path.suffix.lower() or path.name)
    if mutation is None or rng.random() < 0.25:
        return mutate_bytes(data, rng, others)
    try:
        return mutation(data, rng)
    except Exception:  # libraries that parse the file raise any type of error, because earlier mutations damaged it
        return mutate_bytes(data, rng, others)


def mutate(tree: Tree, rng: random.Random, fixed: Sequence[str] = (), others: Sequence[Tree] = ()) -> Tree:
    """A tree with one or several changes.

    Args:
        fixed: endings of names that stay as they are.
        others: trees to take pieces from.
    """
    changed = dict(tree)
    names = [name for name in changed if not name.endswith(tuple(fixed) or ("\0",))] or [*changed] or ["x"]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        # What describes the others is changed more often than what it describes.
        about = [n for n in names if n.endswith((".json", ".yaml", ".txt", ".csv", ".xml", ".zarray", ".zattrs"))]
        name = rng.choice(about) if about and rng.random() < 0.6 else rng.choice(names)
        kind = rng.random()
        if len(changed) > 1 and kind < 0.03:
            changed.pop(name, None)
        elif len(changed) > 1 and kind < 0.06:
            changed[name] = changed.get(rng.choice(names), b"")
        elif len(changed) > 2 and kind < 0.08 and name in changed:
            path = PurePosixPath(name)
            changed[str(path.with_name(rng.choice(_NAMES) + path.suffix))] = changed.pop(name)
        elif name in changed:
            pieces = [content for other in others for content in other.values()]
            changed[name] = mutate_file(name, changed[name], rng, pieces[:50])
    return changed
