//! What the attribute says to each mistake; see `tests/`.
