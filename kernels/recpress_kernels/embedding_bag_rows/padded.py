"""Multi-hot features as they often come, padded to one length, in the form that embedding_bag_rows takes."""

import torch
from torch import Tensor

from recpress_kernels.errors import KernelInputError


def bags_of_padded(ids: Tensor, lengths: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The bags of padded ids: of each row, the first as many as its length.

    Args:
        ids: int32 or int64 ``[B, L]`` of one table, or ``[T, B, L]``; what lies behind a row's length is not read.
        lengths: integers ``[B]`` or ``[T, B]``, each 0 to L; 0 makes an empty bag.
        weights: float32 of the shape of ids, or None.

    Returns:
        indices ``[sum of lengths]``, offsets ``[T * B + 1]`` in the dtype of ids, and the weights of the indices or
        None: ``embedding_bag_rows(tables, indices, offsets, "sum", weights)``. How many indices there are depends on
        the values of lengths: on a GPU this waits for them, and an exported graph has a size that it does not know.

    Raises:
        KernelInputError: another dtype or shape, or a length below 0 or above L.
    """
    if ids.dim() not in (2, 3) or ids.dtype not in (torch.int32, torch.int64):
        raise KernelInputError(
            f"bags_of_padded: ids is {ids.dtype} of shape {tuple(ids.shape)}; give int32 or int64 [B, L] or [T, B, L]"
        )
    if lengths.shape != ids.shape[:-1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        given = f"{lengths.dtype} of shape {tuple(lengths.shape)}"
        raise KernelInputError(f"bags_of_padded: lengths is {given}; give integers {list(ids.shape[:-1])}")
    if weights is not None and weights.shape != ids.shape:
        raise KernelInputError(
            f"bags_of_padded: weights has shape {tuple(weights.shape)}; give that of ids, {tuple(ids.shape)}"
        )
    longest = ids.shape[-1]
    bad = (lengths < 0) | (lengths > longest)
    if bad.any():
        at = bad.nonzero()[0].tolist()
        value = int(lengths[tuple(at)])
        raise KernelInputError(f"bags_of_padded: length {value} at {at}; allowed are 0 to {longest}, the width of ids")
    kept = torch.arange(longest, device=ids.device) < lengths[..., None]
    offsets = torch.zeros(lengths.numel() + 1, dtype=ids.dtype, device=ids.device)
    torch.cumsum(lengths.flatten(), 0, dtype=ids.dtype, out=offsets[1:])
    return ids[kept], offsets, None if weights is None else weights[kept]
