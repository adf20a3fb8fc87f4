"""How a model is served: `lmrecipes predict RUN --serve` takes these as flags."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lmrecipes.problems import InputError, Problem


@dataclass(frozen=True)
class ServeOptions:
    """Where the service listens, how rows are batched, and what it refuses."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: every one; then put a proxy with TLS and authentication in front."""
    port: int = 8000
    """Port to listen on. 0: any that is free."""
    threads: int = 1
    """Threads of one forward pass. One is best under load: several requests then share the cores."""
    max_batch: int = 32
    """Most rows that the model computes at once, of one request or of several."""
    max_wait_ms: float = 0.0
    """How long a row may wait for others to share its batch. 0: a batch is what has come in while the model was busy,
    so that nothing waits while it is idle. On a GPU 2 to 5 ms fill batches better."""
    max_rows: int = 256
    """Most rows of one request (422)."""
    max_body_mb: float = 8.0
    """Largest body of a request, in 1,000,000 bytes (413)."""
    max_requests: int = 128
    """Most requests that are read or answered at the same time (429)."""
    max_queue: int = 1024
    """Most rows that wait for the model (503)."""
    timeout_seconds: float = 10.0
    """Longest time that a request is read (408), or that it waits for its answer (504)."""
    drain_seconds: float = 30.0
    """After SIGTERM: how long the requests under way may take to finish."""

    def check(self) -> None:
        """Raises InputError for numbers that cannot be."""
        lowest = {"port": 0, "max_wait_ms": 0, "max_body_mb": 1e-6, "timeout_seconds": 1e-3, "drain_seconds": 0}
        problems = []
        for name in (field.name for field in fields(self) if field.name != "host"):
            value, least = getattr(self, name), lowest.get(name, 1)
            if value < least or (name == "port" and value > 65535):
                rule = "must be 0 to 65535" if name == "port" else f"must be at least {least:g}"
                flag, fix = f"--{name.replace('_', '-')}", "give a number that is"
                problems.append(Problem(flag, f"{rule}, found {value:g}", fix, "serve-options"))
        if self.max_queue < self.max_rows:
            what = f"{self.max_queue} rows may wait, but one request may bring {self.max_rows}"
            problems.append(Problem("--max-queue", what, "raise it, or lower --max-rows", "serve-options"))
        if problems:
            raise InputError(problems)
