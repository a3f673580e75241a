"""`python -m ctxext` is the `ctxext` command."""

from ctxext.cli.app import main

if __name__ == "__main__":
    main()
