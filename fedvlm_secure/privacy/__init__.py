"""What a run spends of privacy, and what may be said about it: accountants, the hospital's ledger, statements."""
