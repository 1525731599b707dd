"""The way of a batch inside one worker process."""
