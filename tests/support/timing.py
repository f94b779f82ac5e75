"""How long a call takes on a GPU."""

import torch


def seconds(call) -> float:
    """Median over replays of a graph of 20 calls, of one call."""
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            call()
    times = []
    for _ in range(30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 20_000)
    return sorted(times)[len(times) // 2]
