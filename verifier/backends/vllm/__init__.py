"""vLLM inside the verifier: AsyncLLM embedded, drafts in its scheduler, our noise."""

PINNED = "0.32"  # the minor version whose insides are known here
KEY = "draftwire"  # of our own fields in what vLLM passes through
