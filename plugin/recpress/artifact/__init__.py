"""A compressed model on disk: one folder, no code and no pickle.

``graph.pt2`` (a ``torch.export`` program without weights), ``weights.safetensors``, ``golden.safetensors`` (some
made rows with their scores) and ``manifest.json``, which describes and hashes the other three.
"""
