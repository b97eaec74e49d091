"""Which tokens a cache holds in which tier, as a page to look at: python -m mikv.inspect."""
