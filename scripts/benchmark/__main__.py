"""`python scripts/benchmark`: see `entries`."""

from entries import main

if __name__ == "__main__":
    main()
