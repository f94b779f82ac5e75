"""What compression itself costs, measured; the kernels' benchmarks are in ``recpress_kernels.bench``."""
