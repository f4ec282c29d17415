"""The `main` of the commands that Hydra configures: settings composed, errors in one line."""

import argparse
import dataclasses
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import jax
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from pmc_jax.cli import startup
from pmc_jax.cli.arguments import Parser
from pmc_jax.cli.commands import COMMANDS, called
from pmc_jax.cli.config import (
    check_values,
    choices_of,
    config_directory,
    group_names,
    settings_of_schema,
    store_method,
)
from pmc_jax.cli.help import help_page
from pmc_jax.cli.overrides import Setting, check_arguments, literal, split
from pmc_jax.cli.unknown_keys import missing_key, unknown_key
from pmc_jax.errors import Stopped, UserError, short_of_memory
from pmc_jax.runtime.compilation import compile_sooner_on_cpus, keep_compiled
from pmc_jax.runtime.memory import reason
from pmc_jax.runtime.processes import end_all, is_first, several
from pmc_jax.terminal import message_of, print_error, print_everything, short
from pmc_jax.text.counts import counted
from pmc_jax.unlearning.method import methods


def parse(arguments: Sequence[str], name: str) -> argparse.Namespace:
    """Hydra's options, and the `overrides` of settings."""
    parser = Parser(called(name), add_help=False)
    for names in (
        ("--help", "-h"), ("--multirun", "-m"), ("--run", "-r"), ("--resolve",),
        ("--shell-completion", "-sc"), ("--hydra-help",),
    ):  # fmt: skip
        parser.add_argument(*names, action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    for names in (
        ("--package", "-p"), ("--info", "-i"), ("--config-path", "-cp"), ("--config-name", "-cn"),
        ("--config-dir", "-cd"), ("--experimental-rerun",),
    ):  # fmt: skip
        parser.add_argument(*names)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(arguments)


def composed_elsewhere(options: argparse.Namespace) -> bool:
    """Whether Hydra answers by itself, or composes from other files than ours."""
    return any(
        (
            options.shell_completion, options.hydra_help, options.info, options.config_path,
            options.config_name, options.config_dir, options.experimental_rerun,
        )
    )  # fmt: skip


def compose(
    overrides: Sequence[str], name: str, schema: type, *, with_hydra: bool = False
) -> DictConfig:
    """The settings with these overrides, and Hydra's own if asked.

    Raises:
        UserError: naming the key that is wrong.
    """
    try:
        return hydra.compose(name, overrides=list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error, schema, name, overrides)) from error
    except AssertionError as error:  # OmegaConf's, for a key below one that is null
        keys = [own for _, own, _ in map(split, overrides) if own.startswith("adapter.")]
        if not keys:
            raise
        raise UserError(unknown_key(keys[0], schema, None)) from error


def typed(composed: DictConfig, overrides: Sequence[str], name: str, schema: type) -> Any:
    """Composed settings as the dataclass `schema`, with every value checked.

    Raises:
        UserError: naming the key that is wrong.
    """
    find_own_files(composed)
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise UserError(missing_key(str(error.full_key), schema)) from error
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, schema, name, overrides)) from error
    except dataclasses.FrozenInstanceError as error:  # +key=value
        field = str(error).split("'")[1]
        keys = [text.partition("=")[0].lstrip("+") for text in overrides if text[0] == "+"]
        key = next((key for key in keys if key.rpartition(".")[2] == field), field)
        raise UserError(unknown_key(key, schema, chosen_method(overrides, name))) from error
    check_values(config)
    return config


def find_own_files(composed: DictConfig) -> None:
    """Name the files of `data.path` that are required and not given, such as forget.jsonl.

    A file that does not exist, or exists in several formats, is not named.
    """
    data = composed.get("data")
    if data is None or "path" not in data or data.format != "files" or not data.path:
        return
    for key in ("forget", "retain"):
        if OmegaConf.is_missing(data, key):
            files = list(Path(str(data.path)).expanduser().glob(f"{key}.*"))
            if len(files) == 1:
                data[key] = files[0].name


def chosen_method(overrides: Sequence[str], name: str) -> str | None:
    """The method that is composed if the keys that may be wrong are left out."""
    if outside := outside_methods(overrides):
        return outside[-1]
    choices = [text for text in overrides if text.partition("=")[0] in ("method", "experiment")]
    try:
        method = hydra.compose(name, overrides=choices).get("method")
    except (HydraException, OmegaConfBaseException, ValueError):  # ValueError: method=1
        return None
    found = method.get("name") if method is not None else None
    return found if found in methods() else None


def outside_methods(overrides: Sequence[str]) -> list[str]:
    """The methods `package.module:Name` among the overrides."""
    chosen = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == "method"]
    return [name for names in chosen for name in names.split(",") if ":" in name]


def one_line(error: BaseException, schema: type, name: str, overrides: Sequence[str] = ()) -> str:
    """A message of Hydra or OmegaConf, which spans lines, as one line that names the key."""
    method = chosen_method(overrides, name)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: expected one of {', '.join(group_names(group))}"
    if required := re.match(r"You must specify '(\w+)'", str(error)):
        names = ", ".join(group_names(required[1]))
        return f"{required[1]}=NAME is missing; expected one of {names}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    message = str(error).strip() if cause is error else str(cause).strip()
    if key and "not in" in message.splitlines()[0]:
        return unknown_key(key, schema, method)
    given = {own: value for _, own, value in map(split, overrides)}
    settings = settings_of_schema(schema, outside_methods(overrides))
    setting = re.sub(r"\[\d+\]$", "", str(key))  # a list's setting, not its item
    if setting in given and setting in settings and isinstance(cause, ValidationError):
        return f"{setting}={short(given[setting])}: expected {settings[setting].expected}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    noise = ("full_key:", "object_type=", "reference_type=", "Set the", "See https:")
    text = " ".join(line for line in lines if not line.startswith(noise))
    text = text.partition(" Config search path:")[0]
    return f"{key}: {text}" if key else text


def runs_of(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of some runs of a sweep that have each of its values once.

    Raises:
        HydraException: for text that is not an override.
    """
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [text]
        for override, text in zip(
            OverridesParser.create().parse_overrides(list(overrides)), overrides, strict=True
        )
    ]
    first = [values[0] for values in choices]
    yield first
    for position, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:position], value, *first[position + 1 :]]


def check_encoding(arguments: Sequence[str]) -> None:
    """Check that arguments are UTF-8, which Python reads as text.

    Raises:
        UserError: for one that is not.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"{short(argument)}: not UTF-8; expected UTF-8 text") from None


def is_sweep(options: argparse.Namespace) -> bool:
    """Whether a command line may stand for several runs."""
    return options.multirun or any(text.startswith("sweep=") for text in options.overrides)


def as_meant(
    options: argparse.Namespace, name: str, schema: type, outside: Sequence[str] = ()
) -> list[str]:
    """The overrides in Hydra's grammar, each of them checked by itself.

    Args:
        outside: methods from outside the package.

    Raises:
        UserError: for one that is no setting, or no value of it; or for a sweep of a command that
            has none.
    """
    if options.multirun and not COMMANDS[name].sweeps:
        able = " and ".join(own for own, command in COMMANDS.items() if command.sweeps)
        raise UserError(f"--multirun: {name} makes one run; several are for {able}")
    settings = settings_of_schema(schema, outside)
    overrides = [literal(text, settings, sweep=is_sweep(options)) for text in options.overrides]
    if composed_elsewhere(options):
        return overrides
    groups = choices_of(name)
    for text in options.overrides:
        _, key, value = split(text)
        if value is None:
            raise UserError(
                f"{short(text)}: expected KEY=VALUE; {called(name)} --help lists the keys"
            )
        if key and not is_known(key, settings, groups):
            with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
                raise UserError(unknown_key(key, schema, chosen_method(overrides, name)))
    check_arguments(overrides, settings, groups, sweep=is_sweep(options))
    return overrides


def is_known(key: str, settings: Mapping[str, Setting], groups: Collection[str]) -> bool:
    """Whether a key is a setting or a group of settings, with any method, or one of Hydra's."""
    if key in settings or key in groups or key.startswith(("hydra.", "hydra/")):
        return True
    within = [own for own in settings if settings[own].kind is dict]
    return any(own.startswith(f"{key}.") for own in settings) or key.startswith(
        tuple(f"{own}." for own in within)
    )


def check_ahead(options: argparse.Namespace, name: str, schema: type) -> None:
    """Compose once before Hydra does, so that mistakes become one line.

    Raises:
        UserError: naming the key that is wrong.
    """
    sweeps = is_sweep(options)
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        if options.cfg or not sweeps:
            composed = compose(options.overrides, name, schema)
            if not options.cfg:
                typed(composed, options.overrides, name, schema)
            return
        try:
            runs = list(runs_of(options.overrides))
        except HydraException as error:
            raise UserError(one_line(error, schema, name)) from error
        for overrides in runs:
            typed(compose(overrides, name, schema), overrides, name, schema)


def help_for(overrides: Sequence[str], name: str, schema: type) -> str:
    """The help of a command for the settings that these overrides choose.

    Raises:
        UserError: naming the key that is wrong.
    """
    given = {text.partition("=")[0] for text in overrides}
    chosen = [text for text in COMMANDS[name].defaults if text.partition("=")[0] not in given]
    chosen += [text for text in overrides if "=" in text]
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        try:
            composed = compose(next(runs_of(chosen)), name, schema, with_hydra=True)
        except HydraException as error:
            raise UserError(one_line(error, schema, name)) from error
    choices = dict(composed.hydra.runtime.choices)
    own = OmegaConf.masked_copy(composed, [field.name for field in dataclasses.fields(schema)])
    settings: Any = OmegaConf.to_container(own)
    return help_page(name, schema, settings, choices)


def show(text: str) -> None:
    """Print a text. It is not an error if a reader such as `head` closes the pipe early."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_task(task: Callable[[Any], None], composed: DictConfig) -> str | None:
    """Run a command once; returns its error if it is a run of a sweep, which goes on.

    User errors are one line and status 2. If this is one of several processes and it fails, all
    of them stop.
    """
    try:
        find_own_files(composed)
        config = OmegaConf.to_object(composed)
        check_values(config)
        with startup.interruptible(), naming_memory():
            task(config)
    except (UserError, OSError) as error:
        if several():
            end_all(message_of(error), 2)
        print_error(error)
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(2)
        return str(error)
    except Stopped as stopped:
        if is_first():
            print(stopped, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        if several():
            end_all("interrupted", startup.INTERRUPTED)
        startup.say_interrupted()
        sys.exit(startup.INTERRUPTED)
    except BaseException as error:
        if missing := missing_backend():
            print_error(missing)
            sys.exit(2)
        if several():  # the others wait for this one
            end_all(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", 1, error)
        raise
    finally:
        gc.collect()
    return None


def missing_backend() -> str | None:
    """What to say if JAX cannot use the devices that JAX_PLATFORMS names; None if it can."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted:
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # JAX says why at the first call only
        return (
            f"JAX_PLATFORMS={wanted}: JAX cannot use such a device here; install its plugin, or "
            "unset JAX_PLATFORMS"
        )
    return None


@contextmanager
def naming_memory() -> Iterator[None]:
    """Make an error that says that memory ran out a user error, which is one line.

    Raises:
        UserError: in place of the one that the block raises.
    """
    try:
        yield
    except Exception as error:
        told = isinstance(error, UserError) and "memory" in str(error)
        if told or not short_of_memory(error):
            raise
        raise UserError(
            f"out of memory ({reason(error)}); end other processes, or try a smaller model, "
            "model.dtype=bfloat16 or more devices"
        ) from error


def spare_the_collector() -> None:
    """Collect garbage less often: what was imported and traced stays for good.

    The collector skips it, and walks over everything else after each run only.
    """
    if gc.get_freeze_count() == 0:
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, 100)


def entry_point(
    task: Callable[[Any], None], name: str, schema: type, *, compile_sooner: bool = True
) -> Callable[[], None]:
    """The `main` of a command: help, settings by Hydra, errors in one line and status 2.

    Hydra does not change the working directory and writes no files of its own. If a run of a
    sweep fails, the others still run, and the status is 2. `compile_sooner` is that of
    `compile_sooner_on_cpus`.
    """
    failed: list[str] = []

    def run(composed: DictConfig) -> None:
        if error := run_task(task, composed):
            failed.append(error)

    def main() -> None:
        startup.begun()
        try:
            run_command()
        except KeyboardInterrupt:
            startup.say_interrupted()
            sys.exit(startup.INTERRUPTED)
        finally:
            startup.ended()

    def run_command() -> None:
        # transformers would warn at import that PyTorch is missing; nothing here needs it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        if os.getcwd() not in sys.path:  # for methods and rewards of one's own
            sys.path.append(os.getcwd())
        print_everything()
        arguments = sys.argv[1:]
        try:
            check_encoding(arguments)
            options = parse(arguments, name)
            flags = [argument for argument in arguments if argument not in options.overrides]
            outside = outside_methods(options.overrides)
            for method in outside:
                store_method(method)
            options.overrides = as_meant(options, name, schema, outside)
            if options.help:
                show(help_for(options.overrides, name, schema))
                return
            if not composed_elsewhere(options):
                check_ahead(options, name, schema)
        except UserError as error:
            print_error(error)
            sys.exit(2)
        # Hydra takes its options before the overrides only.
        sys.argv[1:] = [*flags, *options.overrides]
        keep_compiled()
        if compile_sooner:
            compile_sooner_on_cpus()
        spare_the_collector()
        hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=name)(run)()
        if failed:
            print_error(counted(len(failed), "run of the sweep failed", "runs of the sweep failed"))
            sys.exit(2)

    return main
