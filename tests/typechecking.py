"""The runtime checker of shapes and types in signatures during tests; pyproject.toml names it."""

from beartype import BeartypeConf, beartype

# An int is accepted where a float is annotated, as PEP 484 and mypy do.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
