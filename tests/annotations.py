"""What executes shape annotations; apart, because it must be there before anything of the package is."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

executed: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
