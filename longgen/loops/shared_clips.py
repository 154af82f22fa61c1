"""The clips of a step shared out between ranks: each predicts some of them, and all have all, in the order of one process.

Sums over clips are then those of one process, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, distributed

from longgen import ranks


def shared_out(
    batches: Sequence[int], size: int, predict: Callable[[int], Tensor], before: Callable[[int], set[int]],
    empty: Callable[[int], Tensor],
) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
    """Each of `batches` with what `predict` makes of it on one of `size` ranks.

    before: the batches that one borrows keys and values from; a rank makes those of its own, too. empty: a tensor like a batch's
    prediction.
    """
    if size == 1:
        yield from ((batch, predict(batch)) for batch in batches)
        return
    rank, own = ranks.current().rank, {*batches[ranks.current().rank :: size]}
    lent = {*own}.union(*(before(batch) for batch in own))
    made = {batch: predict(batch) for batch in batches if batch in lent}
    for number, batch in enumerate(batches):
        predicted = made[batch].contiguous() if number % size == rank else empty(batch)
        distributed.broadcast(predicted, src=number % size)
        yield batch, predicted
