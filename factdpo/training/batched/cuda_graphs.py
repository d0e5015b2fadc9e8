"""A cohort's steps as CUDA graphs: a step's thousand operations are told to the GPU once, then started by one call.

A GPU does a step of a small model sooner than the host can launch its operations. A graph belongs to one shape of a
step's inputs, so shapes are rounded up (inputs.py) and few; a step of a shape that is new is made as usual. A graph
holds the same kernels with the same arguments, and so gives the same bits.
"""

import logging
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from factdpo.training.batched.inputs import StepInputs

log = logging.getLogger("factdpo")

MOST = 64  # graphs of a cohort: each takes megabytes, and rows of very different lengths have many shapes
Values = Float[Tensor, "metrics R"]
TrainStep = Callable[[StepInputs], Values]


class _Captured(NamedTuple):
    graph: "torch.cuda.CUDAGraph"
    inputs: StepInputs  # that it reads: a step's are copied into them
    values: Values  # that it writes


class StepGraphs:
    """`train_step` on a GPU, with a graph for each shape of inputs that came twice."""

    def __init__(self, train_step: TrainStep, device: torch.device):
        self._train_step, self._device = train_step, device
        self._pool = torch.cuda.graph_pool_handle()  # of memory: graphs run in turn, so they can share it
        self._can_capture = True
        torch.cuda.empty_cache()  # so that what is cached from now on is what a step takes: see _has_room
        self.forget()

    def forget(self) -> None:
        """Drop all graphs: what a step reads and updates lies elsewhere from now on."""
        self._captured: dict[Hashable, _Captured | None] = {}  # by shapes; None after the first step of its shape

    def __call__(self, inputs: StepInputs) -> Values:
        key = inputs.packed.longest, *(tensor.shape for tensor in inputs.tensors())
        if key not in self._captured:
            self._captured[key] = None
            return self._train_step(inputs)
        captured = self._captured[key] = self._captured[key] or self._capture(inputs)
        if captured is None:
            return self._train_step(inputs)
        for own, given in zip(captured.inputs.tensors(), inputs.tensors(), strict=True):
            own.copy_(given)
        captured.graph.replay()
        return captured.values.clone()

    def _capture(self, inputs: StepInputs) -> _Captured | None:
        """A graph of the step, which is not made by this; None where the model or memory does not allow one."""
        graphs = sum(captured is not None for captured in self._captured.values())
        if not (self._can_capture and graphs < MOST and self._has_room()):
            return None
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            graph, own = torch.cuda.CUDAGraph(), inputs.with_tensors([tensor.clone() for tensor in inputs.tensors()])
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    values = self._train_step(own)
            except RuntimeError as error:
                torch.cuda.set_stream(stream)  # torch stays on that of the capture where this failed
                said = str(error).partition("\n")[0]
                log.debug("steps are launched one operation at a time: no CUDA graph (%s)", said)
                self._can_capture = False
                return None
        return _Captured(graph, own, values)

    def _has_room(self) -> bool:
        """Whether a step fits into the memory beside a graph, which keeps what a step takes: one of a new shape must.

        What a step takes is in the allocator's cache now. A cohort that fills the memory keeps the GPU busy without.
        """
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] > cached
