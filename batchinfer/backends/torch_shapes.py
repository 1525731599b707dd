"""A torch model that is made ready for each shape of batches: compiled, captured as a CUDA graph, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Call: TypeAlias = Callable[..., Any]
"""A model: tensors (and constants) by order and by name, to what it returns."""

Capture: TypeAlias = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""Takes work on tensors that stay where they are; returns what repeats it, and what it returned, which every
repetition writes anew."""

_MOST_SHAPES = 32
_WARM_UPS = 2


class Shaped:
    """A model that knows up to 32 shapes; whatever has another is computed without being made ready.

    Results of a captured shape lie in memory that its next batch overwrites.
    """

    def __init__(self, call: Call, *, compiled: bool, capture: Capture | None) -> None:
        self._plain = call
        self._call = _compiled(call) if compiled else call
        self._capture = capture
        self._known: dict[Any, Call] = {}

    def __call__(self, *by_order: Any, **by_name: Any) -> Any:
        """Compute one batch."""
        key = (*map(_shape, by_order), *((name, _shape(value)) for name, value in by_name.items()))
        ready = self._known.get(key)
        if ready is None:
            if len(self._known) == _MOST_SHAPES:
                return self._plain(*by_order, **by_name)
            ready = self._call
            if self._capture is not None:
                ready = _Captured(self._call, self._capture, by_order, by_name)
            self._known[key] = ready
        return ready(*by_order, **by_name)


class _Captured:
    """Work on copies of a batch's inputs that stay where they are."""

    def __init__(
        self, call: Call, capture: Capture, by_order: tuple[Any, ...], by_name: Mapping[str, Any]
    ) -> None:
        self._by_order = [_copy(value) for value in by_order]
        self._by_name = {name: _copy(value) for name, value in by_name.items()}
        self._again, self._results = capture(lambda: call(*self._by_order, **self._by_name))

    def __call__(self, *by_order: Any, **by_name: Any) -> Any:
        """Put a batch of this shape where it is read, and repeat the work."""
        import torch

        pairs = [*zip(self._by_order, by_order, strict=True)]
        pairs += [(self._by_name[name], value) for name, value in by_name.items()]
        for into, value in pairs:
            if isinstance(into, torch.Tensor):
                into.copy_(value)
        self._again()
        return self._results


def graphs_on(device: Any) -> Capture:
    """Return what captures CUDA graphs on a device; they share one pool of memory, and run one at a time."""
    import torch

    pool = torch.cuda.graph_pool_handle()

    def capture(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Do the work until it has all that it allocates but once, then record it."""
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on to copy and to ask for events meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            results = work()
        return graph.replay, results

    return capture


def _compiled(call: Call) -> Call:
    """Return a model that torch compiles anew for each shape, for as many as there may be."""
    import torch

    config = torch._dynamo.config  # noqa: SLF001 - documented by that name
    config.recompile_limit = max(config.recompile_limit, 2 * _MOST_SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 64 * _MOST_SHAPES)
    compiled: Call = torch.compile(call, dynamic=False)
    return compiled


def _shape(value: Any) -> Any:
    """Return what makes a tensor need work of its own; a constant is its own shape."""
    shape = getattr(value, "shape", None)
    return value if shape is None else (tuple(shape), value.dtype)


def _copy(value: Any) -> Any:
    return value if getattr(value, "shape", None) is None else value.clone()
