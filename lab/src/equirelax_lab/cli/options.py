"""Flags from settings: parsers made from the dataclasses of a run, with readable errors."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import operator
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.settings import IN_WORDS, Range, Settings, check, documentation, types_of
from equirelax_lab.cli.help import Filled, rows
from equirelax_lab.cli.hints import VALUES, Hints
from equirelax_lab.training.machine import Machine

if typing.TYPE_CHECKING:
    from equirelax_lab.tasks.settings import RunConfig

DATA = "data root, searched before the user's cache folder (default: EQUIRELAX_DATA)"
"""The help of --data."""
_NUMBERS = {"int": "N", "float": "X"}
"""Placeholders of numbers in help texts."""
LONGEST = 50
"""Most characters of choices that are shown after a flag in a help text; longer lists go into its explanation."""

# The benchmarks are imported only where they are needed: many commands have flags but no settings of a run.


def parser(words: Sequence[str], description: str, epilog: str = "", usage: str = "") -> ArgumentParser:
    """Make a parser for the command `words` that raises instead of exiting.

    Args:
        words: The command.
        description, epilog: The text of the help before and after the flags (see `help.filled`).
        usage: The text after the command in the line of usage; by default all flags.
    """
    prog = " ".join(["equirelax", *words])
    return ArgumentParser(
        prog=prog,
        usage=f"{prog} {usage}" if usage else None,
        description=description,
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=Formatter,
    )


class Formatter(Filled, DefaultHelpFormatter):
    """Formats flags with their defaults; the placeholder is N for whole numbers and X for others."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, kind = action.help or "", self._get_type_str(action) or ""
        if len(choices := str(action.metavar or "")) > LONGEST:
            text += f" One of {choices.strip('{}').replace(',', ', ')}."
        if action.required and action.option_strings:
            return f"{text} (required)"
        # None is the default of optional flags. For settings that allow it, it is a value, null.
        has_default = (
            action.option_strings
            and action.nargs != 0
            and action.default != ""
            and (action.default is not None or "null" in kind)
        )
        if not has_default or isinstance(action, argparse._HelpAction):
            return text
        default = str(action.default).lower() if isinstance(action.default, bool) else "%(default)s"
        return f"{text} (default: {default})"

    def _metavar_formatter(
        self, action: argparse.Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        if len(str(action.metavar or "")) > LONGEST:
            return lambda size: (default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)  # type: ignore[no-any-return]

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = (self._get_type_str(action) or "").partition(" ")[0]
        return _NUMBERS.get(kind) or super()._get_default_metavar_for_optional(action)


def parse(
    options: ArgumentParser, words: Sequence[str], hints: Hints | None = None, /, **ranges: Range
) -> Namespace:
    """Parse `words`. Flags may be written with - or _, and without their section if the key is unambiguous.

    Args:
        options: The parser.
        words: The words after the command.
        hints: The context for suggestions about options that the parser does not have.
        ranges: Ranges of the parser's own flags; settings declare theirs themselves.

    Raises:
        ConfigError: An unknown flag (with a suggestion), a missing value, or a value of the wrong type or outside its range.
    """
    try:
        parsed = options.parse_args([_in_full(_underscored(word), flags(options)) for word in words])
    except argparse.ArgumentError as error:
        said = explain(str(error), flags(options), hints or Hints())
        raise ConfigError(f"{said} See {options.prog} --help.") from error
    for name, wanted in ranges.items():
        check(parsed[name], wanted, f"--{name}")
    return parsed


def flags(options: argparse.ArgumentParser) -> list[str]:
    """All flags of a parser."""
    return [flag for action in options._actions for flag in action.option_strings if flag.startswith("--")]


def explain(message: str, known: list[str], hints: Hints) -> str:
    """Rewrite a parser's message as one line, with a suggestion for an unknown flag."""
    message = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: ?(.*)", message):
        unknown = [word.split("=")[0] for word in match.group(1).split() if word.startswith("-")]
        if unknown:
            written = unknown[0].replace("--", hints.prefix, 1)
            return f"Unknown option {written}.{hints.suggestion(unknown[0], known)}"
        return f"Unexpected argument '{match.group(1)}'."
    if match := re.match(r'Parser key "(.+?)": Expected an? (.+?)\. Got value: (.*)$', message):
        return _wrong_value(hints.prefix, *match.groups())
    if match := re.match(
        r'Parser key "(.+?)": Does not validate .* Subtypes: \[(.*?)\] .* Given value: (.*)$', message
    ):
        key, kinds, value = match.groups()
        names = [name for name in re.findall(r"<class '(.*?)'>", kinds) if name != "NoneType"]
        expected = " or ".join(IN_WORDS.get(name, name) for name in [*names, "NoneType"])
        return f"{hints.prefix}{key} is '{value.rstrip('.')}'; expected {expected}."
    if match := re.match(r"the following arguments are required: (.*)", message):
        # The parser names them without their dashes.
        missing = [f"--{name}" if f"--{name}" in known else name for name in match.group(1).split(", ")]
        return f"Missing: {', '.join(missing)}."
    if match := re.match(
        r"argument (?:-\w, ?/?)?--([\w.]+)\S*: expected (one|at least one) argument", message
    ):
        return f"{hints.prefix}{match.group(1)} needs a value."
    if match := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
        name, value, listed = match.groups()
        return _one_of(name, value, re.findall(r"[^', ]+", listed))
    return message.rstrip(".") + "."


def _one_of(name: str, value: str, choices: list[str]) -> str:
    """The message for a value that is none of the choices."""
    meant = did_you_mean(VALUES.get(value, value), choices)
    return f"{name} is '{value}'; choose one of {', '.join(choices)}.{meant}"


def _wrong_value(prefix: str, key: str, kind: str, value: str) -> str:
    """The message for a wrong value, from the parser's name of its type: typing.Literal['a', 'b'], <class 'int'>."""
    value = value.rstrip(".")
    if kind.startswith("typing.Literal["):
        return _one_of(f"{prefix}{key}", value, re.findall(r"'([^']*)'", kind))
    if kind in ("list", "<class 'list'>") or kind.startswith("list["):
        return f"{prefix}{key} is '{value}'; expected a list in brackets: [a,b]."
    named = re.fullmatch(r"<class '(.*)'>", kind)
    expected = IN_WORDS.get(named.group(1), named.group(1)) if named else kind.removeprefix("typing.")
    return f"{prefix}{key} is '{value}'; expected {expected}."


def _underscored(word: str) -> str:
    """--batch-size=8 -> --batch_size=8."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _in_full(word: str, known: list[str]) -> str:
    """--subject=run -> --dataset.subject=run, where only one section has the key `subject`."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--") or flag in known:
        return word
    found = [full for full in known if full.endswith(f".{flag[2:]}")]
    return found[0] + equals + value if len(found) == 1 else word


def benchmark_of(command: str, words: Sequence[str]) -> str | None:
    """The benchmark, which is the first word; None if only help is requested."""
    from equirelax_lab.tasks.registry import TASKS, task_class

    if words and not words[0].startswith("-"):
        task_class(words[0])
        return words[0]
    if {"-h", "--help"} & set(words):
        return None
    raise ConfigError(f"Name the benchmark first: equirelax {command} {{{','.join(TASKS)}}} ...")


def peek(words: Sequence[str], *names: str) -> dict[str, str | None]:
    """Read the values of some flags, before the parser with all flags can be made."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        first.add_argument(f"--{name}")
    try:
        found, _ = first.parse_known_args([_underscored(word) for word in words])
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}.") from error
    return vars(found)


def starting_config(benchmark: str, words: Sequence[str], method: str | None = None) -> RunConfig:
    """The settings before flags are applied: those of the recipe, changed by the file of --config."""
    from equirelax_lab.tasks.from_recipe import is_earlier
    from equirelax_lab.tasks.registry import config_from_dict, task_class
    from equirelax_lab.tasks.settings import NAMES, read_yaml

    given = peek(words, "config", "model", "method", "recipe", "trained_as")
    stored: dict[str, Any] = read_yaml(given["config"]) if given["config"] else {}
    chosen = {key: given[key] for key in ("model", "recipe", "trained_as") if given[key]}
    if wanted := method or given["method"]:
        chosen["method"] = wanted
    names = {"method": "strict", "model": next(iter(task_class(benchmark).models)), "benchmark": benchmark}
    names |= {key: stored[key] for key in NAMES if stored.get(key) is not None}
    begun = stored if is_earlier(stored) else {**names, **chosen, "benchmark": benchmark}
    # Names in the file that differ from those on the command line are refused.
    config = config_from_dict(begun).updated(stored).updated({"benchmark": benchmark, **chosen})
    return with_kind(config, words)


def with_kind(config: RunConfig, words: Sequence[str]) -> RunConfig:
    """The settings with the kind of residuals that the flags name, since the kind's own settings are flags as well."""
    given = peek(words, "residual.kind", "kind")
    kind = given["residual.kind"] or given["kind"]
    return config if kind is None else config.updated({"residual": {"kind": kind}})


def add_settings(options: ArgumentParser, config: RunConfig) -> None:
    """Add one flag for every setting of a run, with `config` as defaults: first those of training, by topic."""
    for kind in type(config.training).__mro__:
        if own := [
            name for name in vars(kind).get("__annotations__", ()) if name in config.training.to_dict()
        ]:
            add_flags(options, config.training, "", own, _first_sentence(kind))
    for name in config.sections:
        add_flags(options, getattr(config, name), f"{name}.")
    if config.residual.kind is not None:
        add_flags(options, config.residual.kind, "residual.")


def add_machine(options: ArgumentParser) -> None:
    """Add the flags that say where a run executes."""
    add_flags(options, Machine(), "")


def add_flags(
    options: ArgumentParser, settings: Settings, prefix: str, names: Sequence[str] = (), title: str = ""
) -> None:
    """Add a flag for every field, with the field's documentation as its help.

    Args:
        options: The parser.
        settings: The defaults.
        prefix: The section with its dot; empty for settings without one.
        names: The fields; empty means all.
        title: What the flags are, in words; empty means the first sentence of the class's documentation.
    """
    words = documentation(type(settings))
    if not (names := names or [each.name for each in dataclasses.fields(settings)]):
        return
    group = options.add_argument_group(title or _first_sentence(type(settings)))
    for name in names:
        hint = _kind_names() if name == "kind" else _in_text(types_of(type(settings))[name])
        default = settings.to_dict()[name]
        group.add_argument(f"--{prefix}{name}", type=hint, default=default, help=words.get(name, ""))


def _first_sentence(kind: type) -> str:
    paragraph = (kind.__doc__ or "").strip().partition("\n\n")[0]
    return re.split(r"[.:]( |$)", " ".join(paragraph.split()))[0]


def _kind_names() -> Any:
    """The names of the kinds of residuals, as the type of a flag."""
    from equirelax_lab.tasks.settings import KIND_NAMES

    return Literal[KIND_NAMES]  # type: ignore[valid-type]


def _in_text(hint: Any) -> Any:
    """The part of a type that can be written on a command line: no functions."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    kinds = [kind for kind in typing.get_args(hint) if typing.get_origin(kind) is not Callable]
    return functools.reduce(operator.or_, kinds)


def config_from(parsed: Namespace, config: RunConfig) -> RunConfig:
    """The settings, updated with the parsed flags."""
    values: dict[str, Any] = {f.name: parsed[f.name] for f in dataclasses.fields(config.training)}
    for name in config.sections:
        values[name] = {key: parsed[f"{name}.{key}"] for key in getattr(config, name).to_dict()}
    if parsed.get("seed") is not None:
        values["seed"] = parsed["seed"]
    return config.updated(values)


def machine_from(parsed: Namespace) -> Machine:
    """Where to run, from parsed flags. Raises `ConfigError` for a number outside its range."""
    return Machine.of({field.name: parsed[field.name] for field in dataclasses.fields(Machine)}, "--{}")


def methods_text() -> str:
    """The methods, one line each, for help texts."""
    from equirelax_lab.tasks.methods import CHOICES

    return "\n".join(["methods:", *rows((name, choice.description) for name, choice in CHOICES.items())])


def optional_path(value: str | None) -> Path | None:
    """A path, or None."""
    return None if value is None else Path(value)
