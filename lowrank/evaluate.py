"""How good a language model is, and what to calibrate it on.

`perplexity(model, tokenizer, text)` measures; `calibration_text(tokenizer, sources, ...)` draws
windows for `compress(..., data=)`.
"""

from lowrank.compression.gauges.perplexity import Perplexity, perplexity
from lowrank.compression.gauges.texts import calibration_text

__all__ = ["Perplexity", "calibration_text", "perplexity"]
