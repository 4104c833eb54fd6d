"""What a bench reports: rows, tables, comparisons and plots."""
