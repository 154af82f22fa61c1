"""The training of `tiny`: every stage runs and restarts, and what comes out is a pipeline that longgen drives."""

from __future__ import annotations

import colorsys
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longgen.backbones import tiny_grammar
from longgen.backbones.tiny import clips, parts, train

STEPS = {"images": 2, "video": 1, "latents": 2, "decoder": 1, "transformer": 2, "unpack": 0, "causal": 2, "unsaid-latents": 2,
         "unsaid": 2, "pictures": 2, "parts": 2}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real stages and the real model, with a few steps and clips."""
    monkeypatch.setattr(train, "SHARD", 1)
    monkeypatch.setattr(train, "BATCH", 2)
    monkeypatch.setattr(train, "CAUSAL_BATCH", 2)
    monkeypatch.setattr(train, "STAGES", {name: (run, STEPS[name]) for name, (run, _) in train.STAGES.items()})


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's rms_norm under autocast
def test_every_stage_runs_and_exports_a_pipeline(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from longgen import planner, preset
    from longgen.backbones.settings import ModelSettings
    from longgen.backbones.wan import TINY
    from longgen.loops import sample
    from longgen.loops.denoiser import Denoiser
    from longgen.pipelines.loading import load

    work, folder = tmp_path / "work", tmp_path / "tiny"
    arguments = ["train", "--work", str(work), "--output", str(folder), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    train.main()
    assert sorted(p.name for p in work.glob("*.pt")) == ["decoder.pt", "images.pt", "transformer.pt", "video.pt"]
    spec = dataclasses.replace(TINY, source=str(folder))
    made = planner.build(preset.load("freespec", sample=preset.Sample(frames=89, steps=1)), spec)
    backbone = load(spec, ModelSettings("cpu", "fp32"))
    noise = torch.randn(backbone.latent_shape(made), generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(sample(Denoiser(backbone, made, tiny_grammar.HELD_OUT[0].prompt), noise, torch.Generator())).all()
    assert abs(torch.tensor(backbone.pipe.vae.config.latents_std)).min() > 0


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's rms_norm under autocast
@pytest.mark.parametrize(
    ("stages", "shipped"),
    [
        ("unpack,latents,causal,export-causal", "weights/transformer"),
        ("unpack,unsaid-latents,unsaid,export-unsaid", "weights-causal"),
    ],
)
def test_the_causal_stages_start_from_the_shipped_model(
    stages: str, shipped: str, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from longgen import planner, preset
    from longgen.backbones.registry import SPECS
    from longgen.backbones.settings import ModelSettings
    from longgen.loops import sample
    from longgen.loops.denoiser import Denoiser
    from longgen.pipelines.loading import load

    work, folder = tmp_path / "work", tmp_path / "causal"
    monkeypatch.setattr(sys, "argv", ["train", "--work", str(work), "--output", str(folder), "--device", "cpu", "--stages", stages])
    train.main()
    places = (Path(train.__file__).parent / shipped, folder)
    before, after = (train.WanTransformer3DModel.from_pretrained(place).float() for place in places)
    moved = [(a - b).abs().max().item() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert 0 < max(moved) < 0.1
    spec = dataclasses.replace(SPECS["tiny-causal"], checkpoint=str(folder))
    made = planner.build(preset.load("direct", sample=preset.Sample(frames=33)), spec)
    backbone, generator = load(spec, ModelSettings("cpu", "fp32")), torch.Generator().manual_seed(0)
    words = tiny_grammar.HELD_OUT[0].prompt
    denoiser = Denoiser(backbone, made, words)
    final = sample(denoiser, denoiser.initial_noise(generator), generator)
    assert final.shape[2] == 9
    assert torch.isfinite(final).all()


def test_the_causal_mask_shows_a_noisy_chunk_the_clean_past_and_itself() -> None:
    """Frames 0-5 are the clean clip in chunks of three, 6-11 the noisy one; with one token a frame."""
    mask = train.TeacherForced(6, 1, 3).mask
    expected = torch.zeros(12, 12, dtype=torch.bool)
    for i in range(12):
        for j in range(6):
            expected[i, j] = j // 3 < (i % 6) // 3 or (i < 6 and j // 3 == i // 3)
        if i >= 6:
            expected[i, 6 + 3 * ((i - 6) // 3) : 9 + 3 * ((i - 6) // 3)] = True
    assert torch.equal(mask, expected)


def test_a_restarted_stage_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 3)

    def fit(folder: Path, stop_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)

        def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return layer(torch.randn(8, 4, generator=generator)).square().mean()

        folder.mkdir(exist_ok=True)
        train.fit("stage", folder, {"layer": layer}, train.adamw(layer, 1e-2), 8, loss_at, train.warm_then_fall)
        return layer.weight.detach()

    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", stop_at=5)
    assert torch.equal(fit(tmp_path / "stopped"), whole)


def test_an_untrained_vae_starts_as_a_frame_wise_one() -> None:
    """After start_framewise, a frame's latent does not depend on the frames before it in its group of four."""
    vae = train.new_vae("cpu")
    train.start_framewise(vae)
    video, _ = train.draw_clip(torch.Generator().manual_seed(0), 9)
    with torch.no_grad():
        clip = vae.encode(video[None]).latent_dist.mode()
        still = vae.encode(video[None, :, :1]).latent_dist.mode()
    assert torch.allclose(clip[:, :, :1], still, atol=1e-5)


@pytest.mark.parametrize("words", [tiny_grammar.HELD_OUT[0], tiny_grammar.TRAINING[0], tiny_grammar.TRAINING[-1]])
def test_clips_are_a_function_of_their_seed(words: tiny_grammar.Words) -> None:
    def draw(seed: int) -> torch.Tensor:
        return clips.render(clips.draw_scene(words, torch.Generator().manual_seed(seed)), torch.arange(5.0))[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_held_out_sentences_are_not_trained_on() -> None:
    assert len(set(tiny_grammar.HELD_OUT)) == tiny_grammar.HELD_OUT_COUNT == 48
    assert set(tiny_grammar.HELD_OUT).isdisjoint(tiny_grammar.TRAINING)
    assert len(tiny_grammar.TRAINING) + len(tiny_grammar.HELD_OUT) == len(tiny_grammar.SENTENCES) == 1200
    for slot, words in tiny_grammar.SLOTS.items():  # every word is seen in training, and asked for in the check
        assert {getattr(sentence, slot) for sentence in tiny_grammar.TRAINING} == set(words)
        assert {getattr(sentence, slot) for sentence in tiny_grammar.HELD_OUT} == set(words)


def test_unsaid_sentences_are_those_without_their_colour() -> None:
    assert len(tiny_grammar.UNSAID) == len(tiny_grammar.SENTENCES) / len(tiny_grammar.COLOURS)
    assert set(tiny_grammar.UNSAID_HELD_OUT).isdisjoint(tiny_grammar.UNSAID_TRAINING)
    assert len(tiny_grammar.UNSAID_HELD_OUT) == tiny_grammar.UNSAID_HELD_OUT_COUNT
    assert tiny_grammar.UNSAID[0].prompt == "a small circle bouncing on a navy background"
    for slot in ("size", "shape", "motion", "background"):  # every word is asked for
        assert {getattr(sentence, slot) for sentence in tiny_grammar.UNSAID_HELD_OUT} == set(tiny_grammar.SLOTS[slot])


def test_an_unsaid_colour_is_any_hue_and_that_of_the_seed() -> None:
    draws = [clips.draw_scene(tiny_grammar.UNSAID[0], torch.Generator().manual_seed(seed)).rgb for seed in (*range(50), 7)]
    hues = sorted(colorsys.rgb_to_hsv(*rgb)[0] for rgb in draws)
    assert draws[7] == draws[-1]
    assert max(b - a for a, b in itertools.pairwise(hues)) < 0.15
    said = clips.draw_scene(tiny_grammar.SENTENCES[0], torch.Generator().manual_seed(0))
    assert said.rgb == tiny_grammar.RGB[said.words.colour]


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("a large red circle bouncing on a navy background", True),
        ("A small cyan  triangle orbiting on a sand background.", True),
        ("a cat", False),
        ("a large red circle bouncing on a navy background, 4k", False),
        ("", False),
    ],
)
def test_grammar(prompt: str, known: bool) -> None:
    assert (tiny_grammar.parse(prompt) is not None) == known


def test_the_tokenizer_knows_every_word(tiny: Any) -> None:
    for sentence in tiny_grammar.SENTENCES:
        ids = tiny.pipe.tokenizer(sentence.prompt).input_ids
        assert tiny.pipe.tokenizer.unk_token_id not in ids
        assert len(ids) <= train.TEXT_TOKENS
        assert ids[-1] == tiny.pipe.tokenizer.eos_token_id
    assert tiny.pipe.tokenizer("").input_ids == [tiny.pipe.tokenizer.eos_token_id]


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's rms_norm under autocast
@pytest.mark.parametrize("stages", ["unpack,latents,pictures,export-pictures", "unpack,latents,parts,export-parts"])
def test_the_stages_of_pictures_start_from_the_shipped_model(
    stages: str, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each exports is a transformer that takes a time for each token, and begins at the shipped one."""
    work, folder = tmp_path / "work", tmp_path / "pictures"
    arguments = ["train", "--work", str(work), "--output", str(folder), "--device", "cpu", "--stages", stages]
    monkeypatch.setattr(sys, "argv", arguments)
    train.main()
    shipped = Path(train.__file__).parent / "weights" / "transformer"
    before, after = (train.WanTransformer3DModel.from_pretrained(place).float() for place in (shipped, folder))
    moved = [(a - b).abs().max().item() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert 0 < max(moved) < 0.1
    times = torch.full((1, 21 * 16), 900.0)
    times[:, :16] = 0
    with torch.no_grad():
        velocity = after(torch.randn(1, 48, 21, 4, 4), times, torch.randn(1, 24, 64), return_dict=False)[0]
    assert torch.isfinite(velocity).all()


def test_the_stage_of_parts_goes_on_from_that_of_pictures(tmp_path: Path) -> None:
    train.unpack(tmp_path, "cpu", 0)
    other, _, _ = train.new_transformer("cpu")
    torch.save({"ema": {"transformer": other.state_dict()}}, tmp_path / "pictures.pt")
    transformer, mean, embeds = train.start_at_tiny(tmp_path, "cpu", "pictures")
    _, _, shipped = train.start_at_tiny(tmp_path, "cpu")
    for started in (transformer, mean):
        assert all(torch.equal(a, b) for a, b in zip(started.parameters(), other.parameters(), strict=True))
    assert torch.equal(embeds, shipped)  # the text encoder is tiny's, which these stages do not train


def test_half_of_whole_clips_begin_with_clean_latents() -> None:
    kept, known = parts.begun(21, 10_000, 1.0, torch.Generator().manual_seed(0))
    assert kept.tolist() == list(range(21))
    assert (known == 0).float().mean() == pytest.approx(1 - parts.PICTURED, abs=0.02)
    assert known[known > 0].unique().tolist() == list(range(1, parts.MOST_CLEAN_LAT + 1))
    assert (known[known > 0] == 1).float().mean() == pytest.approx(0.5 + 0.5 / parts.MOST_CLEAN_LAT, abs=0.02)


def test_parts_of_clips_leave_something_to_learn() -> None:
    """Half of the batches are whole; the others begin later, half of these with the first latent in view, and with a clean one."""
    generator, kinds = torch.Generator().manual_seed(0), {"whole": 0, "later": 0, "in view": 0}
    for _ in range(1000):
        kept, known = parts.begun(21, 4, 0.5, generator)
        first, second = kept[:2].tolist()
        kind = "whole" if (first, second, len(kept)) == (0, 1, 21) and 0 in known else "later" if first else "in view"
        kinds[kind] += 1
        assert kept[-1] == 20
        assert torch.equal(kept[1:].diff(), torch.ones(len(kept) - 2))
        assert known.max() < len(kept)
        if kind == "later":
            assert 1 <= first <= parts.MOST_CUT_LAT
            assert known.min() >= 1
        elif kind == "in view" and second > 1:
            assert known.min() >= 2
    assert kinds["later"] == pytest.approx(250, abs=50)
    assert kinds["whole"] + kinds["in view"] == pytest.approx(750, abs=50)
