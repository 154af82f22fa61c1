"""Banded attention inside frames in few launches: all chunks of all frames in one call. For accelerators; `banded` suits a CPU.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, w width of the band, m query tokens of a chunk, s key
tokens of its span, C chunks, R query frames of a call, K key frames of a call, H heads, D head dim, G = B C H.

Of a key frame, query token q sees the tokens k with |q - k| < w. A frame is cut into chunks that need no padding:

    two ends      tokens 0 .. m - 1 and n - m .. n - 1   s = m + w - 1, the last end in reverse order: one mask serves both
    C middle ones m tokens each, between the ends        s = m + 2 w - 2, one mask serves all

Where frames are small beside the band there are ends alone, or one chunk of the whole frame. q, k and v are copied, chunk by chunk:

    q' [T, m, G, D]    k', v' [T, s, G, D]

so that samples and chunks are more heads, and the key frames of a query frame are neighbours:

    sliding   R query frames that each see K frames, one later than the frame before   a batch of R views, mask [m, K s]
    block     R query frames that between them see K frames                            one sequence, mask [R m, K s]

`cuts` chooses chunks and calls by cost. Each query frame is in one call of a band, and bands are merged by their log-sum-exp.

A band is the pairs of frames on one side of the query frame that agree on the times of keys and of queries
(`longgen.attention.key_times`), on the share seen and on the logit columns: three tiers of VRPR are six bands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from longgen.attention.context import LayerInputs
from longgen.attention.key_times import Band, by_key_times
from longgen.attention.lowering import Range
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.sequential import unless_native, windows_of
from longgen.attention.streaming import StreamingMean, merge
from longgen.device_tables import kept_on
from longgen.frameplan import FramePlan, Pass

SIZES = (16, 32, 64, 128, 192, 256, 384, 512)  # m of the middle chunks
TILE = 64  # query tokens that a kernel computes at a time
HELD = 4.0  # times N tokens, and the layer's room more: k', v', q' and the output, twice, of chunks that are computed together
COPY = 350  # pairs of tokens attended in the time in which a key and its value are copied, on an H100 [derived]
MOST_ROWS = 16  # query frames of a block
LARGEST_MASK = 2**24  # elements of a block's
ALIGNED = 16  # keys: rows of masks begin at multiples of it


@dataclass(frozen=True, eq=False)
class KeyTable:
    """Bands of keys rotated to `key_times` [T], of which the same `share` of a frame is seen."""

    share: float
    key_times: np.ndarray
    bands: tuple[Band, ...]


@dataclass(frozen=True)
class Chunks:
    """`count` chunks of `size` query tokens, the first at token `first`; the `span` key tokens begin `before` tokens earlier.

    ends: where it is not 0, there are two chunks instead, one at each end of the frame, the second in reverse order; of its tokens
    these come first, and the others are among those of other chunks.
    """

    first: int
    size: int
    before: int
    span: int
    count: int
    ends: int = 0

    @property
    def copied(self) -> int:
        """Key tokens of a frame."""
        return self.count * self.span

    @property
    def held(self) -> int:
        """Tokens of a frame in k', v', q' and, twice, the output."""
        return self.count * (2 * self.span + 3 * self.size)

    def cost(self, query_frames: int, key_frames: int) -> int:
        """Of a call's sequence, in pairs of tokens computed."""
        return self.count * -(-query_frames * self.size // TILE) * TILE * key_frames * self.span


@dataclass(frozen=True)
class BandCall:
    """Query frames `rows`. sliding: they see `keys` each, one frame later than the frame before; else all are in `keys`."""

    rows: Range
    keys: Range
    sliding: bool


CutChunks = tuple[Chunks, tuple[tuple[BandCall, ...], ...]]  # with the calls of every band


@lru_cache(maxsize=64)
def split(pass_: Pass) -> tuple[Pass, tuple[tuple[KeyTable, ...], ...]]:
    """`pass_` without the pairs of frames seen in bands, and these by their share."""
    assert pass_.band is not None
    assert pass_.positive is None
    seen = pass_.visible & (pass_.weight > 0)[:, None]
    banded = seen & (pass_.band < 1)
    logits = np.stack([np.ones_like(pass_.rel), np.zeros_like(pass_.rel)]) if pass_.logits is None else pass_.logits
    computed = banded & (logits[1] > -np.inf)
    shares = tuple(
        tuple(KeyTable(share, *table) for table in by_key_times(pass_.rel, computed & (pass_.band == share), logits))
        for share in np.unique(pass_.band[computed]).tolist()
    )
    return replace(pass_, visible=seen & ~banded, columns=pass_.without_shares), shares


def chunkings(share: float, tokens: int, room: float = 0.0) -> Iterator[tuple[Chunks, ...]]:
    """All ways in which a frame of `tokens` is cut; chunks of one call are apart. room: as in `cuts`."""
    width = math.ceil(share * tokens)
    yield (Chunks(0, tokens, 0, tokens, 1),)
    half = -(-tokens // 2)
    if tokens > 1:
        yield (Chunks(0, half, 0, min(tokens, half + width - 1), 2, ends=tokens // 2),)
    for size in SIZES:
        count, span = (tokens - 2 * width) // size, size + 2 * width - 2
        if count < 1:
            break
        outside = tokens - count * size
        end = -(-outside // 2)
        together = max(1, int((HELD + room) * tokens / (2 * span + 3 * size)))
        calls = -(-count // together)
        edges = [count * call // calls for call in range(calls + 1)]
        middle = [Chunks(end + size * first, size, width - 1, span, last - first) for first, last in itertools.pairwise(edges)]
        yield (Chunks(0, end, 0, end + width - 1, 2, ends=outside // 2), *middle)


@lru_cache(maxsize=64)
def cuts(tables: tuple[KeyTable, ...], tokens: int, call: float, room: float = 0.0) -> tuple[CutChunks, ...]:
    """Chunks of frames of `tokens`, each with its calls for every band of `tables`, at the least cost.

    tables: of one share (they hash by identity). call: the cost of a call, in pairs of tokens attended. room: times N tokens that
    may be held beyond `HELD`.
    """
    bands = [band for table in tables for band in table.bands]
    cheapest, least = list[CutChunks](), math.inf
    ways = list(chunkings(tables[0].share, tokens, room))
    held = [max(chunks.held for chunks in chunking) for chunking in ways]
    for chunking in (way for way, most in zip(ways, held, strict=True) if most <= max((HELD + room) * tokens, min(held))):
        cut, cost, known = list[CutChunks](), 0.0, dict[tuple[int, int, int], list[tuple[float, tuple[BandCall, ...]]]]()
        for chunks in chunking:
            alike = chunks.size, chunks.span, chunks.count
            if alike not in known:
                known[alike] = [_calls(band.windows, chunks, call) for band in bands]
            calls = known[alike]
            cost += sum(cost for cost, _ in calls) + call * (len(bands) + len(tables))  # a merge and a copy are launches, too
            cost += COPY * chunks.copied * len(tables[0].key_times) * len(tables)
            cut.append((chunks, tuple(of_band for _, of_band in calls)))
        if cost < least:
            cheapest, least = cut, cost
    return tuple(cheapest)


def _calls(windows: np.ndarray, chunks: Chunks, call: float) -> tuple[float, tuple[BandCall, ...]]:
    """The cheapest calls and their cost, by cutting the query frames at every place there is."""
    begins, ends = windows.T.tolist()
    best: list[tuple[float, BandCall | None]] = [(0.0, None)]  # up to a query frame, with the last call
    run = 0  # where the frames began of which each sees what the one before does, one frame later
    for stop in range(1, len(begins) + 1):
        newest = stop - 1
        if newest and (begins[newest], ends[newest]) != (begins[newest - 1] + 1, ends[newest - 1] + 1):
            run = newest
        if begins[newest] == ends[newest]:
            best.append((best[-1][0], None))
            continue
        keys = ends[newest] - begins[newest]
        options = [
            (best[start][0] + (stop - start) * chunks.cost(1, keys), BandCall((start, stop), (begins[start], ends[start]), True))
            for start in {run, newest}
        ]
        for start in range(newest - 1, max(-1, newest - MOST_ROWS), -1):
            first, last = min(begins[start:stop]), max(ends[start:stop])
            if begins[start] == ends[start] or (stop - start) * chunks.size * (last - first) * chunks.span > LARGEST_MASK:
                break
            options.append(
                (best[start][0] + chunks.cost(stop - start, last - first), BandCall((start, stop), (first, last), False))
            )
        cost, chosen = min(options, key=lambda option: option[0])
        best.append((cost + call, chosen))
    calls, stop = list[BandCall](), len(begins)
    while stop:
        last_call = best[stop][1]
        calls += [] if last_call is None else [last_call]
        stop = stop - 1 if last_call is None else last_call.rows[0]
    return best[-1][0], tuple(reversed(calls))


def add_bands(
    mean: StreamingMean,
    bands: tuple[tuple[KeyTable, ...], ...],
    plan: FramePlan,
    inputs: LayerInputs,
    kernel: AttentionWithLSE,
    call: float,
) -> None:
    """Adds attention to `bands`, by their share. kernel: one that takes a mask. call: as in `cuts`."""
    tokens, adding = inputs.q.shape[1] // plan.frames_lat, _Adding(mean, plan, inputs, kernel)
    for tables in bands:
        cut, done = cuts(tables, tokens, call / len(inputs.q), inputs.ctx.room), 0
        for table in tables:
            stop = done + len(table.bands)
            adding.add(table, [(chunks, calls[done:stop]) for chunks, calls in cut])
            done = stop


@dataclass
class _Adding:
    """Adds bands to `mean`. What is copied or rotated lives as long as a method runs."""

    mean: StreamingMean
    plan: FramePlan
    inputs: LayerInputs
    kernel: AttentionWithLSE

    def add(self, table: KeyTable, cut: list[CutChunks]) -> None:
        """Adds the bands of `table`, with their calls in `cut`; for two query times at a time q is kept."""
        times = list({band.query_times.tobytes(): band.query_times for band in table.bands}.values())
        native = all(unless_native(of_frames) is None for of_frames in (table.key_times, *times))

        def rotated(x: Tensor, times: np.ndarray) -> Tensor:
            x = self.inputs.ctx.rotate(x, None if native else times, self.plan.frequency_scale)
            return x.unflatten(1, (self.plan.frames_lat, -1))

        k = rotated(self.inputs.k, table.key_times)
        for first in range(0, len(times), 2):
            q = {of_frames.tobytes(): rotated(self.inputs.q, of_frames) for of_frames in times[first : first + 2]}
            for chunks, calls in cut:
                self._add_chunks(table, chunks, calls, q, k)
            del q

    def _add_chunks(
        self, table: KeyTable, chunks: Chunks, calls: tuple[tuple[BandCall, ...], ...], q: dict[bytes, Tensor], k: Tensor
    ) -> None:
        """Adds those bands of `table` whose query times have a q [B, T, n, H, D]."""
        width = math.ceil(table.share * k.shape[2])
        kv = [_copied(x, chunks, keys=True) for x in (k, self.inputs.v.view_as(k))]
        for times, x in q.items():
            queries = _copied(x, chunks)
            for band, of_band in zip(table.bands, calls, strict=True):
                if band.query_times.tobytes() == times:
                    factor = band.factor * self.plan.logit_scale
                    qkv = (queries if factor == 1 else queries * factor, *kv)
                    for rows, output, lse in _outputs(qkv, band, of_band, chunks, width, self.kernel):
                        self._merge(chunks, rows, output, lse if band.addend == 0 else lse + band.addend)

    def _merge(self, chunks: Chunks, rows: Range, output: Tensor, lse: Tensor) -> None:
        """Merges output [R, m, G, D] and lse [R, G, m] of query frames `rows`."""
        batch, frames_lat, heads = len(self.inputs.q), self.plan.frames_lat, self.inputs.q.shape[2]
        mean, mean_lse = (
            x.unflatten(0, (frames_lat, -1)).unflatten(2, (batch, heads))[slice(*rows)] for x in (self.mean.output, self.mean.lse)
        )  # [R, n, B, H, ..]
        output, lse = (x.unflatten(2, (batch, chunks.count, heads)) for x in (output, lse.transpose(1, 2)))  # [R, m, B, C, H, ..]
        if chunks.ends:
            first, last = slice(chunks.size), slice(mean.shape[1] - chunks.ends, None)
            merge(mean[:, first], mean_lse[:, first], output[:, :, :, 0], lse[:, :, :, 0])
            merge(mean[:, last], mean_lse[:, last], *(x[:, : chunks.ends, :, 1].flip(1) for x in (output, lse)))
            return
        tokens = slice(chunks.first, chunks.first + chunks.count * chunks.size)
        mean, mean_lse = (x[:, tokens].unflatten(1, (chunks.count, -1)).movedim(1, 3) for x in (mean, mean_lse))
        merge(mean, mean_lse, output, lse)


def _copied(x: Tensor, chunks: Chunks, keys: bool = False) -> Tensor:
    """The query or key tokens of `chunks` in x [B, T, n, H, D], as [T, m, G, D] or [T, s, G, D]."""
    length = chunks.span if keys else chunks.size
    if chunks.ends:
        tokens = x.permute(1, 2, 0, 3, 4)
        return torch.stack([tokens[:, :length], tokens[:, -length:].flip(1)], dim=3).flatten(2, 4)
    start = chunks.first - (chunks.before if keys else 0)
    parts = x[:, :, start : start + (chunks.count - 1) * chunks.size + length].unfold(2, length, chunks.size)
    return parts.permute(1, 5, 0, 2, 3, 4).contiguous().flatten(2, 4)


def _outputs(
    qkv: tuple[Tensor, Tensor, Tensor],
    band: Band,
    calls: tuple[BandCall, ...],
    chunks: Chunks,
    width: int,
    kernel: AttentionWithLSE,
) -> Iterator[tuple[Range, Tensor, Tensor]]:
    """Neighbouring query frames with output [R, m, G, D] and lse [R, G, m]. qkv: q' [T, m, G, D], k' and v' [T, s, G, D]."""
    q, *kv = qkv
    longest = max((call.keys[1] - call.keys[0] for call in calls if call.sliding), default=0)
    parts: list[tuple[Range, Tensor, Tensor]] = []
    for call in calls:
        (start, stop), (first, last) = call.rows, call.keys
        count, frames = stop - start, last - first
        if call.sliding:
            mask = _mask(chunks, width, ((0, longest),), q)[:, : frames * chunks.span]
            views = (windows_of(x.flatten(0, 1), first * chunks.span, frames * chunks.span, count, chunks.span) for x in kv)
            output, lse = kernel(q[start:stop], *views, mask)
        else:
            mask = _mask(chunks, width, tuple((a - first, b - first) for a, b in band.windows[start:stop].tolist()), q)
            output, lse = kernel(q[start:stop].flatten(0, 1)[None], *(x[first:last].flatten(0, 1)[None] for x in kv), mask)
            output, lse = output[0].unflatten(0, (count, -1)), lse[0].unflatten(1, (count, -1)).transpose(0, 1)
        if parts and parts[-1][0][1] != start:
            yield _joined(parts)
            parts = []
        parts.append((call.rows, output, lse))
    if parts:
        yield _joined(parts)


def _joined(parts: list[tuple[Range, Tensor, Tensor]]) -> tuple[Range, Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    rows, outputs, lse = zip(*parts, strict=True)
    return (rows[0][0], rows[-1][1]), torch.cat(outputs), torch.cat(lse)


def _mask(chunks: Chunks, width: int, windows: tuple[Range, ...], like: Tensor) -> Tensor:
    """What is added to logits, of `like`'s type [R m, K s]: -inf where a key is not seen. windows: of the R query frames, in K."""
    last = max(stop for _, stop in windows)

    def made() -> Tensor:
        index = torch.arange(max(chunks.size, chunks.span), device=like.device)
        seen = (index[: chunks.size, None] + chunks.before - index[: chunks.span]).abs() < width
        columns = last * chunks.span
        mask = like.new_full((len(windows) * chunks.size, -(-columns // ALIGNED) * ALIGNED), -torch.inf)[:, :columns]
        for rows, (start, stop) in zip(mask.split(chunks.size), windows, strict=True):
            rows.unflatten(1, (last, -1))[:, start:stop].masked_fill_(seen[:, None], 0)
        return mask

    return kept_on((chunks.size, chunks.before, chunks.span, width, windows, like.dtype), like.device, made)
