"""Process group, collectives, watchdog and memory."""
