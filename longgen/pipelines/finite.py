"""Where latents, texts or pictures hold NaN or infinity, a run stops and says what to try.

The loops of sampling ask after each step, before anybody hears of it: so no checkpoint, no frame and no score is made of such
numbers. It costs one reduction, and one wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longgen.backbones.settings import ModelSettings
from longgen.errors import LonggenError


def is_finite(x: Tensor) -> bool:
    """Whether `x` holds neither NaN nor infinity; both come through a minimum and a maximum, which need no memory."""
    return not x.numel() or bool(torch.stack(torch.aminmax(x)).isfinite().all())


def check_latents(latents: Tensor, model_settings: ModelSettings, where: str, texts: dict[str, Tensor] | None = None) -> None:
    """Raises LonggenError for latents that are not finite. where: the step. texts: what the text encoder gave, if it is at hand."""
    if is_finite(latents):
        return
    bad = next((name for name, text in (texts or {}).items() if not is_finite(text)), None)
    if bad is not None:
        check_text({bad: (texts or {})[bad]}, model_settings, "the negative prompt" if "negative" in bad else "the prompt")
    raise LonggenError(f"{where}: the latents are not finite (NaN or infinity), and the run stops there; what the "
                       "steps before it made is kept",
                       expected="finite numbers", hint=remedies(model_settings))  # fmt: skip


def check_text(text: dict[str, Tensor], model_settings: ModelSettings, of: str) -> None:
    """Raises LonggenError where the text encoder gave numbers that are not finite."""
    if not all(is_finite(part) for part in text.values()):
        raise LonggenError(f"the text encoder's embedding of {of} is not finite (NaN or infinity)",
                           expected="finite numbers", hint=remedies(model_settings))  # fmt: skip


def check_picture(video: Tensor) -> None:
    """Raises LonggenError for a VAE's output that is not finite."""
    if is_finite(video):
        return
    dtype = str(video.dtype).removeprefix("torch.")
    wider = f"try --dtype {'bf16 or ' * (dtype == 'float16')}fp32, since {dtype} may overflow; or "
    again = "copy the VAE's weights again: a file may be damaged; the latents are kept"
    raise LonggenError(f"the VAE's picture is not finite (NaN or infinity), in {dtype}", expected="finite numbers",
                       hint=wider * (video.dtype != torch.float32) + again)  # fmt: skip


def remedies(model_settings: ModelSettings) -> str:
    """What may help, the likeliest first."""
    tries = [f"without --lora {', '.join(model_settings.lora)}"] if model_settings.lora else []
    tries += [
        f"without --{name} {value}"
        for name, value in (("quantize", model_settings.quantize), ("cache", model_settings.cache))
        if value is not None
    ]
    tries += ["without --compile"] if model_settings.compile else []
    tries.append(
        {"fp16": "--dtype bf16 or fp32", "bf16": "--dtype fp32"}.get(
            model_settings.dtype, f"another --dtype than {model_settings.dtype}"
        )
    )
    tries.append(f"another --attention backend than {model_settings.attention or 'the default'}, as _native_math")
    return f"try {'; '.join(tries)}; or copy the weights again: a file may be damaged"
