"""Loss terms: one file per method, each a pure function ending in `_loss` and a `Term` that calls it."""
