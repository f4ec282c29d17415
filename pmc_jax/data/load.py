"""From a data configuration to a data set."""

from pathlib import Path

from pmc_jax.data.dataset import Dataset, read_data_files
from pmc_jax.data.rows import DataConfig
from pmc_jax.data.tofu import DataFiles, tofu_files
from pmc_jax.errors import UserError


def load_dataset(config: DataConfig, *, download_controls: bool = False) -> Dataset:
    """Read the data set that `config` describes.

    Args:
        download_controls: whether to download the files of `Dataset.controls` too, if the data
            comes from a hub. Local files are always read.

    Raises:
        UserError: naming file, row and field, if the data is malformed.
    """
    files = data_files(config, download_controls=download_controls)
    return Dataset.from_records(
        read_data_files(files, config.fields),
        config.retain_rows,
        allow_overlap=config.allow_overlap,
    )


def data_files(config: DataConfig, *, download_controls: bool = False) -> DataFiles:
    """The files of the data set that `config` describes, downloaded if need be."""
    if config.format == "tofu":
        return tofu_files(config, controls=download_controls)
    if config.format == "files":
        return _own_files(config)
    raise UserError(f"data.format={config.format}: expected tofu or files")


def _own_files(config: DataConfig) -> DataFiles:
    base = Path(config.path or ".").expanduser()

    def resolve(option: str, name: str) -> Path:
        path = base / Path(name).expanduser()
        if not path.exists():
            raise UserError(f"data.{option}={name}: no such file in {base}")
        return path

    def optional(option: str, name: str | None) -> Path | None:
        return resolve(option, name) if name else None

    return DataFiles(
        forget=resolve("forget", config.forget),
        retain=resolve("retain", config.retain),
        world_facts=optional("world_facts", config.world_facts),
        real_authors=optional("real_authors", config.real_authors),
        holdout=optional("holdout", config.holdout),
        text=optional("text", config.text),
    )
