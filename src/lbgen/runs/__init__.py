"""How any run writes, is locked, interrupted, identified and continued."""
