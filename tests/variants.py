"""Parameters of a test of which CI runs a few, and check.sh --full all."""

from collections.abc import Container, Iterable

import pytest


def of(values: Iterable, few: Container, *marks: pytest.MarkDecorator) -> list:
    """Marks parameters as slow variants of the few that always run.

    Args:
        values: Hashable parameters of `pytest.mark.parametrize`.
        few: Those that are no variants.
        *marks: Other marks of all.

    Returns:
        The parameters.
    """
    more = (pytest.mark.slow, pytest.mark.variant)
    return [
        pytest.param(value, marks=[*marks, *(() if value in few else more)])
        for value in values
    ]
