"""Values from the JSON files of a diffusers folder, each checked where it is read: a wrong one is named with its file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from longgen.backbones.system_errors import system_failure
from longgen.errors import MissingError, UsageError

FILES = ("model_index.json", "transformer/config.json", "vae/config.json")
EXPECTED_FOLDER = "a diffusers folder, with " + ", ".join(FILES)
MAX_WIDTH, MAX_CHANNELS = 2**17, 4096
MAXIMA = {  # of the integers in configs, by key
    "num_layers": 1000, "num_single_layers": 1000, "num_attention_heads": 1024, "attention_head_dim": 1024, "rope_axes_dim": 1024,
    "audio_num_attention_heads": 1024, "audio_attention_head_dim": 1024, "audio_sampling_rate": 10**6, "audio_hop_length": 10**5,
    "audio_scale_factor": 256, "pos_embed_max_pos": 10**6,
    "ffn_dim": 10**6, "in_channels": MAX_CHANNELS, "sample_width": 4096, "sample_height": 4096,
    "block_out_channels": MAX_WIDTH, "time_embed_dim": MAX_WIDTH,
    "patch_size": 16, "patch_size_t": 16, "sample_frames": 10**6, "rope_max_seq_len": 10**6, "max_text_seq_length": 10**6,
    "scale_factor_temporal": 256, "scale_factor_spatial": 256, "temporal_compression_ratio": 256, "spatial_compression_ratio": 256,
}  # fmt: skip


class Config(dict[str, Any]):
    """A config of the pipeline `source`. Raises UsageError that names the file for a missing key and an impossible value."""

    def __init__(self, source: str, file: str, content: Any) -> None:
        self.source, self.file = source, file
        if not isinstance(content, dict):
            self.fail("is not a JSON object")
        super().__init__(content)

    def __missing__(self, key: str) -> Any:
        self.fail(f"has no {key}")

    def fail(self, fault: str, expected: str = "a model that diffusers wrote") -> NoReturn:
        raise UsageError(f"--backbone {self.source}: {self.file} {fault}", expected=expected, hint="copy or download it again")

    def refuse(self, key: str, expected: str) -> NoReturn:
        self.fail(f"says {key} = {json.dumps(self[key])[:80]}", expected)

    def integer(self, key: str, multiple_of: int = 1, default: int | None = None) -> int:
        """The integer at `key`, from 1 to its maximum and a multiple of `multiple_of`."""
        value = self[key] if default is None or key in self else default
        if type(value) is not int or not 1 <= value <= MAXIMA[key] or value % multiple_of:
            also = f", a multiple of {multiple_of}" if multiple_of > 1 else ""
            self.refuse(key, f"an integer from {multiple_of} to {MAXIMA[key]}{also}")
        return value

    def number(self, key: str, maximum: float) -> float:
        value = self[key]
        if type(value) not in (int, float) or not 0 < value <= maximum:  # false for NaN too
            self.refuse(key, f"a number above 0, to {maximum:g}")
        return float(value)

    def integers(self, key: str, count: int | None = None) -> list[int]:
        """The list of integers from 1 to its maximum at `key`; `count` of them."""
        value = self[key]
        valid = isinstance(value, list) and value and all(type(item) is int and 1 <= item <= MAXIMA[key] for item in value)
        if not valid or count not in (None, len(value)):
            self.refuse(key, f"a list of {count or 'several'} integers from 1 to {MAXIMA[key]}")
        return value

    def heads(self, multiple_of: int) -> tuple[int, int]:
        """Attention heads, and channels of each."""
        return self.integer("num_attention_heads"), self.integer("attention_head_dim", multiple_of)


class ModelConfigs(NamedTuple):
    """The three configs of a diffusers pipeline. source: its folder or hub id."""

    source: str
    model_index: Config
    transformer: Config
    vae: Config


def read_json(path: Path) -> Any:
    """The content of a JSON file of a diffusers folder. Raises MissingError or UsageError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        fault = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise system_failure(error, str(path)) or MissingError(
            f"{path} {fault}", expected=EXPECTED_FOLDER, hint="give the folder that holds model_index.json") from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"{path} is damaged: {reason}", expected="JSON as diffusers writes it", hint="download it again") from None
