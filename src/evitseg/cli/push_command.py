"""evitseg push."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import FILE
from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.sharing.push import Pushed


@verb(
    "push",
    ("evitseg push runs/mine anna/fields --licence cc-by-4.0", "The best checkpoint of a run, for everybody."),
    ("evitseg push runs/mine anna/fields --private --sample field.jpg", "Only for people to whom you give access."),
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
@option(
    "--space",
    is_flag=True,
    panel="Upload",
    help="Also upload a page that runs the model in the browser, as a Space of the same name.",
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
    help="Write the files to this new folder instead of uploading them; with --space, to its folders model and space.",
)
def push_command(
    output: Output,
    run: str,
    repository: str,
    licence: str | None,
    base_model: str | None,
    sample: Path | None,
    space: bool,
    private: bool,
    overwrite: bool,
    dry_run: Path | None,
) -> None:
    """Share a model on the Hugging Face Hub, with a card that says what it is.

    Uploads the weights with their manifest (.safetensors), a model card with classes, accuracy, data and licence, and a
    sample image. `evitseg predict --model hf://OWNER/NAME` uses them. Needs a token that may write (`hf auth login`).
    """
    from evitseg.errors import ConfigError
    from evitseg.sharing.push import Destination, check_names, check_new, checkpoint_of, prepare, prepare_space
    from evitseg.system.hub import SCHEME, check_repository

    for name, given in (("--private", private), ("--overwrite", overwrite)):
        if given and dry_run is not None:
            raise click.BadParameter("has no effect with --dry-run; leave one of them out", param_hint=name)
    repository = repository.removeprefix(SCHEME)
    try:
        check_repository(repository)
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint="OWNER/NAME") from None
    check_names(licence, base_model)
    checkpoint, places = checkpoint_of(run), []
    if dry_run is None:  # before the work: may both be written?
        kinds: tuple[Literal["model", "space"], ...] = ("model", "space") if space else ("model",)
        places = [Destination(repository, kind, private=private, overwrite=overwrite) for kind in kinds]
    with _folder(dry_run) as folder:
        of_model = folder / "model" if space else folder
        for each in (of_model, *([folder / "space"] if space else [])):
            check_new(each)
        ready = prepare(checkpoint, repository, of_model, licence=licence, base_model=base_model, sample=sample)
        page: tuple[str, ...] = ()
        if space:
            output.log("exporting the web page ...")
            page = prepare_space(of_model / ready.files[0], repository, folder / "space", licence)
        for remark in ready.remarks:
            output.note(remark)
        output.content = {"repository": repository, "files": list(ready.files), "space_files": list(page)}
        output.content |= {"remarks": list(ready.remarks), "folder": None, "url": None, "model": None, "space": None}
        if dry_run is not None:
            output.content["folder"] = str(dry_run)
            output.result(f"wrote {of_model}: {', '.join(ready.files)}")
            if space:
                output.result(f"wrote {folder / 'space'}: {len(page)} files of the page")
            output.result("nothing was uploaded")
            return
        _report(places[0].upload(of_model, ready.files), f"{SCHEME}{repository}", ready.files, output)
        for place in places[1:]:
            shown = place.upload(folder / "space", page)
            output.content["space"] = shown.url
            output.result(f"uploaded the page to {shown.url} ({_kind(shown)})")


def _report(done: Pushed, name: str, files: tuple[str, ...], output: Output) -> None:
    pinned = f"{name}@{done.commit}"
    output.content |= {"url": done.url, "model": pinned}
    output.result(f"uploaded {', '.join(files)} to {done.url} ({_kind(done)})")
    output.result(f"next: evitseg predict IMAGES --model {name} (this revision for ever: {pinned})")


def _kind(done: Pushed) -> str:
    return "private" if done.is_private else "public"


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """The folder to prepare: the one that was named, else one that exists during the block."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="evitseg-push-") as folder:
        yield Path(folder)
