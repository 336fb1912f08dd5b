"""The machine a process runs on: its cores and its memory. Nothing here knows about models."""
