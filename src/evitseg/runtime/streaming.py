"""Pictures of any size, exactly, in bounded memory: piece by piece of the network, tile by tile of the picture.

Every piece between two attention sums (`cutting`) runs over all tiles before the next begins; features wait on disk,
and one sum a layer is all that tiles know of each other. A tile's work is a function of the plan, the piece, the tile
and its inputs; sums are reduced apart from it, in the order of the tiles, so that they are the same bits however the
work was spread or interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import queue
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import islice, pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.config import LOGIT_STRIDE, STRIDE
from evitseg.engine import EngineInfo, Precision, processor_name
from evitseg.errors import ConfigError, EngineError, FileError, WeightsError
from evitseg.files import STATE, TEMPORARY, remove_folder, replacing, sweep_once, temporary_folder
from evitseg.image import Size
from evitseg.labels import LabelSpace
from evitseg.manifest import Manifest
from evitseg.runtime.artefact import first_line, read
from evitseg.runtime.cutting import (
    ALONE,
    EPS,
    IMAGE,
    KEY_SCALE,
    LARGEST,
    LOGITS,
    PARTIAL,
    SUMS,
    WEIGHT,
    WHOLE,
    Attention,
    Cut,
    Piece,
)
from evitseg.runtime.memory import BASE_BYTES, default_memory, mib
from evitseg.runtime.openvino_graph import fast_graph, writes_fast
from evitseg.runtime.overlap import overlapped
from evitseg.runtime.pieces import fast_piece
from evitseg.runtime.scratch import Layout, Life, Scratch, Store, arranged
from evitseg.runtime.segmenter import Segmenter, finite
from evitseg.runtime.upsample import Side, argmax_upsampled
from evitseg.runtime.windows import (
    ArraySource,
    Damage,
    Resampled,
    Sink,
    Source,
    Window,
    held_by,
    read_window,
    tiles_of,
    valid_window,
)
from evitseg.system.machine import physical_cores

if TYPE_CHECKING:
    import openvino

Arrays: TypeAlias = dict[str, NDArray[Any]]
Run: TypeAlias = Callable[..., Arrays]
ContextMode: TypeAlias = Literal["global"] | int
"""What attention sums over: the whole picture, or so many pixels around."""

SMALLEST = 2.0**-14
"""Where attention's divisors stop, as in the network."""
LARGEST_TILE = 4096
"""Pixels of a tile's side; larger ones see less twice and gained nothing in sight of their memory."""
LARGEST_FIRST_TILE = 2048
"""Of the first piece, whose layers run in tiles of their own: larger ones only took longer to compile."""
WORKERS = 2
"""Tiles in hand at once, each with half of the threads, so that none waits for another's numpy and disk; with all
threads on one tile the whole took a fifteenth longer."""
_STRIP_PIXELS = 2**22
"""Pixels of the mask that are handed to a sink at once, where it has no tiles."""
_SMALLEST_PART = 256
"""Pixels of a region's part, about: what lies around it is several times that already."""
FORMAT = 2
"""Of context files."""
_SCRATCH_FORMAT = 3
"""Of what lies in the scratch folder."""
GROUP = 32
"""Parts of a sum that are added one after the other."""
MAX_CONTEXT_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Plan:
    """Which tiles there are. Plain numbers: two machines with the same plan do the same work.

    Attributes:
        picture: (height, width) of the picture, in pixels.
        working: (height, width) of the network's input.
        sides: for every piece of the network, most pixels of a tile's side, in the network's input; multiples of 32.
    """

    picture: tuple[int, int]
    working: tuple[int, int]
    sides: tuple[int, ...]

    def _edges(self, piece: int, length: int) -> list[int]:
        """Where tiles begin and end along one side: nearly equal parts, multiples of the stride."""
        blocks, count = length // STRIDE, -(-length // self.sides[piece])
        return [round(i * blocks / count) * STRIDE for i in range(count + 1)]

    def edges(self, piece: int, stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where a piece's tiles begin and end in features of a stride, downwards and across."""
        down, across = (tuple(at // stride for at in self._edges(piece, length)) for length in self.working)
        return down, across

    def mask_edges(self, piece: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where the parts of the mask that a piece's tiles give begin and end, downwards and across."""
        down, across = (
            tuple(round(at * own / new) for at in self._edges(piece, new))
            for own, new in zip(self.picture, self.working, strict=True)
        )
        return down, across

    def grid(self, piece: int) -> tuple[int, int]:
        """Rows and columns of a piece's tiles."""
        height, width = (-(-length // self.sides[piece]) for length in self.working)
        return height, width

    def tiles(self, piece: int) -> int:
        rows, columns = self.grid(piece)
        return rows * columns

    def core(self, piece: int, tile: int) -> Window:
        """The part of the network's input that is a tile's own."""
        row, column = divmod(tile, self.grid(piece)[1])
        (top, bottom), (left, right) = (
            self._edges(piece, length)[at : at + 2] for length, at in zip(self.working, (row, column), strict=True)
        )
        return Window(top, left, bottom - top, right - left)

    def window(self, piece: Piece, tile: int) -> Window:
        """What a piece must see for a tile; of one size for all tiles, so that one compiled network serves."""
        height, width = (max(b - a for a, b in pairwise(self._edges(piece.number, side))) for side in self.working)
        return window_around(self.core(piece.number, tile), piece, self.working, (height, width))

    def mask_window(self, core: Window) -> Window:
        """The mask's pixels that a tile gives; the tiles' windows cover the mask once."""
        (top, bottom), (left, right) = (
            (round(begin * own / new), round(end * own / new))
            for own, new, begin, end in zip(
                self.picture, self.working, (core.top, core.left), (core.bottom, core.right), strict=True
            )
        )
        return Window(top, left, bottom - top, right - left)

    def touching(self, piece: int, window: Window) -> list[int]:
        """Tiles that have pixels in a part of the network's input."""
        rows, columns = (
            range(bisect_right(edges, begin) - 1, bisect_left(edges, end))
            for edges, begin, end in (
                (self._edges(piece, self.working[0]), window.top, window.bottom),
                (self._edges(piece, self.working[1]), window.left, window.right),
            )
        )
        return [row * self.grid(piece)[1] + column for row in rows for column in columns]

    def neighbours(self, piece: int, tile: int) -> list[int]:
        """A tile and those around it."""
        rows, columns = self.grid(piece)
        row, column = divmod(tile, columns)
        return [
            r * columns + c
            for r in range(max(0, row - 1), min(rows, row + 2))
            for c in range(max(0, column - 1), min(columns, column + 2))
        ]


def window_around(core: Window, piece: Piece, working: tuple[int, int], largest: tuple[int, int]) -> Window:
    """What a piece must see to be right in a part of the network's input.

    It ends at the picture's border, never beyond, so that every convolution pads with zeros there and only there;
    elsewhere it reaches so far that what its own borders spoil is outside the part.

    Args:
        largest: (height, width) of the largest part; the window is large enough for that, whatever this one's size.
    """
    spans = []
    for length, begin, most in zip(working, (core.top, core.left), largest, strict=True):
        size = min(length, most + piece.before + piece.after)
        spans.append((min(max(0, begin - piece.before), length - size), size))
    (top, height), (left, width) = spans
    return Window(top, left, height, width)


def working_size(picture: tuple[int, int], manifest: Manifest, size: Size = "native") -> tuple[int, int]:
    """(height, width) of the network's input, by the manifest's rule without its limit. Raises: ConfigError."""
    if manifest.preprocess.fixed is not None:
        manifest.preprocess.fit(picture, "native")  # says that there is but one
    return manifest.preprocess.fit(picture, size, limit=None)


class Network:
    """An artefact, cut, and ready to run its pieces on windows of any size; several threads may.

    Args:
        threads: at most; None for every physical core.

    Raises: EngineError, WeightsError.
    """

    def __init__(
        self, artefact: str | os.PathLike[str], precision: Precision = "auto", threads: int | None = None
    ) -> None:
        from evitseg.runtime.engines import openvino_graph, thread_settings

        path = Path(artefact)
        if path.suffix not in (".onnx", ".xml"):
            raise EngineError(f"{path}: tiles run in OpenVINO, which takes .onnx and .xml; export one.")
        self.path = path
        self._core, model, self._weights, self.manifest, self._settings = openvino_graph(path, precision)
        if self.manifest.preprocess.fixed is not None:
            height, width = self.manifest.preprocess.fixed
            raise EngineError(
                f"{path}: takes pictures of {height}x{width} alone and cannot run on tiles; export it without --size."
            )
        self.digest = hashlib.sha256(read(path)).hexdigest()
        if path.suffix == ".xml":
            self.digest = hashlib.sha256(read(path) + read(path.with_suffix(".bin"))).hexdigest()
        self.cut = Cut(model, path)
        self.threads = threads or physical_cores()
        self.workers = min(WORKERS, self.threads)
        self._settings |= thread_settings(self.threads, self.workers)
        self._compiled: tuple[tuple[int, int, int], queue.SimpleQueue[Any]] | None = None
        # A tiny window says in which precision it runs.
        compiled = self._core.compile_model(self.cut.model(self.cut.whole, STRIDE, STRIDE), "CPU", self._settings)
        import openvino

        runs = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
        self.info = EngineInfo(
            engine="OpenVINO",
            version=openvino.__version__.split("-")[0],
            precision=names.get(runs, runs),
            threads=self.threads,
            device=processor_name(),
        )
        if not writes_fast(self.info.precision):
            self._weights = None

    @property
    def labels(self) -> LabelSpace:
        return self.manifest.labels

    @property
    def kept(self) -> str:
        """Number format of features between pieces, where numpy has it; bfloat16 is "uint16", its bits."""
        if self.info.precision == "float32":
            return "float32"
        return "float16" if self._weights is None else "uint16"

    @contextmanager
    def ready(self, piece: Piece, window: Window) -> Iterator[Run]:
        """A function that runs the piece on windows of this size, from several threads.

        It is given the inputs, and for some of the outputs what of them is wanted; its results are the caller's.
        Features are in the number format `kept`.

        Only one size of one piece is compiled at a time: memory is for tiles.
        """
        key = (piece.number, window.height, window.width)
        if self._compiled is None or self._compiled[0] != key:
            self._compiled = None
            try:
                compiled = self._core.compile_model(self._model(piece, window), "CPU", self._settings)
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO cannot run a tile of {window.width}×{window.height} ({first_line(error)})."
                ) from error
            requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(self.workers):
                requests.put(compiled.create_infer_request())
            self._compiled = key, requests
        requests = self._compiled[1]
        names = self.cut.outputs_of(piece)
        features = {f.name for f in (*piece.inputs, *piece.outputs)}

        def run(inputs: Arrays, wanted: dict[str, tuple[int | slice, ...]] | None = None) -> Arrays:
            given = {name: self._given(values) if name in features else values for name, values in inputs.items()}
            request = requests.get()
            try:
                found = request.infer(given, share_inputs=True, share_outputs=True)
                outputs = {name: found[i][(wanted or {}).get(name, ())] for i, name in enumerate(names)}
                if LOGITS in outputs:
                    finite(outputs[LOGITS], self.manifest, self.info)
                return {
                    name: self._to_keep(values) if name in features else values.copy()
                    for name, values in outputs.items()
                }
            finally:
                requests.put(request)

        yield run

    def _given(self, values: NDArray[Any]) -> Any:
        """Features as they are kept, as the engine takes them."""
        if self.kept != "uint16":
            return np.asarray(values, np.float32)
        import openvino

        return openvino.Tensor(values, values.shape, openvino.Type.bf16)

    def _to_keep(self, values: NDArray[Any]) -> NDArray[Any]:
        """Features from the engine's memory, as they are kept. Raises: EngineError."""
        if self.kept != "float16":  # of bfloat16 numpy knows nothing, and is told that it is float16
            own: NDArray[Any] = (values if self.kept == "float32" else values.view(np.uint16)).copy()
            return own
        with np.errstate(over="ignore"):  # told below
            halves = values.astype(np.float16)
        # The largest finite number is what OpenVINO makes of larger ones. By bits: several times as fast as isfinite.
        if (halves.view(np.uint16) & 0x7FFF).max() >= 0x7BFF:
            raise EngineError("features exceed what float16 holds; take --precision float32.")
        return halves

    def _model(self, piece: Piece, window: Window) -> openvino.Model:
        size = (window.height, window.width)
        about = self.manifest
        if self._weights is None:
            return self.cut.model(piece, *size)
        if piece.number == ALONE:
            model = fast_graph(about.model, about.preprocess, self._weights, size, self.info.precision)
            model.inputs[0].get_tensor().set_names({IMAGE})
            return model
        return fast_piece(self.cut, piece, about.model, about.preprocess, self._weights, size, self.info.precision)

    def free(self) -> None:
        """Let go of what was compiled last."""
        self._compiled = None


@dataclass(frozen=True)
class Sums:
    """What one attention layer knows of a picture, or of a part of it.

    Attributes:
        values: (heads, head_dim + 1, head_dim) float64, sums over tokens of value · key, and in the last row of keys.
        largest: (heads,) largest key, at least `SMALLEST`.
        tokens: how many were summed over.
    """

    values: NDArray[np.float64]
    largest: NDArray[np.float64]
    tokens: float

    def inputs(self, number: int, attention: Attention) -> Arrays:
        """The network's inputs for attention layer `number`: scaled as it scales the sums of a whole picture."""
        key_scale = max(self.tokens, 1) ** -0.5 / self.largest[:, None, None]
        scaled = self.values * key_scale
        sum_scale = np.maximum(scaled[:, -1:, :].max(-1, keepdims=True), SMALLEST)
        inputs = {f"{SUMS}{number}": (scaled / sum_scale)[None].astype(np.float32)}
        if attention.eps_term is not None:
            inputs[f"{EPS}{number}"] = (attention.eps * key_scale / sum_scale)[None].astype(np.float32)
        return inputs


def record_length(attention: Attention) -> int:
    """Numbers that a tile adds to a sum, as they are kept: its sums, two scales a head, the number of tokens."""
    return attention.heads * ((attention.head_dim + 1) * attention.head_dim + 2) + 1


def record_of(outputs: Arrays, tokens: float) -> NDArray[np.float32]:
    """A tile's part of a sum from what its piece gave."""
    parts = [outputs[name].ravel() for name in (PARTIAL, KEY_SCALE, LARGEST)]
    return np.concatenate([*parts, np.array([tokens])]).astype(np.float32)


def summed(records: Iterable[NDArray[np.float32]], heads: int, head_dim: int) -> Sums:
    """The sum of tiles' parts: of every `GROUP` neighbours, then of every `GROUP` of those, and so on.

    The same bits for the same order, on whichever machine each group is added.
    """
    parts: Iterator[Sums] = (part_of(record, heads, head_dim) for record in records)
    while len(groups := list(added_groups(parts, heads, head_dim))) > 1:
        parts = iter(groups)
    return groups[0] if groups else added([], heads, head_dim)


def added_groups(parts: Iterator[Sums], heads: int, head_dim: int) -> Iterator[Sums]:
    while group := list(islice(parts, GROUP)):
        yield added(group, heads, head_dim)


def part_of(record: NDArray[np.float32], heads: int, head_dim: int) -> Sums:
    """What a tile's record adds."""
    size = heads * (head_dim + 1) * head_dim
    values, scales = record[:size].astype(np.float64), record[size:-1].reshape(2, heads).astype(np.float64)
    return Sums(values.reshape(heads, head_dim + 1, head_dim) / scales[0][:, None, None], scales[1], float(record[-1]))


def added(parts: Iterable[Sums], heads: int, head_dim: int) -> Sums:
    """One after the other, in float64."""
    total, largest, tokens = np.zeros((heads, head_dim + 1, head_dim)), np.full(heads, SMALLEST), 0.0
    for part in parts:
        total += part.values
        largest = np.maximum(largest, part.largest)
        tokens += part.tokens
    return Sums(total, largest, tokens)


@dataclass(frozen=True)
class Context:
    """All that the parts of a picture know of each other: enough to render any of them, later, without the rest.

    Attributes:
        sums: one an attention layer.
        model: sha256 of the artefact.
        picture, working: (height, width) of the picture and of the network's input, in pixels.
        looks: digests of a few parts of the image, by which it is known again; "" for those that could not be read.
        name: of the image's file, for messages.
    """

    sums: tuple[Sums, ...]
    model: str
    picture: tuple[int, int]
    working: tuple[int, int]
    looks: tuple[str, ...] = ()
    name: str = ""

    @staticmethod
    def of(sums: tuple[Sums, ...], job: Job) -> Context:
        """Of a finished job."""
        source = job.source.source
        name = Path(str(getattr(source, "identity", "")).rsplit(" ", 2)[0]).name
        return Context(sums, job.network.digest, job.plan.picture, job.plan.working, looks_of(source), name)

    def check_of(self, source: Source) -> None:
        """Raises: ConfigError for another image than the one it was made with."""
        whose = f"the context is of another image{f' ({self.name})' if self.name else ''}"
        if self.picture != source.size:
            raise ConfigError(
                f"{whose}, of {self.picture[1]}×{self.picture[0]} pixels, not {source.size[1]}×{source.size[0]}; give "
                "the image it was made with."
            )
        # A part that is damaged now or was then says nothing.
        looks = looks_of(source)
        if len(looks) != len(self.looks) or any(
            mine and theirs and mine != theirs for mine, theirs in zip(self.looks, looks, strict=True)
        ):
            raise ConfigError(f"{whose} of the same size; give the image it was made with.")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a .npz file of numbers. Raises: FileError."""
        about = {
            "format": FORMAT, "model": self.model, "picture": self.picture, "working": self.working,
            "looks": self.looks, "name": self.name,
        }  # fmt: skip
        arrays: Arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for i, sums in enumerate(self.sums):
            arrays |= {f"values{i}": sums.values, f"largest{i}": sums.largest, f"tokens{i}": np.array(sums.tokens)}
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # takes arrays alone, by any name

    @staticmethod
    def load(path: str | os.PathLike[str], network: Network) -> Context:
        """Read a file that `save` wrote for this network. Raises: FileError, WeightsError for another network's."""
        strange = FileError(f"{path}: not a context file; --save-context writes one.")
        attentions = network.cut.attentions
        try:
            if Path(path).stat().st_size > MAX_CONTEXT_BYTES:
                raise strange
            with zipfile.ZipFile(path) as stored:
                about = json.loads(_array(stored, "about", None, "uint8").tobytes())
                if about["format"] != FORMAT:
                    raise strange
                sums = tuple(
                    Sums(
                        _array(stored, f"values{i}", (a.heads, a.head_dim + 1, a.head_dim), "float64"),
                        _array(stored, f"largest{i}", (a.heads,), "float64"),
                        float(_array(stored, f"tokens{i}", (), "float64")),
                    )
                    for i, a in enumerate(attentions)
                )
            if about["model"] != network.digest:
                raise WeightsError(f"{path}: of another model than the one given; use the model it was made with.")
            sizes = [(int(height), int(width)) for height, width in (about["picture"], about["working"])]
            looks = tuple(str(each) for each in about["looks"])
            if min(min(sizes)) < 1 or not all(np.isfinite(s.values).all() and np.isfinite(s.tokens) for s in sums):
                raise strange
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except (ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise strange from error
        except (NotImplementedError, RuntimeError) as error:  # compressions and encryption that zipfile has not
            raise strange from error
        return Context(sums, network.digest, sizes[0], sizes[1], looks, str(about["name"]))


def _array(stored: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None, dtype: str) -> NDArray[Any]:
    """A member of a .npz file, whose header and size are looked at before any of it is unpacked.

    Args:
        shape: that it must have; None for any of one axis.

    Raises: ValueError, KeyError for a member that is not there.
    """
    about = stored.getinfo(f"{name}.npy")
    if about.file_size > MAX_CONTEXT_BYTES:
        raise ValueError(f"{name} claims {about.file_size:,} bytes")
    with stored.open(about) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} has version {version}")
        found, by_columns, kind = np.lib.format.read_array_header_1_0(file)
        if kind != np.dtype(dtype) or (len(found) != 1 if shape is None else found != shape):
            raise ValueError(f"{name} is {kind} of {found}")
        length = math.prod(found) * kind.itemsize
        if length > about.file_size or (by_columns and len(found) > 1):
            raise ValueError(f"{name} is not what it says")
        content = file.read(length)
    return np.frombuffer(content, kind, math.prod(found)).reshape(found)


class Job:
    """The tiles of one picture: what each reads and leaves.

    Args:
        source: of the network's input.
        scratch: where features, sums and the mask lie between tiles.
    """

    def __init__(self, network: Network, source: Source, plan: Plan, scratch: Store) -> None:
        self.network, self.plan, self.scratch = network, plan, scratch
        self.source = Resampled(source, plan.working)
        self.damages: dict[Window, Damage] = {}
        cut = network.cut
        self.features = {
            f.name: Layout(f.name, *plan.edges(f.made_by, f.stride), f.channels, network.kept) for f in cut.features
        }
        self.records = [
            Layout(f"sums_{i}", (0, plan.tiles(i)), (0, 1), record_length(a), "float32")
            for i, a in enumerate(cut.attentions)
        ]
        self._finest = min((cut.token_stride(a) for a in cut.attentions), default=STRIDE)
        self.valid = Layout("valid", *plan.edges(0, self._finest), 1, "uint8")
        last = cut.pieces[-1].number
        self.mask = Layout("mask", *plan.mask_edges(last), 1, np.dtype(network.labels.dtype).name)

    @property
    def lives(self) -> list[Life]:
        """What is large, and which pieces it is there for."""
        last = self.network.cut.pieces[-1].number
        features = [Life(self.features[f.name], f.made_by, f.used_by) for f in self.network.cut.features]
        return [*features, Life(self.mask, last, last)]

    @property
    def bytes_needed(self) -> int:
        """Of disk, when it is fullest."""
        shared = max(extent[1] for place in arranged(self.lives).values() for extent in place)
        return shared + sum(layout.bytes for layout in (*self.records, self.valid))

    def sums(self, number: int) -> Sums:
        """Of one attention layer, over the picture."""
        return self._sum(number, range(self.plan.tiles(number)))

    def _sum(self, number: int, tiles: Iterable[int]) -> Sums:
        layout = self.records[number]
        records = (self.scratch.read(layout, Window(tile, 0, 1, 1)).ravel() for tile in tiles)
        attention = self.network.cut.attentions[number]
        return summed(records, attention.heads, attention.head_dim)

    def logits(self, run: Run, piece: Piece, tile: int, sums: Sums | None) -> NDArray[np.float32]:
        """(classes, h, w) of a window around a tile, from the last piece; see `Plan.window`."""
        outputs, _, _ = self._run(run, piece, tile, sums)
        logits: NDArray[np.float32] = outputs[LOGITS][0]
        return logits

    def work(self, run: Run, piece: Piece, tile: int, sums: Sums | None) -> list[Damage]:
        """Do one tile of one piece, and leave what it gives in the scratch folder.

        Args:
            sums: of the attention layer before the piece; None where there is none, or for those of the tile and its
                neighbours alone.

        Returns: what of the picture could not be read.
        """
        core, window = self.plan.core(piece.number, tile), self.plan.window(piece, tile)
        outputs, weight, damages = self._run(run, piece, tile, sums)
        for f in piece.outputs:
            place = core.over(f.stride)
            self.scratch.write(self.features[f.name], place, outputs[f.name])
        if LOGITS in outputs:
            self._write_mask(outputs[LOGITS][0], core, window, [*self.damages.values(), *damages])
        else:
            record = record_of(outputs, float(weight.sum()))
            self.scratch.write(self.records[piece.number], Window(tile, 0, 1, 1), record[None, None])
        return damages

    def _run(
        self, run: Run, piece: Piece, tile: int, sums: Sums | None
    ) -> tuple[Arrays, NDArray[np.float32], list[Damage]]:
        cut, core, window = self.network.cut, self.plan.core(piece.number, tile), self.plan.window(piece, tile)
        inputs: Arrays = {}
        damages: list[Damage] = []
        if piece.number == 0:
            image, damages = self.source.read(window)
            inputs[IMAGE] = image[None]
            valid = self.source.valid(core, damages, self._finest)
            self.scratch.write(self.valid, core.over(self._finest), valid[..., None])
        for f in piece.inputs:
            inputs[f.name] = self.scratch.read(self.features[f.name], window.over(f.stride))[None]
        if piece.number > 0:
            number = piece.number - 1
            if sums is None:
                sums = self._sum(number, self.plan.neighbours(number, tile))
            inputs |= sums.inputs(number, cut.attentions[number])
        weight = np.zeros(0, np.float32)
        attention = cut.attention_behind(piece)
        if attention is not None:
            stride = cut.token_stride(attention)
            weight = self._weight(core, window, stride)
            inputs[WEIGHT] = weight.reshape(1, 1, 1, -1)
        # Without what the window's own borders have spoilt.
        cores = {f.name: (0, *core.over(f.stride).inside(window.over(f.stride))) for f in piece.outputs}
        return run(inputs, cores), weight, damages

    def _weight(self, core: Window, window: Window, stride: int) -> NDArray[np.float32]:
        """How every token of a window counts in the sums: by 1 if it is the tile's own and has data."""
        valid = self.scratch.read(self.valid, core.over(self._finest))[..., 0]
        times = stride // self._finest
        if times > 1:
            height, width = (side // times for side in valid.shape)
            valid = valid.reshape(height, times, width, times).max((1, 3))
        outer, inner = window.over(stride), core.over(stride)
        weight = np.zeros((outer.height, outer.width), np.float32)
        weight[inner.inside(outer)] = valid
        return weight

    def _write_mask(self, logits: NDArray[np.float32], core: Window, window: Window, damages: list[Damage]) -> None:
        place = self.plan.mask_window(core)
        mask = mask_window(logits, self.plan, place, window)
        ignore = self.network.labels.ignore_index
        valid = valid_window(self.source.source, place, damages)
        if valid is not None:
            mask[~valid] = ignore
        self.scratch.write(self.mask, place, mask[..., None])


def mask_window(logits: NDArray[np.float32], plan: Plan, place: Window, window: Window) -> NDArray[np.integer]:
    """Class indices of a part of the mask from logits of a window of the network's input that contains it."""
    at = window.over(LOGIT_STRIDE)
    whole = [
        Side(side // LOGIT_STRIDE, pixels, 0, first)
        for side, pixels, first in zip(plan.working, plan.picture, (place.top, place.left), strict=True)
    ]
    (y0, y1), (x0, x1) = (side.needed(count) for side, count in zip(whole, (place.height, place.width), strict=True))
    needed = Window(y0, x0, y1 - y0, x1 - x0)
    assert at.common(needed) == needed, "a tile sees the logits around it"
    rows, columns = needed.inside(at)
    sides = replace(whole[0], first_logit=y0), replace(whole[1], first_logit=x0)
    return argmax_upsampled(logits[:, rows, columns], (place.height, place.width), sides)


@dataclass(frozen=True)
class Progress:
    """How far the work has come: tiles of pieces."""

    piece: int
    pieces: int
    tile: int
    tiles: int


@dataclass(frozen=True)
class Streamed:
    """What `segment_huge` did.

    Attributes:
        plan: its tiles.
        context: the sums over the picture.
        damages: what of the picture could not be read; there the mask has the labels' `ignore_index`.
        counts: pixels of the mask by class index; the last is `ignore_index`'s.
        resumed: tiles that an earlier, interrupted call had done.
    """

    plan: Plan
    context: Context
    damages: tuple[Damage, ...]
    counts: NDArray[np.int64]
    resumed: int


def segment_huge(
    source: Source,
    sink: Sink | AbstractContextManager[Sink],
    network: Network,
    scratch: str | os.PathLike[str],
    *,
    size: Size = "native",
    memory: int | None = None,
    context: ContextMode = "global",
    tile: int | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Streamed:
    """The mask of a picture of any size, the same as if it went through the network whole.

    Args:
        sink: where the mask goes, once it is complete; or what opens such a place then, as `evitseg.raster.open_sink`.
        scratch: folder in which a hidden one holds what does not fit in memory. It is removed at the end, also after
            an error; after a kill or an interrupt, and where the sink fails, it stays, and the same call goes on from
            there. One process at a time works in it.
        size: as in `evitseg.load`.
        memory: bytes the process may hold; None for what is free, see `default_memory`.
        context: "global" for attention over the whole picture; or pixels: over three by three tiles of a third of
            that, which is no longer the same as the whole, but closer to what training saw.
        tile: pixels of a tile's side, a multiple of 32; None for the largest that the memory allows.
        watch: called after every tile.

    Raises: ConfigError where the memory is too little, FileError where the disk is, EngineError.
    """
    plan = make_plan(network, source.size, size, memory, context, tile, held_by(source))
    explicit = memory is not None or tile is not None
    identity = _identity(network, source, plan, context)
    with contextlib.suppress(OSError):
        sweep_once(Path(scratch))
        remove_orphans(Path(scratch))
    store = Scratch(Path(scratch) / _folder_name(identity))
    with store.locked():
        try:
            job, resumed = _segment(source, network, store, plan, explicit, identity, context != "global", watch)
        except Exception:  # any failure, raised again: no gigabytes stay behind; an interrupt, no Exception, keeps them
            store.discard()
            raise
        finally:
            network.free()
            store.close()
        try:
            with sink if isinstance(sink, AbstractContextManager) else nullcontext(sink) as opened:
                counts = deliver(job, opened)
        except FileError as error:
            raise FileError(
                f"{error} The mask is done and kept in {store.folder}; the same call goes on there."
            ) from error
        finally:
            store.close()
        sums = tuple(job.sums(i) for i in range(len(network.cut.attentions)))
        store.discard()
        remove_superseded(store.folder, identity)
    return Streamed(job.plan, Context.of(sums, job), tuple(job.damages.values()), counts, resumed)


def _segment(
    source: Source, network: Network, store: Scratch, plan: Plan, explicit: bool, identity: dict[str, Any],
    near: bool, watch: Callable[[Progress], None] | None,
) -> tuple[Job, int]:  # fmt: skip
    """The mask in the scratch folder, and how many tiles were done before."""
    state = store.state()
    if state is None or state.get("identity") != identity or (explicit and state["sides"] != list(plan.sides)):
        store.clear()
        state = {"identity": identity, "sides": plan.sides, "piece": 0, "damages": []}
    plan = replace(plan, sides=tuple(state["sides"]))  # another moment's free memory must not make other tiles
    job = Job(network, source, plan, store)
    job.damages = {Window(*window): Damage(Window(*window), reason) for window, reason in state["damages"]}
    store.share(job.lives)
    store.check_room(job.bytes_needed)
    pieces = network.cut.pieces
    store.save(state)
    resumed = sum(map(plan.tiles, range(state["piece"]))) + store.marks(state["piece"])
    for piece in pieces[state["piece"] :]:
        sums = job.sums(piece.number - 1) if piece.number and not near else None
        begin, tiles = store.marks(piece.number), plan.tiles(piece.number)
        with network.ready(piece, plan.window(piece, 0)) as run:
            work = partial(job.work, run, piece, sums=sums)
            for tile, damages in enumerate(overlapped(range(begin, tiles), work, network.workers, 1), begin):
                if damages:
                    job.damages |= {damage.window: damage for damage in damages}
                    state["damages"] = [[astuple(d.window), d.reason] for d in job.damages.values()]
                    store.save(state)
                store.mark(piece.number)
                if watch is not None:
                    watch(Progress(piece.number, len(pieces), tile + 1, tiles))
        state["piece"] = piece.number + 1
        store.save(state)
    return job, resumed


def deliver(job: Job, sink: Sink) -> NDArray[np.int64]:
    """Hand the finished mask to the sink, in order; counts of its class indices."""
    height, width = job.plan.picture
    ignore = job.network.labels.ignore_index
    counts = np.zeros(ignore + 1, np.int64)
    down, across = sink.tile or (max(1, _STRIP_PIXELS // width), width)
    across_read = max(across, _STRIP_PIXELS // (down * across) * across)  # of the scratch file, several tiles at once

    def read(window: Window) -> tuple[Window, NDArray[np.integer], NDArray[np.int64]]:
        mask = job.scratch.read(job.mask, window)[..., 0]
        return window, mask, class_counts(mask, ignore + 1)

    windows = tiles_of((height, width), (down, across_read))
    for window, mask, found in overlapped(windows, read, job.network.workers, 1):
        counts += found
        for left in range(0, window.width, across):
            sink.write(window.top, window.left + left, mask[:, left : left + across])
    return counts


def class_counts(mask: NDArray[np.integer], most: int) -> NDArray[np.int64]:
    """How often every class index occurs."""
    if mask.dtype == np.uint8:  # several times as fast as numpy
        return np.array(Image.fromarray(mask).histogram()[:most], np.int64)
    return np.bincount(mask.ravel(), minlength=most)


def make_plan(
    network: Network,
    picture: tuple[int, int],
    size: Size = "native",
    memory: int | None = None,
    context: ContextMode = "global",
    tile: int | None = None,
    held: int = 0,
) -> Plan:
    """The fastest tiles that keep the memory, piece by piece.

    Args:
        held: bytes of the memory that are not for tiles, see `held_by`.

    Raises: ConfigError where none do.
    """
    working, pieces = working_size(picture, network.manifest, size), network.cut.pieces
    memory = default_memory(held) if memory is None else memory
    if context != "global":
        tile = round(context / 3 / STRIDE) * STRIDE
        if tile < STRIDE:
            raise ConfigError(f"a context of {context} pixels is too small; give at least {3 * STRIDE}.")
    if tile is not None and (tile < STRIDE or tile % STRIDE):
        raise ConfigError(f"a tile of {tile} pixels does not fit the network; give a multiple of {STRIDE}.")
    sides = []
    for piece in pieces:
        largest = LARGEST_TILE if piece.number else LARGEST_FIRST_TILE
        tried = {
            side: Plan(picture, working, (side,) * len(pieces)) for side in _sides(tile, min(largest, max(working)))
        }
        fitting = [side for side, plan in tried.items() if held + needed_memory(network, plan, piece) <= memory]
        if not fitting:
            least = held + max(needed_memory(network, list(tried.values())[-1], piece) for piece in pieces)
            raise ConfigError(
                f"{mib(memory)} of memory are too little: with {'these' if tile else 'the smallest'} tiles this model "
                f"needs {mib(least)}; give more."
            )
        sides.append(min(fitting, key=lambda side: _cost(tried[side], piece)))
    return Plan(picture, working, tuple(sides))


def _sides(tile: int | None, longest: int) -> list[int]:
    """Sides that tiles may have, largest first."""
    return [tile] if tile else list(range(longest, 0, -STRIDE))


def _cost(plan: Plan, piece: Piece) -> int:
    """Of a piece in these tiles: pixels that it sees."""
    return plan.window(piece, 0).pixels * plan.tiles(piece.number)


def needed_memory(network: Network, plan: Plan, piece: Piece) -> int:
    """Estimate of the bytes that the process holds at its fullest while it works on a piece."""
    scale = tuple(own / new for own, new in zip(plan.picture, plan.working, strict=True))
    bytes_per_pixel = _bytes_per_pixel(network, piece, scale)
    return int(BASE_BYTES + network.workers * plan.window(piece, 0).pixels * bytes_per_pixel)


def _bytes_per_pixel(network: Network, piece: Piece, scale: tuple[float, ...] = (1.0, 1.0)) -> float:
    """Of a piece's window: inside the engine, and what it is given and gives, as arrays and on their way.

    Args:
        scale: pixels of the picture for one of the network's input, downwards and across.
    """
    features = sum(f.values_per_pixel for f in (*piece.inputs, *piece.outputs))
    image = 3 * 4 if piece.number in (0, WHOLE) else 0
    if image and scale != (1.0, 1.0):  # what is read, and sums of it in 32 bits, along the rows first
        image = int(3 * scale[0] * scale[1] + 3 * 10 * scale[0]) + 1
    last = network.cut.attention_behind(piece) is None
    logits = network.manifest.model.num_classes / LOGIT_STRIDE**2 + 1 if last else 0
    return piece.bytes_per_pixel + 4 * 2 * (features + logits) + image


def _identity(network: Network, source: Source, plan: Plan, context: ContextMode) -> dict[str, Any]:
    """What must be the same for interrupted work to go on."""
    return {
        "format": _SCRATCH_FORMAT,
        "picture": list(plan.picture),
        "working": list(plan.working),
        "source": str(getattr(source, "identity", "")),
        "looks": list(looks_of(source)),
        "model": network.digest,
        "precision": network.info.precision,
        "context": context,
    }


def looks_of(source: Source) -> tuple[str, ...]:
    """Digests of a few windows all over the image; "" for one that cannot be read whole."""
    height, width = source.size
    rows, columns = min(64, height), min(64, width)
    found = []
    for i, j in product(range(4), range(4)):
        window = Window((height - rows) * i // 3, (width - columns) * j // 3, rows, columns)
        pixels, damages = read_window(source, window)
        found.append("" if damages else hashlib.sha256(pixels.tobytes()).hexdigest()[:16])
    return tuple(found)


def remove_orphans(folder: Path) -> None:
    """Remove interrupted work that cannot be resumed, because its image was changed or removed since."""
    for place, identity in _interrupted(folder):
        name, *about = str(identity.get("source", "")).rsplit(" ", 2)
        path = Path(name)
        if len(about) != 2 or not path.is_absolute() or not path.parent.is_dir():
            continue  # not of a file, or of one on a disk that is not there now
        with contextlib.suppress(OSError):
            now = path.stat() if path.exists() else None
            if now is None or [str(now.st_size), str(now.st_mtime_ns)] != about:
                remove_folder(place)


def remove_superseded(done: Path, identity: dict[str, Any]) -> None:
    """Remove other interrupted work on the image whose mask is done, with other settings."""
    for place, other in _interrupted(done.parent):
        if place != done and identity["source"] and other.get("source") == identity["source"]:
            with contextlib.suppress(OSError):
                remove_folder(place)


def _interrupted(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of interrupted work, and what work it is."""
    with contextlib.suppress(OSError):
        for place in sorted(folder.glob(f"{TEMPORARY}*/{STATE}")):
            state = Scratch(place.parent).state()
            if state is not None and isinstance(state.get("identity"), dict):
                yield place.parent, state["identity"]


def _folder_name(identity: dict[str, Any]) -> str:
    return f"{TEMPORARY}{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"


def render(
    source: Source, network: Network, context: Context, region: Window, memory: int | None = None
) -> tuple[NDArray[np.integer], tuple[Damage, ...]]:
    """A region of a picture's mask, from the picture around it and the context alone; the same as in the whole mask.

    Args:
        region: in the picture's pixels.
        memory: bytes the process may hold; None for what is free, see `default_memory`.

    Returns: the mask, and what of the picture in the region and around it could not be read.

    Raises: ConfigError for a region outside the picture, another picture's context or too little memory, PictureError.
    """
    height, width = source.size
    context.check_of(source)
    if (
        min(region.top, region.left) < 0
        or min(region.height, region.width) < 1
        or (region.bottom > height or region.right > width)
    ):
        raise ConfigError(f"the region is not inside the picture of {width}×{height} pixels.")
    plan = Plan(context.picture, context.working, ())
    held = held_by(source)
    memory = default_memory(held) if memory is None else memory
    parts, size, at_once = _parts(region, network, plan, held, memory)
    resampled = Resampled(source, plan.working)
    given: Arrays = {}
    for i, (sums, attention) in enumerate(zip(context.sums, network.cut.attentions, strict=True)):
        given |= sums.inputs(i, attention)
    whole = np.empty((region.height, region.width), network.labels.dtype)
    try:
        with network.ready(network.cut.whole, _around(parts[0], network, plan, size)) as run:

            def work(part: Window) -> list[Damage]:
                window = _around(part, network, plan, size)
                image, damages = resampled.read(window)
                mask = mask_window(run({IMAGE: image[None], **given})[LOGITS][0], plan, part, window)
                valid = valid_window(source, part, damages)
                if valid is not None:
                    mask[~valid] = network.labels.ignore_index
                whole[part.inside(region)] = mask
                return damages

            found = {damage.window: damage for some in overlapped(parts, work, at_once, 0) for damage in some}
    finally:
        network.free()
    return whole, tuple(found.values())


def _parts(
    region: Window, network: Network, plan: Plan, held: int, memory: int
) -> tuple[list[Window], tuple[int, int], int]:
    """The fewest parts of a region that keep the memory, (height, width) of the largest one's core, how many at once.

    Raises: ConfigError where none do.
    """
    whole, sides = network.cut.whole, (region.height, region.width)
    scale = tuple(own / new for own, new in zip(plan.picture, plan.working, strict=True))
    bytes_per_pixel = _bytes_per_pixel(network, whole, scale)
    least = math.inf
    held += math.prod(sides) * network.labels.dtype().itemsize
    fewest, most = (-(-max(sides) // side) for side in (LARGEST_FIRST_TILE, _SMALLEST_PART))
    for count, at_once in product(range(fewest, most + 1), range(network.workers, 0, -1)):
        down, across = (min(count, side) for side in sides)
        # A core is no larger: its part, the logits to either side, and what whole strides add.
        cores = [-(-side // n) / per + 4 * STRIDE for side, n, per in zip(sides, (down, across), scale, strict=True)]
        seen = [
            min(core + whole.before + whole.after, length) for core, length in zip(cores, plan.working, strict=True)
        ]
        needed = BASE_BYTES + held + int(min(at_once, down * across) * math.prod(seen) * bytes_per_pixel)
        least = min(least, needed)
        if needed <= memory:
            break
    else:
        raise ConfigError(
            f"{mib(memory)} of memory are too little: the smallest part of a region needs {mib(least)}, with what "
            "lies around it; give more."
        )
    rows, columns = (
        [*pairwise(first + i * side // n for i in range(n + 1))]
        for first, side, n in zip((region.top, region.left), sides, (down, across), strict=True)
    )
    parts = [Window(top, left, bottom - top, right - left) for top, bottom in rows for left, right in columns]
    found = [_core_of(plan, part) for part in parts]
    return parts, (max(core.height for core in found), max(core.width for core in found)), at_once


def _around(part: Window, network: Network, plan: Plan, largest: tuple[int, int]) -> Window:
    """What the whole network must see for a part of the mask."""
    return window_around(_core_of(plan, part), network.cut.whole, plan.working, largest)


def _core_of(plan: Plan, region: Window) -> Window:
    """The network's input, in whole strides, whose logits a region of the mask lies in."""
    spans = []
    for new, own, begin, end in zip(
        plan.working, plan.picture, (region.top, region.left), (region.bottom, region.right), strict=True
    ):
        low, high = Side(new // LOGIT_STRIDE, own, 0, begin).needed(end - begin)
        spans.append((low * LOGIT_STRIDE // STRIDE * STRIDE, -(-high * LOGIT_STRIDE // STRIDE) * STRIDE))
    (top, bottom), (left, right) = spans
    return Window(top, left, bottom - top, right - left)


def tiled_logits(
    source: Source, network: Network, tile: int, scratch: str | os.PathLike[str], size: Size = "native"
) -> NDArray[np.float32]:
    """(classes, h / 8, w / 8) of a picture that fits in memory, computed in tiles: to compare with the whole."""
    working = working_size(source.size, network.manifest, size)
    plan = Plan(source.size, working, (tile,) * len(network.cut.pieces))
    shape = (network.manifest.model.num_classes, *(side // LOGIT_STRIDE for side in plan.working))
    logits = np.full(shape, np.nan, np.float32)
    with temporary_folder(Path(scratch)) as folder:
        store = Scratch(folder)
        job = Job(network, source, plan, store)
        try:
            for piece in network.cut.pieces:
                sums = job.sums(piece.number - 1) if piece.number else None
                with network.ready(piece, plan.window(piece, 0)) as run:
                    for at in range(plan.tiles(piece.number)):
                        if network.cut.attention_behind(piece) is not None:
                            job.work(run, piece, at, sums)
                            continue
                        core, window = plan.core(piece.number, at), plan.window(piece, at)
                        place, outer = core.over(LOGIT_STRIDE), window.over(LOGIT_STRIDE)
                        rows, columns = place.inside(outer)
                        own = job.logits(run, piece, at, sums)[:, rows, columns]
                        logits[:, place.top : place.bottom, place.left : place.right] = own
        finally:
            network.free()
            store.close()
    return logits


@dataclass(frozen=True)
class Agreement:
    """How tiles and the whole compare on a part of a picture that fits in memory.

    Attributes:
        part: of the picture, as if it were one of its own.
        difference: largest of the logits', relative to the largest logit.
        pixels: of the mask that differ.
    """

    part: Window
    difference: float
    pixels: int


def verify(
    source: Source, network: Network, segment: Segmenter, scratch: str | os.PathLike[str], side: int = 1024
) -> Agreement:
    """Compute the middle of a picture both ways, in tiles of a quarter of its side and whole.

    Args:
        segment: the same model in the same precision.
    """
    height, width = (min(side, length) for length in source.size)
    part = Window((source.size[0] - height) // 2, (source.size[1] - width) // 2, height, width)
    picture, _ = read_window(source, part)
    whole = Segmenter(segment.engine, "native").logits(picture)
    tile = max(STRIDE, max(height, width) // 4 // STRIDE * STRIDE)
    tiles = tiled_logits(ArraySource(picture), network, tile, scratch)
    masks = [argmax_upsampled(logits, (height, width)) for logits in (tiles, whole)]
    difference = float(np.abs(tiles - whole).max() / np.abs(whole).max())
    return Agreement(part, difference, int((masks[0] != masks[1]).sum()))
