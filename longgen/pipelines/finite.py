"""Stops a run whose latents, text embeddings or pictures hold NaN or infinity, and says what to try.

Sampling loops check after each step, before the step is reported, so that no checkpoint, frame or score is made of such numbers.
A check costs one reduction and one synchronisation with the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longgen.backbones.settings import ModelSettings
from longgen.errors import LonggenError


def is_finite(x: Tensor) -> bool:
    """Whether `x` holds neither NaN nor infinity. Both survive min and max, which need no memory."""
    return not x.numel() or bool(torch.stack(torch.aminmax(x)).isfinite().all())


def check_latents(latents: Tensor, model_settings: ModelSettings, where: str, texts: dict[str, Tensor] | None = None) -> None:
    """Raises LonggenError for latents that are not finite. where: the step. texts: the text encoder's output, if it is at hand."""
    if is_finite(latents):
        return
    for name, text in (texts or {}).items():
        check_text({name: text}, model_settings, "the negative prompt" if "negative" in name else "the prompt")
    raise LonggenError(f"{where}: the latents are not finite (NaN or infinity), and the run stops there; the "
                       "results of earlier steps are kept",
                       expected="finite numbers", hint=remedies(model_settings))  # fmt: skip


def check_text(text: dict[str, Tensor], model_settings: ModelSettings, of: str) -> None:
    """Raises LonggenError where embeddings are not finite. of: the text, in words."""
    if not all(is_finite(part) for part in text.values()):
        raise LonggenError(f"the text encoder's embedding of {of} is not finite (NaN or infinity)",
                           expected="finite numbers", hint=remedies(model_settings))  # fmt: skip


def check_picture(video: Tensor) -> None:
    """Raises LonggenError where the output of a VAE is not finite."""
    if is_finite(video):
        return
    dtype = str(video.dtype).removeprefix("torch.")
    hint = "copy the VAE's weights again: a file may be damaged; the latents are kept"
    if video.dtype != torch.float32:
        hint = f"try --dtype {'bf16 or ' * (dtype == 'float16')}fp32, since {dtype} may overflow; or {hint}"
    raise LonggenError(f"the VAE's picture is not finite (NaN or infinity), in {dtype}", expected="finite numbers", hint=hint)


def remedies(model_settings: ModelSettings) -> str:
    """What may help, the most likely first."""
    dtype, backend = model_settings.dtype, model_settings.attention or "the default"
    given = {"lora": ", ".join(model_settings.lora), "quantize": model_settings.quantize, "cache": model_settings.cache}
    tries = [f"without --{name} {value}" for name, value in given.items() if value]
    tries += ["without --compile"] if model_settings.compile else []
    tries += [{"fp16": "--dtype bf16 or fp32", "bf16": "--dtype fp32"}.get(dtype, f"another --dtype than {dtype}")]
    tries += [f"another --attention backend than {backend}, as _native_math"]
    return f"try {'; '.join(tries)}; or copy the weights again: a file may be damaged"
