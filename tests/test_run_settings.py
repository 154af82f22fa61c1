"""Which settings make a run the same run: declared once, at the field, and followed by everything that asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longgen import preset, rundir
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.planner import build
from longgen.preset import Preset, Sample
from longgen.run_settings import content_hash, differences, stored_settings
from tests import warm

PROMPT = "a small red circle moves left"
MODEL: dict[str, tuple[Any, bool]] = {  # another value of each model setting, and whether it makes another run
    "device": ("cuda", False),
    "dtype": ("bf16", True),
    "offload": ("model", False),
    "lora": (("a.safetensors",), True),
    "quantize": ("int8", True),
    "attention": ("native", True),
    "cache": ("first-block:0.1", True),
    "compile": (True, True),
    "vae_tiling": (True, False),
    "vae": (str(Path(__file__).absolute()), True),
    "text_encoder": ("/encoder", True),
    "clip_batch": (2, True),
    "gpus": (2, False),
    "guidance_parallel": (True, False),
}
STORED = (
    '{"schema": 2, "prompt": "a small red circle moves left", "backbone": "tiny", "preset": {"schema": 1, "name": "'
    'plain", "description": "d", "source": "s"}, "sample": {"frames": 9, "size": [64, 64], "steps": 2, "guidance_sc'
    'ale": 3.0, "negative_prompt": "", "fps": 16}, "seed": 3, "dtype": "bf16", "lora": ["a:0.5"], "cache": "mag:0.1'
    '", "clip_batch": 2, "vae_tiling": true}'
)
SAMPLE: dict[str, Any] = {
    "frames": 9, "size": (128, 128), "steps": 3, "guidance_scale": 2.5, "negative_prompt": "blur", "fps": 9, "flow_shift": 2.0,
}  # fmt: skip


def test_every_model_setting_decides_a_run_or_does_not(tiny_plan: Any) -> None:
    assert set(MODEL) == set(ModelSettings.model_fields)
    plan, plain = tiny_plan("direct", frames=5, steps=2), ModelSettings("cpu", "fp32")
    before = stored_settings(plan, PROMPT, 1, plain)
    for name, (value, decides) in MODEL.items():
        after = stored_settings(plan, PROMPT, 1, plain.replace(**{name: value}))
        content = ["weights_file"] if name == "vae" else []  # the hash of its file
        assert differences(before, after) == ([*content, name] if decides else []), name
        if decides:
            with pytest.raises(UsageError, match=f"made with another {', '.join([*content, name])}"):
                rundir.check_same_run(before, after, Path("a.run"))


def test_every_field_of_a_sample_decides(tiny_plan: Any) -> None:
    assert set(SAMPLE) == set(preset.Sample.model_fields)
    plain = ModelSettings("cpu", "fp32")
    before = stored_settings(tiny_plan("direct", frames=5, steps=2), PROMPT, 1, plain)
    for name, value in SAMPLE.items():
        after = stored_settings(tiny_plan("direct", **{"frames": 5, "steps": 2, name: value}), PROMPT, 1, plain)
        assert differences(before, after) == ["sample"], name
    for name, other in (("prompt", ("x", 1)), ("seed", (PROMPT, 2))):
        assert differences(before, stored_settings(tiny_plan("direct", frames=5, steps=2), *other, plain)) == [name]


def test_what_a_video_stores_is_what_it_was_in_0_5() -> None:
    """Byte for byte, and with it the names of a comparison's videos; the versions aside."""
    plan = build(Preset(name="plain", description="d", source="s", sample=Sample(frames=9, steps=2)), TINY)
    model = ModelSettings("cuda", "bf16", offload="model", lora=["a:0.5"], cache="mag:0.1", vae_tiling=True, clip_batch=2)
    stored = stored_settings(plan, PROMPT, 3, model)
    assert isinstance(stored.pop("longgen"), str)
    assert {"torch", "diffusers"} < set(stored.pop("libraries"))
    assert json.dumps(stored) == STORED
    assert content_hash(stored) == "7d667938"
    assert content_hash(stored | {"vae_tiling": False}) != content_hash(stored) == content_hash(json.loads(json.dumps(stored)))


OF_0_9 = {  # content hashes of 161 frames of "a" with seed 1 in fp32, as longgen 0.9.0 gives them
    "tiny": {"ans": "45289885", "chain": "06a173dc", "direct": "32c7ba17", "fifo": "78e9382f", "flex-positions": "da9bbd62",
             "freelong": "0ba32ca7", "freelongpp": "28baa176", "freenoise": "4b0fe560", "freepca": "ca83ced2",
             "freespec": "c30a3a95", "gen-l-video": "c5177309", "glc-diffusion": "55977521", "keyframes": "f449db1c",
             "longdiff": "0da666ef", "ntk": "d6d49ac2", "riflex": "bf0c4b1f", "sink-window": "25af9d65",
             "sliding-window": "f9c3eba9", "tsa": "04e500c6", "vrpr": "e340f5df", "yarn": "ae40df8e"},
    "tiny-causal": {"deep-forcing": "eac1c422", "flex": "bf6f520c", "flex-longlive": "1b3e8b65", "infinity-rope": "45903b80",
                    "longlive": "8ea7f51e", "self-forcing": "107fca45"},
}  # fmt: skip
REWORDED = {"infinity-rope": "infinity-RoPE, arXiv 2511.20649; re-based times and the flush as in its code: its cut, a jump of "
                             "positions, is not built"}  # fmt: skip


@pytest.mark.parametrize(("backbone", "name"), [(backbone, name) for backbone, names in OF_0_9.items() for name in names])
def test_a_run_of_0_9_is_the_same_run(backbone: str, name: str) -> None:
    """Whatever parameters its techniques have got since, and however its preset describes itself now."""
    plan = build(preset.load(name, (), Sample(frames=161)), SPECS[backbone])
    now = stored_settings(plan, "a", 1, ModelSettings("cpu", "fp32"))
    then = now | {"preset": now["preset"] | {"source": REWORDED.get(name, now["preset"]["source"])}}
    assert content_hash(then) == OF_0_9[backbone][name]
    assert differences(then, now) == []


def test_a_rollout_is_another_run_by_what_it_was_given() -> None:
    model = ModelSettings("cpu", "fp32")

    def stored(*sets: str) -> dict[str, Any]:
        return stored_settings(build(preset.load("self-forcing", sets, Sample(frames=161)), SPECS["tiny-causal"]), "a", 1, model)

    assert differences(stored(), stored("rollout.chunk=3", "rollout.cut_time=45")) == []
    for given in ("rollout.chunk=1", "rollout.cut_time=46", "rollout.first_steps=3"):
        assert differences(stored(), stored(given)) == ["preset"], given


NEW_FIELD = r"""
import sys, types, json
from importlib.util import find_spec

for name in [name for name in sys.modules if name.partition(".")[0] == "longgen"]:
    del sys.modules[name]  # this process has imported torch and longgen; the latter is to be read anew

spec = find_spec("longgen.backbones.settings")
source = open(spec.origin, encoding="utf-8").read()
anchor = "    vae_tiling: "
assert source.count(anchor) == 1
module = sys.modules[spec.name] = types.ModuleType(spec.name)
module.__spec__, module.__file__ = spec, spec.origin
field = "    sharpness: Annotated[float, Setting(changes_latents=True)] = 1.0\n"
exec(compile(source.replace(anchor, field + anchor), spec.origin, "exec"), module.__dict__)

from pathlib import Path
from longgen import run_settings
from longgen.backbones.wan import TINY
from longgen.compare.warnings import MUST_AGREE
from longgen.describe import command_again
from longgen.loops.magcache import dependencies
from longgen.planner import build
from longgen.preset import Preset, Sample

plan = build(Preset(name="plain", sample=Sample(frames=9, steps=2)), TINY)
plain = module.ModelSettings("cpu", "fp32")
sharp = plain.replace(sharpness=2.0)
before, after = (run_settings.stored_settings(plan, "a", 0, model) for model in (plain, sharp))
print(json.dumps({
    "not stored at its default": "sharpness" not in before,
    "stored": after["sharpness"],
    "identity": run_settings.differences(before, after),
    "content hash": run_settings.content_hash(before) != run_settings.content_hash(after),
    "rows of a comparison": "sharpness" in run_settings.TREATMENT,
    "warnings of a comparison": "sharpness" in MUST_AGREE,
    "key of MagCache": dependencies(plan, sharp)["sharpness"],
    "command": "--sharpness 2.0" in command_again(after, Path("a.mp4")),
    "resume": run_settings.model_settings_in(after)["sharpness"],
}))
"""


def test_a_new_model_setting_is_one_field() -> None:
    """Identity, content hash, comparison, MagCache's key and the command to make a video again follow from its declaration."""
    done = warm.run(Path.cwd(), [], NEW_FIELD)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "not stored at its default": True, "stored": 2.0, "identity": ["sharpness"], "content hash": True,
        "rows of a comparison": True, "warnings of a comparison": True, "key of MagCache": 2.0, "command": True, "resume": 2.0,
    }  # fmt: skip
