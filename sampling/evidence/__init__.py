"""What a rejection scheme sends: laws in whole numbers, and how few bits they need."""
