"""The program `stepalign`: `main` runs a command and turns every error into one line and an exit status."""
