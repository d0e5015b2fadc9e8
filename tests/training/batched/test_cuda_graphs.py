"""CUDA graphs of a cohort's steps: when one is made, and what becomes of a step that allows none."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from factdpo.models.scoring import PairLogps
from factdpo.training.batched import cuda_graphs
from factdpo.training.batched import engine as batched
from factdpo.training.batched.adapter import fresh_adapter
from factdpo.training.batched.cohort import Cohort
from factdpo.training.batched.cuda_graphs import StepGraphs
from factdpo.training.batched.inputs import StepInputs, step_inputs
from factdpo.training.batched.stacked_lora import stacked
from tests.helpers.tiny import tiny_base, tiny_config, tiny_pairs

DEVICE = torch.device("cuda:1")


class Steps:
    """A step whose value is the sum of its rates, and what was captured and replayed of it; no GPU is needed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None):
        self.made: list[str] = []
        self.error = error
        self.capturing: Any = None
        self.free, self.stream, self.device = 100, "the usual", None
        simulated = {
            "graph_pool_handle": lambda: "pool", "CUDAGraph": lambda: Graph(self), "graph": self.graph,
            "device": self.on, "current_stream": lambda: self.stream, "set_stream": self.stay_on,
            "memory_reserved": lambda _: 90, "memory_allocated": lambda _: 40,
            "mem_get_info": lambda _: (self.free, 200),
        }  # fmt: skip
        for name, value in simulated.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def __call__(self, inputs: StepInputs) -> torch.Tensor:
        self.made.append("captured" if self.capturing else "made")
        if self.capturing:
            if self.error:
                raise self.error
            values = torch.full((1, 1), torch.nan)  # a capture computes nothing
            self.capturing.replays = lambda: values.copy_(inputs.rates.sum().view(1, 1))
            return values
        return inputs.rates.sum().view(1, 1)

    def stay_on(self, stream: str) -> None:
        self.stream = stream

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        self.device = device
        yield
        self.device = None

    @contextlib.contextmanager
    def graph(self, graph: "Graph", pool: str) -> Iterator[None]:
        assert pool == "pool" and self.device == DEVICE, "another GPU would make the step, and capture nothing"
        self.capturing, self.stream = graph, "the capture's"
        try:
            yield
        finally:
            self.capturing = None
        self.stream = "the usual"  # as torch: not where the capture fails


class Graph:
    def __init__(self, steps: Steps):
        self.steps, self.replays = steps, lambda: None

    def replay(self) -> None:
        self.steps.made.append("replayed")
        self.replays()


def inputs_of(pairs: int, rate: float) -> StepInputs:
    base, cfg = tiny_base(), tiny_config(dpo_batch_size=pairs)
    data = tiny_pairs(pairs)
    refs = batched.Member("0", cfg, data, scores(pairs), {}, lambda _: {}, lambda *_: None)
    fresh = [fresh_adapter(cfg, base)]
    with stacked(base, fresh, 4) as stack:
        states = Cohort(stack, [refs], fresh, None).active
        return step_inputs(states, [[list(range(pairs))]], [rate], stack)


def scores(pairs: int) -> Any:
    return PairLogps(torch.zeros(pairs), torch.zeros(pairs), torch.zeros(pairs, dtype=torch.bool))


def test_a_shape_that_comes_again_is_captured_and_replayed_with_each_steps_own_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(monkeypatch)
    graphs = StepGraphs(steps, DEVICE)
    values = [graphs(inputs_of(4, rate)) for rate in (1.0, 2.0, 3.0, 4.0)]
    assert steps.made == ["made", "captured", "replayed", "replayed", "replayed"]
    assert [value.item() for value in values] == [1.0, 2.0, 3.0, 4.0], "none is overwritten by a later one"
    steps.made.clear()
    assert [graphs(inputs_of(pairs, 5.0)).item() for pairs in (2, 4, 2)] == [5.0] * 3
    assert steps.made == ["made", "replayed", "captured", "replayed"], "another shape has a graph of its own"
    steps.made.clear()
    graphs.forget()
    assert [graphs(inputs_of(4, rate)).item() for rate in (6.0, 7.0)] == [6.0, 7.0]
    assert steps.made == ["made", "captured", "replayed"]


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("no memory")])
def test_a_step_that_cannot_be_captured_is_made_as_usual(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, error)
    graphs = StepGraphs(steps, DEVICE)
    assert [graphs(inputs_of(4, rate)).item() for rate in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
    graphs.forget()
    assert [graphs(inputs_of(4, rate)).item() for rate in (4.0, 5.0)] == [4.0, 5.0]
    assert steps.made == ["made", "captured", "made", "made", "made", "made"], "what failed is not tried again"
    assert steps.stream == "the usual"


def test_there_are_no_more_graphs_than_are_worth_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "MOST", 1)
    graphs = StepGraphs(steps, DEVICE)
    for pairs in (2, 4, 2, 4):
        graphs(inputs_of(pairs, 1.0))
    assert steps.made == ["made", "made", "captured", "replayed", "made"]


def test_without_room_for_a_step_beside_a_graph_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    steps.free = 50  # as much as the allocator keeps of a step
    graphs = StepGraphs(steps, DEVICE)
    assert [graphs(inputs_of(4, rate)).item() for rate in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
    assert steps.made == ["made", "made", "made"]
