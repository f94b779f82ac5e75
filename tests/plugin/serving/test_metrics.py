import math

import pytest

from recpress.errors import ServerError
from recpress.serving.metrics import Histogram, fetch_text, read_histogram

TEXT = """# HELP recpress_execute_seconds Time
# TYPE recpress_execute_seconds histogram
recpress_execute_seconds_count{model="a",version="1",model_instance="a_0"} 4
recpress_execute_seconds_sum{model="a",version="1",model_instance="a_0"} 0.5
recpress_execute_seconds_bucket{model="a",version="1",model_instance="a_0",le="0.1"} 2
recpress_execute_seconds_bucket{model="a",version="1",model_instance="a_0",le="0.2"} 4
recpress_execute_seconds_bucket{model="a",version="1",model_instance="a_0",le="+Inf"} 4
recpress_execute_seconds_count{model="a",version="1",model_instance="a_1"} 4
recpress_execute_seconds_sum{model="a",version="1",model_instance="a_1"} 0.5
recpress_execute_seconds_bucket{model="a",version="1",model_instance="a_1",le="0.1"} 0
recpress_execute_seconds_bucket{model="a",version="1",model_instance="a_1",le="0.2"} 4
recpress_execute_seconds_bucket{model="a",version="1",model_instance="a_1",le="+Inf"} 4
recpress_execute_seconds_count{model="b",version="1",model_instance="b_0"} 1
recpress_execute_seconds_sum{model="b",version="1",model_instance="b_0"} 9
recpress_execute_seconds_bucket{model="b",version="1",model_instance="b_0",le="0.1"} 0
recpress_execute_seconds_bucket{model="b",version="1",model_instance="b_0",le="0.2"} 0
recpress_execute_seconds_bucket{model="b",version="1",model_instance="b_0",le="+Inf"} 1
"""


def test_series_of_one_model_add_up():
    histogram = read_histogram(TEXT, "recpress_execute_seconds", {"model": "a"})
    assert histogram == Histogram((0.1, 0.2, math.inf), (2, 8, 8), 1.0)
    assert histogram.count == 8


def test_quantiles_are_those_of_promql():
    histogram = Histogram((0.1, 0.2, math.inf), (2, 8, 10), 0.0)
    assert histogram.quantile(0.1) == pytest.approx(0.05)
    assert histogram.quantile(0.5) == pytest.approx(0.15)
    assert histogram.quantile(0.99) == 0.2, "beyond the last finite bound"
    assert math.isnan(Histogram((0.1, math.inf), (0, 0), 0.0).quantile(0.5))


def test_since_leaves_what_came_later():
    early, late = Histogram((0.1, math.inf), (1, 2), 0.3), Histogram((0.1, math.inf), (4, 7), 1.0)
    assert late.since(early) == Histogram((0.1, math.inf), (3, 5), 0.7)


def test_no_such_histogram_and_no_server():
    with pytest.raises(ServerError, match='no histogram recpress_execute_seconds{model="c"}'):
        read_histogram(TEXT, "recpress_execute_seconds", {"model": "c"})
    with pytest.raises(ServerError, match="no metrics at"):
        fetch_text("127.0.0.1:1", timeout_s=1)
