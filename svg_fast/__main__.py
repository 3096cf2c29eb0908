"""Entry point of `svg-fast` and `python -m svg_fast`."""

import sys


def main() -> None:
    """Run the command line, or say what it takes to have one."""
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        sys.exit(f"Error: the command line needs {error.name}, which is not installed: pip install 'svg_fast[train]'")
    run()


if __name__ == "__main__":
    main()
