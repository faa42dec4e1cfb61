"""What the field does beside AMP: other criteria, layers, repair, slicing, recovery, and one budget over them.

The field's criteria put themselves into `CRITERIA` when this package is imported, and whole layers and tokens into
`DEPTH` and `VOCABULARY`.
"""

from ..core.criteria import CRITERIA
from ..core.plans import Plan
from ..core.scores import score, score_many
from ..core.surgery import masked
from . import flap, taylor, vocabulary, wanda, whole_layers  # noqa: F401, each plugs itself in

__all__ = ["CRITERIA", "Plan", "masked", "score", "score_many"]
