"""The images below the service's folder, opened when somebody asks for their tiles."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evitseg.errors import ConfigError, EngineError, FileError, ImageError
from evitseg.image import ReadOptions, Size
from evitseg.raster.formats import EXTENSIONS
from evitseg.raster.window import identity_of
from evitseg.runtime.native import NativeEngine
from evitseg.runtime.segmenter import Segmenter
from evitseg.serve.problems import ProblemError
from evitseg.tiling.network import Network
from evitseg.viewer.mask_sources import ModelSettings
from evitseg.viewer.mask_tiles import DEFAULT_BYTES, cache_folder
from evitseg.viewer.view import View
from evitseg.viewer.view_request import ViewRequest

MOST_OPEN = 3
"""Images that stay open; each holds up to 120 MB of decoded pixels."""
MOST_LISTED = 10_000
_CONTEXT = ".npz"
_FOLDER_ENDING = ".zarr"


@dataclass(frozen=True)
class LoadedModel(ModelSettings):
    """The service's model, whose weights and threads all images share.

    Attributes:
        segment: runs the model.
    """

    segment: Segmenter | None = None

    @property
    def engine(self) -> NativeEngine:
        """Raises: EngineError for a model that another engine runs."""
        assert self.segment is not None
        if not isinstance(self.segment.engine, NativeEngine):
            raise EngineError(
                f"--root: tiles of masks are made by evitseg's own engine, not by {self.segment.info.engine}; "
                "leave --engine out."
            )
        return self.segment.engine

    def load(self, size: Size, reading: ReadOptions | None) -> Segmenter:
        assert self.segment is not None
        return Segmenter(self.engine, size, reading or self.segment.reading)

    def network(self) -> Network:
        return Network(self.engine)

    def digest(self) -> str:
        network = self.network()
        return f"{network.digest} {network.arithmetic}"


@dataclass(frozen=True)
class Listed:
    """An image below the folder.

    Attributes:
        name: its path below the folder, with slashes.
        has_mask: whether its context lies next to it.
    """

    name: str
    has_mask: bool


class ImageShelf:
    """The images below a folder. An image that was not asked for longest is closed when others need its place.

    Args:
        root: the folder. Nothing outside it is ever opened, through links neither.
        segment: the model of the masks.
        cache: folder for rendered tiles; None for the user's.
        is_busy: whether the service has other work, for which rendering in the background waits.

    Raises: ConfigError for a folder that does not exist, FileError for a cache that cannot be written, EngineError for
        a model that does not run in bands.
    """

    def __init__(
        self,
        root: Path,
        segment: Segmenter,
        cache: Path | None = None,
        cache_bytes: int = DEFAULT_BYTES,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        if not root.is_dir():
            raise ConfigError(f"--root {root}: no such folder.")
        self._root, self._model, self.is_busy = root.resolve(), LoadedModel(segment=segment), is_busy
        self._model.network()  # raises
        try:
            self._cache, self._cache_bytes = cache or cache_folder(), cache_bytes
            self._cache.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # a user without a home has no cache folder
            raise FileError(
                f"{cache or 'the cache folder'}: cannot be used ({error}); give another --cache."
            ) from error
        self._views: OrderedDict[tuple[str, str], View] = OrderedDict()
        self._uses: dict[View, int] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def names(self) -> list[Listed]:
        """The images, at most `MOST_LISTED`, sorted by name within each folder."""
        found: list[Listed] = []
        for place, folders, files in os.walk(self._root):
            folders.sort()
            names = sorted(each for each in files if Path(each).suffix.lower() in EXTENSIONS)
            names += [each for each in folders if each.lower().endswith(_FOLDER_ENDING)]
            folders[:] = [each for each in folders if not each.startswith(".") and each not in names]
            for each in names:
                path = Path(place, each)
                if self._inside(path) is not None and not each.startswith("."):
                    found.append(Listed(path.relative_to(self._root).as_posix(), self._context_of(path) is not None))
                    if len(found) == MOST_LISTED:
                        return found
        return found

    def path_of(self, name: str) -> Path:
        """The file of an image. Raises: ProblemError."""
        parts = name.split("/")
        is_plain = all(part and not part.startswith(".") and not set(part) & set("\\\0") for part in parts)
        if is_plain and not (os.name == "nt" and ":" in name):
            path = self._inside(self._root.joinpath(*parts))
            is_folder = path is not None and path.is_dir()
            if path is not None and path.suffix.lower() in ({_FOLDER_ENDING} if is_folder else EXTENSIONS):
                return path
        raise ProblemError("no-such-image", f"there is no image {name[:100]!r}.")

    def _inside(self, path: Path) -> Path | None:
        """What a path leads to, if that exists and is below the folder."""
        try:
            found = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # also loops of links
            return None
        return found if found.is_relative_to(self._root) and (found.is_file() or found.is_dir()) else None

    def _context_of(self, path: Path) -> Path | None:
        """The context of an image: mosaic.npz or mosaic.tif.npz for mosaic.tif."""
        for place in (path.with_suffix(_CONTEXT), path.with_name(path.name + _CONTEXT)):
            found = self._inside(place)
            if found is not None and found.is_file():
                return found
        return None

    @contextmanager
    def opened(self, name: str) -> Iterator[View]:
        """An image, open until the block ends at least. Raises: ProblemError, EvitsegError."""
        path = self.path_of(name)
        context = self._context_of(path)
        try:
            key = identity_of(path), identity_of(context) if context is not None else ""
        except ImageError as error:  # removed in the meantime
            raise ProblemError("no-such-image", f"there is no image {name[:100]!r}.") from error
        view = self._taken(key, path, context)
        try:
            view.wait_until_open()
            yield view
        except ImageError as error:
            detail = str(error).replace(str(path), name)  # where the folder lies is nobody's business
            raise ProblemError("no-such-image", detail) from error
        finally:
            self._give_back(key, view)

    def _taken(self, key: tuple[str, str], path: Path, context: Path | None) -> View:
        with self._lock:
            if self._is_closed:
                raise ProblemError("draining", "the service finishes its last requests.", headers={"Retry-After": "5"})
            view = self._views.get(key)
            if view is None:
                request = ViewRequest(
                    path, self._model, context=context, with_mask=context is not None, cache=self._cache,
                    cache_bytes=self._cache_bytes,
                )  # fmt: skip
                self._views[key] = view = View(request, self.is_busy)
                view.start()
            self._views.move_to_end(key)
            self._uses[view] = self._uses.get(view, 0) + 1
            return view

    def _give_back(self, key: tuple[str, str], view: View) -> None:
        closed = []
        with self._lock:
            self._uses[view] -= 1
            if view.error is not None and self._views.get(key) is view:
                del self._views[key]  # the next request tries again
            for other, each in list(self._views.items()):
                if len(self._views) > MOST_OPEN and not self._uses[each]:
                    del self._views[other]
            for each in [each for each, uses in self._uses.items() if not uses and each not in self._views.values()]:
                del self._uses[each]
                closed.append(each)
        for each in closed:
            each.close()

    def close(self) -> None:
        """Close all images, after the requests that use them."""
        with self._lock:
            self._is_closed = True
            views, self._views = [*self._views.values()], OrderedDict()
        for view in views:
            view.close()
