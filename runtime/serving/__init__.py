"""Models on a server: a client of the open inference protocol v2, and what Triton needs to serve an artifact."""
