"""vLLM inside the verifier: AsyncLLM embedded, drafts in its scheduler, our noise."""
