"""Help, examples, suggestions and completion: what a person reads before anything runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from evitseg.cli import app
from evitseg.cli.app import VERBS
from evitseg.cli.command import PanelCommand, PanelOption, Verb
from evitseg.cli.request import Request

CONTEXT = click.Context(app, info_name="evitseg", **app.context_settings)
NAMES = [name for names in VERBS.values() for name in names]


def verb(name: str) -> Verb:
    found = app.get_command(CONTEXT, name)
    assert isinstance(found, Verb)
    return found


def example_words() -> Iterator[list[str]]:
    """The arguments of every example; what a shell does with < and > is left to the shell."""
    commands: list[PanelCommand] = [app, *map(verb, NAMES)]
    for command in commands:
        for line, _ in command.examples:
            words = shlex.split(line)
            assert words[0] == "evitseg"
            end = next((i for i, word in enumerate(words) if word in ("<", ">", "|")), len(words))
            yield words[1:end]


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_has_an_example_of_itself(name: str) -> None:
    assert verb(name).examples
    assert all(line.startswith(f"evitseg {name}") and purpose for line, purpose in verb(name).examples)


@pytest.mark.parametrize("words", list(example_words()), ids=shlex.join)
def test_every_example_is_a_command_line_that_parses(words: list[str]) -> None:
    name, *arguments = words
    if arguments == ["--help"]:
        return
    with verb(name).make_context(name, arguments, parent=CONTEXT) as context:
        if name == "predict":
            options = {field: context.params[field] for field in context.params.keys() & Request.__dataclass_fields__}
            Request(**options)  # what contradicts itself is refused


@pytest.mark.parametrize("name", NAMES)
def test_every_option_and_argument_says_what_it_is_in_a_sentence(name: str) -> None:
    for parameter in verb(name).params:
        if getattr(parameter, "hidden", False):
            continue
        text = getattr(parameter, "help", None)
        assert text, parameter.name
        assert text[0].isupper() or text.startswith("HEIGHTxWIDTH"), text
        assert text.endswith("."), text
        assert text.split()[0] not in ("Of", "At", "By", "For", "As"), text  # a fragment without its noun


def test_help_lists_options_under_headings_and_examples_last(cli: Callable[..., Any]) -> None:
    text = cli("predict", "-h").stdout
    order = [text.index(f"\n{heading}:") for heading in (
        "Arguments", "Input", "Output", "Model", "Engine", "Large images", "Video", "Cluster", "General", "Examples",
    )]  # fmt: skip
    assert order == sorted(order)
    large, video = text.index("\nLarge images:"), text.index("\nVideo:")
    assert large < text.index("--sliding-window PIXELS") < video
    assert "--blend" not in text


def test_choices_are_the_names_of_the_tables(cli: Callable[..., Any]) -> None:
    from evitseg.architecture import BACKBONES
    from evitseg.runtime.engines import ENGINES

    assert f"--engine {'|'.join([*ENGINES, 'torch'])}" in cli("predict", "--help").stdout
    assert f"--variant {'|'.join(BACKBONES)}" in cli("train", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["predct"], "predict"),
        (["predict", "--overlays", "a.png"], "--overlay"),
        (["predict", "--engine", "opnvino", "a.png"], "openvino"),
        (["export", "a.pt", "--to", "onx"], "onnx"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(
    arguments: list[str], meant: str, cli: Callable[..., Any]
) -> None:
    done = cli(*arguments)
    assert done.status == 2
    assert "id you mean" in done.stderr
    assert f"'{meant}'" in done.stderr


def test_without_a_verb_the_help_is_shown_and_the_status_is_2(cli: Callable[..., Any]) -> None:
    done = cli()
    assert done.status == 2
    assert all(name in done.stderr for name in NAMES)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_asks_evitseg_itself(shell: str, cli: Callable[..., Any]) -> None:
    done = cli("--show-completion", shell)
    assert done.status == 0
    assert "_EVITSEG_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("evitseg pre", {"predict"}),
        ("evitseg predict --slid", {"--sliding-window"}),
        ("evitseg predict --engine o", {"openvino", "onnxruntime"}),
        ("evitseg predict --ble", set()),
    ],
)
def test_completion_offers_verbs_options_and_choices_but_no_former_names(typed: str, offered: set[str]) -> None:
    from click.shell_completion import ShellComplete

    *before, last = typed.split()[1:]
    found = ShellComplete(app, {}, "evitseg", "_EVITSEG_COMPLETE").get_completions(before, last)
    assert {item.value for item in found} == offered


def test_former_names_of_options_name_an_option_that_is_there() -> None:
    for name in NAMES:
        visible = {opt for p in verb(name).params if not getattr(p, "hidden", False) for opt in p.opts}
        for parameter in verb(name).params:
            if isinstance(parameter, PanelOption) and parameter.renamed_to:
                assert parameter.renamed_to in visible
                assert not set(parameter.opts) & visible
