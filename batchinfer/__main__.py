"""`python -m batchinfer` is `batchinfer`."""

from batchinfer.cli import main

if __name__ == "__main__":
    main()
