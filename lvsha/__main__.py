"""``python -m lvsha`` is the ``lvsha`` command."""

from lvsha.cli import main

if __name__ == "__main__":
    main()
