"""The checker of shapes and types in signatures while tests run; pyproject.toml names it."""

from beartype import BeartypeConf, beartype

# As for mypy and PEP 484, an int will do where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
