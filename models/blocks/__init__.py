"""The built-in encoders. Each module defines one block and registers it; `layers` has the shared layers."""
