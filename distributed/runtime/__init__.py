"""Process group, collectives, watchdog, memory."""
