"""The decorator of all configuration dataclasses, and number types with bounds.

Pydantic validates the values whether a configuration is built from the command line, a file or Python.
"""

import dataclasses
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

Config = TypeVar("Config")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, Field))
def settings_class(cls: type[Config]) -> type[Config]:
    """Make a frozen, keyword-only dataclass whose values are validated against their types.

    The `Attributes:` section of the class docstring supplies the help text of the settings.
    """
    return dataclass(cls, frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))  # type: ignore[return-value]  # pydantic adds to the class


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):  # bool is a subclass of int
        raise PydanticCustomError("number_expected", "must be a number")
    return value


NotBool = BeforeValidator(_reject_bool)

Count = Annotated[int, NotBool, Field(ge=1, le=2**31 - 1)]
UpToThousand = Annotated[int, NotBool, Field(ge=1, le=1000)]
UpToMillion = Annotated[int, NotBool, Field(ge=1, le=10**6)]
NonNegativeInt = Annotated[int, NotBool, Field(ge=0, le=2**63 - 1)]
# Larger numbers are infinite in fp32, or nearly so.
PositiveFloat = Annotated[float, NotBool, Field(gt=0, le=1e30, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, NotBool, Field(ge=0, le=1e30, allow_inf_nan=False)]
Fraction = Annotated[float, NotBool, Field(ge=0, le=1)]
Probability = Annotated[float, NotBool, Field(ge=0, lt=1)]
InnerFraction = Annotated[float, NotBool, Field(gt=0, lt=1)]
Seconds = Annotated[float, NotBool, Field(gt=0, le=1e7, allow_inf_nan=False)]
