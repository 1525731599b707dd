"""Transformers encoders on packed rows: attention within each row of one long sequence, and pooling of each.

The attention is registered with transformers; models that ask its registry, and take positions, can use it.
Whether a model does is found out by trying.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

NAME = "batchinfer_packed"
_PROBE = (2, 160, 9)
"""Tokens of the rows that are tried; one is longer than a local attention sees."""

_FEWEST = 128
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")


class Switch(Protocol):
    """Turns a model's packed attention on and off."""

    def __call__(self, *, packed: bool) -> None:
        """Turn it."""
        ...


def register(transformers: Any) -> None:
    """Make the attention known under `NAME`. Its mask is none."""
    transformers.AttentionInterface.register(NAME, attend)


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Any = None,
    max_length_q: int = 0,
    **more: Any,
) -> tuple[Any, None]:
    """Attend within each row: query, key and value of shape (1, heads, tokens, d) to (1, tokens, heads, d).

    Raises NotImplementedError for what an architecture wants besides.
    """
    wanted = [name for name in _UNKNOWN if more.get(name) is not None]
    if attention_mask is not None or cu_seq_lens_q is None or wanted:
        raise NotImplementedError(f"packed attention with {', '.join(wanted) or 'a mask'}")
    causal = bool(getattr(module, "is_causal", False))
    within = _on_gpu if query.is_cuda else _on_cpu
    result = within(query, key, value, cu_seq_lens_q, max_length_q, scale=scaling, causal=causal)
    return result.unsqueeze(0), None


def _on_gpu(
    query: Any, key: Any, value: Any, ends: Any, longest: int, *, scale: float | None, causal: bool
) -> Any:
    """Flash attention that knows where rows begin. It wants float16 or bfloat16."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        *(each[0].transpose(0, 1) for each in (query, key, value)),
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _on_cpu(query: Any, key: Any, value: Any, ends: Any, _: int, *, scale: float | None, causal: bool) -> Any:
    """One row after the other; tokens of no row get zeros."""
    import torch

    result = torch.zeros_like(query[0].transpose(0, 1), memory_format=torch.contiguous_format)
    for start, stop in itertools.pairwise(ends.tolist()):
        if start < stop:
            row = torch.nn.functional.scaled_dot_product_attention(
                *(each[:, :, start:stop] for each in (query, key, value)),
                scale=scale,
                is_causal=causal,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            result[start:stop] = row[0].transpose(0, 1)
    return result


def run(model: Any, input_ids: Any, position_ids: Any, cu_seqlens: Any, *, longest: int) -> Any:
    """Return the hidden states of packed rows, (tokens, d). The model's attention must be `NAME`."""
    import torch

    # BERT looks positions up in a table; RoBERTa's begins after its padding.
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    positions = position_ids if padding is None else position_ids + (padding + 1)
    more = {}
    if getattr(model.config, "type_vocab_size", 0):
        more["token_type_ids"] = torch.zeros_like(input_ids).unsqueeze(0)
    return model(
        input_ids=input_ids.unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        cu_seq_lens_q=cu_seqlens,
        cu_seq_lens_k=cu_seqlens,
        max_length_q=longest,
        max_length_k=longest,
        **more,
    ).last_hidden_state[0]


def pooled(hidden: Any, cu_seqlens: Any, *, pooling: str, normalize: bool) -> Any:
    """Return one vector per row: (tokens, d) and where rows begin to (rows, d), float32; zeros for a row
    without a token."""
    import torch

    hidden = hidden.float()
    counts = cu_seqlens.diff().unsqueeze(1)
    if pooling == "cls":
        first = cu_seqlens[:-1].long().clamp(max=len(hidden) - 1)
        vectors = torch.where(counts > 0, hidden[first], 0.0)
    else:
        sums = torch.segment_reduce(hidden, "sum", offsets=cu_seqlens.long(), axis=0, unsafe=True, initial=0)
        vectors = sums / counts.clamp(min=1)
    return torch.nn.functional.normalize(vectors, p=2, dim=1) if normalize else vectors


def steps_of(longest: int) -> int:
    """Round the longest row up, so that there are few different ones: 128, 256, 512, ..."""
    return max(_FEWEST, 1 << (longest - 1).bit_length())


def agrees(model: Any, device: Any, *, max_length: int | None, switch: Switch) -> bool:
    """Tell whether a model computes packed rows as it does padded ones, by trying three of them.

    `switch` turns the packed attention on and off. A model that cannot may raise anything: then it is off.
    """
    import torch

    lengths = [min(length, max_length or length) for length in _PROBE]
    # The first ids are for padding and the like, which RoBERTa takes for no token.
    first, last = min(5, model.config.vocab_size - 1), min(97, model.config.vocab_size)
    numbers = torch.arange(len(lengths) * max(lengths), device=device).view(len(lengths), -1)
    ids = first + numbers % max(last - first, 1)
    mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device).unsqueeze(1)
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    places = torch.cat([torch.arange(length, device=device) for length in lengths])
    try:
        with torch.inference_mode():
            switch(packed=False)
            wanted = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask].float()
            switch(packed=True)
            found = run(model, ids[mask], places, ends, longest=steps_of(max(lengths))).float()
    except Exception:  # noqa: BLE001 - a model may refuse by any of them
        return False
    finally:
        switch(packed=False)
    tolerance = _TOLERANCE[str(model.dtype).removeprefix("torch.")]
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1.0))
