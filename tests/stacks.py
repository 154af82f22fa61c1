"""The shipped presets that are about techniques: the others name LoRAs for single backbones, and no technique."""

from longgen import preset

STACKS = tuple(name for name in preset.names() if not preset.load(name).backbone_models)
