"""The definition of a rollout, without a cache: every pass runs the stock transformer over all frames so far. Slow.

Legend: B batch, R rows, n tokens per latent frame, N = R n, H heads, D head dim, C temporal rotary components, P channel pairs,
G = H where heads see different frames, else 1.

A row is a latent frame as it was run clean. What a layer makes of it depends only on what it was allowed to see then, so that
one forward over all clean rows and the newest chunk gives every frame the keys and values that a cache would hold. Where the
prompt changes frames may be run again: these are new rows of the same frames, which take the old rows' place.

What a chunk sees is written out from the techniques' tables of a preset, by the papers' equations; nothing of longgen's plans
is read. Attention is a softmax in double precision over columns: a row at a time, the same one at two, or a mean of rows.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.sampling.dense_memory import TOP, Choice, Compression, Means, RollingSink, Seen, Shown, memory_of

Stack = list[dict[str, Any]]  # [[technique]] tables of a preset


@dataclass
class Sight:
    """What one chunk sees in one layer and step: columns and their places in time, factors [C] on frequencies, and on logits.

    late: by how much its keys stand later than their places, as a probe has it. bias: what is added to the logits of each column.
    """

    frames: list[Shown]
    places: list[float]
    factors: np.ndarray
    logit_scale: float
    late: float
    bias: list[float]


@dataclass
class Group:
    """Rows that are run together: their frames, the rows of the past that there are, by frame, the latents, the text, the steps.

    since: how many chunks ago the prompt changed. cut: the time that a cut moves them to. seen, means: what a memory holds. choice:
    of tokens that stay, made with these rows.
    """

    frames: list[int]
    past: dict[int, int]
    latents: Tensor
    text: int
    steps: int
    since: int | None = None
    cut: int | None = None
    seen: Seen | None = None
    means: Means = field(default_factory=dict)
    choice: Choice | None = None
    first: int = 0  # row


class Dense:
    """A causal `backbone`'s transformer over all rows, and the techniques of `stack`."""

    def __init__(self, backbone: Any, stack: Stack, texts: list[Tensor]) -> None:
        self.spec, self.transformer = backbone.spec, backbone.pipe.transformer
        self.stack, self.texts = stack, texts
        self.theta = self.spec.rotary_base ** (-2 * np.arange(self.spec.rotary_dims // 2) / self.spec.rotary_dims)
        self.groups: list[Group] = []
        self.per_token = any(table.get("per_token", False) for table in stack)
        self.by_head: Stack = [table for table in stack if table["name"] == "dummy-forcing"]
        self.kind_of: dict[tuple[int, int], str] = {}  # of a head in a layer, once it is known
        self.heads = range(self.spec.heads if self.by_head else 1)

    def sight(self, group: Group, layer: int, step: int, kind: str | None = None) -> Sight:
        """kind: of the head."""
        here, past, own = {}, list(group.past), group.frames
        for table in self.stack:
            first, last = (round(share * group.steps) for share in table.get("steps", (0, 1)))
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
        if group.seen is not None:
            frames, places = (list(each) for each in zip(*group.seen, strict=True))
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
        older, bias = len(frames) - len(own), [0.0] * len(frames)
        if "bias" in here:
            soft = group.since is not None and group.since < here["bias"].get("chunks", 4)
            factor = (soft and here["bias"].get("after_switch")) or here["bias"].get("factor", 0.3)
            bias[1:older] = [math.log(factor)] * (older - 1)
        if group.cut is not None and older:
            places[older:] = [group.cut + float(index) for index in range(len(own))]
            places[:older] = [place - places[0] for place in places[:older]]
        return Sight(frames, places, factors, logit_scale, here["shift"]["frames"] if "shift" in here else 0.0, bias)

    def run(self, newest: Group, timestep: float, context_noise: float, step: int) -> Tensor:
        """What the model predicts [B, C, c, h, w] for `newest` in `step`; before it stand all rows, clean."""
        groups = [*self.groups, newest]
        newest.first = sum(len(group.frames) for group in self.groups)
        rows = newest.first + len(newest.frames)
        columns: list[list[Columns]] = [[] for _ in range(self.spec.layers)]
        for layer, head, group in itertools.product(range(self.spec.layers), self.heads, groups):
            kind, at = self.kind_of.get((layer, head)), step if group is newest else group.steps - 1
            sight = self.sight(group, layer, at, kind)
            row_of = group.past | {frame: group.first + index for index, frame in enumerate(group.frames)}
            weights = torch.zeros(len(sight.frames), rows, dtype=torch.float64)
            for column, shown in zip(weights, sight.frames, strict=True):
                known = {} if shown == TOP else {row_of[shown]: 1.0} if isinstance(shown, int) else group.means[shown]
                for row, weight in known.items():
                    column[row] = weight
            of_mean = [isinstance(shown, str) and shown != TOP and not self.per_token for shown in sight.frames]
            own, heads = slice(group.first, group.first + len(group.frames)), slice(head, head + 1) if self.by_head else slice(None)
            columns[layer].append(Columns(own, weights, of_mean, np.array(sight.places), sight.late, self.theta * sight.factors,
                                          sight.logit_scale, torch.tensor(sight.bias, dtype=torch.float64), heads,
                                          [shown == TOP for shown in sight.frames], group.choice))  # fmt: skip
        text_of = np.array([group.text for group in groups for _ in group.frames])
        x = torch.cat([group.latents for group in groups], dim=2).expand(len(self.texts[0]), -1, -1, -1, -1)
        times = torch.full((len(x), rows), context_noise)
        times[:, newest.first :] = timestep
        tokens = math.prod(x.shape[3:]) // math.prod(self.spec.patch)
        with torch.no_grad(), self._installed(rows, columns, text_of):
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
        self.run(group, context_noise, context_noise, group.steps - 1)
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
        cases = itertools.product(range(self.spec.layers), range(group.steps))
        sights = ([self.sight(group, *case, kind).frames for kind in kinds] for case in cases)
        by_case = [{shown for shown in itertools.chain(*by_kind) if isinstance(shown, int)} for by_kind in sights]
        return set.intersection(*by_case), set.union(*by_case)

    @contextmanager
    def _installed(self, rows: int, columns: list[list[Columns]], text_of: np.ndarray) -> Iterator[None]:
        before = [(layer, layer.processor) for block in self.transformer.blocks for layer in (block.attn1, block.attn2)]
        self.weights: dict[int, Tensor] = {}  # [B, H, N, N], by layer
        keep = self.weights.__setitem__ if self.by_head else lambda layer, weights: None
        try:
            for index, block in enumerate(self.transformer.blocks):
                attention = _SelfAttention(rows, columns[index])
                attention.keep = functools.partial(keep, index) if self.by_head else None
                block.attn1.set_processor(attention)
                block.attn2.set_processor(_Text(text_of, len(self.texts)))
            yield
        finally:
            for layer, processor in before:
                layer.set_processor(processor)


@dataclass
class Columns:
    """What the rows `own` attend to in one layer: sums of rows, by `weights` [columns, R], of their tokens or of the tokens' mean.

    times: of the columns as queries, the last of which are `own`; as keys they are `late` more. theta [C]: scaled frequencies.
    bias [columns]: what is added to their logits. chosen [columns]: whether they hold chosen tokens. choice: made before these are
    seen.
    """

    own: slice
    weights: Tensor
    of_mean: list[bool]
    times: np.ndarray
    late: float
    theta: np.ndarray
    logit_scale: float
    bias: Tensor
    heads: slice
    chosen: list[bool]
    choice: Choice | None


class _SelfAttention:
    keep: Callable[[Tensor], None] | None = None  # what becomes of the weights [B, H, N, N]

    def __init__(self, rows: int, groups: list[Columns]) -> None:
        self.rows, self.groups = rows, groups

    def __call__(self, attn: Any, x: Tensor, text: None, mask: None, rotary: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        q, k, v = (part.double().unflatten(2, (attn.heads, -1)).unflatten(1, (self.rows, -1)) for part in (q, k, v))
        outputs, kept = torch.empty_like(q), torch.zeros(len(q), attn.heads, *(2 * (self.rows * q.shape[2] * bool(self.keep),)))
        choice = Chosen(q, k, rotary)
        for columns in self.groups:
            keys, values = (torch.einsum("cr,brnhd->bcnhd", columns.weights, part[..., columns.heads, :]) for part in (k, v))
            for part in (keys, values):
                part[:, columns.of_mean] = part[:, columns.of_mean].mean(dim=2, keepdim=True).expand_as(part[:, columns.of_mean])
            own = q[:, columns.own, :, columns.heads]
            own = self._turned(own, rotary, columns.times[-own.shape[1] :], columns.theta)
            keys = self._turned(keys, rotary, columns.times + columns.late, columns.theta)
            if columns.choice is not None:
                choice.make(columns.choice, columns.theta)
            if any(columns.chosen):
                times = columns.times[columns.chosen] + columns.late
                keys[:, columns.chosen] = choice.keys(times, columns.theta)
                values[:, columns.chosen] = choice.of(v).unflatten(1, (len(times), -1))
            logits = torch.einsum("binhp,bjmhp->bhinjm", own, keys.conj()).real * columns.logit_scale / v.shape[-1] ** 0.5
            weights = (logits + columns.bias[:, None]).flatten(4).softmax(-1).flatten(2, 3)
            part = torch.einsum("bhqk,bkhd->bqhd", weights, values.flatten(1, 2))
            outputs[:, columns.own, :, columns.heads] = part.unflatten(1, (-1, q.shape[2]))
            if self.keep is not None:
                by_row = torch.einsum("bhqcm,cr->bhqrm", weights.unflatten(3, (len(columns.weights), -1)), columns.weights)
                first, last = (edge * q.shape[2] for edge in (columns.own.start, columns.own.stop))
                kept[:, columns.heads, first:last] = by_row.flatten(3).to(kept)
        if self.keep is not None:
            self.keep(kept)
        return attn.to_out[0](outputs.flatten(1, 2).flatten(2).to(x))

    @staticmethod
    def _turned(x: Tensor, rotary: tuple[Tensor, Tensor], times: np.ndarray, theta: np.ndarray) -> Tensor:
        """Channel pairs of x [B, c, n, H, D] as complex numbers, turned by their tokens' places and by times [c] theta [C]."""
        tokens, count = x.shape[2], len(theta)
        cos, sin = (table[0, :tokens, 0, 0::2].double() for table in rotary)  # of space; the pairs of time are the first
        turn = torch.complex(cos, sin).expand(len(times), -1, -1).clone()
        turn[..., :count] = torch.from_numpy(np.exp(1j * np.outer(times, theta)))[:, None]
        return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn[:, :, None]


class Chosen:
    """Which tokens a layer has chosen, as indices [B, K] among those of all rows, and how often each."""

    def __init__(self, q: Tensor, k: Tensor, rotary: tuple[Tensor, Tensor]) -> None:
        self.q, self.k, self.rotary = q, k, rotary
        self.indices, self.counts = (torch.zeros(len(k), 0, dtype=torch.int64) for _ in "ic")

    def of(self, x: Tensor) -> Tensor:
        """[B, K, H, *] of x [B, R, n, H, *]."""
        return torch.stack([one[indices] for one, indices in zip(x.flatten(1, 2), self.indices, strict=True)])

    def keys(self, times: np.ndarray, theta: np.ndarray) -> Tensor:
        """The chosen keys in frames [B, c, n, H, P] at `times` [c], at their own places in the frame."""
        in_space = _SelfAttention._turned(self.k, self.rotary, np.zeros(self.k.shape[1]), theta)
        there = self.of(in_space).unflatten(1, (len(times), -1))
        turn = torch.ones(len(times), there.shape[-1], dtype=there.dtype)
        turn[:, : len(theta)] = torch.from_numpy(np.exp(1j * np.outer(times, theta)))
        return there * turn[:, None, None]

    def make(self, choice: Choice, theta: np.ndarray) -> None:
        """Token by token of those that there are, the sum of what all heads of all queries make of its key."""
        tokens, first = self.k.shape[2], min(choice.leaving)
        asking, leaving = [*choice.asking.values()], [*choice.leaving.values()]
        queries = _SelfAttention._turned(self.q[:, asking], self.rotary, np.array([*choice.asking]), theta).flatten(1, 2)
        keys = _SelfAttention._turned(self.k[:, leaving], self.rotary, np.array([*choice.leaving]), theta).flatten(1, 2)
        new = torch.tensor([row * tokens + token for row in leaving for token in range(tokens)]).expand(len(keys), -1)
        if self.indices.shape[1]:
            keys = torch.cat([self.keys(np.arange(first - choice.frames, first), theta).flatten(1, 2), keys], dim=1)
        indices, counts = torch.cat([self.indices, new], dim=1), torch.cat([self.counts, torch.zeros_like(new)], dim=1)
        logits = torch.einsum("bihp,bjhp->bhij", queries, keys.conj()).real.sum((1, 2))
        self.indices, self.counts = indices[:, : choice.frames * tokens].clone(), counts[:, : choice.frames * tokens].clone()
        for b, row in enumerate(logits):
            spent = (counts[b] >= choice.reuse).tolist() if choice.reuse else [False] * len(row)
            ranked = sorted(range(len(row)), key=lambda j: (spent[j], -float(row[j])))
            best = sorted(ranked[: choice.frames * tokens])
            self.indices[b], self.counts[b] = indices[b, best], counts[b, best] + 1


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
    cuts: dict[int, int] | None = None,
    first_steps: int | None = None,
) -> Tensor:
    """The latents [1, C, T, h, w]. prompts: of each chunk. given: clean latents [1, C, m, h, w] that it begins with, in chunks of
    which the first has what is left over. cuts: the chunks that begin with a cut, and the time that it moves them to. first_steps:
    of the first chunk after those given.
    """
    spec, generator = backbone.spec, torch.Generator().manual_seed(seed)
    width, height = spec.size
    shape = (1, spec.latent_channels, chunk, height // spec.stride_hw, width // spec.stride_hw)
    different = list(dict.fromkeys(prompts))
    with torch.no_grad():
        texts, uncond = [backbone.text(prompt)["encoder_hidden_states"] for prompt in different], backbone.text("")
    if guidance > 1:
        texts = [torch.cat([uncond["encoder_hidden_states"], text]) for text in texts]
    dense = Dense(backbone, stack, texts)
    sinks = {
        "sink": ("frames", 3),
        "dummy-forcing": ("first", 1),
        "memrope": ("sink", 3),
        "participative-compression": ("sink", 10),
    }
    sink = max((table.get(*sinks[table["name"]]) for table in stack if table["name"] in sinks), default=0)
    memory = memory_of(stack, spec.native_lat, chunk)
    sink = memory.window - chunk if isinstance(memory, RollingSink) else sink
    rows: dict[int, int] = {}  # of the frames that there are
    done: list[Tensor] = []

    def group_of(frames: list[int], past: dict[int, int], latents: Tensor, text: int, steps: int) -> Group:
        fate = since, (cuts or {}).get(index)
        if memory is None:
            return Group(frames, past, latents, text, steps, *fate)
        seen = memory.open(frames, past)
        choice = memory.choice if isinstance(memory, Compression) else None
        return Group(frames, past, latents, text, steps, *fate, seen, memory.means, choice)

    def keep(group: Group) -> dict[int, int]:
        if memory is not None:
            memory.close(group.frames)
        return dense.keep(group, context_noise)

    known, since = 0 if given is None else given.shape[2], None
    for index, prompt in enumerate(prompts):
        start, text = sum(len(latents[0, 0]) for latents in done), different.index(prompt)
        since = None if since is None else since + 1
        if index and prompt != prompts[index - 1]:
            since = 0
            if switch == "flush":
                if isinstance(memory, RollingSink):
                    memory.forget([frame for frame in rows if sink <= frame < start - kept])
                rows = {frame: row for frame, row in rows.items() if frame < sink or frame >= start - kept}
            elif switch == "recache":
                shown, held = dense.shown(dense.groups[-1])
                again = sorted(shown if shown == set(range(start)) else {frame for frame in shown if frame >= sink})
                if again:
                    latents = torch.cat(done, dim=2)[:, :, again]
                    past = {frame: row for frame, row in rows.items() if frame < again[0] and frame in held}
                    group = Group(again, past, latents, text, steps)
                    if memory is not None:
                        group.seen, group.means = memory.again(again), memory.means
                    rows |= dense.keep(group, context_noise)
        if given is not None and start < known:
            clean = given[:, :, start : start + (known % chunk or chunk if start == 0 else chunk)]
            done.append(clean)
            rows |= keep(group_of(list(range(start, start + clean.shape[2])), dict(rows), clean, text, steps))
            continue
        levels = first_steps if first_steps and start == known else steps
        sigmas = [spec.flow_shift * u / (1 + (spec.flow_shift - 1) * u) for u in 1 - np.arange(levels + 1) / levels]
        x = torch.randn(shape, generator=generator)
        group = group_of(list(range(start, start + chunk)), dict(rows), x, text, levels)
        for step in range(levels):
            group.latents = x
            v = dense.run(group, 1000 * sigmas[step], context_noise, step)
            if guidance > 1:
                v = v[:1] + guidance * (v[1:] - v[:1])
            clean = x - sigmas[step] * v
            if step + 1 < levels:
                x = (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * torch.randn(shape, generator=generator)
        group.latents = clean
        done.append(clean)
        rows |= keep(group)
    return torch.cat(done, dim=2)[:, :, :frames_lat]
