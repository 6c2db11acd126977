"""`python -m visattn` is the `visattn` command."""

from visattn.cli import main

if __name__ == "__main__":
    main()
