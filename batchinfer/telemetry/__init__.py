"""What a person sees of a run: progress, metrics, logs. Listens to events, never stands in the loop."""
