"""The entry point of `longplay`. It imports little before it handles Ctrl-C."""

from longplay.launch.console.importing import exit_on_interrupt


def main() -> int:
    """Run the command in `sys.argv` and return its exit code."""
    with exit_on_interrupt():
        from longplay.launch.cli import main as run
    return run()
