"""Every scheme beside every other, on one verifier, over the same links."""
