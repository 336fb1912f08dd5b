"""A connection to a Ray cluster, and what its workers are sent and keep."""

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
from evitseg.loading import exported_path
from evitseg.runtime.model_file import first_line, manifest_file, read
from evitseg.system.files import temporary_folder
from evitseg.system.machine import physical_cores

RETRIES = 5
"""How often a task is begun again whose worker or machine died; more deaths mean that it kills them."""


def require_ray() -> Any:
    """The package. Raises: MissingPackageError."""
    # Ray tells its makers that it is used, from every cluster it starts; our users were not asked.
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
    """A connection to a cluster for as long as the block lasts; one that this process has already is used, and left.

    Args:
        address: a cluster's, as HOST:PORT or ray://HOST:PORT; "auto" for the one on this machine, or, where there is
            none, for one that is started, and stopped at the end; "local" always starts one.
        workers: processes of a cluster that is started; None for one a physical core.
        scratch: folder of a cluster that is started, for what does not fit in memory; None for the system's.

    Raises: ConfigError where there is no cluster, or it is one that does not take these settings.
    """
    ray = require_ray()
    taken = [name for name, value in (("workers", workers), ("scratch", scratch)) if value is not None]
    settings = f"the cluster runs already and has its own settings; leave out {' and '.join(taken)}."
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
    # Paths of sockets must be short, which those of some systems' temporary folders are not.
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
    """Ray itself would try for more than a minute. Raises: ConfigError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{address}: not the address of a cluster; give HOST:PORT, ray://HOST:PORT, or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster answers at {address} ({error}).") from error


def slots(threads: int, everywhere: bool = False) -> int:
    """Tasks of so many threads that the cluster's largest machine, or all of them, run at once.

    Raises: ConfigError where none.
    """
    cores = [int(node["Resources"].get("CPU", 0)) for node in require_ray().nodes() if node["Alive"]]
    largest = max(cores, default=0)
    if largest < threads:
        raise ConfigError(f"a task of {threads} threads fits on no machine of the cluster; the largest has {largest}.")
    return sum(count // threads for count in cores) if everywhere else largest // threads


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong on the cluster, as one of our errors: the task's own, or that there is no task any more."""
    ray = require_ray()
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EvitsegError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"the cluster lost a task {RETRIES + 1} times or its results for good ({first_line(error)}); if its "
            "machines have too little memory, give less with --memory."
        ) from error


@dataclass(frozen=True)
class Model:
    """A model as it is sent to workers: its files in the cluster's store, or a name that is known everywhere.

    Attributes:
        version: of the package that sent it.
        files: names, and references to their bytes; the first is the artefact.
    """

    version: str
    name: str
    files: tuple[tuple[str, Any], ...]

    @staticmethod
    def sent(model: str | os.PathLike[str] | None) -> Model:
        """Raises: WeightsError."""
        from evitseg.bundled import DEFAULT_MODEL

        ray, path = require_ray(), exported_path(model)
        if path is None:
            return Model(__version__, str(model or DEFAULT_MODEL), ())
        beside = [file for file in (path.with_suffix(".bin"), manifest_file(path)) if file.is_file()]
        files = tuple((file.name, ray.put(read(file))) for file in (path, *beside))
        return Model(__version__, str(path), files)

    @contextmanager
    def opened(self) -> Iterator[str | Path]:
        """On a worker: what to give to whatever opens models. Raises: EngineError for a worker of another version."""
        if self.version != __version__:
            raise EngineError(
                f"{machine()} has evitseg {__version__}, this machine {self.version}; install the same everywhere."
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
    return f"the machine {socket.gethostname()}"


_kept: dict[str, tuple[object, Any, ExitStack]] = {}


def kept(kind: str, key: object, make: Callable[[ExitStack], Any]) -> Any:
    """What this process, a worker's, made last of a kind; made anew for another key.

    A network is compiled once a worker, not once a task. Ray gives a worker one task at a time.
    """
    if kind not in _kept or _kept[kind][0] != key:
        if kind in _kept:
            _kept.pop(kind)[2].close()
        stack = ExitStack()
        _kept[kind] = key, make(stack), stack
    return _kept[kind][1]
