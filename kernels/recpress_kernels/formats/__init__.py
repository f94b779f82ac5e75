"""How compressed weights lie in memory, whatever the device: torch alone, no kernels."""
