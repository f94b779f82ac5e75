"""Show what was done: tables on a terminal, and a page of HTML."""
