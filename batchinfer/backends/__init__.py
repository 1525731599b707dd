"""What runs a model: one file per library, imported only when a job names it."""
