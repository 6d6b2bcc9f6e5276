"""The page of tools/watch.py: what a run's folder says of it (state), and how that is shown (page.html)."""
