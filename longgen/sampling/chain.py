"""Chain: clip after clip, each of which begins with the last latent frames of the one before.

The common way to long video from a picture. Latents are handed over as they are, as in Stable Video Infinity, arXiv 2510.09212,
code vita-epfl/Stable-Video-Infinity, branch svi_wan22 (read in the copy millord237/Stable-Video-Infinity ab525e0); nothing is
decoded and encoded again. With its LoRAs: the technique `svi`.

Legend: T latent frames of the video, T0 of them in training, L frames of a clip, m = `overlap`, r = 1 with `reference` and else 0,
k number of a clip from 0 on, C channels.

    clip 0   frames 0 .. L - 1, as direct sampling makes them: from the picture, the earlier video, or noise alone
    clip k   [the first frame of the video, if r] [its last m frames so far] [L - r - m new ones]: the first r + m are given and
             clean, the rest is sampled; the new ones are appended                                                    [code]
    colour   a new frame's x becomes  x + c ((x - mean) / std * std_0 + mean_0 - x),  c = `colour`; mean and std of the clip's new
             frames and mean_0 and std_0 of clip 0, of each channel                       [AdaIN, arXiv 1703.06868; derived]
    seed     the run's + 42 k, so that every clip starts from noise of its own                            [code: 42 k]

Constants: L = T0 · m = min(4, the most clean frames that the model may begin with) and reference off, colour 0: the best of those
measured on `tiny` [derived].

Derived: every clip has L frames, the model's native length, the last one too, whose surplus is dropped · statistics are those of
the first clip, not of the clip before, so that errors do not add up · without a picture the reference is the first latent frame
of the first clip · a shot of a prompt schedule that has a picture begins with a clip of its own, as the video does.

Differs from the reference: clips are joined as latents, and decoded as one stream; the code decodes each clip and drops its first
5 frames, which is what r = m = 1 latent frames decode to.

Caveat: what has left the last m frames is forgotten, but for the reference.

Neutral: videos of at most L frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

from pydantic import Field

from longgen.errors import UsageError
from longgen.technique import LONGEST, Model, Sampling, Share

SEED_STRIDE = 42  # from clip to clip
OVERLAP = 4  # latent frames


class Clip(NamedTuple):
    """One clip, in latent frames. start: the video's frame that its first new one becomes. new: how many it adds; what it samples
    beyond is dropped. carried: the frames before `start` that it begins with. reference: whether the first frame stands before
    them. begins: whether it begins the video, or a shot with a picture; its new frames are then those that it is given, too.
    """

    start: int
    new: int
    carried: int = 0
    reference: bool = False
    begins: bool = False

    @property
    def given(self) -> int:
        """Frames at its beginning that are of earlier clips."""
        return self.carried + self.reference


class Chain(Sampling):
    """frames: L; the native length by default. overlap: m. reference: whether the video's first frame stays in view. colour: c."""

    paper: ClassVar[str] = "Stable Video Infinity, arXiv 2510.09212"
    requires: ClassVar[tuple[str, ...]] = ("first-frame", "whole-clip")
    loop: ClassVar[str] = "chain"
    streams: ClassVar[bool] = True
    shot_pictures: ClassVar[bool] = True
    zero_padded: ClassVar[bool] = False  # see `longgen.pipelines.given`

    frames: int | None = Field(None, ge=2, le=LONGEST)
    overlap: int | None = Field(None, ge=1, le=LONGEST)
    reference: bool = False
    colour: Share = 0.0

    def settled(self, model: Model) -> Chain:
        """With `frames` and `overlap` filled in. Raises UsageError where `model` cannot begin with so many clean frames."""
        length, most = self.frames or model.native_lat, self.most_given(model)
        if most < 1:
            raise UsageError(f"a chain hands latent frames from clip to clip, and {model.name} cannot begin with any",
                             expected="a model that goes on from a video", hint="choose another --backbone")  # fmt: skip
        overlap = self.overlap or max(1, min(OVERLAP, most - self.reference, length - 1 - self.reference))
        given = overlap + self.reference
        if given > most:
            both = f"a reference and chain.overlap = {overlap}" if self.reference else f"chain.overlap = {overlap}"
            fits = most - self.reference
            raise UsageError(f"{both}: {given} clean latent frames, and {model.name} is made to begin with {most}",
                             expected=f"overlap 1 to {fits}" if fits else "no reference", 
                             hint=f"--set chain.overlap={fits}" if fits else "--set chain.reference=false")  # fmt: skip
        if given >= length:
            raise UsageError(f"a clip of {length} latent frames begins with {given} given ones: it would add none",
                             expected=f"overlap below {length - self.reference}, or longer clips",
                             hint="a smaller chain.overlap, or leave chain.frames out")  # fmt: skip
        return self.model_copy(update={"frames": length, "overlap": overlap})

    def most_given(self, model: Model) -> int:
        """The most clean latent frames that a clip may begin with."""
        return model.clean_lat

    def clips(self, frames_lat: int, length: int, cuts: Sequence[int] = ()) -> tuple[Clip, ...]:
        """The clips of `length` frames that make T, in order. cuts: frames from 1 on at which a shot with a picture begins."""
        assert self.overlap is not None, "settled before"
        made = []
        for begin, end in pairwise((0, *cuts, frames_lat)):
            made.append(Clip(begin, min(length, end - begin), begins=True))
            while (start := sum(made[-1][:2])) < end:
                new = min(length - self.overlap - self.reference, end - start)
                made.append(Clip(start, new, self.overlap, self.reference))
        return tuple(made)

    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        return min(frames_lat, self.frames or native_lat)

    def calls(self, frames_lat: int, native_lat: int) -> float:
        return len(self.clips(frames_lat, self.frames_per_call(frames_lat, native_lat)))

    def rounds(self, frames_lat: int, native_lat: int, steps: int) -> int:
        """The steps of all clips."""
        return steps * len(self.clips(frames_lat, self.frames_per_call(frames_lat, native_lat)))
