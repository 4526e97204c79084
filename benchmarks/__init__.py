"""Side-by-side measurements: both sides in one process, in interleaved rounds."""
