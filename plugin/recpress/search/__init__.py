"""Find the smallest compressed model that keeps a quality: what is tried, how it is judged, and the table of it."""
