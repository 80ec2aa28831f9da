"""Where watts come from: one small class each, behind the protocol of ``base``."""
