"""A server with two front ends is to clients what one without is: some of each kind of case, once more."""

from __future__ import annotations

import pytest
import test_kinds as kinds
import test_places as places
import test_sizes as sizes
from echo_server import FRONT_ENDS

# Of each kind of HTTP/2 in Python; what they share is tried with all clients.
CLIENTS = ["grpcio", "grpclib", "offramp.aio"]

pytestmark = [
    pytest.mark.parametrize("transport", [FRONT_ENDS]),
    pytest.mark.parametrize("client", CLIENTS, indirect=True),
]

key = kinds.key
test_unary = kinds.test_unary
test_a_stream_of_requests = kinds.test_a_stream_of_requests
test_a_stream_of_answers = kinds.test_a_stream_of_answers
test_streams_both_ways = kinds.test_streams_both_ways
test_a_failure_comes_after_the_answers_that_were_sent = kinds.test_a_failure_comes_after_the_answers_that_were_sent
test_a_deadline_is_told_and_ends_both_sides = kinds.test_a_deadline_is_told_and_ends_both_sides
test_a_call_that_is_cancelled_ends_on_both_sides = kinds.test_a_call_that_is_cancelled_ends_on_both_sides
test_a_stream_that_is_left_ends_on_both_sides = kinds.test_a_stream_that_is_left_ends_on_both_sides
test_16_megabytes_in_a_stream_and_small_ones_beside = sizes.test_16_megabytes_in_a_stream_and_small_ones_beside
test_tls = places.test_tls
