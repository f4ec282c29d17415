"""The wheel holds everything that a run needs, and works outside the repository."""

import os
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def python(*arguments, cwd, **environment):
    """Run this interpreter in `cwd`."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", directory, ROOT)
    done = python(*build, cwd=directory)
    assert done.returncode == 0, done.stderr
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A directory with only this wheel installed; other packages come from this environment."""
    target = tmp_path_factory.mktemp("site")
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    done = python(*install, cwd=target)
    assert done.returncode == 0, done.stderr
    return target


def source_files(directory: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    configs = {f"pmc_jax/{name}" for name in source_files("configs")}
    assert names == source_files("pmc_jax") | source_files("convert") | configs
    assert {"pmc_jax/py.typed", "pmc_jax/configs/train.yaml"} <= names
    assert "pmc_jax/reporting/page.html.j2" in names
    assert any(name.startswith("pmc_jax/assets/world/data/") for name in names)
    assert any(name.startswith("pmc_jax/assets/world/model/") for name in names)


def test_wheel_asks_for_what_pyproject_says_and_never_for_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    always = {canonicalize_name(each.name) for each in required if each.marker is None}
    stated = [Requirement(text).name for text in project["dependencies"]]
    assert always == set(map(canonicalize_name, stated))
    assert "torch" not in always
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"cuda12", "cuda13", "tpu", "wandb", "test"} <= set(metadata.get_all("Provides-Extra"))


def test_every_requirement_admits_its_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    tested = [*project["dependencies"], *extras["test"], *extras["dev"], *extras["docs"]]
    for requirement in map(Requirement, tested):
        if requirement.name != "pmc_jax":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_installed_elsewhere(installed, tmp_path):
    where = python(
        "-c",
        "import convert, pmc_jax; print(pmc_jax.__file__, convert.__file__)",
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert where.returncode == 0, where.stderr
    assert all(Path(file).is_relative_to(installed) for file in where.stdout.split())

    config = python("-m", "pmc_jax.train", "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(installed))
    assert config.returncode == 0, config.stderr
    assert "retain_weight:" in config.stdout

    for command in ("pmc_jax.report", "convert"):
        done = python("-m", command, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage:")
    assert list(tmp_path.iterdir()) == []  # `--help` writes nothing


def test_installed_elsewhere_runs_the_demo(installed, tmp_path):
    done = python(
        *("-m", "pmc_jax.train", "training.epochs=1", "evaluation.attack_samples=1"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "demo"
    assert (run / "report" / "index.html").is_file()
    assert (run / "model" / "config.json").is_file()
    assert "Unlearn quality" in done.stdout
