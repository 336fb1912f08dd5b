"""evitseg clean."""

from __future__ import annotations

from pathlib import Path

import click

from evitseg.cli.command import fail, option, verb
from evitseg.cli.options import FILE
from evitseg.cli.output import Output
from evitseg.cli.progress import duration
from evitseg.cli.values import Number

_MEANING = {
    "in use": "a process is working on it",
    "resumable": "the same command resumes it",
    "outdated": "its image has changed or is gone",
    "unfinished": "cannot be resumed",
}


@verb(
    "clean",
    ("evitseg clean results/", "List what interrupted runs left in a folder and its subfolders."),
    ("evitseg clean results/ --remove --older-than 7", "Remove what no run has touched for a week."),
)
@click.argument(
    "folders",
    nargs=-1,
    type=FILE,
    metavar="FOLDER...",
    help="Folders of results, or of --scratch. Default: the current folder.",
)
@option("--remove", is_flag=True, panel="Output", help="Remove what is listed, except what a process is working on.")
@option(
    "--older-than",
    type=Number(min=0),
    metavar="DAYS",
    panel="Input",
    help="Only what was last written to at least this many days ago.",
)
def clean_command(output: Output, folders: tuple[Path, ...], remove: bool, older_than: float | None) -> None:
    """List or remove what interrupted runs left behind.

    An interrupted `predict` of a large image keeps its work in a hidden folder next to the mask, so that the same
    command can resume it. If nobody resumes it, it stays until this command removes it.
    """
    from evitseg.system.leftovers import find_leftovers

    found = {}
    for folder in folders or (Path(),):
        for each in find_leftovers(folder):
            if older_than is None or each.age_s >= 86_400 * older_than:
                found[each.path.resolve()] = each
    rows = []
    for each in found.values():
        removed = remove and each.state != "in use" and each.remove()
        rows.append(
            {
                "path": str(each.path),
                "state": each.state,
                "image": each.image or None,
                "size_bytes": each.size_bytes,
                "age_s": round(each.age_s),
                "removed": removed,
            }
        )
        size, age = _size(each.size_bytes), duration(each.age_s)
        fate = "removed" if removed else "could not be removed" if remove and each.state != "in use" else each.state
        of_image = f", of {each.image}" if each.image else ""
        output.result(
            f"{each.path}: {size}, {age} old{of_image}: {fate}{'' if removed else f' ({_MEANING[each.state]})'}"
        )
    output.content = {"leftovers": rows}
    gone = [row for row in rows if row["removed"]]
    if not rows:
        output.result("no leftovers of interrupted runs.")
    elif remove:
        output.result(f"removed {len(gone)} of {len(rows)}, {_size(sum(int(str(row['size_bytes'])) for row in gone))}.")
    else:
        total = _size(sum(each.size_bytes for each in found.values()))
        output.result(
            f"{len(rows)} leftover{'s' * (len(rows) > 1)}, {total}; --remove removes all that are not in use."
        )
    if any(remove and not row["removed"] and row["state"] != "in use" for row in rows):
        fail()


def _size(count: int) -> str:
    """A size as a person says it: 12 kB, 3.4 MB, 1.2 GB."""
    for unit, bytes_of_one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_of_one:
            return f"{count / bytes_of_one:.1f} {unit}"
    return f"{count} bytes"
