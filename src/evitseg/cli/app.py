"""The application: its verbs, each imported when it is used, `--version`, and shell completion."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from evitseg.cli.command import PanelCommand, PanelOption, Verb, general_options
from evitseg.cli.failures import sentence_of, status_of, visible

VERBS = {
    "Segment": ("predict", "view", "web", "polygons"),
    "Prepare data": ("check", "convert"),
    "Train and evaluate": ("train", "eval", "compare", "average"),
    "Deploy": ("export", "verify", "bench", "serve", "push"),
    "Look up": ("models", "info", "clean"),
}
"""The verbs, under the headings of `evitseg --help`; each has a module of its own."""
HIDDEN = {"convert-coco": "convert"}
"""Former verbs that still work, and the verb in whose module they are."""
SHELLS = ("bash", "zsh", "fish")


def _print_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from evitseg._version import __version__

        click.echo(f"evitseg {__version__}")
        context.exit()


def _print_completion(context: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    if shell is not None:
        from click.shell_completion import get_completion_class

        complete = get_completion_class(shell)
        assert complete is not None  # SHELLS are Click's
        click.echo(complete(context.command, {}, "evitseg", "_EVITSEG_COMPLETE").source())
        context.exit()


class App(PanelCommand, click.Group):
    """`evitseg`: finds verbs by name and reports a wrong command line in our own words."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in VERBS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in (*self.list_commands(ctx), *HIDDEN):
            return None
        module = import_module(f"evitseg.cli.{HIDDEN.get(cmd_name, cmd_name)}_command")
        command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        assert isinstance(command, Verb)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from evitseg.errors import unknown

            raise click.UsageError(str(unknown("command", args[0], self.list_commands(ctx))), ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for panel, names in VERBS.items():
            with formatter.section(panel):
                rows = []
                for name in names:
                    command = self.get_command(ctx, name)
                    assert command is not None
                    rows.append((name, command.get_short_help_str(limit=200)))
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: the verbs come first, under headings."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **more: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a console without × or █ shows something else, and goes on
        try:
            status = super().main(args, "evitseg", standalone_mode=False, **_context_settings(more))
        except click.exceptions.NoArgsIsHelpError as error:
            print(error.format_message(), file=sys.stderr)
            status = status_of(error)
        except click.UsageError as error:
            print(f"error: {visible(sentence_of(error))}", file=sys.stderr)
            if error.ctx is not None:
                print(f"Try '{error.ctx.command_path} --help'.", file=sys.stderr)
            status = status_of(error)
        if standalone_mode:
            sys.exit(status if isinstance(status, int) else 0)
        return status


def _context_settings(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("prog_name", "complete_var")}


app = App(
    "evitseg",
    help="Semantic segmentation with EfficientViT, from a folder of photos to a small device.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        PanelOption(
            ("--version",),
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        ),
        PanelOption(
            ("--show-completion",),
            type=click.Choice(SHELLS),
            is_eager=True,
            expose_value=False,
            callback=_print_completion,
            help="Print the script that completes commands in this shell; `evitseg --show-completion bash >> "
            "~/.bashrc` installs it.",
        ),
        *general_options(),
    ],
)
app.examples = (
    ("evitseg predict --example", "Segment the photograph that ships with evitseg."),
    ("evitseg predict --help", "List the options of one command."),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns: its exit status."""
    try:
        app.main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0
