"""Load a running server, and measure from the moment each request was due.

A tester that waits for an answer before it sends the next request slows down with the server, and never sees the
requests that users would have sent meanwhile: G. Tene calls it coordinated omission ("How NOT to Measure Latency",
Strange Loop 2015). So arrivals are drawn before the test, and latency counts from when a request was due.
"""
