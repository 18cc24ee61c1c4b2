"""Import this, and transformers' own `from_pretrained` reads what `save_pretrained` wrote.

    import lowrank.transformers
    model = transformers.AutoModelForCausalLM.from_pretrained("folder")

It registers `quant_method: "lowrank"` with transformers; nothing else needs to be called.
"""

from lowrank.compression.structure.pretrained.quantizer import LowRankConfig, LowRankQuantizer

__all__ = ["LowRankConfig", "LowRankQuantizer"]
