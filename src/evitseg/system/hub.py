"""Files from the Hugging Face Hub: their names, the cache that all programs share, and downloads."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from evitseg.errors import ConfigError, MissingPackageError, WeightsError, reason, warn
from evitseg.system.files import is_file, is_folder

_LOG = logging.getLogger(__name__)
SCHEME = "hf://"
PUBLIC_HUB = "https://huggingface.co"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class HubName:
    """The name of a repository of models, and of one of its files: hf://owner/name@revision/file.

    Attributes:
        repository: "owner/name".
        revision: a branch, a tag or a commit; None for the branch main.
        file: path in the repository; None if the name does not say.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the name means the same bytes for ever: its revision is a commit."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{SCHEME}{self.repository}{revision}{f'/{self.file}' if self.file else ''}"


def is_hub_name(model: object) -> bool:
    """Whether it is text that begins with hf://."""
    return isinstance(model, str) and model.startswith(SCHEME)


def parse_hub_name(text: str) -> HubName:
    """Parse hf://owner/name, with @revision and /file if they are given. Raises: ConfigError."""
    found = re.fullmatch(rf"{SCHEME}([^/@]+/[^/@]+)(?:@([^/@]+))?(?:/(.+))?", text)
    if found is None:
        raise ConfigError(f"{text[:200]!r} is not the name of a model on the hub; write hf://owner/name.")
    revision = None if found[2] is None else unquote(found[2])
    check_repository(found[1], text)
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise ConfigError(f"{text}: {revision!r} is not the name of a revision; give a branch, a tag or a commit.")
    file = found[3]
    if file is not None:
        parts = file.split("/")
        if not file.isprintable() or any(part in ("", ".", "..") for part in parts) or re.search(r'[\\:*?"<>|]', file):
            raise ConfigError(f"{text!r}: {file!r} is not the path of a file in a repository.")
    return HubName(found[1], revision, file)


def meant_hub_name(model: str) -> str:
    """The name of a model on the hub that a text without hf:// probably means, such as "hf://owner/name", or ""."""
    bare = re.sub(r"^(https?://huggingface\.co/|hf:/{0,2})", "", model, flags=re.IGNORECASE).rstrip("/")
    return f"{SCHEME}{bare}" if _REPOSITORY.fullmatch(bare) else ""


def check_repository(repository: str, where: str | None = None) -> str:
    """The name of a repository, if it may be one. Raises: ConfigError."""
    if not _REPOSITORY.fullmatch(repository) or re.search(r"--|\.\.|\.git(/|$)", repository):
        raise ConfigError(
            f"{where or repository}: {repository!r} is not owner/name of a repository; both consist of letters, "
            "digits, and single '-', '_' and '.' between them."
        )
    return repository


def endpoint() -> str:
    """The address of the hub, or of the mirror that HF_ENDPOINT names."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")


def shown_endpoint(hub: str | None = None) -> str:
    """The hub for messages: "the hub", or the address of a mirror without the password that may be in it."""
    hub = hub or endpoint()
    if hub == PUBLIC_HUB:
        return "the hub"
    try:
        parts = urlsplit(hub)
        host = parts.hostname or ""
        return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return "the mirror in HF_ENDPOINT"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids connections."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def cache_folder() -> Path:
    """The folder that all programs using the hub share, by the rules of huggingface_hub."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if folder := os.environ.get(variable):
            return Path(os.path.expandvars(folder)).expanduser() / below
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def cached_snapshot(name: HubName, cache: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder in the cache with the files of a repository's revision; None if no file of it was ever downloaded.

    It is found without any optional package. Not all files of the revision need to be in it.
    """
    folder, commit = _cached_commit(name, cache)
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and is_folder(snapshot) else None


def is_known_to_lack(name: HubName) -> bool:
    """Whether an earlier download found that the revision has no such file, which the cache records."""
    assert name.file is not None
    folder, commit = _cached_commit(name)
    return bool(commit) and is_file(folder / ".no_exist" / commit / name.file)


def _cached_commit(name: HubName, cache: str | os.PathLike[str] | None = None) -> tuple[Path, str]:
    """The repository's folder in the cache, and the commit that the cache knows for the revision; "" for none."""
    folder = Path(cache or cache_folder()) / f"models--{name.repository.replace('/', '--')}"
    commit = name.revision or "main"
    if not name.is_pinned:
        try:
            commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return folder, ""
    return folder, commit if _COMMIT.fullmatch(commit) else ""


def cached_files(name: HubName) -> list[str]:
    """The paths of the files in `cached_snapshot`."""
    snapshot = cached_snapshot(name)
    if snapshot is None:
        return []
    return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if is_file(path))


def pinned(name: HubName, path: Path) -> HubName:
    """The name with the commit that a downloaded file belongs to, which is part of its path in the cache."""
    assert name.file is not None
    commit = path.parents[len(PurePosixPath(name.file).parts) - 1].name
    return replace(name, revision=commit)


def import_hub(purpose: str, extra: str = "hub") -> None:
    """Raises: MissingPackageError without huggingface_hub."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(purpose, extra) from error


def fetch(
    name: HubName,
    shown: str | None = None,
    *,
    prefer_cache: bool = False,
    hub: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    extra: str = "hub",
) -> Path:
    """A file of a repository, from the cache if it is current, else from the hub.

    If the hub cannot be reached, a file in the cache is used with a warning. HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and
    HF_TOKEN have the meaning that they have for huggingface_hub.

    Args:
        name: with its file.
        shown: what messages call it.
        prefer_cache: take a file in the cache without asking the hub whether it is current, as for a commit.
        hub: address of the hub; None for `endpoint`.
        cache: folder; None for `cache_folder`.
        extra: the package's extra that has huggingface_hub, for the message if it is missing.

    Raises: WeightsError, MissingPackageError.
    """
    assert name.file is not None
    shown = shown or str(name)
    snapshot = cached_snapshot(name, cache)
    cached = snapshot / name.file if snapshot is not None and is_file(snapshot / name.file) else None
    if cached is not None and (prefer_cache or name.is_pinned or is_offline()):
        _LOG.info("%s is in the cache: %s", shown, cached)
        return cached
    if is_offline():
        raise WeightsError(
            f"{shown}: {name.file} is not in the cache ({cache or cache_folder()}), and HF_HUB_OFFLINE forbids "
            "downloading it; unset it, or copy the cache from a machine with a network."
        )
    import_hub(f"downloading {shown}", extra)
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url

    hub = hub or endpoint()
    place, file, revision = name.repository, name.file, name.revision
    try:
        with quiet():
            if cached is not None:  # hf_hub_download would return it without a word if the hub cannot be reached
                get_hf_file_metadata(hf_hub_url(place, file, revision=revision, endpoint=hub), get_token())
            else:
                _LOG.info("downloading %s from %s", file, place)
            folder = Path(cache or cache_folder())
            return Path(hf_hub_download(place, file, revision=revision, cache_dir=folder, endpoint=hub))
    except Exception as error:  # the HTTP library raises its own errors if a connection breaks
        if (refused := refusal(error, name)) is not None:
            raise type(refused)(f"{shown}: {refused}.") from error
        if cached is not None:
            warn(
                f"{shown}: {shown_endpoint(hub)} could not be reached ({_cause(error)}); using revision "
                f"{pinned(name, cached).revision} from the cache."
            )
            return cached
        raise WeightsError(
            f"{shown}: {file} could not be downloaded from {place} on {shown_endpoint(hub)} ({_cause(error)}); check "
            "the network, or download the file elsewhere and give its path as the model."
        ) from error


def list_files(name: HubName) -> list[str]:
    """The paths of a repository's files. Raises: WeightsError, MissingPackageError."""
    import_hub(f"looking up {name}")
    from huggingface_hub import HfApi

    try:
        with quiet():
            return HfApi(endpoint=endpoint()).list_repo_files(name.repository, revision=name.revision)
    except Exception as error:  # as in `fetch`
        raise WeightsError(
            f"{name}: {refusal(error, name) or f'{shown_endpoint()} does not list its files ({_cause(error)})'}."
        ) from error


class NoSuchHubFileError(WeightsError):
    """The repository has no such file."""


def refusal(error: BaseException | None, name: HubName) -> WeightsError | None:
    """What the hub says about a request that it understood, as part of a sentence; None if it could not be asked."""
    from huggingface_hub import errors, get_token

    while error is not None and (
        not isinstance(error, errors.HfHubHTTPError) or isinstance(error, errors.LocalEntryNotFoundError)
    ):
        error = error.__cause__
    if error is None:
        return None
    if isinstance(error, errors.GatedRepoError):
        page = f"{PUBLIC_HUB}/{name.repository}"
        return WeightsError(f"{name.repository} is gated; ask for access at {page}, then {LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        none = f"{shown_endpoint()} has no repository {name.repository}, or "
        if get_token() is None:
            return WeightsError(f"{none}it is private; to read a private one, {LOG_IN}")
        return WeightsError(f"{none}it is private and your token (HF_TOKEN, `hf auth`) gives no access to it")
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(f"{name.repository} has no revision {name.revision or 'main'!r}")
    if isinstance(error, errors.EntryNotFoundError):
        return NoSuchHubFileError(f"{name.repository} has no file {name.file}")
    status = error.response.status_code
    if status == 401:
        return WeightsError(f"{shown_endpoint()} does not accept your token; {LOG_IN} to one that is valid")
    if status == 403:
        return WeightsError(f"your token may not do this in {name.repository}; it needs more permissions")
    return None


def _cause(error: Exception) -> str:
    """The reason in the error that a library's general sentence hides."""
    return reason(error.__cause__ if isinstance(error.__cause__, Exception) else error).rstrip(".")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without huggingface_hub's log of every attempt, because one sentence at the end is ours, and without its progress
    bars unless they are for a terminal.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    is_settled = "HF_HUB_DISABLE_PROGRESS_BARS" in os.environ or are_progress_bars_disabled()
    hides_bars = not is_settled and not sys.stderr.isatty()
    if hides_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hides_bars:
            enable_progress_bars()
