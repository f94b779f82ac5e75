"""The torch library ``recpress`` that every op of this package is registered in, once."""

import torch

LIBRARY = torch.library.Library("recpress", "DEF")
