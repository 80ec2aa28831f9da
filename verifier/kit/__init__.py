"""The conformance kit: a device that tries verifiers, and a verifier that tries devices."""
