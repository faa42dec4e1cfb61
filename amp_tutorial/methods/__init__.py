"""What the field does beside AMP: other criteria, layers, repair, slicing, recovery, and one budget over them.

The field's criteria put themselves into `CRITERIA` when this package is imported.
"""

from ..core.criteria import CRITERIA
from ..core.scores import score, score_many
from . import flap, taylor, transact, wanda

__all__ = ["CRITERIA", "flap", "score", "score_many", "taylor", "transact", "wanda"]
