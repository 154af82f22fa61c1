"""The definition of a rollout, without a cache: every pass runs the stock transformer over all frames so far. Slow.

Legend: B batch, R rows, n tokens per latent frame, N = R n, H heads, D head dim, C temporal rotary components, P channel pairs,
G = H where heads see different frames, else 1.

A row is a latent frame as it was run clean. What a layer makes of it depends only on what it was allowed to see then, so that
one forward over all clean rows and the newest chunk gives every frame the keys and values that a cache would hold. Where the
prompt changes frames may be run again: these are new rows of the same frames, which take the old rows' place.

What a chunk sees is written out from the techniques' tables of a preset, by the papers' equations; nothing of longgen's plans
is read. Attention is one masked softmax in double precision, in which each pair of rows has its own relative time.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Stack = list[dict[str, Any]]  # [[technique]] tables of a preset


@dataclass
class Sight:
    """What one chunk sees in one layer and step: frames and their places in time, factors [C] on frequencies, and on logits.

    late: by how much its keys stand later than their places, as a probe has it.
    """

    frames: list[int]
    places: list[float]
    factors: np.ndarray
    logit_scale: float
    late: float


@dataclass
class Group:
    """Rows that are run together: their frames, the rows of the past that there are, by frame, the latents, and the text."""

    frames: list[int]
    past: dict[int, int]
    latents: Tensor
    text: int
    first: int = 0  # row


class Dense:
    """A causal `backbone`'s transformer over all rows, and the techniques of `stack`."""

    def __init__(self, backbone: Any, stack: Stack, steps: int, texts: list[Tensor]) -> None:
        self.spec, self.transformer = backbone.spec, backbone.pipe.transformer
        self.stack, self.steps, self.texts = stack, steps, texts
        self.theta = self.spec.rotary_base ** (-2 * np.arange(self.spec.rotary_dims // 2) / self.spec.rotary_dims)
        self.groups: list[Group] = []
        self.by_head: Stack = [table for table in stack if table["name"] == "dummy-forcing"]
        self.kind_of: dict[tuple[int, int], str] = {}  # of a head in a layer, once it is known
        self.heads = range(self.spec.heads if self.by_head else 1)

    def sight(self, past: list[int], own: list[int], layer: int, step: int, kind: str | None = None) -> Sight:
        """kind: of the head."""
        here = {}
        for table in self.stack:
            first, last = (round(share * self.steps) for share in table.get("steps", (0, 1)))
            if layer in table.get("layers", [layer]) and first <= step < last:
                here[table["name"]] = table
        native, stop, theta = self.spec.native_lat, own[-1] + 1, self.theta
        window = here["window"].get("frames", native) if "window" in here else stop
        sink = here["sink"].get("frames", 3) if "sink" in here else 0
        frames = [frame for frame in [*past, *own] if frame >= stop - window or frame < sink]
        if "dummy-forcing" in here:
            sizes = {"first": 1, "middle": 3, "last": 1, "after": 6} | here["dummy-forcing"]
            kind = kind if own[0] >= sizes["after"] else None
            first = sizes["first"] if kind in ("first", None) else 0
            both = max(sizes["middle"], sizes["last"])
            before = {"first": 0, "middle": sizes["middle"], "dummy": sizes["last"], None: both}[kind]
            frames = [frame for frame in frames if frame < first or frame >= own[0] - before or frame < sink]
        places = [float(frame) for frame in frames]
        if "rebase" in here:
            gap = here["rebase"].get("gap", 1)
            steps = [1 if after == before + 1 else gap for before, after in itertools.pairwise(frames)]
            places = [float(sum(steps[:index])) for index in range(len(frames))]
        factors, logit_scale, cycles = np.ones(len(theta)), 1.0, native * theta / (2 * math.pi)
        length = max(1.0, stop / native)
        if "flex" in here:
            a, b = (here["flex"].get(key, 1.0) for key in "ab")
            kept = np.clip((cycles - a) / (b - a), 0, 1) if a < b else 1.0 * (cycles >= a)
            factors = kept + (1 - kept) / max(1.0, (places[-1] - places[0]) / (native - 1))
        if "ntk" in here:
            factors = length ** (-np.arange(len(theta)) / (len(theta) - 1))
        if "yarn" in here:
            kept = np.clip((cycles - 1) / (32 - 1), 0, 1)
            factors, logit_scale = kept + (1 - kept) / length, (0.1 * math.log(length) + 1) ** 2
        if "riflex" in here:
            k = self.spec.intrinsic_component - 1
            if stop > 2 * math.pi / theta[k]:
                factors[k] = 0.9 * 2 * math.pi / stop / theta[k]
        return Sight(frames, places, factors, logit_scale, here["shift"]["frames"] if "shift" in here else 0.0)

    def run(self, newest: Group, timestep: float, context_noise: float, step: int) -> Tensor:
        """What the model predicts [B, C, c, h, w] for `newest` in `step`; before it stand all rows, clean."""
        groups = [*self.groups, newest]
        newest.first = sum(len(group.frames) for group in self.groups)
        rows = newest.first + len(newest.frames)
        shape = (self.spec.layers, len(self.heads), rows, rows)
        seen, rel = np.zeros(shape, dtype=bool), np.zeros(shape)
        factors, logit_scale = np.ones((*shape[:3], len(self.theta))), np.ones(shape[:3])
        for layer, head, group in itertools.product(range(self.spec.layers), self.heads, groups):
            own = slice(group.first, group.first + len(group.frames))
            kind, at = self.kind_of.get((layer, head)), step if group is newest else self.steps - 1
            sight = self.sight(list(group.past), group.frames, layer, at, kind)
            row_of = group.past | {frame: group.first + index for index, frame in enumerate(group.frames)}
            columns = [row_of[frame] for frame in sight.frames]
            places = np.array(sight.places)
            seen[layer, head][own, columns] = True
            rel[layer, head][own, columns] = places[-len(group.frames) :, None] - (places + sight.late)
            factors[layer, head, own], logit_scale[layer, head, own] = sight.factors, sight.logit_scale
        text_of = np.array([group.text for group in groups for _ in group.frames])
        x = torch.cat([group.latents for group in groups], dim=2).expand(len(self.texts[0]), -1, -1, -1, -1)
        times = torch.full((len(x), rows), context_noise)
        times[:, newest.first :] = timestep
        tokens = math.prod(x.shape[3:]) // math.prod(self.spec.patch)
        with torch.no_grad(), self._installed(seen, rel, factors, logit_scale, text_of):
            predicted = self.transformer(hidden_states=x, timestep=times.repeat_interleave(tokens, dim=1),
                                         encoder_hidden_states=torch.cat(self.texts, dim=1), return_dict=False)[0]  # fmt: skip
        return predicted[:, :, newest.first :]

    def keep(self, group: Group, context_noise: float) -> dict[int, int]:
        """Adds the clean rows of `group`; its frames and their rows. Tells heads apart, where this is the group to do it by."""
        for table in self.by_head:
            if group.frames[0] < table.get("after", 6) <= group.frames[-1] + 1 and not self.kind_of:
                self._tell_apart(group, context_noise, table)
        group.first = sum(len(other.frames) for other in self.groups)
        self.groups.append(group)
        return {frame: group.first + index for index, frame in enumerate(group.frames)}

    def _tell_apart(self, group: Group, context_noise: float, table: dict[str, Any]) -> None:
        """Heads by the sums, over frames, of attention from tokens spread evenly over the clean rows of `group`."""
        self.run(group, context_noise, context_noise, self.steps - 1)
        row_of = group.past | {frame: group.first + index for index, frame in enumerate(group.frames)}
        masses: dict[tuple[int, int], list[float]] = {}
        layers = table.get("layers", range(self.spec.layers))
        for layer, head in itertools.product(layers, self.heads):
            weights = self.weights[layer][:, head]  # [B, N, N]
            tokens = weights.shape[1] // (group.first + len(group.frames))
            picked = np.linspace(0, len(group.frames) * tokens - 1, max(1, tokens // 3)).round() + group.first * tokens
            mean = weights[:, picked.astype(int)].mean((0, 1)).unflatten(0, (-1, tokens)).sum(1)  # [R]
            begin = [row_of[frame] for frame in group.past if frame < table.get("first", 1)]
            between = [row_of[frame] for frame in group.past if frame >= table.get("first", 1)]
            masses[layer, head] = [float(mean[rows].sum()) for rows in (begin, between)]
        totals = [sum(mass[part] for mass in masses.values()) for part in (0, 1)]
        shares = {place: [mass[0] / totals[0], mass[1] / totals[1]] for place, mass in masses.items()}
        ranked = sorted(shares, key=lambda place: max(shares[place]))
        self.kind_of = {place: "first" if share[0] >= share[1] else "middle" for place, share in shares.items()}
        self.kind_of |= dict.fromkeys(ranked[: round(table.get("dummy", 0.5) * len(ranked))], "dummy")

    def shown(self, group: Group) -> tuple[set[int], set[int]]:
        """The frames that heads of some kind see of `group` in every layer and step, and those in any."""
        kinds = {*self.kind_of.values()} or {None}
        cases = itertools.product(range(self.spec.layers), range(self.steps))
        sights = ([self.sight(list(group.past), group.frames, *case, kind).frames for kind in kinds] for case in cases)
        by_case = [set(itertools.chain(*by_kind)) for by_kind in sights]
        return set.intersection(*by_case), set.union(*by_case)

    @contextmanager
    def _installed(
        self, seen: np.ndarray, rel: np.ndarray, factors: np.ndarray, logit_scale: np.ndarray, text_of: np.ndarray
    ) -> Iterator[None]:
        before = [(layer, layer.processor) for block in self.transformer.blocks for layer in (block.attn1, block.attn2)]
        self.weights: dict[int, Tensor] = {}  # [B, H, N, N], by layer
        keep = self.weights.__setitem__ if self.by_head else lambda layer, weights: None
        try:
            for index, block in enumerate(self.transformer.blocks):
                attention = _SelfAttention(seen[index], rel[index], self.theta * factors[index], logit_scale[index])
                attention.keep = functools.partial(keep, index)
                block.attn1.set_processor(attention)
                block.attn2.set_processor(_Text(text_of, len(self.texts)))
            yield
        finally:
            for layer, processor in before:
                layer.set_processor(processor)


class _SelfAttention:
    """seen, rel [G, R, R]; theta [G, R, C]; gain [G, R]: of the query's row."""

    keep: Callable[[Tensor], None]  # what becomes of the weights

    def __init__(self, seen: np.ndarray, rel: np.ndarray, theta: np.ndarray, logit_scale: np.ndarray) -> None:
        self.call_geometry, self.logit_scale = torch.from_numpy(seen), torch.from_numpy(logit_scale)
        self.turn = torch.from_numpy(np.exp(1j * rel[..., None] * theta[:, :, None, :]))  # [G, R, R, C]

    def __call__(self, attn: Any, x: Tensor, text: None, mask: None, rotary: tuple[Tensor, Tensor]) -> Tensor:
        rows, count = self.turn.shape[2:]
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        q, k, v = (part.unflatten(2, (attn.heads, -1)) for part in (q, k, v))
        cos, sin = (table[0, :, 0, 0::2].double() for table in rotary)  # of space; the pairs of time come from `turn`
        still = torch.complex(cos, sin)
        still[:, :count] = 1
        q, k = (torch.view_as_complex(part.double().unflatten(-1, (-1, 2)).contiguous()) * still[None, :, None] for part in (q, k))
        q, k = (part.unflatten(1, (rows, -1)) for part in (q, k))  # [B, R, n, H, P]
        logits = torch.einsum("binhp,bjmhp->bhinjm", q[..., count:], k[..., count:].conj()).real
        logits = logits + torch.einsum("binhc,bjmhc,hijc->bhinjm", q[..., :count], k[..., :count].conj(), self.turn).real
        logits = logits * self.logit_scale[:, :, None, None, None] / v.shape[-1] ** 0.5
        logits = logits.masked_fill(~self.call_geometry[:, :, None, :, None], -np.inf)
        weights = logits.flatten(4).softmax(-1).flatten(2, 3)  # [B, H, N, N]
        self.keep(weights)
        output = torch.einsum("bhqk,bkhd->bqhd", weights, v.double())
        return attn.to_out[0](output.flatten(2).to(x))


class _Text:
    """The texts stand one after the other; each row reads its own."""

    def __init__(self, text_of: np.ndarray, count: int) -> None:
        self.reads = torch.from_numpy(text_of[:, None] == np.arange(count))  # [R, texts]

    def __call__(self, attn: Any, x: Tensor, text: Tensor, mask: None, rotary: None) -> Tensor:
        rows, count = self.reads.shape
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(text)), attn.to_v(text)
        q, k, v = (part.double().unflatten(2, (attn.heads, -1)) for part in (q, k, v))
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        reads = self.reads.repeat_interleave(x.shape[1] // rows, dim=0).repeat_interleave(text.shape[1] // count, dim=1)
        weights = logits.masked_fill(~reads, -np.inf).softmax(-1)
        return attn.to_out[0](torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2).to(x))


def rollout(
    backbone: Any,
    stack: Stack,
    frames_lat: int,
    prompts: list[str],
    steps: int = 2,
    chunk: int = 3,
    context_noise: float = 0.0,
    guidance: float = 1.0,
    switch: str = "recache",
    kept: int = 2,
    seed: int = 0,
    given: Tensor | None = None,
) -> Tensor:
    """The latents [1, C, T, h, w]. prompts: of each chunk. given: clean latents [1, C, m, h, w] that it begins with, in chunks of
    which the first has what is left over.
    """
    spec, generator = backbone.spec, torch.Generator().manual_seed(seed)
    width, height = spec.size
    shape = (1, spec.latent_channels, chunk, height // spec.stride_hw, width // spec.stride_hw)
    different = list(dict.fromkeys(prompts))
    with torch.no_grad():
        texts, uncond = [backbone.text(prompt)["encoder_hidden_states"] for prompt in different], backbone.text("")
    if guidance > 1:
        texts = [torch.cat([uncond["encoder_hidden_states"], text]) for text in texts]
    dense = Dense(backbone, stack, steps, texts)
    shares = 1 - np.arange(steps + 1) / steps
    sigmas = spec.flow_shift * shares / (1 + (spec.flow_shift - 1) * shares)
    sinks = {"sink": ("frames", 3), "dummy-forcing": ("first", 1)}
    sink = max((table.get(*sinks[table["name"]]) for table in stack if table["name"] in sinks), default=0)
    rows: dict[int, int] = {}  # of the frames that there are
    done: list[Tensor] = []

    known = 0 if given is None else given.shape[2]
    for index, prompt in enumerate(prompts):
        start, text = sum(len(latents[0, 0]) for latents in done), different.index(prompt)
        if index and prompt != prompts[index - 1]:
            if switch == "flush":
                rows = {frame: row for frame, row in rows.items() if frame < sink or frame >= start - kept}
            elif switch == "recache":
                shown, held = dense.shown(dense.groups[-1])
                again = sorted(shown if shown == set(range(start)) else {frame for frame in shown if frame >= sink})
                if again:
                    latents = torch.cat(done, dim=2)[:, :, again]
                    past = {frame: row for frame, row in rows.items() if frame < again[0] and frame in held}
                    rows |= dense.keep(Group(again, past, latents, text), context_noise)
        if given is not None and start < known:
            clean = given[:, :, start : start + (known % chunk or chunk if start == 0 else chunk)]
            done.append(clean)
            rows |= dense.keep(Group(list(range(start, start + clean.shape[2])), dict(rows), clean, text), context_noise)
            continue
        x = torch.randn(shape, generator=generator)
        group = Group(list(range(start, start + chunk)), dict(rows), x, text)
        for step in range(steps):
            group.latents = x
            v = dense.run(group, 1000 * sigmas[step], context_noise, step)
            if guidance > 1:
                v = v[:1] + guidance * (v[1:] - v[:1])
            clean = x - sigmas[step] * v
            if step + 1 < steps:
                x = (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * torch.randn(shape, generator=generator)
        group.latents = clean
        done.append(clean)
        rows |= dense.keep(group, context_noise)
    return torch.cat(done, dim=2)[:, :, :frames_lat]
