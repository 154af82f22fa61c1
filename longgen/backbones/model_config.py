"""Values from the JSON files of a diffusers folder, each checked where it is read: a wrong one is named with its file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from longgen.backbones.system_errors import system_failure
from longgen.errors import MissingError, UsageError

FILES = ("model_index.json", "transformer/config.json", "vae/config.json")
EXPECTED_FOLDER = "a diffusers folder, with " + ", ".join(FILES)
MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM, MAX_WIDTH, MAX_CHANNELS, MAX_STRIDE = 1000, 1024, 1024, 2**17, 4096, 256
MAX_FRAMES, MAX_TOKENS, MAX_PATCH = 10**6, 10**6, 16


class ConfigError(Exception):
    """An impossible value in a config: what it is, and what is expected."""


class Config(dict[str, Any]):
    """A config whose errors name its file: KeyError for a missing key, ConfigError for a value out of range."""

    def __init__(self, file: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise KeyError(f"{file} is not a JSON object")
        super().__init__(content)
        self.file = file

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"{self.file} has no {key}")

    def refuse(self, key: str, expected: str) -> NoReturn:
        raise ConfigError(f"{self.file} says {key} = {json.dumps(self[key])[:80]}", expected)

    def integer(self, key: str, maximum: int, multiple_of: int = 1, default: int | None = None) -> int:
        """The integer at `key`, from 1 to `maximum` and a multiple of `multiple_of`."""
        value = self[key] if default is None or key in self else default
        if type(value) is not int or not 1 <= value <= maximum or value % multiple_of:
            also = f", a multiple of {multiple_of}" if multiple_of > 1 else ""
            self.refuse(key, f"an integer from {multiple_of} to {maximum}{also}")
        return value

    def number(self, key: str, maximum: float) -> float:
        value = self[key]
        if type(value) not in (int, float) or not 0 < value <= maximum:  # false for NaN too
            self.refuse(key, f"a number above 0, to {maximum:g}")
        return float(value)

    def integers(self, key: str, maximum: int, count: int | None = None) -> list[int]:
        """The list of integers from 1 to `maximum` at `key`; `count` of them."""
        value = self[key]
        valid = isinstance(value, list) and value and all(type(item) is int and 1 <= item <= maximum for item in value)
        if not valid or count not in (None, len(value)):
            self.refuse(key, f"a list of {count or 'several'} integers from 1 to {maximum}")
        return value

    def heads(self, multiple_of: int) -> tuple[int, int]:
        """Attention heads, and channels of each."""
        return self.integer("num_attention_heads", MAX_HEADS), self.integer("attention_head_dim", MAX_HEAD_DIM, multiple_of)


class ModelConfigs(NamedTuple):
    """The three configs of a diffusers pipeline. source: its folder or hub id."""

    source: str
    model_index: Config
    transformer: Config
    vae: Config

    @property
    def transformer_class(self) -> object:
        """The class of the transformer as model_index.json names it; None where it names none."""
        entry = self.model_index.get("transformer")
        return entry[-1] if isinstance(entry, list) and entry else None


def read_json(path: Path) -> Any:
    """The content of a JSON file of a diffusers folder. Raises MissingError or UsageError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MissingError(f"{path} is not there", expected=EXPECTED_FOLDER,
                           hint="give the folder that holds model_index.json") from None  # fmt: skip
    except OSError as error:
        raise system_failure(error, str(path)) or MissingError(
            f"{path} cannot be read: {error.strerror}", expected="a diffusers folder", hint="check the file") from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"{path} is damaged: {reason}", expected="JSON as diffusers writes it", hint="download it again") from None
