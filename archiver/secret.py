"""A text that may hold a password: it is used as any other, and shown as stars wherever a value is shown.

`repr`, and with it that of whatever holds it, JSON and logs do not tell it; `str` and f-strings do, for use.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, PlainSerializer

MASK: Final = "***"


class Secret(str):
    """Such a text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASK)


SecretText = Annotated[str, AfterValidator(Secret), PlainSerializer(lambda _: MASK, when_used="json")]
"""For a field of a model."""


def masked(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A processor of structlog's: no secret reaches a log."""
    return {name: _masked(value) for name, value in event.items()}


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each) for each in value]
    return MASK if isinstance(value, Secret) else value
