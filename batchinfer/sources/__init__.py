"""Where rows come from: one file per input format, each behind the `Source` protocol."""
