"""Where the settings of the published backbones are from: each with the value that its publisher takes, and the file that says so.

`SOURCES[backbone][setting]` stands beside the specs, which hold the values in use; `differences` compares the two. Where they
differ, `why` says why the default here is another one, and a setting that has an option is named when planning (`spec.advised`).
Read in the publishers' repositories at the commits in REPOSITORIES. Nothing here is read at run time but by the documentation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from longgen.backbones.registry import SPECS
from longgen.backbones.spec import BackboneSpec

REPOSITORIES = {  # short name -> the repository on GitHub, and the commit that was read
    "wan2.1": ("Wan-Video/Wan2.1", "9737cba"),
    "wan2.2": ("Wan-Video/Wan2.2", "42bf4cf"),
    "self-forcing": ("guandeh17/Self-Forcing", "33593df"),
    "causal-forcing": ("thu-ml/Causal-Forcing", "1fc7bbc"),
    "longlive": ("NVlabs/LongLive", "e52d9ef"),
    "longlive-2": ("NVlabs/LongLive", "7860ad9"),
    "ltx": ("Lightricks/LTX-Video", "5a592aa"),
    "ltx-0.9.5": ("Lightricks/LTX-Video", "5260738"),
    "cogvideo": ("zai-org/CogVideo", "7a1af71"),
    "ltx-2": ("Lightricks/LTX-2", "400fd31"),
    "hunyuan": ("Tencent-Hunyuan/HunyuanVideo", "fa14b00"),
    "hunyuan-i2v": ("Tencent-Hunyuan/HunyuanVideo-I2V", "1481c1d"),
    "hunyuan-1.5": ("Tencent-Hunyuan/HunyuanVideo-1.5", "60783e7"),
    "skyreels": ("SkyworkAI/SkyReels-V2", "abed76f"),
    "diffusers": ("huggingface/diffusers", "58eb52c"),
}


class Published(NamedTuple):
    """A setting as its publisher has it. where: `repository path` by the names of REPOSITORIES. why: of another default here."""

    value: Any
    where: str
    why: str = ""


def in_use(spec: BackboneSpec) -> dict[str, Any]:
    """The settings of `spec`, by the names that people read."""
    shift = spec.flow_shift or spec.checkpoint_shift or (None if spec.token_shift is None else tuple(spec.token_shift))
    settings = {
        "hub id": spec.source,
        "file": spec.checkpoint,
        "LoRA": spec.lora,
        "size": spec.size,
        "frames": spec.native_px,
        "fps": spec.fps,
        "steps": spec.steps,
        "guidance": spec.guidance_scale,
        "guidance at low noise": spec.guidance_scale_2,
        "boundary": spec.boundary,
        "flow shift": shift,
        "scheduler": spec.scheduler,
        "negative prompt": spec.negative_prompt,
        "chunk": spec.chunk_lat if spec.causal else None,
        "steps of the first chunk": spec.first_steps,
    }
    return {name: value for name, value in settings.items() if value is not None}


def differences(name: str) -> dict[str, tuple[Any, Published]]:
    """The settings of the backbone `name` whose value in use is not its publisher's: both."""
    used = in_use(SPECS[name])
    return {key: (used[key], source) for key, source in SOURCES[name].items() if used[key] != source.value}


_WAN_NEGATIVE = SPECS["wan2.1-1.3b"].negative_prompt  # tests/sampling/test_flow_shift.py checks that it is whole
_WAN_SCRIPT, _WAN_SHARED = "wan2.1 generate.py", "wan2.1 wan/configs/shared_config.py"
_WAN_DOCS, _CONVERTED = "diffusers docs/source/en/api/pipelines/wan.md", "diffusers scripts/convert_wan_to_diffusers.py"
_OWN_SHIFT = "here the checkpoint's own, so that a run without options is diffusers' pipeline bit for bit"
_OWN_GUIDANCE = "here that of its script, of diffusers' pipeline and of its README's example with diffusers"
_SMALLER = "here the other one of its list, which fits more cards"

_WAN_1_3B = {
    "hub id": Published("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan2.1 README.md"),
    "size": Published((832, 480), "wan2.1 wan/configs/__init__.py"),
    "frames": Published(81, _WAN_SCRIPT),
    "fps": Published(16, _WAN_SHARED),
    "steps": Published(50, _WAN_SCRIPT),
    "guidance": Published(6.0, "wan2.1 README.md", _OWN_GUIDANCE),
    "flow shift": Published(8.0, "wan2.1 README.md", f"up to 12, by the result; {_OWN_SHIFT}"),
    "scheduler": Published("UniPCMultistepScheduler", _CONVERTED),
    "negative prompt": Published(_WAN_NEGATIVE, _WAN_SHARED),
}
_WAN_14B = _WAN_1_3B | {
    "hub id": Published("Wan-AI/Wan2.1-T2V-14B-Diffusers", "wan2.1 README.md"),
    "size": Published((1280, 720), _WAN_SCRIPT, _SMALLER),
    "guidance": Published(5.0, _WAN_SCRIPT),
    "flow shift": Published(5.0, _WAN_SCRIPT, _OWN_SHIFT),
}
_I2V, _CONFIGS_21 = "wan2.1 wan/configs/wan_i2v_14B.py", "wan2.1 wan/configs/__init__.py"
_WAN_I2V_480P = _WAN_14B | {
    "hub id": Published("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "wan2.1 README.md"),
    "size": Published((832, 480), _CONFIGS_21),
    "steps": Published(40, _WAN_SCRIPT),
    "flow shift": Published(3.0, _WAN_SCRIPT),
    "negative prompt": Published(SPECS["wan2.1-i2v-14b-480p"].negative_prompt, _I2V),
}
_A14B, _I2V_A14B, _5B, _SHARED_22 = (
    f"wan2.2 wan/configs/{file}.py" for file in ("wan_t2v_A14B", "wan_i2v_A14B", "wan_ti2v_5B", "shared_config")
)
_SELF_FORCING_CONFIG, _SELF_FORCING_BASE = "self-forcing configs/self_forcing_dmd.yaml", "self-forcing configs/default_config.yaml"
_DISTILLED = "distilled: one call a step"
_SAME_LEVELS = "here diffusers' class, of the same levels"
_OWN_SAMPLER = "self-forcing pipeline/causal_inference.py"
_SELF_FORCING = {
    "hub id": Published("Wan-AI/Wan2.1-T2V-1.3B", "self-forcing README.md", "here diffusers' copy of it"),
    "file": Published("gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt", "self-forcing README.md"),
    "size": Published((832, 480), _SELF_FORCING_BASE),
    "frames": Published(81, _SELF_FORCING_BASE),
    "fps": Published(16, "self-forcing inference.py"),
    "steps": Published(4, _SELF_FORCING_CONFIG),
    "guidance": Published(1.0, _OWN_SAMPLER),
    "flow shift": Published(5.0, _SELF_FORCING_CONFIG),
    "scheduler": Published("FlowMatchScheduler", "self-forcing utils/scheduler.py", _SAME_LEVELS),
    "negative prompt": Published("", _OWN_SAMPLER),
    "chunk": Published(3, _SELF_FORCING_CONFIG),
}


def _causal_forcing(file: str, config: str, chunk: int, steps: int, first_steps: int | None = None) -> dict[str, Published]:
    path = f"causal-forcing configs/causal_forcing_dmd_{config}.yaml"
    base, sampler = "causal-forcing configs/default_config.yaml", "causal-forcing pipeline/causal_inference.py"
    first = {} if first_steps is None else {"steps of the first chunk": Published(first_steps, path)}
    return first | {
        "hub id": Published("Wan-AI/Wan2.1-T2V-1.3B", "causal-forcing README.md", "here diffusers' copy of it"),
        "file": Published(f"zhuhz22/Causal-Forcing/{file}", "causal-forcing README.md"),
        "size": Published((832, 480), base),
        "frames": Published(81, base),
        "fps": Published(16, "causal-forcing inference.py"),
        "steps": Published(steps, path),
        "guidance": Published(1.0, sampler),
        "flow shift": Published(5.0, path),
        "scheduler": Published(
            "FlowMatchScheduler", "causal-forcing utils/scheduler.py", "here diffusers' class, of the same levels"
        ),
        "negative prompt": Published("", sampler),
        "chunk": Published(chunk, path),
    }


_LONGLIVE, _LONGLIVE_2 = "longlive configs/longlive_inference.yaml", "longlive-2 configs/inference.yaml"
_COG_SCRIPT, _COG_README = "cogvideo inference/cli_demo.py", "cogvideo README.md"
_RENAMED = "here the organisation's new name, as on GitHub"
_COG_2B = {
    "hub id": Published("THUDM/CogVideoX-2b", _COG_README, _RENAMED),
    "size": Published((720, 480), _COG_SCRIPT),
    "frames": Published(49, _COG_README),
    "fps": Published(8, _COG_README),
    "steps": Published(50, _COG_SCRIPT),
    "guidance": Published(6.0, _COG_SCRIPT),
    "scheduler": Published("CogVideoXDDIMScheduler", _COG_SCRIPT),  # which names it for 2B, and DPM for 5B
    "negative prompt": Published("", _COG_SCRIPT),
}
_COG_5B = _COG_2B | {
    "hub id": Published("THUDM/CogVideoX-5b", _COG_README, _RENAMED),
    "scheduler": Published("CogVideoXDPMScheduler", _COG_SCRIPT),
}
_LTX_2 = "ltx-2 packages/ltx-pipelines/src/ltx_pipelines/utils/constants.py"
_LTX_095, _LTX_SCRIPT = "ltx-0.9.5 configs/ltxv-2b-0.9.5.yaml", "ltx-0.9.5 ltx_video/inference.py"
_LTX_CONVERTED, _HUNYUAN_CONVERTED = (f"diffusers scripts/convert_{name}_to_diffusers.py" for name in ("ltx", "hunyuan_video"))
_HUNYUAN_PIPELINE = "diffusers src/diffusers/pipelines/hunyuan_video/pipeline_hunyuan_video_image2video.py"
_HUNYUAN_15, _HUNYUAN_15_PIPELINE = "hunyuan-1.5 README.md", "diffusers src/diffusers/pipelines/hunyuan_video1_5/"
_HUNYUAN, _HUNYUAN_I2V = "hunyuan hyvideo/config.py", "hunyuan-i2v README.md"

_HUNYUAN_15_CONVERTED = "diffusers scripts/convert_hunyuan_video1_5_to_diffusers.py"
_HUNYUAN_15_ID = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-"
_HUNYUAN_15_480P = {
    "size": Published((848, 480), f"{_HUNYUAN_15_PIPELINE}image_processor.py"),
    "frames": Published(121, _HUNYUAN_15),
    "fps": Published(24, "hunyuan-1.5 generate.py"),
    "steps": Published(50, _HUNYUAN_15),
    "guidance": Published(6.0, _HUNYUAN_15),
    "flow shift": Published(5.0, _HUNYUAN_15),
    "scheduler": Published("FlowMatchEulerDiscreteScheduler", _HUNYUAN_15_CONVERTED),
    "negative prompt": Published("", _HUNYUAN_15),
}
_HUNYUAN_15_720P = _HUNYUAN_15_480P | {"size": Published((1280, 720), f"{_HUNYUAN_15_PIPELINE}image_processor.py")}
_SKYREELS, _SKYREELS_PIPELINES = "skyreels README.md", "diffusers src/diffusers/pipelines/skyreels_v2/"


def _skyreels(repository: str, pipeline: str) -> dict[str, Published]:
    return {
        "hub id": Published(f"Skywork/{repository}", f"{_SKYREELS_PIPELINES}{pipeline}.py"),
        "size": Published((960, 544), _SKYREELS),
        "frames": Published(97, _SKYREELS),
        "fps": Published(24, _SKYREELS),
        "steps": Published(50, _SKYREELS),
        "guidance": Published(6.0, _SKYREELS),
        "flow shift": Published(8.0, _SKYREELS),
        "scheduler": Published("UniPCMultistepScheduler", f"{_SKYREELS_PIPELINES}{pipeline}.py"),
        "negative prompt": Published(SPECS["skyreels-v2"].negative_prompt, "skyreels generate_video.py"),
    }


_FORCING = "pipeline_skyreels_v2_diffusion_forcing"
SOURCES: dict[str, dict[str, Published]] = {
    "wan2.1-1.3b": _WAN_1_3B,
    "wan2.1-14b": _WAN_14B,
    "wan2.1-i2v-14b-480p": _WAN_I2V_480P,
    "wan2.1-i2v-14b-720p": _WAN_I2V_480P | {
        "hub id": Published("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "wan2.1 README.md"),
        "size": Published((1280, 720), _WAN_SCRIPT),
        "flow shift": Published(5.0, _WAN_SCRIPT, _OWN_SHIFT),
    },
    "wan2.1-flf2v-14b": _WAN_I2V_480P | {
        "hub id": Published("Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", _WAN_DOCS),
        "size": Published((1280, 720), _WAN_SCRIPT),
        "steps": Published(50, _WAN_SCRIPT),
        "flow shift": Published(16.0, _WAN_SCRIPT),
        "negative prompt": Published(SPECS["wan2.1-flf2v-14b"].negative_prompt, _CONFIGS_21),
    },
    "wan2.2-i2v-a14b": _WAN_14B | {
        "hub id": Published("Wan-AI/Wan2.2-I2V-A14B-Diffusers", "wan2.2 README.md"),
        "size": Published((1280, 720), "wan2.2 generate.py", _SMALLER),
        "frames": Published(81, _SHARED_22),
        "fps": Published(16, _SHARED_22),
        "steps": Published(40, _I2V_A14B),
        "guidance": Published(3.5, _I2V_A14B),
        "guidance at low noise": Published(3.5, _I2V_A14B),
        "boundary": Published(0.9, _I2V_A14B),
        "flow shift": Published(5.0, _I2V_A14B, _OWN_SHIFT),
        "negative prompt": Published(_WAN_NEGATIVE, _SHARED_22),
    },
    "wan2.2-t2v-a14b": _WAN_14B | {
        "hub id": Published("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "wan2.2 README.md"),
        "size": Published((1280, 720), "wan2.2 generate.py", _SMALLER),
        "frames": Published(81, _SHARED_22),
        "fps": Published(16, _SHARED_22),
        "steps": Published(40, _A14B),
        "guidance": Published(4.0, _A14B),
        "guidance at low noise": Published(3.0, _A14B),
        "boundary": Published(0.875, _A14B),
        "flow shift": Published(12.0, _A14B, _OWN_SHIFT),
        "negative prompt": Published(_WAN_NEGATIVE, _SHARED_22),
    },
    "wan2.2-ti2v-5b": _WAN_1_3B | {
        "hub id": Published("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "wan2.2 README.md"),
        "size": Published((1280, 704), "wan2.2 README.md"),
        "frames": Published(121, _5B),
        "fps": Published(24, _5B),
        "steps": Published(50, _5B),
        "guidance": Published(5.0, _5B),
        "flow shift": Published(5.0, _5B),
        "negative prompt": Published(_WAN_NEGATIVE, _SHARED_22),
    },
    "self-forcing": _SELF_FORCING,
    "longlive": _SELF_FORCING | {
        "hub id": Published("Wan2.1-T2V-1.3B", _LONGLIVE, "here diffusers' copy of it"),
        "file": Published("Efficient-Large-Model/LongLive-1.3B/models/longlive_base.pt", _LONGLIVE),
        "LoRA": Published("Efficient-Large-Model/LongLive-1.3B/models/lora.pt", _LONGLIVE),
        "size": Published((832, 480), "longlive configs/default_config.yaml"),
        "frames": Published(81, "longlive configs/default_config.yaml"),
        "fps": Published(16, "longlive inference.py"),
        "steps": Published(4, _LONGLIVE),
        "flow shift": Published(5.0, _LONGLIVE),
        "chunk": Published(3, _LONGLIVE),
    },
    "causal-forcing": _causal_forcing("chunkwise/causal_forcing.pt", "chunkwise", 3, 4),
    "causal-forcing-framewise": _causal_forcing("framewise/causal_forcing.pt", "framewise", 1, 4),
    "causal-forcing-2step": _causal_forcing("causal-forcing++/framewise-2step.pt", "framewise_2step", 1, 2, 4),
    "causal-forcing-1step": _causal_forcing("causal-forcing++/framewise-1step.pt", "framewise_1step", 1, 1, 4),
    "longlive-2": {
        "hub id": Published("Wan2.2-TI2V-5B", _LONGLIVE_2, "here diffusers' copy of it"),
        "file": Published("Efficient-Large-Model/LongLive-2.0-5B/model_bf16.pt", "longlive-2 README.md"),
        "size": Published((1280, 704), "longlive-2 utils/config.py"),
        "frames": Published(125, "longlive-2 configs/train_dmd.yaml"),
        "fps": Published(24, "longlive-2 utils/config.py"),
        "steps": Published(4, _LONGLIVE_2),
        "guidance": Published(1.0, _LONGLIVE_2),
        "flow shift": Published(5.0, _LONGLIVE_2),
        "scheduler": Published("FlowUniPCMultistepScheduler", "longlive-2 wan_5b/utils/fm_solvers_unipc.py", _SAME_LEVELS),
        "negative prompt": Published("", "longlive-2 pipeline/causal_diffusion_inference.py"),
        "chunk": Published(8, _LONGLIVE_2),
    },
    "ltx-2b": {
        "hub id": Published("Lightricks/LTX-Video", "ltx README.md"),
        "size": Published((704, 480), "ltx inference.py"),
        "frames": Published(121, "ltx inference.py"),
        "fps": Published(25, "ltx inference.py"),
        "steps": Published(40, "ltx inference.py"),
        "guidance": Published(3.0, "ltx inference.py"),
        "flow shift": Published((0.95, 2.05, 1024, 4096), "diffusers scripts/convert_ltx_to_diffusers.py"),
        "scheduler": Published("FlowMatchEulerDiscreteScheduler", "diffusers scripts/convert_ltx_to_diffusers.py"),
        "negative prompt": Published("worst quality, inconsistent motion, blurry, jittery, distorted", "ltx inference.py"),
    },
    "ltx-2b-0.9.5": {
        "hub id": Published("Lightricks/LTX-Video-0.9.5", "diffusers docs/source/en/api/pipelines/ltx_video.md"),
        "size": Published((1216, 704), _LTX_SCRIPT),
        "frames": Published(121, _LTX_SCRIPT),
        "fps": Published(30, _LTX_SCRIPT),
        "steps": Published(40, _LTX_095),
        "guidance": Published(3.0, _LTX_095),
        "flow shift": Published(1.0, _LTX_CONVERTED),
        "scheduler": Published("FlowMatchEulerDiscreteScheduler", _LTX_CONVERTED),
        "negative prompt": Published("worst quality, inconsistent motion, blurry, jittery, distorted", _LTX_SCRIPT),
    },
    "ltx-2": {
        "hub id": Published("Lightricks/LTX-2", "diffusers docs/source/en/api/pipelines/ltx2.md"),
        "size": Published((768, 512), _LTX_2),
        "frames": Published(121, _LTX_2),
        "fps": Published(24, _LTX_2),
        "steps": Published(40, _LTX_2),
        "guidance": Published(3.0, _LTX_2),
        "flow shift": Published(7.77, _LTX_2.replace("utils/constants", "ti2vid_one_stage"), _OWN_SHIFT),
        "scheduler": Published("FlowMatchEulerDiscreteScheduler", "diffusers scripts/convert_ltx2_to_diffusers.py"),
        "negative prompt": Published(SPECS["ltx-2"].negative_prompt, _LTX_2),
    },
    "cogvideox-2b": _COG_2B,
    "cogvideox-5b": _COG_5B,
    "cogvideox-5b-i2v": _COG_5B | {"hub id": Published("THUDM/CogVideoX-5b-I2V", _COG_README, _RENAMED)},
    "hunyuanvideo": {
        "hub id": Published("hunyuanvideo-community/HunyuanVideo", "diffusers docs/source/en/api/pipelines/hunyuan_video.md"),
        "size": Published((1280, 720), _HUNYUAN),
        "frames": Published(129, _HUNYUAN),
        "fps": Published(24, "hunyuan sample_video.py"),
        "steps": Published(50, _HUNYUAN),
        "guidance": Published(6.0, _HUNYUAN),
        "flow shift": Published(7.0, _HUNYUAN),
        "scheduler": Published("FlowMatchEulerDiscreteScheduler", "diffusers scripts/convert_hunyuan_video_to_diffusers.py"),
        "negative prompt": Published("", _HUNYUAN),
    },
    "hunyuanvideo-i2v": {
        "hub id": Published("hunyuanvideo-community/HunyuanVideo-I2V", _HUNYUAN_PIPELINE),
        "size": Published((1280, 720), "hunyuan-i2v hyvideo/config.py"),
        "frames": Published(129, _HUNYUAN_I2V),
        "fps": Published(24, "hunyuan-i2v sample_image2video.py"),
        "steps": Published(50, _HUNYUAN_I2V),
        "guidance": Published(6.0, _HUNYUAN_I2V),
        "flow shift": Published(7.0, _HUNYUAN_I2V),
        "scheduler": Published("FlowMatchEulerDiscreteScheduler", _HUNYUAN_CONVERTED),
        "negative prompt": Published("", "hunyuan-i2v hyvideo/config.py"),
    },
    "hunyuanvideo-1.5": _HUNYUAN_15_480P | {
        "hub id": Published(f"{_HUNYUAN_15_ID}480p_t2v", _HUNYUAN_15),
    },
    "hunyuanvideo-1.5-i2v": _HUNYUAN_15_480P | {
        "hub id": Published(f"{_HUNYUAN_15_ID}480p_i2v", _HUNYUAN_15),
    },
    "hunyuanvideo-1.5-720p": _HUNYUAN_15_720P | {
        "hub id": Published(f"{_HUNYUAN_15_ID}720p_t2v", _HUNYUAN_15),
        "flow shift": Published(9.0, _HUNYUAN_15),
    },
    "hunyuanvideo-1.5-i2v-720p": _HUNYUAN_15_720P | {
        "hub id": Published(f"{_HUNYUAN_15_ID}720p_i2v", _HUNYUAN_15),
        "flow shift": Published(7.0, _HUNYUAN_15),
    },
    "hunyuanvideo-1.5-i2v-fast": _HUNYUAN_15_480P | {
        "hub id": Published(f"{_HUNYUAN_15_ID}480p_i2v_step_distilled", _HUNYUAN_15_CONVERTED),
        "steps": Published(12, "hunyuan-1.5 hyvideo/commons/__init__.py"),
        "guidance": Published(1.0, _HUNYUAN_15),
        "flow shift": Published(7.0, _HUNYUAN_15),
    },
    "cogvideox-1.5": _COG_5B | {
        "hub id": Published("THUDM/CogVideoX1.5-5B", _COG_README, _RENAMED),
        "size": Published((1360, 768), _COG_SCRIPT),
        "frames": Published(81, _COG_SCRIPT),
        "fps": Published(16, _COG_SCRIPT),
    },
    "cogvideox-1.5-i2v": _COG_5B | {
        "hub id": Published("THUDM/CogVideoX1.5-5B-I2V", _COG_README, _RENAMED),
        "size": Published((1360, 768), _COG_SCRIPT),
        "frames": Published(81, _COG_SCRIPT),
        "fps": Published(16, _COG_SCRIPT),
    },
    "skyreels-v2": _skyreels("SkyReels-V2-T2V-14B-540P-Diffusers", "pipeline_skyreels_v2"),
    "skyreels-v2-df-1.3b": _skyreels("SkyReels-V2-DF-1.3B-540P-Diffusers", _FORCING),
    "skyreels-v2-df-14b": _skyreels("SkyReels-V2-DF-14B-540P-Diffusers", _FORCING),
}  # fmt: skip
