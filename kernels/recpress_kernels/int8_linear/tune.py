"""Measure int8_linear's configurations on the GPU at hand: never while serving, only when asked."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from recpress_kernels.int8_linear import launch
from recpress_kernels.int8_linear.launch import Config, Device
from recpress_kernels.int8_linear.tuned import Entry

Shape = tuple[int, int, int]
SPLITS = (1, 2, 4, 8)
STAGES = (2, 3, 4, 5)


def candidates(shape: Shape, device: Device, *, quantized: bool, aligned: bool) -> Iterator[Config]:
    """Every configuration worth timing for ``(m, n, k)``: each tile, its stages, its halves, its splits of K."""
    m, _, k = shape
    tiles = [*launch.MMA_TILES, *launch.WGMMA_TILES, *launch.WGMMA_POINTER_TILES, *launch.TCGEN_TILES]
    if m <= launch.SMALL_M:
        tiles += [launch.fused(tile, m, device) for tile in launch.FUSED_TILES]
    seen = set()
    for tile in tiles:
        for stages in STAGES:
            for halves in (1, 2) if tile.route == "gemm" else (1,):
                for splits in SPLITS if tile.route != "tma" else (1,):
                    config = replace(tile, num_stages=stages, halves=halves, splits=splits)
                    runs = launch.supports(config, quantized=quantized, aligned=aligned)
                    if runs and config not in seen and splits * tile.block_k <= max(k, tile.block_k):
                        seen.add(config)
                        yield config


def tune(
    shapes: Iterable[Shape],
    device: Device,
    time: Callable[[Shape, Config], float],
    *,
    quantized: bool = False,
    aligned: bool = True,
    on_shape: Callable[[Entry], object] = lambda entry: None,
) -> list[Entry]:
    """The fastest configuration for each ``(m, n, k)``.

    Args:
        time: seconds of one call; a configuration for which it raises ``RuntimeError``, as those do that need more
            shared memory than there is, is left out.
        on_shape: told of each entry as it is found.
    """
    found = []
    for shape in shapes:
        times: dict[Config, float] = {}
        for config in candidates(shape, device, quantized=quantized, aligned=aligned):
            try:
                times[config] = time(shape, config)
            except RuntimeError:
                continue
        if times:
            best = min(times, key=times.__getitem__)
            found.append(Entry(*shape, aligned, quantized, best, times[best]))
            on_shape(found[-1])
    return found


def time_on_gpu(shape: Shape, config: Config) -> float:
    """Median seconds of a call on random operands, by CUDA events.

    Raises:
        RuntimeError: the configuration does not compile, or needs more than the GPU has.
    """
    import torch
    import triton
    from triton.testing import do_bench

    from recpress_kernels.int8_linear import cuda

    m, n, k = shape
    x = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weight = cuda.pad_rows(torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8))
    scale = torch.rand(n, device="cuda")
    try:
        return do_bench(lambda: cuda.int8_linear(x, weight, scale, config=config), return_mode="median") / 1e3
    except (triton.CompilationError, triton.runtime.errors.OutOfResources) as error:
        raise RuntimeError(str(error)) from error
