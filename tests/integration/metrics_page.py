"""Numbers off a running server's /metrics."""

from __future__ import annotations

import urllib.request

from eventually import PATIENCE
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess


def metric(server: ServerProcess, name: str, **labels: str) -> float:
    """The sum of the samples of that name whose labels include these; 0 if there are none."""
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=PATIENCE) as page:
        text = page.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
