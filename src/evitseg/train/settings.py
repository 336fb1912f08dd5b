"""Settings from JSON: recipes, `--set KEY=VALUE`, and the config.json of a run."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from evitseg.errors import ConfigError, TrainError, unknown, warn_deprecated
from evitseg.train.config import GROUPS, KEYS, SettingError, TrainConfig
from evitseg.train.old_names import ENDS_IN, OLD_NAMES, OLD_RECIPES, is_old, warn_old_settings

CONFIG_FILE = "config.json"
"""Name of the file in a run's folder that holds its settings."""

Settings = dict[str, Any]
"""Unchecked values by key, such as "epochs" or "optim.learning_rate"."""


def read_recipe(name: str) -> Settings:
    """The settings of a recipe: the name of a packaged one, or the path of a JSON file.

    Raises: ConfigError.
    """
    if name in OLD_RECIPES:
        warn_deprecated(f"recipe {name} is deprecated and ends in evitseg {ENDS_IN}; use {OLD_RECIPES[name]}.")
        name = OLD_RECIPES[name]
    path = recipes().get(name, Path(name))
    if not path.suffix:
        raise unknown("recipe", name, recipes())
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: no such recipe; {unknown('recipe', name, recipes())}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}).") from error
    if isinstance(content, dict):
        content.pop("about", None)
    return flattened(content, name)


def recipes() -> dict[str, Path]:
    """The packaged recipes by name."""
    folder = Path(str(resources.files("evitseg.train"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def parse_changes(changes: Iterable[str], where: str = "--set") -> Settings:
    """Settings from "key=value" texts; a value is JSON or a plain word.

    Raises: ConfigError for a text without "=" and an unknown key.
    """
    settings: Settings = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"{where} {change!r}: write key=value, such as augment.rotate=10.")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        settings |= flattened({key: value}, where, is_file=False)
    return settings


def flattened(content: Any, where: str, is_file: bool = True) -> Settings:
    """The settings of a JSON object by key; old flat names get their present key, with one warning.

    Raises: ConfigError for an unknown name.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f'{where}: settings are a JSON object, such as {{"epochs": 50}}.')
    settings: Settings = {}
    old: list[str] = []
    for name, value in content.items():
        if is_old(name, value):
            old.append(name)
            settings[OLD_NAMES[name]] = value
        elif name in GROUPS and isinstance(value, Mapping):
            settings |= {f"{name}.{inner}": its for inner, its in value.items()}
        else:
            settings[name] = value
    for key in settings:
        if key in GROUPS:
            raise ConfigError(f'{where}: {key} is a group of settings; use {{"{key}": {{...}}}} or {key}.NAME.')
        if key not in KEYS:
            raise ConfigError(f"{where}: {_unknown_setting(key)}")
    warn_old_settings(old, where, is_file)
    return settings


def make_config(settings: Settings, where: str) -> TrainConfig:
    """The configuration with these settings, and defaults for the others.

    Raises: SettingError for a value that does not fit its setting, ConfigError for settings that do not fit each other.
    """
    if settings.get("data.size") == "native":  # as the option --size has it
        settings = settings | {"data.size": 0}
    try:
        return TrainConfig().updated(settings)
    except SettingError as error:
        raise SettingError(error.key, error.problem, where) from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def read_config(folder: Path) -> TrainConfig:
    """The settings of the run in a folder.

    Raises: TrainError if there is no run, or its settings cannot be read.
    """
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return make_config(flattened(content["settings"], str(path)), str(path))
    except FileNotFoundError as error:
        raise TrainError(f"{folder}: there is no run to resume ({CONFIG_FILE} is missing).") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
        reason = error if isinstance(error, ConfigError) else f"{path}: damaged."
        raise TrainError(f"{reason} The run cannot be resumed; start a new one in another folder.") from error


def read_chosen(folder: Path) -> tuple[str, ...]:
    """Keys of the settings that a run derived from its data; none if its config.json does not list them."""
    try:
        chosen = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["chosen"]
        return tuple(key for key in (OLD_NAMES.get(name, name) for name in chosen) if key in KEYS)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ()


def _unknown_setting(name: str) -> ConfigError:
    """Names the setting that was probably meant, with its group."""
    by_last_part = {key.rpartition(".")[2]: key for key in KEYS}
    near = difflib.get_close_matches(name.rpartition(".")[2], by_last_part, n=1)
    if near:
        return ConfigError(f"unknown setting {name!r}; did you mean {by_last_part[near[0]]!r}?")
    return unknown("setting", name, KEYS)
