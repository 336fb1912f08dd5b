"""The page that segments in the browser: its files, and what serves them."""
