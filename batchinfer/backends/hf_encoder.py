"""What a transformers model computes on the device: vectors of padded or packed rows, and logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchinfer.backends import hf_packing, hf_tasks
from batchinfer.backends.torch_shapes import Call, Shaped, graphs_on
from batchinfer.backends.torch_values import to_tensor
from batchinfer.data import Packing

if TYPE_CHECKING:
    from batchinfer.data import Tensors


class Encoder:
    """A loaded model. With `compiled` or `graphs` (on a GPU), each call is made ready for a batch's shape,
    pooling included; `few_shapes` says so."""

    def __init__(
        self, model: Any, device: Any, *, pooling: str, normalize: bool, compiled: bool, graphs: bool
    ) -> None:
        self._model = model
        self._device = device
        self._pooling = pooling
        self._normalize = normalize
        self._attention = model.config._attn_implementation  # noqa: SLF001 - there is no other name
        self._is_packed = False
        graphs = graphs and device.type == "cuda"
        self.few_shapes = compiled or graphs
        self._calls: list[Call] = [self._vectors, self._packed_vectors, self._logits]
        if self.few_shapes:
            capture = graphs_on(device) if graphs else None
            self._calls = [Shaped(call, compiled=compiled, capture=capture) for call in self._calls]

    def packing(self, *, max_length: int | None) -> Packing | None:
        """Return how packed rows are taken; None where they would have other vectors."""
        equal = hf_packing.agrees(self._model, self._device, max_length=max_length, switch=self._switch)
        return Packing(values=("input_ids",), ones=("attention_mask",)) if equal else None

    def vectors(self, encoded: dict[str, Any]) -> Any:
        """Return (rows, d) of padded rows."""
        self._switch(packed=False)
        return self._calls[0](**encoded)

    def packed_vectors(self, tensors: Tensors) -> Any:
        """Return (rows, d) of a packed batch."""
        self._switch(packed=True)
        names = ("input_ids", "position_ids", "cu_seqlens")
        given = [to_tensor(name, tensors[name], self._device) for name in names]
        return self._calls[1](*given, hf_packing.steps_of(int(tensors["max_seqlen"][0].as_py())))

    def logits(self, encoded: dict[str, Any]) -> Any:
        """Return (rows, labels)."""
        return self._calls[2](**encoded)

    def _switch(self, *, packed: bool) -> None:
        """Turn the attention of packed rows on or off."""
        if packed != self._is_packed:
            self._model.set_attn_implementation(hf_packing.NAME if packed else self._attention)
            self._is_packed = packed

    def _vectors(self, **encoded: Any) -> Any:
        hidden = self._model(**encoded).last_hidden_state
        return hf_tasks.pooled(
            hidden, encoded["attention_mask"], pooling=self._pooling, normalize=self._normalize
        )

    def _packed_vectors(self, input_ids: Any, position_ids: Any, cu_seqlens: Any, longest: int) -> Any:
        hidden = hf_packing.run(self._model, input_ids, position_ids, cu_seqlens, longest=longest)
        return hf_packing.pooled(hidden, cu_seqlens, pooling=self._pooling, normalize=self._normalize)

    def _logits(self, **encoded: Any) -> Any:
        return self._model(**encoded).logits
