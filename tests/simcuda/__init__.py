"""A simulated CUDA device: tensors that say `cuda:0` hold real values, which the CPU computes.

    with simulated() as log:
        backbone = load(spec, ModelSettings("cuda", "bf16"))
        ...
    log.totals()

It tells whether code mixes devices or dtypes, and counts launches, copies and waits with the line that caused them. It cannot tell
seconds, which kernel a real device takes, fragmentation of memory, or errors that come late. `python -m tests.simcuda.sweep` runs
every preset on every small model.
"""

from tests.simcuda.device import simulated
from tests.simcuda.log import LAUNCH, TO_DEVICE, TO_HOST, WAIT, Event, Log
from tests.simcuda.tensor import CUDA, CudaTensor

__all__ = ["CUDA", "LAUNCH", "TO_DEVICE", "TO_HOST", "WAIT", "CudaTensor", "Event", "Log", "simulated"]
