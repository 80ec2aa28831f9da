"""``python -m draftwire.boards.trial PROVIDER``: a model of two nodes on one provider.

A process of its own, since a provider may end the process it is tried in.
"""

from __future__ import annotations

import json
import sys
from typing import Sequence

from draftwire.boards.providers import tiny_feeds, tiny_model, try_provider


def main(words: Sequence[str]) -> int:
    """Try the provider, or list them all without one; JSON to stdout."""
    if words:
        document = try_provider(tiny_model(), words[0], tiny_feeds).to_dict()
    else:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
        document = {"version": onnxruntime.__version__, "providers": providers}
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
