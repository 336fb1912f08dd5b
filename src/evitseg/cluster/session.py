"""The connection to a Ray cluster, the model on its way to the workers, and the workers' cache."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evitseg._version import __version__
from evitseg.errors import ConfigError, EngineError, EvitsegError, MissingPackageError
from evitseg.loading import EXPORTED_ENDINGS, model_file
from evitseg.runtime.model_file import first_line, manifest_file, read
from evitseg.system.files import temporary_folder
from evitseg.system.machine import physical_cores

RETRIES = 5
"""Number of times that a task is repeated whose worker or machine died. A task that fails more often kills them."""


def require_ray() -> Any:
    """The package `ray`. Raises: MissingPackageError."""
    # Every cluster that Ray starts reports its use to Ray's makers; our users have not agreed to that.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError("work on several machines", "ray") from error
    return ray


@contextmanager
def connected(
    address: str = "auto", *, workers: int | None = None, scratch: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Connect to a Ray cluster for the duration of the block. An existing connection is used and stays open.

    Args:
        address: HOST:PORT or ray://HOST:PORT of a cluster. "auto" uses the cluster on this machine; without one, it
            starts one and stops it at the end. "local" always starts one.
        workers: number of processes of a cluster that is started; None for one per physical core.
        scratch: folder in which a cluster that is started stores objects that do not fit in memory; None for the
            system's temporary folder.

    Raises: ConfigError if no cluster answers, or if `workers` or `scratch` are given for one that runs already.
    """
    ray = require_ray()
    taken = [name for name, value in (("workers", workers), ("scratch", scratch)) if value is not None]
    settings = f"the cluster is running already, with its own settings; leave out {' and '.join(taken)}."
    if ray.is_initialized():
        if address != "auto":
            raise ConfigError("this process is connected to a cluster already; leave out the address.")
        if taken:
            raise ConfigError(settings)
        yield
        return
    if address != "local":
        if address != "auto":
            _check_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            if address != "auto":
                raise ConfigError(f"no Ray cluster answers at {address} ({first_line(error)}).") from error
        else:
            try:
                if taken:
                    raise ConfigError(settings)
                yield
            finally:
                ray.shutdown()
            return
    # Paths of sockets must be short, and some systems' temporary folders have long names.
    folder = tempfile.mkdtemp(prefix="evitseg-", dir="/tmp" if os.name == "posix" else None)
    try:
        if scratch is not None:
            Path(scratch).mkdir(parents=True, exist_ok=True)
        with temporary_folder(Path(scratch or folder)) as spill:
            ray.init(
                address="local",
                num_cpus=workers or physical_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=folder,
                object_spilling_directory=os.path.abspath(spill),
            )
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_answers(address: str) -> None:
    """Raises: ConfigError if nothing answers, in seconds; Ray itself would try for more than a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{address}: not the address of a cluster; give HOST:PORT, ray://HOST:PORT or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster answers at {address} ({error}).") from error


def slots(threads: int, everywhere: bool = False) -> int:
    """Number of tasks with this many threads that run at once.

    Args:
        everywhere: on all machines together; else on the largest.

    Raises: ConfigError if no machine has enough cores.
    """
    cores = [int(node["Resources"].get("CPU", 0)) for node in require_ray().nodes() if node["Alive"]]
    largest = max(cores, default=0)
    if largest < threads:
        raise ConfigError(
            f"no machine of the cluster has {threads} cores for a task of {threads} threads; the largest has {largest}."
        )
    return sum(count // threads for count in cores) if everywhere else largest // threads


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn errors of the cluster into ours: an EvitsegError of a task is raised here, a lost task is an EngineError."""
    ray = require_ray()
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EvitsegError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"the cluster lost a task {RETRIES + 1} times, or its results ({first_line(error)}); if a machine ran out "
            "of memory, give the workers less (--memory)."
        ) from error


@dataclass(frozen=True)
class Model:
    """A model on its way to workers: its files in the cluster's store, or a name that is known everywhere.

    Attributes:
        version: version of the package that sent it.
        name: of a model without files to send.
        files: names of the model's files, the main one first, with references to their bytes.
    """

    version: str
    name: str
    files: tuple[tuple[str, Any], ...]

    @staticmethod
    def send(model: str | os.PathLike[str] | None) -> Model:
        """Put a model's files into the cluster's store. Raises: WeightsError."""
        from evitseg.bundled import DEFAULT_MODEL

        ray, path = require_ray(), model_file(model)
        if path is None:
            return Model(__version__, str(model or DEFAULT_MODEL), ())
        beside = []
        if path.suffix in EXPORTED_ENDINGS:
            beside = [file for file in (path.with_suffix(".bin"), manifest_file(path)) if file.is_file()]
        files = tuple((file.name, ray.put(read(file))) for file in (path, *beside))
        return Model(__version__, str(path), files)

    @contextmanager
    def opened(self) -> Iterator[str | Path]:
        """On a worker: the model's name or path there. Raises: EngineError if the worker has another version."""
        if self.version != __version__:
            raise EngineError(
                f"{machine()} has evitseg {__version__}, this machine {self.version}; install the same version on all."
            )
        if not self.files:
            yield self.name
            return
        contents = require_ray().get([content for _, content in self.files])
        with tempfile.TemporaryDirectory(prefix="evitseg-", ignore_cleanup_errors=True) as folder:
            for (name, _), content in zip(self.files, contents, strict=True):
                (Path(folder) / name).write_bytes(content)
            yield Path(folder) / self.files[0][0]


def machine() -> str:
    """This machine's name, for messages."""
    return f"the machine {socket.gethostname()}"


_cache: dict[str, tuple[object, Any, ExitStack]] = {}


def cached(kind: str, key: object, make: Callable[[ExitStack], Any]) -> Any:
    """The last object of a kind in this worker process, made again for another key.

    A network is thus compiled once per worker instead of once per task. Ray gives a worker one task at a time.
    """
    if kind not in _cache or _cache[kind][0] != key:
        if kind in _cache:
            _cache.pop(kind)[2].close()
        stack = ExitStack()
        _cache[kind] = key, make(stack), stack
    return _cache[kind][1]
