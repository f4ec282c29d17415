"""The `main` of what Hydra configures: configuration composed, errors as one line."""

import gc
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pmc_jax.cli.config import check_values, config_directory
from pmc_jax.cli.unknown_keys import unknown_key
from pmc_jax.errors import Stopped, UserError
from pmc_jax.runtime.compilation import compile_sooner_on_cpus, keep_compiled
from pmc_jax.runtime.processes import end_all, is_first, several
from pmc_jax.unlearning.method import methods


def _chosen_method(overrides: list[str], name: str) -> str | None:
    """The method that is composed when the keys that may be wrong are left out."""
    choices = [text for text in overrides if text.partition("=")[0] in ("method", "experiment")]
    try:
        method = hydra.compose(name, overrides=choices).get("method")
    except (HydraException, OmegaConfBaseException):
        return None
    found = method.get("name") if method is not None else None
    return found if found in methods() else None


def _one_line(error: BaseException, schema: type, method: str | None) -> str:
    """Hydra's and OmegaConf's messages, which span lines, as one that names the key."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    message = str(error).strip() if cause is error else str(cause).strip()
    if key and "not in" in message.splitlines()[0]:
        return unknown_key(key, schema, method)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type=", "Set the"))]
    text = " ".join(kept).partition(" Config search path:")[0]
    return f"{key}: {text}" if key else text


def _compose(overrides: list[str], name: str, schema: type) -> None:
    """Compose once ahead of Hydra's own run, so that mistakes become one line."""
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        try:
            composed = hydra.compose(name, overrides=overrides)
            OmegaConf.to_object(composed)
        except (HydraException, OmegaConfBaseException) as error:
            method = _chosen_method(overrides, name)
            raise UserError(_one_line(error, schema, method)) from error


FREE_TEXT = (
    "question",
    "prefix",
    "prompt.system",
    "prompt.question",
    "prompt.answer",
    "method.instruction",
)


def quoted(argument: str) -> str:
    """`key=text` of a free-text key with the text in quotes, as Hydra's grammar wants it."""
    key, equals, text = argument.partition("=")
    bare = key not in FREE_TEXT or not equals or text == "null"
    if bare or (len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"):
        return argument
    # Backslashes are literal but where a quote or an interpolation follows.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r'(\\*)("|$)', r"\1\1\2", text).replace('"', '\\"')
    return f'{key}="{escaped}"'


def entry_point(task: Callable[[Any], None], name: str, schema: type) -> Callable[[], None]:
    """The `main` of a command: configuration from Hydra, user errors as one line and status 2.

    Hydra neither changes the working directory nor writes files of its own. A run of a sweep
    that ends in an error does not end the sweep, whose status is then 2. Of several processes,
    one that ends early ends all.
    """
    failed: list[str] = []

    def run(composed: DictConfig) -> None:
        try:
            config = OmegaConf.to_object(composed)
            check_values(config)
            task(config)
        except (UserError, OSError) as error:
            if several():
                end_all(str(error), 2)
            print(f"error: {error}", file=sys.stderr)
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                sys.exit(2)
            failed.append(str(error))
        except Stopped as stopped:
            if is_first():
                print(stopped, file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)
        except KeyboardInterrupt:
            if several():
                end_all("interrupted", 128 + signal.SIGINT)
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except BaseException as error:
            if several():  # who wait for this one
                end_all(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", 1, error)
            raise
        finally:
            gc.collect()

    def main() -> None:
        # transformers would say at import that PyTorch is missing; nothing here needs it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        sys.argv[1:] = arguments = [quoted(argument) for argument in sys.argv[1:]]
        if not any(argument.startswith("-") for argument in arguments):
            try:
                _compose(arguments, name, schema)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)
        keep_compiled()
        compile_sooner_on_cpus()
        if gc.get_freeze_count() == 0:
            # Full collections walk over all that was imported and traced, which stays for good: the
            # one is frozen, and because of the other they come seldom, and after each run.
            gc.freeze()
            young, middle, _ = gc.get_threshold()
            gc.set_threshold(young, middle, 100)
        hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=name)(run)()
        if failed:
            print(f"error: {len(failed)} runs of the sweep failed", file=sys.stderr)
            sys.exit(2)

    return main
