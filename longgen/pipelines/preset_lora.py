"""The LoRAs that a preset names: on the model before those that were asked for, and never downloaded unasked."""

from __future__ import annotations

from longgen.backbones import hub
from longgen.backbones.settings import ModelSettings, parse_lora
from longgen.errors import MissingError
from longgen.plan import Plan


def settings_of(plan: Plan, model_settings: ModelSettings) -> ModelSettings:
    """`model_settings` with the LoRAs of the plan's preset. Raises MissingError where one is not on this machine."""
    texts = plan.preset.lora_on(plan.spec)
    if not texts:
        return model_settings
    from longgen.pipelines import lora_files  # here: it imports torch

    for place in (parse_lora(text)[0] for text in texts):
        if lora_files.locate(place) is None:
            raise MissingError(f"preset {plan.preset.name} needs the LoRA {place}, which is not on this machine",
                               expected="its file in the local cache of the hub; a preset downloads nothing",
                               hint=f"{hub.download_command(place)}")  # fmt: skip
    return model_settings.replace(lora=(*texts, *model_settings.lora))
