"""What is made of joules: rows, tables, comparisons, pictures, pages, sweeps."""
