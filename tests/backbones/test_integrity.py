"""Files that do not give a model all of its weights fail by component, key and file."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from torch import Tensor

from longgen.backbones.find import find
from longgen.errors import LonggenError
from longgen.pipelines.loading import decoder
from tests.backbones import family

Weights = dict[str, Tensor]


def changed(folder: Path, place: Path, part: str, change: Callable[[Weights], Weights]) -> Path:
    shutil.copytree(folder, place)
    (file,) = (place / part).glob("*.safetensors")
    save_file(change(load_file(file)), file, {"format": "pt"})
    return file


def without(key: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: weight for name, weight in weights.items() if name != key}


def also(**more: Any) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {key.replace("__", "."): make(weights) for key, make in more.items()}


BROKEN: list[tuple[str, str, Callable[[Weights], Weights], str]] = [
    ("wan", "text_encoder", without("shared.weight"), "has no encoder.embed_tokens.weight, shared.weight"),
    ("wan", "text_encoder", without("encoder.final_layer_norm.weight"), "has no encoder.final_layer_norm.weight"),
    ("wan", "text_encoder", also(encoder__embed_tokens__weight=lambda w: w["shared.weight"] + 1), "differ, and are one embedding"),
    ("wan", "text_encoder", also(shared__weight=lambda _: torch.zeros(3, 3)), "shared.weight (3, 3) for (14, 32)"),
    ("wan", "transformer", without("blocks.1.attn1.to_q.bias"), "has no blocks.1.attn1.to_q.bias"),
    ("wan", "transformer", also(blocks__1__x=lambda _: torch.zeros(2)), "does not read: blocks.1.x"),
    ("wan", "vae", without("decoder.conv_out.bias"), "has no decoder.conv_out.bias"),
    ("hunyuan", "text_encoder_2", without("final_layer_norm.weight"), "has no final_layer_norm.weight"),
    ("ltx", "vae", without("latents_std"), "has no latents_std"),
]


@pytest.mark.parametrize(("name", "part", "change", "said"), BROKEN)
def test_weights_that_are_missing_left_over_or_at_odds_are_named(
    name: str,
    part: str,
    change: Any,
    said: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = changed(model_folder(name), tmp_path / "broken", part, change)
    capfd.readouterr()  # of writing the model
    with pytest.raises(LonggenError) as caught:
        family.loaded(tmp_path / "broken")
    assert f"{part}: " in caught.value.given
    assert str(file) in caught.value.given
    assert said in caught.value.given
    assert capfd.readouterr().err == ""  # the error says it all


def test_a_decoder_alone_is_checked_too(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    file = changed(model_folder("wan"), tmp_path / "broken", "vae", without("decoder.conv_out.bias"))
    with pytest.raises(LonggenError, match=r"vae: .* has no decoder\.conv_out\.bias") as caught:
        decoder(find(str(tmp_path / "broken")), "cpu")
    assert str(file) in caught.value.given


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("text_encoder", lambda w: w | {"encoder.embed_tokens.weight": w["shared.weight"].clone()}),
        ("text_encoder", lambda w: {"encoder.embed_tokens.weight" if k == "shared.weight" else k: v for k, v in w.items()}),
        ("text_encoder", lambda w: w | {"decoder.block.0.x": torch.zeros(2), "encoder.position_ids": torch.zeros(2)}),
    ],
)
def test_what_older_versions_wrote_is_read(part: str, change: Any, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    plain = family.loaded(model_folder("wan"))
    changed(model_folder("wan"), tmp_path / "older", part, change)
    older = family.loaded(tmp_path / "older")
    assert torch.equal(older.text(family.PROMPT)["encoder_hidden_states"], plain.text(family.PROMPT)["encoder_hidden_states"])


def test_a_decoder_alone_is_silent_too(
    model_folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published VAE of Wan 2.2 5B has a key in its config that diffusers does not know, and warns of."""
    folder = shutil.copytree(model_folder("wan-ti2v"), tmp_path / "model")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clip_output": False}))
    diffusers_logging.set_verbosity_warning()  # its own default, before anything else was loaded
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    decoder(find(str(folder)), "cpu")
    assert caplog.messages == []
