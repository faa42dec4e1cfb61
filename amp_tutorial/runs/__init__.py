"""Reproducible runs: notebooks and functions with parameters, their records, and sweeps over grids of them.

Nothing here imports torch before it has to, so the commands answer at once.
"""

import sys
from contextlib import suppress

# jsonschema, which nbformat needs, builds a grammar of IRIs as it is imported: 0.8 s in every command and every kernel,
# for a format that no schema here has. Whoever imports that grammar later gets it.
if not {"jsonschema", "rfc3987_syntax"} & set(sys.modules):
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    with suppress(ImportError):
        import jsonschema  # noqa: F401
    del sys.modules["rfc3987_syntax"]
