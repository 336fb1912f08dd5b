"""The machine and the operating system: files, cores, memory, threads. Nothing here knows about models."""
