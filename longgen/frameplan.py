"""Frame plans: frame-level attention masks with relative times, as plain tables. No torch.

Legend: T latent frames, Q query frames, n tokens per latent frame, i query frame, j key frame, P passes, C temporal rotary
components.

The query frames are the last Q of the T: all of them where frames are denoised together, the newest chunk in a rollout. There
a key column may hold another frame than its own, or a slot of a memory: `FramePlan.sources`.

A plan is one or more passes. The output for query frame i is the mean of the passes' attention outputs, weighted
by `weight[i]`. Full attention is one pass with `rel = i - j` and everything visible: the backbone's own attention.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, reduce
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from longgen.memory import Memory, Source

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairColumn:
    """A table [Q, T] that a pass may have beside `rel` and `visible`: one number for every pair of frames.

    kind: what the number is. A "share" of the key frame's tokens is seen; a "factor" multiplies the pair's attention logits; a
    "positive factor" then multiplies those of them that are above 0; an "addend" is added to them, after all factors. Techniques
    that set the same column combine by that operation. phrase: how `longgen plan` says it of a range {low} to {high}.
    one_value: how it says it where they are the same.
    """

    name: str
    kind: Literal["share", "factor", "positive factor", "addend"]
    phrase: str
    one_value: str | None = None

    @property
    def neutral(self) -> float:
        """The value that changes nothing; a column of nothing else is the same as none."""
        return 0.0 if self.kind == "addend" else 1.0

    def combine(self, table: np.ndarray, other: np.ndarray) -> np.ndarray:
        return {"share": np.minimum, "addend": np.add}.get(self.kind, np.multiply)(table, other)

    def said(self, low: float, high: float) -> str:
        """The column, of values from `low` to `high`, in words."""
        return (self.one_value if self.one_value and low == high else self.phrase).format(low=low, high=high)


PAIR_COLUMNS = {
    column.name: column
    for column in (
        PairColumn("band", "share", "in a band of {low:g}"),
        PairColumn("logit_scale", "factor", "with logits x {low:.4g} to {high:.4g}"),
        PairColumn("logit_bias", "addend", "with {low:+.4g} to {high:+.4g} on their logits"),
        PairColumn(
            "positive_logit_scale", "positive factor",
            "with positive logits x {low:.4g} to {high:.4g}", "with positive logits x {low:.4g}",
        ),
    )
}  # fmt: skip
"""band: of a visible key frame, query token q sees the tokens k with |q - k| < band * n only, q and k counted within their frames
in raster order; 1 is the whole frame. The logits of a pair of frames are

    s = logit_scale[i, j] * FramePlan.logit_scale * (rotated q) . (rotated k) / sqrt(D)
    positive_logit_scale[i, j] * max(s, 0) + min(s, 0) + logit_bias[i, j]

Where a plan is `centred`, s and the logits of text are less the query's mean of them, over the tokens of all frames that it sees
and the text: that changes nothing but what is positive.
"""


@dataclass(frozen=True, eq=False)
class Pass:
    """One attention pass: `rel` [Q, T] float64, `visible` [Q, T] bool, `weight` [Q] float64, and columns of `PAIR_COLUMNS`.

    A query frame of weight 0 is not computed in this pass. columns: [Q, T] float64 each, by name; one that is neutral everywhere
    is left out.
    """

    rel: np.ndarray
    visible: np.ndarray
    weight: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check(self.columns)
        tables = {name: np.asarray(self.columns[name], dtype=np.float64) for name in PAIR_COLUMNS if name in self.columns}
        effective = {name: table for name, table in tables.items() if (table != PAIR_COLUMNS[name].neutral).any()}
        object.__setattr__(self, "columns", effective)

    @property
    def tables(self) -> dict[str, np.ndarray]:
        """All that the pass consists of, by name."""
        return {"rel": self.rel, "visible": self.visible, "weight": self.weight, **self.columns}

    def with_columns(self, **tables: np.ndarray) -> Pass:
        """This pass with `tables` [Q, T] merged into its columns: the least share, product of factors, sum of addends."""
        self._check(tables)  # before they are combined, which broadcasts
        both = {name: PAIR_COLUMNS[name].combine(self.column(name), table) for name, table in tables.items()}
        return replace(self, columns={**self.columns, **both})

    def _check(self, tables: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError for columns that are not known, of another shape than the pass, or not a number somewhere."""
        unknown = [name for name in tables if name not in PAIR_COLUMNS]
        misshapen = {name: np.shape(table) for name, table in tables.items() if np.shape(table) != self.rel.shape}
        if unknown or misshapen:
            raise ValueError(f"pair columns {unknown or misshapen} of a pass {self.rel.shape}: known are {', '.join(PAIR_COLUMNS)}")
        if undefined := [name for name, table in tables.items() if np.isnan(table).any()]:
            raise ValueError(f"pair columns {undefined} of a pass hold NaN")
        of_sign = [name for name in tables if PAIR_COLUMNS[name].kind == "positive factor"]
        if below := [name for name in of_sign if not ((tables[name] >= 0) & (tables[name] < np.inf)).all()]:
            raise ValueError(f"pair columns {below} of a pass hold numbers that are below 0 or infinite")

    @property
    def without_shares(self) -> dict[str, np.ndarray]:
        """The columns of a pass like this one that sees key frames whole."""
        return {name: table for name, table in self.columns.items() if PAIR_COLUMNS[name].kind != "share"}

    def column(self, name: str) -> np.ndarray:
        """The column [Q, T]; its neutral value everywhere where the pass does not have it."""
        return self.columns[name] if name in self.columns else np.full(self.rel.shape, PAIR_COLUMNS[name].neutral)

    def combined(self, kind: str) -> np.ndarray | None:
        """All columns of `kind` as one [Q, T]; None where the pass has none."""
        columns = [(PAIR_COLUMNS[name], table) for name, table in self.columns.items() if PAIR_COLUMNS[name].kind == kind]
        return reduce(columns[0][0].combine, [table for _, table in columns]) if columns else None

    @cached_property
    def band(self) -> np.ndarray | None:
        """[Q, T], the share of each key frame that is seen; None where all are seen whole."""
        return self.combined("share")

    @cached_property
    def logits(self) -> np.ndarray | None:
        """[2, Q, T], the factor on every pair's logits and the addend to them; None where there are none but positive factors."""
        factor, addend = self.combined("factor"), self.combined("addend")
        if factor is None and addend is None:
            return None
        neutral = np.ones_like(self.rel), np.zeros_like(self.rel)
        return np.stack([neutral[0] if factor is None else factor, neutral[1] if addend is None else addend])

    @cached_property
    def positive(self) -> np.ndarray | None:
        """[Q, T], the factor on every pair's positive logits; None where the sign of a logit changes nothing."""
        return self.combined("positive factor")

    @property
    def density(self) -> float:
        """Share of all token pairs that attention is computed for, in the limit of many tokens a frame."""
        share = np.ones_like(self.rel) if self.band is None else np.minimum(self.band, 1)
        return self._mean(share * (2 - share))

    def density_at(self, tokens: int) -> float:
        """`density` at `tokens` a frame: in bands more is computed than is needed, and a mask discards the excess."""
        if self.band is None:
            return self.density
        share = np.ones_like(self.rel)
        for width in np.unique(self.band[self.band < 1]):
            pairs = sum((last - first) * (stop - start) for (first, last), (start, stop) in band_chunks(float(width), tokens))
            share[self.band == width] = pairs / tokens**2
        return self._mean(share)

    def _mean(self, share: np.ndarray) -> float:
        """Over all pairs of frames, of the `share` [Q, T] of each that is seen."""
        return float((share * self.visible)[self.weight > 0].sum() / self.visible.size)


SMALLEST_CHUNK = 16  # query tokens of a band: below, calls cost more than the keys they save


def band_chunks(share: float, tokens: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """A band of one frame cut into chunks: query tokens (half-open), and the key tokens that any of them sees."""
    width = math.ceil(share * tokens)
    chunk = min(tokens, max(SMALLEST_CHUNK, width // 2))
    for first in range(0, tokens, chunk):
        last = min(first + chunk, tokens)
        yield (first, last), (max(0, first - width + 1), min(tokens, last + width - 1))


class KeyFrames(Protocol):
    """Key frames chosen at run time from the layer's own input; every query frame sees them in addition."""

    def count(self, frames_lat: int) -> int:
        """How many there will be."""
        ...

    def choose(self, features: Tensor) -> Tensor:
        """The key frames [S] int64, all different, of one sample's layer input `features` [T, n, C]: on its device, unread by the
        host, which would wait for it. S is `count`."""
        ...


@dataclass(frozen=True, eq=False)
class FramePlan:
    """Attention of one layer: passes, and what holds for all of them.

    frequency_scale: [C] float64, the factor on each temporal rotary frequency, or None for all ones. logit_scale: the factor on all
    attention logits, those of text included. key_frames: frames chosen at run time that every query frame also sees. anchor: the
    share of the first clip's keys and values in those of the other clips, where the model sees the video in clips. centred: whether
    the sign of a logit is that of its difference from its query's mean: see `PAIR_COLUMNS`.

    sources: in a rollout, what each key column holds, the chunk's own frames last; the passes' tables are [Q, len(sources)]. The
    same frame may stand in several columns, at other times. None: column j holds frame j. memory: what slots among the sources
    hold. kept: frames that stay in the cache although no column holds them.
    """

    passes: tuple[Pass, ...]
    frequency_scale: np.ndarray | None = None
    logit_scale: float = 1.0
    key_frames: KeyFrames | None = None
    anchor: float = 0.0
    centred: bool = False
    sources: tuple[Source, ...] | None = None
    memory: Memory | None = None
    kept: tuple[int, ...] = ()

    @property
    def frames_lat(self) -> int:
        """T."""
        if self.sources is None:
            return self.passes[0].rel.shape[1]
        last = self.sources[-1]
        assert isinstance(last, int)  # the chunk's own
        return last + 1

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, number of key columns), the latter T unless there are `sources`."""
        rows, columns = self.passes[0].rel.shape
        return rows, columns

    @property
    def frames_shown(self) -> np.ndarray:
        """[T] bool: the frames that a query frame sees."""
        seen = np.any([pass_.visible.any(axis=0) for pass_ in self.passes], axis=0)
        if self.sources is None:
            return seen
        shown = np.zeros(self.frames_lat, dtype=bool)
        shown[[frame for frame, is_seen in zip(self.sources, seen, strict=True) if is_seen and isinstance(frame, int)]] = True
        return shown

    @property
    def frames_cached(self) -> np.ndarray:
        """[T] bool: the frames that a cache needs during the chunk, and its own."""
        needed, memory = self.frames_shown, self.memory
        needed[[*self.kept, *((*memory.frames, *(memory.queries_of or ())) if memory else ())]] = True
        return needed

    @property
    def density(self) -> float:
        """Attention cost relative to full attention: token pairs computed, where passes share the pairs whose logits agree.

        Key frames chosen at run time count as spread evenly. With bands, factors on positive logits, or an attention backend that
        returns no log-sum-exp, passes share nothing, and the cost is the sum of theirs. Bands are those of many tokens a frame.
        """
        if self.computed_apart:
            return self._columns * self._sum([pass_.density for pass_ in self.passes])
        extra = self._extra
        computed = np.stack([np.broadcast_to((p.weight > 0)[:, None], p.rel.shape) for p in self.passes])
        seen = np.stack([p.visible for p in self.passes]) & computed
        code = self._logit_codes
        return self._columns * float((1 - extra) * _distinct(code, seen) + extra * _distinct(code, computed))

    def density_at(self, tokens: int) -> float:
        """`density` of what is computed at `tokens` a frame."""
        if not self.computed_apart:
            return self.density
        return self._columns * self._sum([pass_.density_at(tokens) for pass_ in self.passes])

    @property
    def _columns(self) -> float:
        """Key columns for each frame so far."""
        return self.shape[1] / self.frames_lat

    @property
    def computed_apart(self) -> bool:
        """Whether each pass is computed for itself."""
        return self.by_sign or any(pass_.band is not None for pass_ in self.passes)

    @property
    def by_sign(self) -> bool:
        """Whether any pass has factors on positive logits."""
        return any(pass_.positive is not None for pass_ in self.passes)

    @property
    def _logit_codes(self) -> np.ndarray:
        """[P, Q, T]: equal where passes have the same logits for a pair of frames; `rel` unless columns change logits."""
        rel = np.stack([p.rel for p in self.passes]).round(7)
        if all(p.logits is None for p in self.passes):
            return rel
        neutral = np.stack([np.ones_like(rel[0]), np.zeros_like(rel[0])])
        columns = np.stack([neutral if p.logits is None else p.logits for p in self.passes], axis=1)
        _, code = np.unique(np.stack([rel, *columns]).reshape(3, -1), axis=1, return_inverse=True)
        return code.reshape(rel.shape).astype(np.float64)

    @property
    def _extra(self) -> float:
        """The share of frames that are key frames chosen at run time."""
        return self.key_frames.count(self.frames_lat) / self.frames_lat if self.key_frames else 0.0

    def _sum(self, densities: list[float]) -> float:
        """Of passes that share nothing."""
        computed = [float((pass_.weight > 0).mean()) for pass_ in self.passes]
        return sum(density + self._extra * (most - density) for density, most in zip(densities, computed, strict=True))

    @property
    def reach(self) -> float:
        """The largest absolute relative time at which any frame sees another; key frames chosen at run time may be any."""
        seen = [(p.visible | bool(self.key_frames)) & (p.weight > 0)[:, None] for p in self.passes]
        return max(float(np.abs(p.rel[pairs]).max(initial=0)) for p, pairs in zip(self.passes, seen, strict=True))

    @cached_property
    def key(self) -> str:
        """A digest of the tables: equal plans have equal keys."""
        digest = hashlib.sha256(repr((self.logit_scale, self.key_frames, self.anchor)).encode())
        for p in self.passes:
            for table in (p.rel, p.visible, p.weight):
                digest.update(np.ascontiguousarray(table).tobytes())
            for (
                name,
                table,
            ) in p.columns.items():  # the first of PAIR_COLUMNS has no tag, so that keys are those of earlier versions
                tag = b"" if name == next(iter(PAIR_COLUMNS)) else name.encode()
                digest.update(tag + np.ascontiguousarray(table).tobytes())
            digest.update(b"" if p.columns else b"-")
        digest.update(b"" if self.frequency_scale is None else self.frequency_scale.tobytes())
        digest.update(b"centred" if self.centred else b"")
        if self.sources is not None or self.kept:
            digest.update(repr((self.sources, self.memory, self.kept)).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def is_stock(self) -> bool:
        """Whether this is the backbone's own attention, so that the stock call serves, bit for bit."""
        return self.key == _stock_key(*self.shape)

    def each(self, change: Callable[[Pass], Pass]) -> FramePlan:
        """This plan with `change` applied to every pass."""
        return replace(self, passes=tuple(change(p) for p in self.passes))

    def see_only(self, visible: np.ndarray) -> FramePlan:
        """This plan with `visible` [Q, T] taken from what every pass may see."""
        return self.each(lambda p: replace(p, visible=p.visible & visible))

    def see_also(self, visible: np.ndarray) -> FramePlan:
        """This plan with `visible` [Q, T], whole frames, added to what every pass sees of the frames that it computes."""

        def change(p: Pass) -> Pass:
            added = visible & (p.weight > 0)[:, None]
            shares = {name: np.where(added, 1.0, t) for name, t in p.columns.items() if PAIR_COLUMNS[name].kind == "share"}
            return replace(p, visible=p.visible | added, columns={**p.columns, **shares})

        return self.each(change)

    def show(
        self, sources: Sequence[Source], times: np.ndarray, memory: Memory | None = None, kept: Sequence[int] = ()
    ) -> FramePlan:
        """This plan with a column for each of `sources`, all seen, at `times` [len(sources)]; for techniques in a rollout.

        Pair columns go with their frames; those of a slot of memory are the newest frame's that stands in no column.
        """
        queries = self.shape[0]
        hidden = set(range(self.frames_lat - queries)).difference(source for source in sources if isinstance(source, int))
        frames = [source if isinstance(source, int) else max(hidden) for source in sources]
        rel = times[-queries:, None] - times

        def change(p: Pass) -> Pass:
            return Pass(rel, np.ones_like(rel, dtype=bool), p.weight, {name: table[:, frames] for name, table in p.columns.items()})

        return replace(self.each(change), sources=tuple(sources), memory=memory, kept=tuple(kept))

    def at(self, rel: np.ndarray) -> FramePlan:
        """This plan with relative times `rel` [Q, T] in every pass."""
        return self.each(lambda p: replace(p, rel=rel))


def _distinct(code: np.ndarray, seen: np.ndarray) -> float:
    """Mean over pairs of frames of how many distinct values `code` [P, Q, T] has where `seen` [P, Q, T]."""
    values = np.sort(np.where(seen, code, np.inf), axis=0)
    new = np.concatenate([np.ones_like(seen[:1]), np.diff(np.nan_to_num(values, posinf=1e9), axis=0) > 0])
    return float((new & np.isfinite(values)).sum() / seen[0].size)


@dataclass(frozen=True)
class Geometry:
    """The geometry a technique may ask for: lengths in latent frames, and the backbone's temporal rotary frequencies.

    `intrinsic_component`: the 1-based rotary component whose period is closest to the latent frame at which the
    backbone is first seen to repeat itself (RIFLEx's k); None where nobody has said it. repetition_lat: the latent frames after
    which a longer clip repeats itself again and again (UltraViCo); None where nobody has said it. in_clips: whether this is one
    of several clips of a longer video. chunk_lat: latent frames of a chunk, where frames are made in chunks, of which plans hold
    the newest.
    since_switch: of such a chunk, how many chunks ago the prompt last changed, 0 where it does so here; None where it never has.
    """

    frames_lat: int
    native_lat: int
    frequencies: tuple[float, ...]
    intrinsic_component: int | None = None
    repetition_lat: int | None = None
    in_clips: bool = False
    chunk_lat: int | None = None
    since_switch: int | None = None

    @property
    def ratio(self) -> float:
        """T / T0, and 1 for clips of native length or below."""
        return max(1.0, self.frames_lat / self.native_lat)


def distances(frames_lat: int) -> np.ndarray:
    """D = i - j, [T, T] float64: the relative time at which a backbone sees frames."""
    frame = np.arange(frames_lat, dtype=np.float64)
    return frame[:, None] - frame[None, :]


def full_attention(frames_lat: int, queries: int | None = None) -> FramePlan:
    """The backbone's own attention: every frame, or each of the last `queries` frames, over all `frames_lat` frames."""
    query = np.arange(frames_lat - (queries or frames_lat), frames_lat, dtype=np.float64)
    rel = query[:, None] - np.arange(frames_lat, dtype=np.float64)[None, :]
    return FramePlan((Pass(rel, np.ones(rel.shape, dtype=bool), np.ones(len(rel))),))


@lru_cache(maxsize=256)
def _stock_key(queries: int, frames_lat: int) -> str:
    return full_attention(frames_lat, queries).key


def visible_from_ranges(ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """The table [T, T] in which query frame i sees key frames `ranges[i]` (half-open)."""
    frame = np.arange(len(ranges))
    start, stop = np.array(ranges).T
    return (frame >= start[:, None]) & (frame < stop[:, None])
