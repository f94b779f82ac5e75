"""Take weights or whole units out of a model: what to take, in which pattern, when, and how it stays out."""
