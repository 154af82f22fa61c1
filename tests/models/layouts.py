"""The published folders: every config as its repository has it, the names and number of the files of weights, their dtypes.

Sources. Wan 2.1 1.3B (revision 0fad780) and Wan 2.2 5B (b8fff73): each JSON file has the SHA-256 in `DIGESTS`, which public
manifests of these revisions state. Wan 14B and A14B: the arguments of diffusers' convert_wan_to_diffusers.py, and a public list of
A14B's files with their sizes. Wan's image-to-video models: the same script, their encoder of pictures as laion's CLIP-ViT-H-14.
LTX-Video: Lightricks/LTX-Video, ltx_video/utils/diffusers_config_mapping.py. CogVideoX and HunyuanVideo: diffusers' conversion
scripts (schedulers, VAEs by their defaults), the text encoders as other code quotes them. What is no more than these scripts'
word: the number of LTX-Video's files, the dtypes of the VAEs of CogVideoX and HunyuanVideo, the numbers of files of their
image-to-video models (filled to 5 GB), and the class in the index of LTX-Video 0.9.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """One repository. configs: by path. files: of weights, by component. dtypes: of these weights, as safetensors names them."""

    configs: dict[str, Config]
    files: dict[str, int]
    dtypes: dict[str, str]
    sentencepiece: bool = False  # its tokenizer is a SentencePiece model alone, without tokenizer.json


def _diffusers(name: str, version: str, **arguments: Any) -> Config:
    return {"_class_name": name, "_diffusers_version": version, **arguments}


def _unipc(version: str, **arguments: Any) -> Config:
    return _diffusers(
        "UniPCMultistepScheduler", version, beta_end=0.02, beta_schedule="linear", beta_start=0.0001, disable_corrector=[],
        dynamic_thresholding_ratio=0.995, final_sigmas_type="zero", lower_order_final=True, num_train_timesteps=1000,
        predict_x0=True, prediction_type="flow_prediction", rescale_betas_zero_snr=False, sample_max_value=1.0, solver_order=2,
        solver_p=None, solver_type="bh2", steps_offset=0, thresholding=False, timestep_spacing="linspace", trained_betas=None,
        use_beta_sigmas=False, use_exponential_sigmas=False, use_flow_sigmas=True, use_karras_sigmas=False, **arguments,
    )  # fmt: skip


def _euler(version: str, **arguments: Any) -> Config:
    return _diffusers(
        "FlowMatchEulerDiscreteScheduler", version, invert_sigmas=False, max_image_seq_len=4096, num_train_timesteps=1000,
        use_beta_sigmas=False, use_exponential_sigmas=False, use_karras_sigmas=False, **arguments,
    )  # fmt: skip


def _t5(architecture: str, model_type: str, dtype: str, version: str, **arguments: Any) -> Config:
    """google/umt5-xxl and google/t5-v1_1-xxl, which have the same sizes but for the vocabulary."""
    return {
        "architectures": [architecture], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64, "d_model": 4096,
        "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True,
        "layer_norm_epsilon": 1e-06, "model_type": model_type, "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24,
        "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False, "torch_dtype": dtype, "transformers_version": version, "use_cache": True,
    } | arguments  # fmt: skip


def _umt5(dtype: str) -> Config:
    return _t5("UMT5EncoderModel", "umt5", dtype, "4.48.0.dev0", _name_or_path="google/umt5-xxl", scalable_attention=True,
               tokenizer_class="T5Tokenizer", vocab_size=256384)  # fmt: skip


def _t5_xxl(dtype: str, version: str) -> Config:
    return _t5("T5EncoderModel", "t5", dtype, version, _name_or_path="google/t5-v1_1-xxl", vocab_size=32128)


def _wan_transformer(version: str, heads: int, layers: int, ffn_dim: int, channels: int = 16, **more: Any) -> Config:
    return _diffusers(
        "WanTransformer3DModel", version, added_kv_proj_dim=None, attention_head_dim=128, cross_attn_norm=True, eps=1e-06,
        ffn_dim=ffn_dim, freq_dim=256, image_dim=None, in_channels=channels, num_attention_heads=heads, num_layers=layers,
        out_channels=channels, patch_size=[1, 2, 2], qk_norm="rms_norm_across_heads", rope_max_seq_len=1024, text_dim=4096, **more,
    )  # fmt: skip


def _wan_vae(version: str, **arguments: Any) -> Config:
    return _diffusers("AutoencoderKLWan", version, attn_scales=[], dim_mult=[1, 2, 4, 4], dropout=0.0, num_res_blocks=2,
                      temperal_downsample=[False, True, True], **arguments)  # fmt: skip


_WAN_21_MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
                -0.9497, 0.2503, -0.2921]  # fmt: skip
_WAN_21_STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
               2.8251, 1.916]  # fmt: skip
_WAN_22_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098,
    0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567,
    -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957,
    0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]  # fmt: skip
_WAN_22_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454,
    0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999,
    0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444,
    0.4089, 0.7468, 0.7744,
]  # fmt: skip


def _wan_21_vae(version: str) -> Config:
    return _wan_vae(version, base_dim=96, latents_mean=_WAN_21_MEAN, latents_std=_WAN_21_STD, z_dim=16)


def _wan_22_vae(version: str) -> Config:
    return _wan_vae(
        version, base_dim=160, clip_output=False, decoder_base_dim=256, in_channels=12, is_residual=True, latents_mean=_WAN_22_MEAN,
        latents_std=_WAN_22_STD, out_channels=12, patch_size=2, scale_factor_spatial=16, scale_factor_temporal=4, z_dim=48,
    )  # fmt: skip


def _wan_index(version: str, pipeline: str = "WanPipeline", **more: Any) -> Config:
    return _diffusers(
        pipeline, version, scheduler=["diffusers", "UniPCMultistepScheduler"],
        text_encoder=["transformers", "UMT5EncoderModel"], tokenizer=["transformers", "T5TokenizerFast"],
        transformer=["diffusers", "WanTransformer3DModel"], vae=["diffusers", "AutoencoderKLWan"], **more,
    )  # fmt: skip


def _wan_21(heads: int, layers: int, ffn_dim: int, files: int) -> Layout:
    version = "0.33.0.dev0"
    return Layout(
        {
            "model_index.json": _wan_index(version),
            "scheduler/scheduler_config.json": _unipc(version, flow_shift=3.0),
            "text_encoder/config.json": _umt5("float32"),
            "transformer/config.json": _wan_transformer(version, heads, layers, ffn_dim),
            "vae/config.json": _wan_21_vae(version),
        },
        files={"text_encoder": 5, "transformer": files, "vae": 1},
        dtypes={"text_encoder": "F32", "transformer": "F32", "vae": "F32"},
    )


def _wan_i2v(flow_shift: float, **more: Any) -> Layout:
    """Wan 2.1 from pictures, with the arguments `more` of its transformer."""
    version, base = "0.33.0.dev0", _wan_21(40, 40, 13824, files=14)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    transformer = base.configs["transformer/config.json"] | {"added_kv_proj_dim": 5120, "image_dim": 1280, "in_channels": 36} | more
    seeing = {"image_encoder": ["transformers", "CLIPVisionModel"], "image_processor": ["transformers", "CLIPImageProcessor"]}
    configs = base.configs | {
        "model_index.json": _wan_index(version, "WanImageToVideoPipeline", **seeing),
        "scheduler/scheduler_config.json": _unipc(version, flow_shift=flow_shift),
        "transformer/config.json": transformer,
        "image_encoder/config.json": {
            "architectures": ["CLIPVisionModel"], "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "gelu",
            "hidden_size": 1280, "image_size": 224, "initializer_factor": 1.0, "initializer_range": 0.02,
            "intermediate_size": 5120, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model", "num_attention_heads": 16,
            "num_channels": 3, "num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024, "torch_dtype": "float32",
        },
        "image_processor/preprocessor_config.json": {
            "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
            "do_rescale": True, "do_resize": True, "image_mean": mean, "image_processor_type": "CLIPImageProcessor",
            "image_std": std, "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224},
        },
    }  # fmt: skip
    return Layout(configs, base.files | {"image_encoder": 1}, base.dtypes | {"image_encoder": "F32"})


def _wan_22(transformer: Config, vae: Config, files: dict[str, int], flow_shift: float, **index: Any) -> Layout:
    version = "0.35.0.dev0"
    more = {"transformer_2/config.json": transformer} if "transformer_2" in files else {}
    return Layout(
        {
            "model_index.json": _wan_index(version, **index),
            "scheduler/scheduler_config.json": _unipc(
                version, flow_shift=flow_shift, time_shift_type="exponential", use_dynamic_shifting=False
            ),
            "text_encoder/config.json": _umt5("bfloat16"),
            "transformer/config.json": transformer,
            "vae/config.json": vae,
            **more,
        },
        files={"text_encoder": 3, **files, "vae": 1},
        dtypes={"text_encoder": "BF16", "vae": "F32", **dict.fromkeys(files, "F32")},
    )


def _cogvideox(
    heads: int, layers: int, rotary: bool, files: int, scale: float, snr: float, dtypes: tuple[str, str], pictured: bool = False
) -> Layout:
    version, (dtype, stored) = "0.30.0.dev0", dtypes
    blocks = dict(down_block_types=["CogVideoXDownBlock3D"] * 4, up_block_types=["CogVideoXUpBlock3D"] * 4)
    return Layout(
        {
            "model_index.json": _diffusers(
                "CogVideoXImageToVideoPipeline" if pictured else "CogVideoXPipeline", version,
                scheduler=["diffusers", "CogVideoXDDIMScheduler"],
                text_encoder=["transformers", "T5EncoderModel"], tokenizer=["transformers", "T5Tokenizer"],
                transformer=["diffusers", "CogVideoXTransformer3DModel"], vae=["diffusers", "AutoencoderKLCogVideoX"],
            ),
            "scheduler/scheduler_config.json": _diffusers(
                "CogVideoXDDIMScheduler", version, beta_end=0.012, beta_schedule="scaled_linear", beta_start=0.00085,
                clip_sample=False, clip_sample_range=1.0, num_train_timesteps=1000, prediction_type="v_prediction",
                rescale_betas_zero_snr=True, sample_max_value=1.0, set_alpha_to_one=True, snr_shift_scale=snr, steps_offset=0,
                timestep_spacing="trailing", trained_betas=None,
            ),
            "text_encoder/config.json": _t5_xxl(dtype, "4.42.4"),
            "transformer/config.json": _diffusers(
                "CogVideoXTransformer3DModel", version, activation_fn="gelu-approximate", attention_bias=True,
                attention_head_dim=64, dropout=0.0, flip_sin_to_cos=True, freq_shift=0, max_text_seq_length=226,
                in_channels=32 if pictured else 16,
                norm_elementwise_affine=True, norm_eps=1e-05, num_attention_heads=heads, num_layers=layers, out_channels=16,
                patch_size=2, sample_frames=49, sample_height=60, sample_width=90, spatial_interpolation_scale=1.875,
                temporal_compression_ratio=4, temporal_interpolation_scale=1.0, text_embed_dim=4096, time_embed_dim=512,
                timestep_activation_fn="silu", use_rotary_positional_embeddings=rotary,
                **({"use_learned_positional_embeddings": True} if pictured else {}),
            ),
            "vae/config.json": _diffusers(
                "AutoencoderKLCogVideoX", version, act_fn="silu", block_out_channels=[128, 256, 256, 512], force_upcast=True,
                in_channels=3, latent_channels=16, latents_mean=None, latents_std=None, layers_per_block=3, norm_eps=1e-06,
                norm_num_groups=32, out_channels=3, sample_height=480, sample_width=720, scaling_factor=scale, shift_factor=None,
                temporal_compression_ratio=4, use_post_quant_conv=False, use_quant_conv=False, **blocks,
                **({"invert_scale_latents": True} if pictured else {}),
            ),
        },
        files={"text_encoder": 2, "transformer": files, "vae": 1},
        dtypes=dict.fromkeys(("text_encoder", "transformer", "vae"), stored),
        sentencepiece=True,
    )  # fmt: skip


_LTX = "0.32.0.dev0"
_A14B = _wan_transformer("0.35.0.dev0", 40, 40, 13824, pos_embed_seq_len=None)
_5B = _wan_transformer("0.35.0.dev0", 24, 30, 14336, 48, pos_embed_seq_len=None)
LAYOUTS: dict[str, Layout] = {  # name of the backbone -> its repository
    "wan2.1-1.3b": _wan_21(12, 30, 8960, files=2),
    "wan2.1-14b": _wan_21(40, 40, 13824, files=12),
    "wan2.1-i2v-14b-480p": _wan_i2v(3.0),
    "wan2.1-i2v-14b-720p": _wan_i2v(3.0),
    "wan2.1-flf2v-14b": _wan_i2v(16.0, pos_embed_seq_len=514),
    "wan2.2-i2v-a14b": _wan_22(
        _A14B | {"in_channels": 36}, _wan_21_vae("0.35.0.dev0"), {"transformer": 12, "transformer_2": 12}, 3.0, boundary_ratio=0.9,
        pipeline="WanImageToVideoPipeline", expand_timesteps=False, transformer_2=["diffusers", "WanTransformer3DModel"],
        image_encoder=[None, None], image_processor=[None, None],
    ),
    "wan2.2-t2v-a14b": _wan_22(
        _A14B, _wan_21_vae("0.35.0.dev0"), {"transformer": 12, "transformer_2": 12}, 3.0, boundary_ratio=0.875,
        expand_timesteps=False, transformer_2=["diffusers", "WanTransformer3DModel"],
    ),
    "wan2.2-ti2v-5b": _wan_22(
        _5B, _wan_22_vae("0.35.0.dev0"), {"transformer": 5}, 5.0, boundary_ratio=None, expand_timesteps=True,
        transformer_2=[None, None],
    ),
    "ltx-2b": Layout(
        {
            "model_index.json": _diffusers(
                "LTXPipeline", _LTX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
                text_encoder=["transformers", "T5EncoderModel"], tokenizer=["transformers", "T5Tokenizer"],
                transformer=["diffusers", "LTXVideoTransformer3DModel"], vae=["diffusers", "AutoencoderKLLTXVideo"],
            ),
            "scheduler/scheduler_config.json": _euler(
                _LTX, base_image_seq_len=1024, base_shift=0.95, max_shift=2.05, shift=1.0, shift_terminal=0.1,
                use_dynamic_shifting=True,
            ),
            "text_encoder/config.json": _t5_xxl("float32", "4.46.2"),
            "transformer/config.json": _diffusers(
                "LTXVideoTransformer3DModel", _LTX, activation_fn="gelu-approximate", attention_bias=True, attention_head_dim=64,
                attention_out_bias=True, caption_channels=4096, cross_attention_dim=2048, in_channels=128,
                norm_elementwise_affine=False, norm_eps=1e-06, num_attention_heads=32, num_layers=28, out_channels=128,
                patch_size=1, patch_size_t=1, qk_norm="rms_norm_across_heads",
            ),
            "vae/config.json": _diffusers(
                "AutoencoderKLLTXVideo", _LTX, block_out_channels=[128, 256, 512, 512], decoder_causal=False, encoder_causal=True,
                in_channels=3, latent_channels=128, layers_per_block=[4, 3, 3, 3, 4], out_channels=3, patch_size=4,
                patch_size_t=1, resnet_norm_eps=1e-06, scaling_factor=1.0, spatio_temporal_scaling=[True, True, True, False],
            ),
        },
        files={"text_encoder": 4, "transformer": 2, "vae": 1},
        dtypes={"text_encoder": "F32", "transformer": "F32", "vae": "F32"},
        sentencepiece=True,
    ),
    "cogvideox-2b": _cogvideox(30, 30, False, 1, 1.15258426, 3.0, ("float16", "F16")),
    "cogvideox-5b": _cogvideox(48, 42, True, 2, 0.7, 1.0, ("bfloat16", "BF16")),
    "cogvideox-5b-i2v": _cogvideox(48, 42, True, 3, 0.7, 1.0, ("bfloat16", "BF16"), pictured=True),
    "hunyuanvideo": Layout(
        {
            "model_index.json": _diffusers(
                "HunyuanVideoPipeline", _LTX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
                text_encoder=["transformers", "LlamaModel"], text_encoder_2=["transformers", "CLIPTextModel"],
                tokenizer=["transformers", "LlamaTokenizerFast"], tokenizer_2=["transformers", "CLIPTokenizer"],
                transformer=["diffusers", "HunyuanVideoTransformer3DModel"], vae=["diffusers", "AutoencoderKLHunyuanVideo"],
            ),
            "scheduler/scheduler_config.json": _euler(
                _LTX, base_image_seq_len=256, base_shift=0.5, max_shift=1.15, shift=7.0, shift_terminal=None,
                use_dynamic_shifting=False,
            ),
            "text_encoder/config.json": {
                "architectures": ["LlamaModel"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
                "eos_token_id": 128001, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
                "intermediate_size": 14336, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
                "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
                "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": False,
                "torch_dtype": "float16", "transformers_version": "4.46.3", "use_cache": True, "vocab_size": 128320,
            },
            "text_encoder_2/config.json": {
                "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
                "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
                "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
                "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
                "projection_dim": 768, "torch_dtype": "float16", "transformers_version": "4.46.3", "vocab_size": 49408,
            },
            "transformer/config.json": _diffusers(
                "HunyuanVideoTransformer3DModel", _LTX, attention_head_dim=128, guidance_embeds=True, in_channels=16,
                mlp_ratio=4.0, num_attention_heads=24, num_layers=20, num_refiner_layers=2, num_single_layers=40,
                out_channels=16, patch_size=2, patch_size_t=1, pooled_projection_dim=768, qk_norm="rms_norm",
                rope_axes_dim=[16, 56, 56], rope_theta=256.0, text_embed_dim=4096,
            ),
            "vae/config.json": _diffusers(
                "AutoencoderKLHunyuanVideo", _LTX, act_fn="silu", block_out_channels=[128, 256, 512, 512],
                down_block_types=["HunyuanVideoDownBlock3D"] * 4, in_channels=3, latent_channels=16, layers_per_block=2,
                mid_block_add_attention=True, norm_num_groups=32, out_channels=3, scaling_factor=0.476986,
                spatial_compression_ratio=8, temporal_compression_ratio=4, up_block_types=["HunyuanVideoUpBlock3D"] * 4,
            ),
        },
        files={"text_encoder": 4, "text_encoder_2": 1, "transformer": 6, "vae": 1},
        dtypes={"text_encoder": "F16", "text_encoder_2": "F16", "transformer": "BF16", "vae": "F32"},
    ),
}  # fmt: skip


def _ltx_condition() -> Layout:
    """The text encoder and the transformer of 0.9, another VAE and scheduler."""
    configs = LAYOUTS["ltx-2b"].configs | {}
    configs["model_index.json"] = configs["model_index.json"] | {"_class_name": "LTXConditionPipeline"}
    configs["scheduler/scheduler_config.json"] = _euler(
        _LTX, base_image_seq_len=256, base_shift=0.5, max_shift=1.15, shift=1.0, shift_terminal=None, use_dynamic_shifting=False
    )
    configs["vae/config.json"] = _diffusers(
        "AutoencoderKLLTXVideo", _LTX, block_out_channels=[128, 256, 512, 1024, 2048], decoder_block_out_channels=[256, 512, 1024],
        decoder_causal=False, decoder_inject_noise=[False] * 4, decoder_layers_per_block=[5, 5, 5, 5],
        decoder_spatio_temporal_scaling=[True, True, True], down_block_types=["LTXVideo095DownBlock3D"] * 4,
        downsample_type=["spatial", "temporal", "spatiotemporal", "spatiotemporal"], encoder_causal=True, in_channels=3,
        latent_channels=128, layers_per_block=[4, 6, 6, 2, 2], out_channels=3, patch_size=4, patch_size_t=1, resnet_norm_eps=1e-06,
        scaling_factor=1.0, spatial_compression_ratio=32, spatio_temporal_scaling=[True, True, True, True],
        temporal_compression_ratio=8, timestep_conditioning=True, upsample_factor=[2, 2, 2], upsample_residual=[True, True, True],
    )  # fmt: skip
    return replace(LAYOUTS["ltx-2b"], configs=configs)


def _hunyuan_i2v() -> Layout:
    """The text encoder is LLaVA on the Llama of HunyuanVideo, as xtuner published it, with its language head."""
    configs, text = LAYOUTS["hunyuanvideo"].configs | {}, LAYOUTS["hunyuanvideo"].configs["text_encoder/config.json"]
    configs["model_index.json"] = configs["model_index.json"] | {
        "_class_name": "HunyuanVideoImageToVideoPipeline", "text_encoder": ["transformers", "LlavaForConditionalGeneration"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
    }  # fmt: skip
    configs["image_processor/preprocessor_config.json"] = {
        "crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 336},
    }  # fmt: skip
    configs["text_encoder/config.json"] = {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_seq_length": 576,
        "image_token_index": 128257, "model_type": "llava", "pad_token_id": 128258, "projector_hidden_act": "gelu",
        "text_config": text | {"architectures": ["LlamaForCausalLM"]}, "torch_dtype": "float16", "transformers_version": "4.46.3",
        "vision_config": {
            "dropout": 0.0, "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
        },
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    }  # fmt: skip
    configs["transformer/config.json"] = configs["transformer/config.json"] | {"image_condition_type": "token_replace"}
    return replace(LAYOUTS["hunyuanvideo"], configs=configs)


def _hunyuan_15(pictured: bool, shift: float = 5.0, target: int = 640, meanflow: bool = False) -> Layout:
    """By diffusers' script; Qwen2.5-VL-7B's text half, byT5 with Glyph-SDXL-v2's words, whose number is a guess, SigLIP."""
    guidance, version = 1.0 if meanflow else 6.0, "0.36.0"
    task = "i2v" if pictured or target == 640 else "t2v"  # i2v for 480p T2V too, in the script
    encoders = {
        "image_encoder": ["transformers", "SiglipVisionModel"], "feature_extractor": ["transformers", "SiglipImageProcessor"],
    }  # fmt: skip
    configs = {
        "model_index.json": _diffusers(
            "HunyuanVideo15ImageToVideoPipeline" if pictured else "HunyuanVideo15Pipeline", version,
            guider=["diffusers", "ClassifierFreeGuidance"], scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
            text_encoder=["transformers", "Qwen2_5_VLTextModel"], text_encoder_2=["transformers", "T5EncoderModel"],
            tokenizer=["transformers", "Qwen2Tokenizer"], tokenizer_2=["transformers", "ByT5Tokenizer"],
            transformer=["diffusers", "HunyuanVideo15Transformer3DModel"], vae=["diffusers", "AutoencoderKLHunyuanVideo15"],
            **(encoders if pictured else {}),
        ),
        "guider/guider_config.json": _diffusers("ClassifierFreeGuidance", version, enabled=True, guidance_rescale=0.0,
                                                guidance_scale=guidance, start=0.0, stop=1.0, use_original_formulation=False),
        "scheduler/scheduler_config.json": _euler(
            version, base_image_seq_len=256, base_shift=0.5, max_shift=1.15, shift=shift, shift_terminal=None,
            use_dynamic_shifting=False,
        ),
        "text_encoder/config.json": {
            "architectures": ["Qwen2_5_VLTextModel"], "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
            "max_position_embeddings": 128000, "model_type": "qwen2_5_vl_text", "num_attention_heads": 28, "num_hidden_layers": 28,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
            "vocab_size": 152064,
            "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        },
        "text_encoder_2/config.json": _t5(
            "T5EncoderModel", "t5", "float32", "4.57.1", d_ff=3584, d_model=1472, num_heads=6, num_layers=12, num_decoder_layers=4,
            vocab_size=1510,
        ),
        "transformer/config.json": _diffusers(
            "HunyuanVideo15Transformer3DModel", version, attention_head_dim=128, image_embed_dim=1152, in_channels=65,
            mlp_ratio=4.0, num_attention_heads=16, num_layers=54, num_refiner_layers=2, out_channels=32, patch_size=1,
            patch_size_t=1, qk_norm="rms_norm", rope_axes_dim=[16, 56, 56], rope_theta=256.0, target_size=target, task_type=task,
            text_embed_2_dim=1472, text_embed_dim=3584, use_meanflow=meanflow,
        ),
        "vae/config.json": _diffusers(
            "AutoencoderKLHunyuanVideo15", version, block_out_channels=[128, 256, 512, 1024, 1024], downsample_match_channel=True,
            in_channels=3, latent_channels=32, layers_per_block=2, out_channels=3, scaling_factor=1.03682,
            spatial_compression_ratio=16, temporal_compression_ratio=4, upsample_match_channel=True,
        ),
    }  # fmt: skip
    files, dtypes = (
        {"text_encoder": 3, "text_encoder_2": 1, "transformer": 7, "vae": 2},
        {"text_encoder": "BF16", "text_encoder_2": "F32", "transformer": "F32", "vae": "F32"},
    )
    if pictured:
        configs["image_encoder/config.json"] = {
            "architectures": ["SiglipVisionModel"], "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
            "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
            "torch_dtype": "bfloat16",
        }  # fmt: skip
        configs["feature_extractor/preprocessor_config.json"] = {
            "image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384},
        }  # fmt: skip
        files, dtypes = files | {"image_encoder": 1}, dtypes | {"image_encoder": "BF16"}
    return Layout(configs, files, dtypes)


def _ltx_2() -> Layout:
    """By diffusers' script; Gemma 3 12B by the numbers of its config that transformers' defaults lack."""
    version, both = "0.37.0.dev0", ("video", "audio")
    connectors: Config = {}
    for stream in both:
        connectors |= {
            f"{stream}_connector_num_attention_heads": 30,
            f"{stream}_connector_attention_head_dim": 128,
            f"{stream}_connector_num_layers": 2,
            f"{stream}_connector_num_learnable_registers": 128,
        }
    text = {
        "head_dim": 256,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
        "vocab_size": 262208,
    }
    vision = {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    }
    configs = {
        "model_index.json": _diffusers(
            "LTX2Pipeline", version, audio_vae=["diffusers", "AutoencoderKLLTX2Audio"], connectors=["ltx2", "LTX2TextConnectors"],
            scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
            text_encoder=["transformers", "Gemma3ForConditionalGeneration"], tokenizer=["transformers", "GemmaTokenizerFast"],
            transformer=["diffusers", "LTX2VideoTransformer3DModel"], vae=["diffusers", "AutoencoderKLLTX2Video"],
            vocoder=["ltx2", "LTX2Vocoder"],
        ),
        "scheduler/scheduler_config.json": _euler(
            version, base_image_seq_len=1024, base_shift=0.95, max_shift=2.05, shift=1.0, shift_terminal=0.1,
            use_dynamic_shifting=True,
        ),
        "text_encoder/config.json": {
            "architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 256, "model_type": "gemma3",
            "text_config": text, "torch_dtype": "bfloat16", "vision_config": vision,
        },
        "connectors/config.json": _diffusers(
            "LTX2TextConnectors", version, caption_channels=3840, causal_temporal_positioning=False,
            connector_rope_base_seq_len=4096, rope_double_precision=True, rope_theta=10000.0, rope_type="split",
            text_proj_in_factor=49, **connectors,
        ),
        "transformer/config.json": _diffusers(
            "LTX2VideoTransformer3DModel", version, activation_fn="gelu-approximate", attention_bias=True, attention_head_dim=128,
            attention_out_bias=True, audio_attention_head_dim=64, audio_cross_attention_dim=2048, audio_hop_length=160,
            audio_in_channels=128, audio_num_attention_heads=32, audio_out_channels=128, audio_patch_size=1, audio_patch_size_t=1,
            audio_pos_embed_max_pos=20, audio_sampling_rate=16000, audio_scale_factor=4, base_height=2048, base_width=2048,
            caption_channels=3840, causal_offset=1, cross_attention_dim=4096, cross_attn_timestep_scale_multiplier=1000,
            in_channels=128, norm_elementwise_affine=False, norm_eps=1e-06, num_attention_heads=32, num_layers=48,
            out_channels=128, patch_size=1, patch_size_t=1, pos_embed_max_pos=20, qk_norm="rms_norm_across_heads",
            rope_double_precision=True, rope_theta=10000.0, rope_type="split", timestep_scale_multiplier=1000,
            vae_scale_factors=[8, 32, 32],
        ),
        "vae/config.json": _diffusers(
            "AutoencoderKLLTX2Video", version, block_out_channels=[256, 512, 1024, 2048],
            decoder_block_out_channels=[256, 512, 1024], decoder_causal=False, decoder_inject_noise=[False] * 4,
            decoder_layers_per_block=[5, 5, 5, 5], decoder_spatial_padding_mode="reflect",
            decoder_spatio_temporal_scaling=[True, True, True], down_block_types=["LTX2VideoDownBlock3D"] * 4,
            downsample_type=["spatial", "temporal", "spatiotemporal", "spatiotemporal"], encoder_causal=True,
            encoder_spatial_padding_mode="zeros", in_channels=3, latent_channels=128, layers_per_block=[4, 6, 6, 2, 2],
            out_channels=3, patch_size=4, patch_size_t=1, resnet_norm_eps=1e-06, scaling_factor=1.0, spatial_compression_ratio=32,
            spatio_temporal_scaling=[True, True, True, True], temporal_compression_ratio=8, timestep_conditioning=False,
            upsample_factor=[2, 2, 2], upsample_residual=[True, True, True],
        ),
        "audio_vae/config.json": _diffusers(
            "AutoencoderKLLTX2Audio", version, attn_resolutions=None, base_channels=128, causality_axis="height",
            ch_mult=[1, 2, 4], double_z=True, dropout=0.0, in_channels=2, is_causal=True, latent_channels=8, mel_bins=64,
            mel_hop_length=160, mid_block_add_attention=False, norm_type="pixel", num_res_blocks=2, output_channels=2,
            resolution=256, sample_rate=16000,
        ),
        "vocoder/config.json": _diffusers(
            "LTX2Vocoder", version, hidden_channels=1024, in_channels=128, leaky_relu_negative_slope=0.1, out_channels=2,
            output_sampling_rate=24000, resnet_dilations=[[1, 3, 5]] * 3, resnet_kernel_sizes=[3, 7, 11],
            upsample_factors=[6, 5, 2, 2, 2], upsample_kernel_sizes=[16, 15, 8, 4, 4],
        ),
    }  # fmt: skip
    files = {"text_encoder": 5, "connectors": 1, "transformer": 8, "vae": 1, "audio_vae": 1, "vocoder": 1}
    return Layout(configs, files, dict.fromkeys(files, "BF16"))


def _skyreels(pipeline: str, heads: int, layers: int, ffn_dim: int, files: int, **more: Any) -> Layout:
    """Wan 2.1's, with SkyReels-V2's classes; the arguments of diffusers' script. Scheduler and files are a guess."""
    version, base = "0.35.0.dev0", _wan_21(heads, layers, ffn_dim, files)
    transformer = base.configs["transformer/config.json"] | dict(
        _class_name="SkyReelsV2Transformer3DModel", pos_embed_seq_len=None, num_frame_per_block=1,
    ) | dict({"inject_sample_info": False} | more)  # fmt: skip
    index = _wan_index(version, pipeline) | dict(transformer=["diffusers", "SkyReelsV2Transformer3DModel"])
    configs = {"model_index.json": index, "transformer/config.json": transformer,
               "scheduler/scheduler_config.json": _unipc(version, flow_shift=1.0)}  # fmt: skip
    return replace(base, configs=base.configs | configs)


def _cogvideox_15(pictured: bool = False) -> Layout:
    """CogVideoX-5B's, with the arguments of the authors' cogvideox1.5_5b.yaml; the number of files is a guess."""
    base = _cogvideox(48, 42, True, 3, 0.7, 1.0, ("bfloat16", "BF16"), pictured)
    transformer = base.configs["transformer/config.json"] | dict(
        max_text_seq_length=224, ofs_embed_dim=512 if pictured else None, patch_bias=False, patch_size_t=2, sample_frames=81,
        sample_height=300, sample_width=300, use_learned_positional_embeddings=False,
    )  # fmt: skip
    return replace(base, configs=base.configs | {"transformer/config.json": transformer})


LAYOUTS |= {
    "ltx-2": _ltx_2(),
    "cogvideox-1.5": _cogvideox_15(),
    "cogvideox-1.5-i2v": _cogvideox_15(pictured=True),
    "skyreels-v2": _skyreels("SkyReelsV2Pipeline", 40, 40, 13824, files=14),
    "skyreels-v2-df-1.3b": _skyreels("SkyReelsV2DiffusionForcingPipeline", 12, 30, 8960, files=2, inject_sample_info=True),
    "skyreels-v2-df-14b": _skyreels("SkyReelsV2DiffusionForcingPipeline", 40, 40, 13824, files=14),
    "ltx-2b-0.9.5": _ltx_condition(), "hunyuanvideo-i2v": _hunyuan_i2v(), "hunyuanvideo-1.5": _hunyuan_15(pictured=False),
    "hunyuanvideo-1.5-i2v": _hunyuan_15(pictured=True), "hunyuanvideo-1.5-720p": _hunyuan_15(False, 9.0, 960),
    "hunyuanvideo-1.5-i2v-720p": _hunyuan_15(True, 7.0, 960),
    "hunyuanvideo-1.5-i2v-fast": _hunyuan_15(True, 7.0, 640, meanflow=True),
}  # fmt: skip
DIGESTS: dict[str, dict[str, str]] = {  # SHA-256 of published files
    "wan2.1-1.3b": {
        "model_index.json": "b8b28e022329acf975e027579a1d2dc3de44dba28f4c909b98a880fbf5b0de7d",
        "scheduler/scheduler_config.json": "3fed2abbd9bbc301a74db01947198057ec5049808910dccab320925bf27bea6e",
        "text_encoder/config.json": "4087b6192155a4643f6d29fd326c4610103130674011ef4d0a53f8bce5de967d",
        "text_encoder/model.safetensors.index.json": "8af791f24a6447aa30c95786f40adf23d3c9df97470d2f36159c8f1113f120b4",
        "transformer/config.json": "0b093fa072e9ff28763febe9b964ee582f566733a6d6709deb9dfba1bde16b81",
        "vae/config.json": "f0c1cc1d7decb5badc384f54691746a27a9aeff49f7ebca974e583389342d527",
    },
    "wan2.2-ti2v-5b": {
        "model_index.json": "6a72faeb564b0e894aea8fc4ef27241106eb739e8584e869b61589a65473add7",
        "scheduler/scheduler_config.json": "571a3eed68bcd943a61b9fea8efa9e141472216ada59f928c8b5128ce24b32e0",
        "text_encoder/config.json": "a2bcb24699f6c009a2427432bdd483ef8b2b42a712abc9503759cdc77d171f07",
        "text_encoder/model.safetensors.index.json": "31c4c7bcce679eaa0dd4667462394ddb013dc2f748e0bffc893dc9146a320dab",
        "transformer/config.json": "dc00d9866e72cf77db6b531aaa33be4dc7148fef9338442bd0ae9181f7075e9b",
        "vae/config.json": "d996c340fe9a7df5d7371f76a7d8d6956f6c98256080074d8434fa5eeac11360",
    },
}
