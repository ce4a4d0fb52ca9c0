"""`python -m simpo_cli` is `simpo`."""

from simpo_cli.cli.main import main

if __name__ == "__main__":
    main()
