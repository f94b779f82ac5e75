"""Serving with NVIDIA Triton Inference Server: repository, backend, server, client, probe and metrics."""
