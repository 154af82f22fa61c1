"""DINO and CLIP by transformers against their equations, written out; frames are prepared as torchvision's transforms do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from longgen.errors import LonggenError, MissingError
from longgen.metrics.vbench import clip, dino, musiq, pictures, pretrained

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)


def randomised(model: Any) -> Any:
    draw = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        tensor.data = torch.randn(tensor.shape, generator=draw) * 0.3
    return model.eval()


def block(x: torch.Tensor, layer: Any, norms: tuple[Any, Any], attention: Any, out: Any, act: Any, eps: float) -> torch.Tensor:
    """x [F, N, 32] through one layer: x + attention(norm(x)), then + mlp(norm(x)), with 4 heads of 8."""
    y = F.layer_norm(x, (32,), norms[0].weight, norms[0].bias, eps)
    q, k, v = (part(y).unflatten(2, (4, 8)).transpose(1, 2) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    x = x + out((torch.softmax(q @ k.transpose(2, 3) / 8**0.5, dim=-1) @ v).transpose(1, 2).flatten(2))
    y = F.layer_norm(x, (32,), norms[1].weight, norms[1].bias, eps)
    return x + layer.mlp.fc2(act(layer.mlp.fc1(y)))


@pytest.mark.parametrize("size", [(64, 112), (112, 64), (224, 224), (224, 231)])
def test_dino_is_the_hub_codes(size: tuple[int, int]) -> None:
    model = randomised(ViTModel(ViTConfig(**SMALL, layer_norm_eps=1e-6), add_pooling_layer=False))
    frames = torch.randint(0, 256, (2, 3, *size)).float()
    x = pictures.for_dino(frames)
    rows, columns = x.shape[2] // 16, x.shape[3] // 16
    kept = model.embeddings.position_embeddings
    places = kept[:, 1:]
    if x.shape[2:] != (224, 224):  # dino/vision_transformer.py: w0, h0 = w0 + 0.1, h0 + 0.1
        grid = places.reshape(1, 14, 14, 32).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=((rows + 0.1) / 14, (columns + 0.1) / 14), mode="bicubic")
        places = grid.permute(0, 2, 3, 1).reshape(1, rows * columns, 32)
    with torch.inference_mode():
        tokens = model.embeddings.patch_embeddings.projection(x).flatten(2).transpose(1, 2) + places
        y = torch.cat([(model.embeddings.cls_token + kept[:, :1]).expand(2, -1, -1), tokens], dim=1)
        for layer in model.layers:
            norms = (layer.layernorm_before, layer.layernorm_after)
            y = block(y, layer, norms, layer.attention, layer.attention.o_proj, F.gelu, 1e-6)
        want = F.layer_norm(y, (32,), model.layernorm.weight, model.layernorm.bias, 1e-6)[:, 0]
        plain = model(x, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        got = dino.Dino(model).embed(frames)
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.allclose(plain, want, atol=1e-5) == (x.shape[2:] == (224, 224))  # what transformers alone would give


def test_clip_is_the_published_network() -> None:
    model = randomised(CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, projection_dim=24)))
    frames = torch.randint(0, 256, (2, 3, 60, 100)).float()
    inner = model.vision_model
    with torch.inference_mode():
        y = inner.embeddings.patch_embedding(pictures.for_clip(frames)).flatten(2).transpose(1, 2)
        y = torch.cat([inner.embeddings.class_embedding.expand(2, 1, -1), y], dim=1) + inner.embeddings.position_embedding.weight
        y = F.layer_norm(y, (32,), inner.pre_layrnorm.weight, inner.pre_layrnorm.bias, 1e-5)
        for layer in inner.encoder.layers:
            norms = (layer.layer_norm1, layer.layer_norm2)
            y = block(y, layer, norms, layer.self_attn, layer.self_attn.out_proj, lambda x: x * torch.sigmoid(1.702 * x), 1e-5)
        y = F.layer_norm(y[:, 0], (32,), inner.post_layernorm.weight, inner.post_layernorm.bias, 1e-5)
        want = y @ model.visual_projection.weight.T
        got = clip.Clip(model).embed(frames)
    assert torch.allclose(got, want, atol=1e-5)


def test_the_published_sizes_are_asked_for() -> None:
    with torch.device("meta"):
        vit, b32, l14 = ViTModel(dino.CONFIG, add_pooling_layer=False), *map(CLIPVisionModelWithProjection, (clip.B32, clip.L14))
    assert sum(tensor.numel() for tensor in vit.parameters()) == 85_798_656  # of dino_vitb16
    assert sum(tensor.numel() for tensor in b32.parameters()) == 87_849_216  # of ViT-B/32's image half
    assert sum(tensor.numel() for tensor in l14.parameters()) == 303_966_208  # of ViT-L/14's
    assert dino.CONFIG.layer_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("size", "dino_size"), [((480, 832), (224, 388)), ((832, 480), (388, 224)), ((64, 64), (224, 224)), ((224, 231), (224, 231))]
)
def test_sizes_are_cut_not_rounded(size: tuple[int, int], dino_size: tuple[int, int]) -> None:
    frames = torch.zeros(1, 3, *size)
    assert pictures.for_dino(frames).shape[2:] == dino_size
    assert pictures.for_clip(frames).shape[2:] == (224, 224)


def test_musiq_gets_at_most_512_pixels_and_no_more_than_there_are() -> None:
    assert pictures.for_musiq(torch.zeros(1, 3, 480, 832)).shape[2:] == (295, 512)
    small = 255 * torch.rand(1, 3, 320, 512)
    assert torch.equal(pictures.for_musiq(small), small / 255)


def test_pixels_are_taken_without_antialiasing() -> None:
    frames = torch.zeros(1, 3, 896, 896)
    frames[..., 2::4] = 255.0  # every output pixel lies between columns 1 and 2 of its four: half of each
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in pictures.IMAGENET)
    assert torch.allclose(pictures.for_dino(frames)[0] * deviation + mean, torch.tensor(0.5), atol=1e-6)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in pictures.CLIP)
    weight = (1.25 * 0.5 - 2.25) * 0.5 * 0.5 + 1  # of torch's cubic, a = -0.75, half a pixel away
    assert torch.allclose((pictures.for_clip(frames)[0] * deviation + mean)[:, 9:-9, 9:-9], torch.tensor(weight), atol=1e-6)


def test_the_middle_square_starts_at_the_even_one_of_two_halves() -> None:
    ramp = torch.arange(229.0).expand(1, 3, 224, 229)  # (229 - 224) / 2 = 2.5, which Python rounds to 2
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in pictures.CLIP)
    assert torch.allclose((pictures.for_clip(ramp)[0] * deviation + mean)[:, :, 0] * 255, torch.tensor(2.0), atol=1e-4)


def test_weights_of_the_published_layout_load_without_a_config(tmp_path: Path) -> None:
    vit = randomised(ViTModel(ViTConfig(**SMALL)))  # with the pooling layer that the published file has
    vit.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "config.json").unlink()
    got = pretrained.load(ViTModel, tmp_path / "vit" / "model.safetensors", ViTConfig(**SMALL), add_pooling_layer=False)
    assert torch.equal(got.layers[1].mlp.fc1.weight, vit.layers[1].mlp.fc1.weight)
    text = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=16)
    both = randomised(CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=24)))
    (tmp_path / "clip").mkdir()
    torch.save(both.state_dict(), tmp_path / "clip" / "pytorch_model.bin")
    config = CLIPVisionConfig(**SMALL, projection_dim=24)
    half = pretrained.load(CLIPVisionModelWithProjection, tmp_path / "clip" / "pytorch_model.bin", config)
    assert torch.equal(half.visual_projection.weight, both.visual_projection.weight)
    assert half.visual_projection.weight.dtype == torch.float32


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    randomised(ViTModel(ViTConfig(**SMALL))).save_pretrained(tmp_path)
    with pytest.raises(LonggenError, match="does not hold the weights of ViTModel"):
        pretrained.load(ViTModel, tmp_path / "model.safetensors", ViTConfig(**(SMALL | {"num_hidden_layers": 3})))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(LonggenError, match="does not hold the weights of ViTModel"):
        pretrained.load(ViTModel, tmp_path / "model.safetensors", ViTConfig(**SMALL))


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1, 512), "bias": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(LonggenError, match="is not LAION's linear head"):
        clip.load_head(tmp_path / "head.pth", "cpu")


def test_musiq_says_what_to_install(tmp_path: Path) -> None:
    if musiq.installed():
        pytest.skip("pyiqa is installed")
    with pytest.raises(MissingError, match="pip install pyiqa"):
        musiq.load(tmp_path / "musiq_spaq_ckpt-358bb6af.pth", "cpu")
