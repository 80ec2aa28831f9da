"""``python -m draftwire``: the same as the ``draftwire`` command."""

import sys

from draftwire.cli import main

if __name__ == "__main__":
    sys.exit(main())
