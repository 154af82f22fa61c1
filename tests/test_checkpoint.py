"""The latents of a stream on disk, chunk by chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longgen.checkpoint import Chunks, pack, save_tensors, unpack
from longgen.errors import LonggenError

SETTINGS: dict[str, Any] = {"longgen": "0", "prompt": "x", "sample": {"frames": 17, "fps": None}}


def latents(index: int, frames_lat: int = 3) -> Tensor:
    return torch.randn(1, 4, frames_lat, 2, 2, generator=torch.Generator().manual_seed(index))


def carried(index: int) -> dict[str, Any]:
    """What a sampling may keep from one chunk to the next."""
    return {"carried": [None, latents(index, 1)], "sigma": 0.5 * index}


def filled(folder: Path, count: int = 3) -> Chunks:
    chunks = Chunks(folder, SETTINGS)
    for index in range(len(chunks), count):
        tensors, state = pack(carried(index), "scheduler")
        chunks.append(tensors | {"latents": latents(index), "generator": torch.tensor([index], dtype=torch.uint8)}, state)
    return chunks


def test_chunks_come_back_from_the_disk(tmp_path: Path) -> None:
    written = filled(tmp_path / "latents")
    assert sorted(path.name for path in (tmp_path / "latents").iterdir()) == [f"00000{index}.safetensors" for index in range(3)]
    for chunks in (written, Chunks(tmp_path / "latents", {})):
        assert len(chunks) == 3
        assert all(torch.equal(chunk, latents(index)) for index, chunk in enumerate(chunks))
        assert torch.equal(chunks[1], latents(1))
        assert torch.equal(chunks[-1], latents(2))
        with pytest.raises(IndexError):
            chunks[3]
        assert chunks.stored_settings() == SETTINGS
        tensors, state = chunks.state()
        assert tensors["generator"].tolist() == [2]
        kept = unpack(tensors, state)
        assert (kept["carried"][0], kept["sigma"]) == (None, 1.0)
        assert torch.equal(kept["carried"][1], latents(2, 1))


def test_nothing_is_created_before_the_first_chunk(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path / "ball.run" / "latents", SETTINGS)
    assert (len(chunks), list(chunks), list(chunks.frames(5))) == (0, [], [])
    chunks.clear()
    assert list(tmp_path.iterdir()) == []
    assert len(filled(tmp_path / "ball.run" / "latents", 1)) == 1


@pytest.mark.parametrize(("asked", "there"), [(0, 0), (1, 1), (7, 7), (9, 9), (20, 9)])
def test_frames_go_over_the_chunks_one_at_a_time(tmp_path: Path, asked: int, there: int) -> None:
    frames = list(filled(tmp_path).frames(asked))
    whole = torch.cat([latents(index) for index in range(3)], dim=2)
    assert [frame.shape for frame in frames] == [(1, 4, 1, 2, 2)] * there
    assert all(torch.equal(frame, whole[:, :, [index]]) for index, frame in enumerate(frames))


def test_a_gap_ends_them_and_is_filled_by_the_next(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    (tmp_path / "000002.safetensors").unlink()
    chunks = Chunks(tmp_path, SETTINGS)
    assert len(chunks) == 2
    assert chunks.state()[0]["generator"].tolist() == [1]
    assert len(filled(tmp_path, 3)) == 3
    (tmp_path / "000000.safetensors").unlink()
    assert len(Chunks(tmp_path, SETTINGS)) == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "of another kind"])
def test_damaged_files_at_the_end_are_not_counted_and_are_written_again(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, 4)
    for name in ("000002.safetensors", "000003.safetensors"):
        path = tmp_path / name
        if damage == "of another kind":
            save_tensors(path, {"latents": latents(0)}, SETTINGS)
        else:
            path.write_bytes({"cut": path.read_bytes()[:-40], "empty": b"", "foreign": b"\0" * 99}[damage])
    assert len(Chunks(tmp_path, SETTINGS)) == 2
    assert all(torch.equal(chunk, latents(index)) for index, chunk in enumerate(filled(tmp_path, 4)))


def test_a_damaged_file_in_the_middle_is_named_when_it_is_read(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "000001.safetensors").write_bytes(b"half")
    chunks = Chunks(tmp_path, SETTINGS)
    assert len(chunks) == 3
    with pytest.raises(LonggenError, match=r"000001\.safetensors is damaged"):
        list(chunks)


def test_clear_removes_the_chunks_and_nothing_else(tmp_path: Path) -> None:
    chunks = filled(tmp_path / "latents")
    (tmp_path / "latents" / ".000003.safetensors.partial").write_bytes(b"half")
    chunks.clear()
    assert (len(chunks), list(tmp_path.iterdir())) == (0, [])
    chunks = filled(tmp_path / "latents", 1)
    (tmp_path / "latents" / "notes.txt").write_text("mine")
    chunks.clear()
    assert [path.name for path in (tmp_path / "latents").iterdir()] == ["notes.txt"]
