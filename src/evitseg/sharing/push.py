"""Prepare the folder of a repository on the Hugging Face Hub, and upload it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from evitseg._version import __version__
from evitseg.bundled import EXAMPLE_IMAGE, EXAMPLE_LICENCE, bundled_models
from evitseg.errors import ConfigError, FileError, WeightsError, reason
from evitseg.loading import load
from evitseg.manifest import METADATA_KEY, Manifest
from evitseg.raster.files import save_image
from evitseg.runtime.checkpoint import read_checkpoint, read_checkpoint_manifest
from evitseg.runtime.hub_models import HUB_FILE
from evitseg.sharing.card import CardRequest, hub_licence, licence_in, model_card
from evitseg.system.files import file_sha256, is_folder, replacing
from evitseg.system.hub import (
    LOG_IN,
    HubName,
    check_repository,
    endpoint,
    import_hub,
    is_offline,
    quiet,
    refusal,
    shown_endpoint,
)

CARD, CONFIG = "README.md", "config.json"
SAMPLE, SAMPLE_OVERLAY, SAMPLE_LICENCE = "sample.jpg", "sample_overlay.jpg", "sample_licence.txt"
_SAMPLE_SIDE = 1024
_STREETS = ("camvid", "cityscapes")
"""Label spaces for which the photograph that ships with evitseg is a fair sample."""


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready to be uploaded.

    Attributes:
        files: paths in the folder, in the order in which they are listed.
        manifest: of the weights in it.
        remarks: sentences about what the card lacks.
    """

    folder: Path
    files: tuple[str, ...]
    manifest: Manifest
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Pushed:
    """An upload.

    Attributes:
        url: address of the repository's page.
        commit: hash of the commit.
        is_private: whether only its owner sees it.
    """

    url: str
    commit: str
    is_private: bool


def checkpoint_of(run: str | Path) -> Path:
    """The checkpoint to share: best.safetensors of a run's folder, a checkpoint, or a bundled model by its name.

    Raises: WeightsError.
    """
    path = bundled_models().get(str(run), Path(run))
    if is_folder(path):
        path = path / "best.safetensors"
        if not path.is_file():
            raise WeightsError(f"{run}: has no best.safetensors; give the folder of a run, or a checkpoint.")
    if path.suffix != ".safetensors":
        raise WeightsError(f"{run}: not a checkpoint of evitseg; give the folder of a run, or a .safetensors file.")
    read_checkpoint(path)  # raises: damaged, not finite, or written by another program
    return path


def check_names(licence: str | None, base_model: str | None) -> None:
    """Raises: ConfigError for text that is no name of a licence or of a repository."""
    if base_model is not None:
        check_repository(base_model)
    if licence is not None and (not licence.strip() or not licence.isprintable() or len(licence) > 200):
        raise ConfigError(f"{licence[:60]!r} is not the name of a licence; give one such as apache-2.0.")


def check_new(folder: Path) -> None:
    """Raises: FileError if there is something else than an empty folder in its place."""
    try:
        if folder.exists() and any(folder.iterdir()):
            raise FileError(f"{folder}: is not empty; give a new folder.")
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror or error}).") from error


def prepare(
    checkpoint: Path,
    repository: str,
    folder: Path,
    *,
    licence: str | None = None,
    base_model: str | None = None,
    sample: Path | None = None,
) -> Prepared:
    """Write weights with their manifest, a model card and a sample image into a new folder.

    Args:
        checkpoint: a .safetensors file with a manifest.
        repository: "owner/name".
        licence: of the weights; None leaves it unknown, and the card says so.
        base_model: repository of the weights that training started from; None for the one in the manifest.
        sample: an image that everybody may see. None for the photograph that ships with evitseg if the model's classes
            are those of streets, else no image.

    Raises: ConfigError, WeightsError, FileError, ImageError, MissingPackageError.
    """
    check_repository(repository)
    check_names(licence, base_model)
    manifest = read_checkpoint_manifest(checkpoint)
    training = replace(manifest.training, licence=licence_in(manifest, licence))
    manifest = replace(manifest, training=training, checkpoint_sha256="")
    # What may be refused comes before the folder, which must be new when the command is repeated.
    import_hub("a model card")
    shown = sample or (EXAMPLE_IMAGE if manifest.labels.name in _STREETS else None)
    pictures = {} if shown is None else _sample(shown, checkpoint)
    check_new(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    _write_weights(checkpoint, manifest, folder / HUB_FILE)
    for name, picture in pictures.items():
        save_image(picture, folder / name)
    samples = tuple(pictures)
    if shown == EXAMPLE_IMAGE:
        (folder / SAMPLE_LICENCE).write_bytes(EXAMPLE_LICENCE.read_bytes())
        samples = (*samples, SAMPLE_LICENCE)
    request = CardRequest(repository, licence, base_model, samples, file_sha256(folder / HUB_FILE))
    about = {"library_name": "evitseg", "evitseg_version": __version__, "manifest": json.loads(manifest.to_json())}
    for name, text in (
        (CARD, model_card(manifest, request)),
        (CONFIG, json.dumps(about, indent=2, ensure_ascii=False) + "\n"),
    ):
        with replacing(folder / name) as file:
            file.write(text.encode())
    files = (HUB_FILE, CARD, CONFIG, *samples)
    return Prepared(folder, files, manifest, tuple(_remarks(manifest, licence, shown)))


def prepare_space(checkpoint: Path, repository: str, folder: Path, licence: str | None = None) -> tuple[str, ...]:
    """Write the web page of a model, which runs it in the browser, as a static Space into a new folder.

    Args:
        checkpoint: the weights that `prepare` wrote.
        repository: of the model, which the Space links to.

    Returns: paths in the folder.

    Raises: ExportError if the page's model disagrees with the checkpoint, ConfigError, WeightsError, FileError,
    MissingPackageError.
    """
    import_hub("a Space")
    from huggingface_hub import SpaceCard

    from evitseg.exporters.export import export

    export(checkpoint, "web", folder)
    card = SpaceCard((folder / CARD).read_text(encoding="utf-8"))
    identifier, name = hub_licence(licence)
    about = {"models": [repository], "tags": ["evitseg", "image-segmentation"], "license": identifier}
    for key, value in (about | ({"license_name": name} if name else {})).items():
        card.data[key] = value
    with replacing(folder / CARD) as file:
        file.write(str(card).encode())
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _remarks(manifest: Manifest, licence: str | None, sample: Path | None) -> Iterator[str]:
    if licence is None:
        yield "the card says that the licence is unknown; name it with --licence, such as apache-2.0."
    if sample is None:
        yield "the card has no sample image; --sample FILE adds one that everybody may see."
    if not manifest.accuracy:
        yield "the card has no accuracy, because the checkpoint has none; training writes it."


def _write_weights(checkpoint: Path, manifest: Manifest, path: Path) -> None:
    """Copy the weights, with another manifest."""
    from safetensors import safe_open
    from safetensors.numpy import save

    with safe_open(checkpoint, "np") as file:
        tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    with replacing(path) as target:
        target.write(save(tensors, {METADATA_KEY: manifest.to_json()}))


def _sample(image: Path, checkpoint: Path) -> dict[str, Image.Image]:
    """A reduced image and its overlay by the names of their files, without metadata such as where it was taken."""
    prediction = load(checkpoint)(image)
    pictures = {SAMPLE: Image.fromarray(prediction.image), SAMPLE_OVERLAY: prediction.overlay()}
    factor = min(1.0, _SAMPLE_SIDE / max(prediction.image.shape[:2]))
    return {
        name: picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
        for name, picture in pictures.items()
    }


class Destination:
    """A repository of the hub that may be written; nothing is changed before `upload`.

    Args:
        kind: of the repository.
        private: create it as a private one; a public repository is refused.
        overwrite: also write to a repository with files of others.

    Raises: ConfigError, MissingPackageError.
    """

    def __init__(
        self,
        repository: str,
        kind: Literal["model", "space"] = "model",
        *,
        private: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._repository, self._kind, self._private = check_repository(repository), kind, private
        import_hub(f"uploading to {repository}")
        from huggingface_hub import HfApi, get_token

        if is_offline():
            raise ConfigError(f"{repository}: HF_HUB_OFFLINE forbids uploading it; unset it, or use --dry-run.")
        if get_token() is None:
            raise ConfigError(f"{repository}: uploading needs a token that may write; {LOG_IN}.")
        self._api = HfApi(endpoint=endpoint(), library_name="evitseg", library_version=__version__)
        with _sentences(repository):
            self._is_private = self._checked(overwrite)

    def _checked(self, overwrite: bool) -> bool | None:
        """Whether the repository is private; None if there is none yet."""
        from huggingface_hub.errors import RepositoryNotFoundError

        look_up = self._api.space_info if self._kind == "space" else self._api.model_info
        try:
            info = look_up(self._repository)
        except RepositoryNotFoundError:
            return None
        what = f"{self._repository}: the {self._kind}"
        if self._private and not info.private:
            raise ConfigError(f"{what} exists and is public; make it private on the hub first, or choose another name.")
        there = {each.rfilename for each in info.siblings or ()} - {".gitattributes"}
        card = info.card_data
        is_ours = card is not None and (card.get("library_name") == "evitseg" or "evitseg" in card.get("tags", []))
        if there and not is_ours and not overwrite:
            raise ConfigError(
                f"{what} exists, and its {min(there)} was not written by evitseg; choose another name, or add "
                "--overwrite to write to it (the hub keeps the history)."
            )
        return bool(info.private)

    def upload(self, folder: Path, files: tuple[str, ...]) -> Pushed:
        """Upload files of a folder as one commit, and create the repository if there is none. Raises: ConfigError."""
        from huggingface_hub import CommitOperationAdd

        repository, kind = self._repository, self._kind
        with _sentences(repository):
            if self._is_private is None:
                sdk = "static" if kind == "space" else None
                self._api.create_repo(repository, repo_type=kind, private=self._private, space_sdk=sdk)
                self._is_private = self._private
            added = [CommitOperationAdd(file, str(folder / file)) for file in files]
            message = f"Upload with evitseg {__version__}"
            done = self._api.create_commit(repository, added, commit_message=message, repo_type=kind)
        path = f"spaces/{repository}" if kind == "space" else repository
        # An address with a password is not shown.
        return Pushed(f"{endpoint()}/{path}" if "@" not in endpoint() else path, done.oid, self._is_private)


@contextlib.contextmanager
def _sentences(repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence."""
    try:
        with quiet():
            yield
    except ConfigError:
        raise
    except Exception as error:  # the HTTP library raises its own errors if a connection breaks
        refused = refusal(error, HubName(repository))
        raise ConfigError(
            f"{repository}: {refused}."
            if refused is not None
            else f"{repository}: could not be uploaded to {shown_endpoint()} ({reason(error).rstrip('.')})."
        ) from error
