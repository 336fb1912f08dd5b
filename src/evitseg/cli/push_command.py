"""evitseg push."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import FILE
from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.sharing.push import Prepared


@verb(
    "push",
    ("evitseg push runs/mine anna/fields --licence cc-by-4.0", "The best checkpoint of a run, for everybody."),
    ("evitseg push runs/mine anna/fields --private --sample field.jpg", "Only for those whom you give access."),
    ("evitseg push runs/mine anna/fields --dry-run folder", "Write what would be uploaded, and upload nothing."),
)
@click.argument("run", metavar="RUN", help="Folder of a run, or a checkpoint (.safetensors).")
@click.argument(
    "repository", metavar="OWNER/NAME", help="Repository on the Hugging Face Hub; created if it is missing."
)
@option(
    "--licence",
    metavar="NAME",
    panel="Card",
    help="Licence of the weights, such as apache-2.0 or cc-by-nc-4.0. Default: unknown, and the card says so.",
)
@option(
    "--base-model",
    metavar="OWNER/NAME",
    panel="Card",
    help="Repository of the weights that training started from. Default: the one that the checkpoint names.",
)
@option(
    "--sample",
    type=FILE,
    metavar="FILE",
    panel="Card",
    help="Image to show with its classes; it is uploaded. Default: the photograph that ships with evitseg if the "
    "classes are those of CamVid or Cityscapes, else none.",
)
@option("--private", is_flag=True, panel="Upload", help="Create a private repository.")
@option(
    "--overwrite",
    is_flag=True,
    panel="Upload",
    help="Also replace files in a repository that evitseg did not write. The hub keeps the former ones in its history.",
)
@option(
    "--dry-run",
    type=FILE,
    metavar="DIR",
    panel="Upload",
    help="Write the files to this new folder instead of uploading them.",
)
def push_command(
    output: Output,
    run: str,
    repository: str,
    licence: str | None,
    base_model: str | None,
    sample: Path | None,
    private: bool,
    overwrite: bool,
    dry_run: Path | None,
) -> None:
    """Share a model on the Hugging Face Hub, with a card that says what it is.

    Uploads the weights with their manifest (.safetensors), a model card with classes, accuracy, data and licence, and a
    sample image. `evitseg predict --model hf://OWNER/NAME` uses them. Needs a token that may write (`hf auth login`).
    """
    from evitseg.errors import ConfigError
    from evitseg.sharing.push import checkpoint_of, prepare, upload
    from evitseg.system.hub import SCHEME, check_repository

    for name, given in (("--private", private), ("--overwrite", overwrite)):
        if given and dry_run is not None:
            raise click.BadParameter("has no effect with --dry-run; leave one of them out", param_hint=name)
    try:
        check_repository(repository)
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint="OWNER/NAME") from None
    with _folder(dry_run) as folder:
        ready = prepare(checkpoint_of(run), repository, folder, licence=licence, base_model=base_model, sample=sample)
        for remark in ready.remarks:
            output.note(remark)
        output.content = {"repository": repository, "files": list(ready.files), "remarks": list(ready.remarks)}
        if dry_run is not None:
            output.content |= {"folder": str(dry_run), "url": None, "model": None}
            output.result(f"wrote {dry_run}: {_listed(ready)}; nothing was uploaded")
            return
        done = upload(folder, ready.files, repository, private=private, overwrite=overwrite)
    model = f"{SCHEME}{repository}@{done.commit}"
    output.content |= {"folder": None, "url": done.url, "model": model}
    kind = "private" if done.is_private else "public"
    output.result(f"uploaded {_listed(ready)} to {done.url} ({kind})")
    output.result(f"next: evitseg predict IMAGES --model {SCHEME}{repository} (this revision for ever: {model})")


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """The folder to prepare: the one that was named, else one that exists during the block."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="evitseg-push-") as folder:
        yield Path(folder)


def _listed(ready: Prepared) -> str:
    return ", ".join(ready.files)
