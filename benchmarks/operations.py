"""The operations of a compiled function in JAX's profiler, by kind."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

KINDS = {
    "matrix products": r"(nd,dhk|nhk,hkd|nd,df|nf,fd|\.\.\.d,dv)\S*/dot_general|nvjet|cutlass|xmma",
    "attention": r"b(nh|hn)g[dst],\S*/dot_general|^dot\b|decode_attention|write_and_attend",
    "copies of a layer's weights and cache": r"dynamic.slice|dynamic_update_slice",
    "top-k": r"top_k|TopK|^sort",
}
OTHER = "norms, softmax, rotation, the draw"
CONTAINERS = ("while", "call", "conditional")
"""Operations that contain others; their time is that of their content."""


def kind_of(described: str) -> str:
    """The kind of an operation with this description."""
    return next((kind for kind, form in KINDS.items() if re.search(form, described)), OTHER)


def kinds_of(text: str) -> dict[str, str]:
    """The kind of each operation of a compiled function."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(", line)
        if match is None:
            continue
        name = re.search(r'op_name="([^"]*)"', line)
        target = re.search(r'custom_call_target="([^"]*)"', line)
        described = " ".join([match[2], match[1], *(m[1] for m in (name, target) if m)])
        found[match[1]] = kind_of(described)
    return found


def events(directory: Path, module: str) -> list[dict[str, Any]]:
    """The operations of a compiled function in a profiler's trace."""
    (path,) = directory.rglob("perfetto_trace.json.gz")
    with gzip.open(path) as file:
        found = json.load(file)
    rows = found["traceEvents"] if isinstance(found, dict) else found
    return [row for row in rows if row.get("args", {}).get("hlo_module") == module]
