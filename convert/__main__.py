"""Convert checkpoints: `pmc convert`, or `python -m convert`."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from convert.adapters import adapter_at, read_adapter
from convert.directory import read_config
from convert.export import export_checkpoint, stored_dtypes
from convert.load import load_checkpoint, resolve, rows_of, tensor_names, untouched_tensors
from convert.native import is_native, save_native
from convert.tensors import DTYPES
from pmc_jax.cli import startup
from pmc_jax.cli.arguments import command_parser
from pmc_jax.cli.commands import called
from pmc_jax.errors import UserError
from pmc_jax.model import make_mesh, mesh_layout, param_count
from pmc_jax.model.trainable import dtypes_of
from pmc_jax.runtime.progress import stage
from pmc_jax.terminal import print_error
from pmc_jax.text.counts import counted


def refuse_existing(destination: Path) -> None:
    """Check before the work that nothing is in its way.

    Raises:
        UserError: if something is.
    """
    if destination.exists():
        raise UserError(f"{destination} exists already; nothing was written")


def from_hf(
    source: str,
    destination: Path,
    dtype: str | None,
    layout: tuple[int, int] | None,
    *,
    check_weights: bool = True,
) -> None:
    """Convert a Hugging Face directory or hub id to a native checkpoint."""
    refuse_existing(destination)
    directory = resolve(source)
    if is_native(directory):
        raise UserError(f"{directory}: a native checkpoint already; to-hf converts it back")
    _, family, cfg = read_config(directory)
    dtypes = stored_dtypes(directory, family, cfg, dtype)
    with stage("reading tensors", len(tensor_names(family, cfg))) as progress:
        mesh = None if layout is None else make_mesh(*layout)
        checkpoint = load_checkpoint(
            directory, dtype=dtype, mesh=mesh, on_tensor=progress.update,
            check_weights=check_weights,
        )  # fmt: skip
    print(f"writing {destination} …", flush=True)
    untouched = untouched_tensors(directory, family)
    save_native(checkpoint.params, cfg, directory, destination, dtypes, dtype, untouched=untouched)
    print(f"{destination}: {param_count(cfg):,} parameters")


def to_hf(source: str, destination: Path, dtype: str | None, *, check_weights: bool = True) -> None:
    """Convert a native checkpoint to a Hugging Face directory."""
    refuse_existing(destination)
    directory = Path(source).expanduser()
    if not is_native(directory):
        raise UserError(f"{directory}: no native checkpoint; expected one from from-hf")
    _, family, cfg = read_config(directory)
    dtypes = stored_dtypes(directory, family, cfg, dtype)
    print(f"reading {directory} …", flush=True)
    checkpoint = load_checkpoint(directory, dtype=None, check_weights=check_weights)
    with stage("writing tensors", len(tensor_names(family, cfg, dtypes))) as progress:
        export_checkpoint(
            checkpoint.params, cfg, directory, destination, dtype, on_tensor=progress.update,
            check_weights=check_weights,
        )  # fmt: skip
    print(f"{destination}: {param_count(cfg):,} parameters")


def inspect(source: str) -> None:
    """Print a model's family, configuration and parameters; reads no weights."""
    directory = resolve(source)
    _, family, cfg = read_config(directory)
    dtypes = stored_dtypes(directory, family, cfg)
    print(f"{family.architecture} in {directory}\n")
    for key, value in dataclasses.asdict(cfg).items():
        print(f"  {key:<20} {value}")
    print(f"\n  {'leaf':<20} {'shape':<24} {'stored as':<12} {'parameters':>16}")
    for row, specs in rows_of(family, cfg, dtypes):
        stored = sorted({dtypes[name] for name in row.names(cfg.num_layers)})
        kinds = ", ".join(DTYPES[kind].name for kind in stored)
        for path, spec in zip(row.leaves, specs, strict=True):
            leaf, shape = "/".join(path), str(list(spec.shape))
            print(f"  {leaf:<20} {shape:<24} {kinds:<12} {math.prod(spec.shape):>16,}")
    print(f"  {'total':<58} {param_count(cfg):>16,}")
    untouched = untouched_tensors(directory, family)
    if untouched:
        count = sum(math.prod(tensor.shape) for tensor in untouched)
        print(f"  {f'in {len(untouched)} other tensors, copied as they are':<58} {count:>16,}")


def merge(source: str, destination: Path, adapters: Sequence[Path]) -> None:
    """Add adapters in PEFT's format to a model, in float32 at least.

    Raises:
        UserError: if one is the adapter of another model, damaged or not supported.
    """
    refuse_existing(destination)
    directory = resolve(source)
    parts = [adapter_at(path, directory) for path in adapters]
    checkpoint = load_checkpoint(directory)
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), checkpoint.params
    )
    for part in parts:
        dtype = params["layers"]["q"].dtype
        _, base = part.split(params, dtype, donate=False)
        adapter = read_adapter(part, directory, dtype)
        params = part.whole(adapter, base, dtypes_of(params), donate=False)
    export_checkpoint(params, checkpoint.cfg, directory, destination)
    print(f"{destination}: {directory} with {counted(len(parts), 'adapter', 'adapters')} merged")


def layout(text: str) -> tuple[int, int]:
    """`mesh_layout` with an error that argparse prints."""
    try:
        return mesh_layout(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("convert")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    source = {
        "from-hf": "Hugging Face directory or hub id",
        "to-hf": "native checkpoint",
        "inspect": "Hugging Face directory, hub id or native checkpoint",
        "merge": "the model: Hugging Face directory or hub id",
    }
    summary = {
        "from-hf": "convert a Hugging Face checkpoint to a native one",
        "to-hf": "convert a native checkpoint to a Hugging Face one",
        "inspect": "print a model's configuration and parameters; reads no weights",
        "merge": "add adapters in PEFT's format to a model",
    }
    dtypes = [dtype.name for dtype in DTYPES.values()]
    for name, text in summary.items():
        command = commands.add_parser(
            name, prog=f"{called('convert')} {name}", help=text,
            description=f"{text[0].upper()}{text[1:]}.",
        )  # fmt: skip
        command.add_argument("source", metavar="SRC", help=source[name])
        if name != "inspect":
            command.add_argument("destination", metavar="DST", type=Path, help="new directory")
        if name == "merge":
            command.add_argument(
                "adapters", metavar="ADAPTER", type=Path, nargs="+", help="directory of an adapter"
            )
        elif name != "inspect":
            command.add_argument(
                "--dtype", metavar="DTYPE", choices=dtypes,
                help=f"dtype of all weights: {', '.join(dtypes)}; default: as they are",
            )  # fmt: skip
            command.add_argument(
                "--no-check-weights", dest="check_weights", action="store_false",
                help="convert weights that are NaN or infinite too",
            )  # fmt: skip
        if name == "from-hf":
            command.add_argument(
                "--mesh", type=layout, metavar="DATAxMODEL",
                help="write the shards of such a mesh, so that each device reads only its own "
                "part; default: whole weights",
            )  # fmt: skip
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Run the command that `parse` has read."""
    if options.command == "inspect":
        inspect(options.source)
    elif options.command == "merge":
        merge(options.source, options.destination, options.adapters)
    elif options.command == "to-hf":
        to_hf(
            options.source, options.destination, options.dtype, check_weights=options.check_weights
        )
    else:
        from_hf(
            options.source, options.destination, options.dtype, options.mesh,
            check_weights=options.check_weights,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, or 2 after one line on stderr."""
    startup.begun()
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        # Conversion computes nothing, and must keep all digits of a float64.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
    if options.command == "from-hf" and options.mesh:
        jax.config.update("jax_num_cpu_devices", math.prod(options.mesh))
    try:
        with startup.interruptible():
            run(options)
    except (UserError, OSError) as error:  # OSError: no space, no permission
        print_error(error)
        return 2
    except KeyboardInterrupt:
        startup.say_interrupted()
        return startup.INTERRUPTED
    finally:
        startup.ended()
    return 0


if __name__ == "__main__":
    sys.exit(main())
