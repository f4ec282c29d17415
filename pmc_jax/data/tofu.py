"""The files of a data set with TOFU's layout (Maini et al. 2024), local or on the hub."""

import dataclasses
from pathlib import Path

from pmc_jax.assets import WORLD_DATA
from pmc_jax.data.rows import DataConfig
from pmc_jax.errors import UserError

SUFFIXES = (".json", ".jsonl")
REFUSALS = "idontknow"
RETAIN_PERTURBED, TEXT = "retain_perturbed", "text.txt"
NOT_SPLITS = ("world_facts", "real_authors", REFUSALS)


@dataclasses.dataclass(frozen=True)
class DataFiles:
    """The files of a data set; None if it has no such file.

    Attributes:
        perturbed: the forget rows again, in the same order, with paraphrases.
        refusals: a text file with one refusal a line.
        retain_perturbed: retain rows with paraphrased and wrong answers.
        holdout: rows like the forget rows that the model was never trained on.
        text: a text file with one paragraph per line.
    """

    forget: Path
    retain: Path
    perturbed: Path | None = None
    world_facts: Path | None = None
    real_authors: Path | None = None
    refusals: Path | None = None
    retain_perturbed: Path | None = None
    holdout: Path | None = None
    text: Path | None = None


def tofu_files(config: DataConfig, *, controls: bool = False) -> DataFiles:
    """Find the files in `config.path` or in the package, or download them from `config.hub`.

    Args:
        controls: whether to download the files of `Controls` too.

    Raises:
        UserError: if there is no such directory or split, or the hub cannot be reached.
    """
    if config.path is None:
        directory = _download(config, controls)
    elif config.path == "bundled":
        directory = WORLD_DATA
    else:
        directory = Path(config.path).expanduser()
    if not directory.is_dir():
        raise UserError(f"data.path={directory}: no such directory")
    facts, authors = config.world_facts or "world_facts", config.real_authors or "real_authors"
    named = {"world_facts": config.world_facts, "real_authors": config.real_authors}
    for option, name in (named | {"holdout": config.holdout}).items():
        if name and not (_find(directory, f"{name}_perturbed") or _find(directory, name)):
            raise UserError(f"data.{option}={name}: no such file in {directory}")
    return DataFiles(
        forget=_split(directory, "forget", config.forget),
        retain=_split(directory, "retain", config.retain),
        perturbed=_find(directory, f"{config.forget}_perturbed"),
        world_facts=_find(directory, f"{facts}_perturbed") or _find(directory, facts),
        real_authors=_find(directory, f"{authors}_perturbed") or _find(directory, authors),
        refusals=_find(directory, REFUSALS),
        retain_perturbed=_find(directory, RETAIN_PERTURBED),
        holdout=_find(directory, _holdout(config)),
        text=Path(config.text).expanduser() if config.text else _existing(directory / TEXT),
    )


def _holdout(config: DataConfig) -> str:
    """The split that no model was trained on: `holdout10` for `forget10`."""
    return config.holdout or config.forget.replace("forget", "holdout", 1)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _find(directory: Path, name: str) -> Path | None:
    paths = (directory / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _split(directory: Path, option: str, name: str) -> Path:
    path = _find(directory, name)
    if path is None:
        names = sorted(p.stem for p in directory.iterdir() if p.suffix in SUFFIXES)
        splits = [n for n in names if not n.endswith("_perturbed") and n not in NOT_SPLITS]
        found = ", ".join(splits) or "none"
        raise UserError(
            f"data.{option}={name}: no such split in {directory}; splits there: {found}"
        )
    return path


def _download(config: DataConfig, controls: bool) -> Path:
    """Download the files that are needed, and no others; returns their directory."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    def fetch(name: str) -> Path | None:
        try:
            path = huggingface_hub.hf_hub_download(config.hub, f"{name}.json", repo_type="dataset")
        except RemoteEntryNotFoundError:
            return None
        except (LocalEntryNotFoundError, OSError, ValueError) as e:
            raise UserError(
                f"data.hub={config.hub}: cannot get {name}.json ({type(e).__name__}); without "
                "access to the hub, pass data.path=DIRECTORY with the files of the data set"
            ) from None
        return Path(path)

    def require(option: str, name: str) -> Path:
        path = fetch(name)
        if path is None:
            raise UserError(f"data.{option}={name}: no such split in the data set {config.hub}")
        return path

    directory = require("forget", config.forget).parent
    require("retain", config.retain)
    fetch(f"{config.forget}_perturbed")
    for name in (config.world_facts or "world_facts", config.real_authors or "real_authors"):
        if fetch(f"{name}_perturbed") is None:
            fetch(name)
    if controls:
        fetch(RETAIN_PERTURBED)
        fetch(_holdout(config))
    return directory
