"""Whether the model settings fit the backbone and this machine, before any weight is loaded."""

from __future__ import annotations

from longgen.backbones.settings import ModelSettings, parse_cache, parse_lora
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError
from longgen.plan import Plan


def check_settings(spec: BackboneSpec, model_settings: ModelSettings) -> list[str]:
    """Raises UsageError where the device is not there, or `spec` on it cannot do what is asked. Loads no weights of the model.

    Returns notes. Raises MissingError where a LoRA or a library is not there, LonggenError where a file is damaged.
    """
    import torch

    try:
        place = torch.device(model_settings.device)
        torch.zeros(1, device=place).cpu()  # meta makes tensors, and gives none back
        if place.type == "cpu" and model_settings.device != "cpu":
            raise RuntimeError("a CPU has no number")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:160]
        cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise UsageError(f"--device {model_settings.device} is not there: {reason}", expected=", ".join(["cpu", *cuda]),
                         hint="leave --device out for the best one") from None  # fmt: skip
    if model_settings.offload != "none" and place.type == "cpu":
        raise UsageError(f"--offload {model_settings.offload} moves weights between a GPU and the host, and the device is cpu",
                         expected="--offload none", hint="leave --offload out")  # fmt: skip
    if model_settings.dtype == "fp16" and place.type == "cpu":
        raise UsageError("--dtype fp16 cannot run on a CPU", expected="fp32 or bf16", hint="leave --dtype out")
    for text in model_settings.lora:
        if parse_lora(text)[2] == (2,) and spec.experts == 1:
            raise UsageError(f"--lora {text} is for a second expert, and {spec.name} has one transformer",
                             expected="PATH or PATH:scale", hint="leave 2= out")  # fmt: skip
    if model_settings.cache is not None and spec.causal:
        raise UsageError(f"--cache {model_settings.cache} compares a step with the step before, and {spec.name} takes few, far apart",
                         expected="no --cache", hint="leave it out")  # fmt: skip
    if model_settings.cache is not None:
        parse_cache(model_settings.cache, spec)
    if not (model_settings.lora or model_settings.attention or model_settings.compile or model_settings.quantize):
        return []
    from longgen.pipelines import loading  # takes seconds

    return loading.check(spec, model_settings)


def unused_settings(plan: Plan, model_settings: ModelSettings) -> tuple[str, ...]:
    """Notes on what of `setup` does nothing for `plan`."""
    if model_settings.clip_batch > 1 and not plan.in_clips:
        return (
            f"--clip-batch {model_settings.clip_batch} does nothing: {plan.preset.name} shows {plan.spec.name} no clips at this length",
        )
    return ()
