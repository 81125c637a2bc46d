"""Read source files as blocks of events. Each format of `longplay prepare` is one module here."""
