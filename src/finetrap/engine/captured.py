"""Decoding steps as CUDA graphs, each launched as one.

A step of thirty thin layers is a thousand launches, which take longer than what they compute.

A graph computes the same shapes at the same places whenever it is replayed. So a step is captured for a number of rows
and of keys that are rounded up, and once for each such extent that answers pass through as they grow and end.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

KEYS_AT_A_TIME = 128


class Extent(NamedTuple):
    """What a step computes: for the first `rows` rows, with their first `keys` keys."""

    rows: int
    keys: int

    def rounded_up(self, rows: int, keys: int) -> "Extent":
        """To a power of two and a multiple of `KEYS_AT_A_TIME`, within the most that there are."""
        return Extent(
            min(rows, 1 << (self.rows - 1).bit_length()),
            min(keys, -(-self.keys // KEYS_AT_A_TIME) * KEYS_AT_A_TIME),
        )


Compute = Callable[[Int[Tensor, " rows"], Extent], Float[Tensor, "rows vocabulary"]]
"""Of the tokens of all rows of the extent: the logits of what comes next."""


def can_capture(device: torch.device) -> bool:
    """Whether steps can be captured there."""
    return device.type == "cuda"


class CapturedSteps:
    """Calls of a function of a step's tokens and its extent, captured on a GPU where it is called the first time.

    A model that waits for the GPU within its forward pass cannot be captured, as one whose experts are chosen
    by token: its steps are computed as they come.
    """

    def __init__(self, device: torch.device, *, rows: int) -> None:
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._logits: Float[Tensor, "rows vocabulary"] | None = None
        """Where every graph leaves them: each would else keep a tensor of its own for as long as it may be replayed."""
        self._graphs: dict[Extent, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._refused = False

    def __call__(
        self, step: Compute, tokens: Int[Tensor, " active"], extent: Extent
    ) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the extent's rows, those after `tokens` without meaning; good until the next call.

        `step` is always the same, and not kept: it may belong to what keeps this.
        """
        self._tokens[: len(tokens)] = tokens
        with torch.cuda.device(self._tokens.device):
            if extent not in self._graphs and not self._refused:
                before = torch.cuda.current_stream()
                try:
                    self._graphs[extent] = self._capture(step, extent)
                except RuntimeError:
                    torch.cuda.set_stream(before)
                    self._refused = True
            if extent not in self._graphs:
                return step(self._tokens[: extent.rows], extent)
            self._graphs[extent].replay()
        assert self._logits is not None
        return self._logits[: extent.rows]

    def _capture(self, step: Compute, extent: Extent) -> torch.cuda.CUDAGraph:
        tokens = self._tokens[: extent.rows]
        # Kernels are loaded, and libraries ask for their workspace, when they are first called: not within a capture.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            logits = step(tokens, extent)
        torch.cuda.current_stream().wait_stream(aside)
        if self._logits is None:
            self._logits = logits.new_empty(len(self._tokens), logits.shape[1])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=aside):
            self._logits[: extent.rows].copy_(step(tokens, extent))
        return graph
