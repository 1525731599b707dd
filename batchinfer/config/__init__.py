"""The job file: YAML in, one checked and frozen tree out, every problem at once."""
