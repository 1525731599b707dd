"""Offline batch inference: one command, one YAML file, exactly-once output, no cluster."""
