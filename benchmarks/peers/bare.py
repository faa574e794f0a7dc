"""The model called in a loop, without a server: prints calls and seconds of each, by batch size, as JSON."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from pathlib import Path

from workload import load_model


def main(way: str, seconds: float, *sizes: int) -> None:
    """Call it for `seconds` at each batch size with decoded samples."""
    model = load_model()
    samples = json.loads(Path(os.environ["BENCH_MODEL"]).with_name("samples.json").read_text())[way]
    inputs = [
        model.read(base64.b64decode(content)) if isinstance(content, str) else model.take({"data": content})
        for _, content in samples
    ]
    took_s: dict[int, list[float]] = {}
    for size in sizes:
        batch = (inputs * size)[:size]
        model.run(batch)
        until = time.perf_counter() + seconds
        took_s[size] = []
        while (start := time.perf_counter()) < until:
            model.run(batch)
            took_s[size].append(time.perf_counter() - start)
    print(json.dumps(took_s))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:]))
