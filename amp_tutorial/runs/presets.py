"""Parameter files: `data/presets/NAME.yaml`, a flat mapping of names of the parameters cell."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from ..files.paths import DATA

PRESETS = DATA / "presets"


def names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset(name: str) -> dict[str, Any]:
    """The values of a preset, unchecked.

    Raises:
        ValueError: no such preset, or no flat mapping.
    """
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"No preset is called {name!r}.{meant} There are {', '.join(names()) or 'none'}.")
    path = PRESETS / f"{name}.yaml"
    found = read_yaml(path)
    if not isinstance(found, dict) or any(isinstance(value, dict | list) for value in found.values()):
        raise ValueError(f"{path} must hold a mapping of names to plain values.")
    return found


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; 1e-3 is a number, as in JSON and YAML 1.2, and a key that stands twice is an error.

    Raises:
        ValueError: it cannot be read, or not as YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as YAML: it is nested too deeply.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # what << brings may be replaced
        keys = [self.construct_object(key, deep=True) for key in own]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
