"""Many verifiers behind one address: the ring, who is on it, and passing frames on."""
