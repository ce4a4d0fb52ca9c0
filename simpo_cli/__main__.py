"""The command `simpo`, also as `python -m simpo_cli`."""

from simpo_cli.model.allocator import begin_without_cache


def main() -> None:
    """The entry point of the shell command."""
    begin_without_cache()
    from simpo_cli.cli.main import main as command  # takes a third of a second

    command()


if __name__ == "__main__":
    main()
