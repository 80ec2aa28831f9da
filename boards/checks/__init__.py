"""What the doctor looks at: the machine, its Python, the draft."""
