"""The encoders: each module holds one block and registers it in `ENCODERS`; `layers` holds shared parts."""
