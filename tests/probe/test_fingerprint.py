"""Fingerprints: the same for the same weights, another for others, without loading them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from longgen.backbones.causal_wan import TINY_CAUSAL
from longgen.backbones.find import find
from longgen.backbones.ltx import LTX_2B
from longgen.backbones.spec import TINY_FOLDER
from longgen.backbones.wan import TINY
from longgen.errors import MissingError
from longgen.layers import fingerprint as module
from longgen.layers.fingerprint import fingerprint


def test_each_model_has_its_own_wherever_it_lies(tmp_path: Path) -> None:
    assert fingerprint(TINY) == fingerprint(TINY)
    assert fingerprint(TINY) != fingerprint(TINY_CAUSAL)
    shutil.copytree(TINY_FOLDER, tmp_path / "moved")
    copied = find(str(tmp_path / "moved"))
    assert fingerprint(copied) == fingerprint(TINY)
    (weights,) = (tmp_path / "moved" / "transformer").glob("*.safetensors")
    os.chmod(weights, 0o644)
    with weights.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x00\x01")
    assert fingerprint(copied) != fingerprint(TINY)


def test_of_a_large_file_blocks_all_over_it_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "BLOCKS", 8)
    shutil.copytree(TINY_FOLDER, tmp_path / "model")
    spec = find(str(tmp_path / "model"))
    (weights,) = (tmp_path / "model" / "transformer").glob("*.safetensors")
    before, content = fingerprint(spec), bytearray(weights.read_bytes())
    os.chmod(weights, 0o644)
    for place in (0.0, 0.5, 1.0):  # a tensor of an eighth of the file is always met
        changed = bytearray(content)
        start = int(place * (len(content) - len(content) // 7))
        changed[start : start + len(content) // 7] = bytes(len(content) // 7)
        weights.write_bytes(changed)
        assert fingerprint(spec) != before
    weights.write_bytes(content)
    assert fingerprint(spec) == before


def test_weights_that_are_not_here_have_none() -> None:
    with pytest.raises(MissingError, match="are not on this machine"):
        fingerprint(LTX_2B)
