"""Rows on their way to the device: prefetch threads, windows, batches."""
