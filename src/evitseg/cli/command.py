"""What every verb is made of: options under headings, examples, renamed options, and the options all verbs share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from evitseg.cli.failures import FAILED, Interrupted, show_tracebacks
from evitseg.cli.output import Output
from evitseg.cli.reporting import logging_to_stderr, printed_warnings, report
from evitseg.cli.signals import as_interrupts

Function = TypeVar("Function", bound=Callable[..., Any])
Example = tuple[str, str]
"""A command as it is typed, and what it does."""


@dataclass
class Settings:
    """The options that may stand before the verb or behind it."""

    quiet: bool = False
    verbose: int = 0
    debug: bool = False


class PanelOption(click.Option):
    """An option that is listed under a heading of its verb's help.

    Attributes:
        panel: the heading.
        renamed_to: the option that this old, hidden one became.
        ends_in: the release in which this old option ends.
    """

    def __init__(
        self, *args: Any, panel: str = "General", renamed_to: str | None = None, ends_in: str = "", **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.panel = panel
        self.renamed_to = renamed_to
        self.ends_in = ends_in

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)  # "[x>=1]" tells nobody anything
        return extra


def option(
    *names: str, panel: str, was: Mapping[str, str] | None = None, **settings: Any
) -> Callable[[Function], Function]:
    """A decorator like `click.option`.

    Args:
        panel: the heading of the help that the option stands under.
        was: former names, each with the release in which it ends; they work, are hidden, and print a warning.
    """
    new = next(name for name in names if name.startswith("--"))

    def decorate(function: Function) -> Function:
        function = click.option(*names, cls=PanelOption, panel=panel, **settings)(function)
        hidden = settings | {"hidden": True, "default": None, "required": False}
        for old, ends_in in (was or {}).items():
            name = f"renamed_{old.lstrip('-').replace('-', '_')}"
            function = click.option(old, name, cls=PanelOption, renamed_to=new, ends_in=ends_in, **hidden)(function)
        return function

    return decorate


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        setattr(context.ensure_object(Settings), str(parameter.name), value)


def general_options() -> list[click.Parameter]:
    """Make the options that may stand before the verb or behind it."""

    def general(*names: str, help: str, **settings: Any) -> PanelOption:  # noqa: A002  # Click's name
        return PanelOption(names, help=help, expose_value=False, callback=_remember, **settings)

    return [
        general("--quiet", "-q", is_flag=True, help="Print no results and no progress, only errors."),
        general("--verbose", "-v", count=True, help="Log what is decided and why; -vv logs more."),
        general("--debug", is_flag=True, help="Show the traceback of every error."),
    ]


class PanelCommand(click.Command):
    """A command whose help groups the options under headings and ends with examples."""

    examples: Sequence[Example] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if isinstance(parameter, click.Argument) else "General"
                panels.setdefault(getattr(parameter, "panel", default), []).append(record)
        panels["General"] = panels.pop("General")  # last
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows, col_max=28)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: `format_options` lists the arguments, too."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for i, (command, purpose) in enumerate(self.examples):
                    formatter.write("\n" * bool(i))
                    formatter.write(f"{'':{formatter.current_indent}}{command}\n")
                    with formatter.indentation():
                        formatter.write_text(purpose)
        super().format_epilog(ctx, formatter)


class Verb(PanelCommand):
    """A verb of `evitseg`: its function gets an `Output`, and its errors become sentences and exit statuses."""

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples
        as_json = PanelOption(("--json", "as_json"), is_flag=True, help="Print one JSON object, for programs.")
        self.params += [as_json, *general_options()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for old in self.params:
            if not isinstance(old, PanelOption) or old.renamed_to is None:
                continue
            value = ctx.params.pop(old.name or "")
            if ctx.get_parameter_source(old.name or "") is not click.core.ParameterSource.COMMANDLINE:
                continue
            new = next(each for each in self.params if old.renamed_to in each.opts)
            name = new.name or ""
            if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{old.opts[0]} is the former name of {old.renamed_to}; leave it out", ctx)
            ctx.params[name] = value
            ctx.set_parameter_source(name, click.core.ParameterSource.COMMANDLINE)
            print(
                f"warning: {old.opts[0]} is deprecated and ends in evitseg {old.ends_in}; use {old.renamed_to}.",
                file=sys.stderr,
            )
        return rest

    def invoke(self, ctx: click.Context) -> None:
        settings = ctx.ensure_object(Settings)
        output = Output(ctx.params.pop("as_json"), settings.quiet)
        ctx.params["output"] = output
        show_tracebacks(settings.debug)
        try:
            with logging_to_stderr(settings.verbose), printed_warnings(), as_interrupts():
                try:
                    super().invoke(ctx)
                except click.exceptions.Exit:
                    output.print_json()
                    sys.stdout.flush()
                    raise
                output.print_json()
                sys.stdout.flush()
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt, Interrupted) as error:
            ctx.exit(report(error, output))


def verb(name: str, *examples: Example, **settings: Any) -> Callable[[Callable[..., None]], Verb]:
    """A decorator that makes a verb of a function, whose first parameter is the `Output`."""

    def decorate(function: Callable[..., None]) -> Verb:
        return click.command(name, cls=Verb, examples=examples, **settings)(function)

    return decorate


def fail() -> None:
    """End the verb with exit status 1, after its errors have been printed."""
    raise click.exceptions.Exit(FAILED)
