"""From what a model gave to the columns that are written: NumPy, row by row."""
